"""What becomes of long recordings: the errors of utterances joined to one, and the memory that three hours take.

    python benchmarks/long_recordings.py --model-path models/an4.pth --test-manifest an4/test_manifest.csv [--minutes 10]
    python benchmarks/long_recordings.py --hours 3 [--int8]

Joined: utterances in random order, some twice if there are too few, with 0.3 to 1 s between them of nothing at all or of
noise (--noise, its standard deviation; full scale is 1), in one recording and one by one. Memory: the most that `transcribe.py`
ever holds (by the system's count), with the default network and random weights, on speech and pauses of that length.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import soundfile
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from asr.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from asr.evaluation import Errors, count_errors  # noqa: E402
from config import AudioConfig, ModelConfig  # noqa: E402
from data.audio import load_audio  # noqa: E402
from data.labels import Labels  # noqa: E402
from data.manifest import read_manifest, read_transcript  # noqa: E402
from model import DeepSpeech  # noqa: E402

RATE = 16000


def texts_of(folder: Path, *arguments: object) -> list[str]:
    """What transcribe.py writes, in the order of its recordings."""
    command = [sys.executable, str(ROOT / "transcribe.py"), "--format", "jsonl", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line)["output"][0]["transcription"] for line in done.stdout.splitlines()]


def joined(args: argparse.Namespace, folder: Path) -> None:
    rng = np.random.default_rng(args.seed)
    known, waves, texts, length = list(read_manifest(args.test_manifest)), [], [], 0
    while length < 60 * RATE * args.minutes:
        for utterance in rng.permutation(np.array(known, dtype=object)):
            pause = rng.normal(0, args.noise, int(rng.uniform(0.3, 1.0) * RATE)).astype(np.float32)
            wave = load_audio(utterance.audio, RATE)
            soundfile.write(folder / f"{len(texts):04}.wav", wave, RATE)
            texts.append(read_transcript(utterance))
            waves += [wave, pause]
            length += len(wave) + len(pause)
            if length >= 60 * RATE * args.minutes:
                break
    soundfile.write(folder / "joined.wav", np.concatenate(waves), RATE)
    model = ["--model-path", Path(args.model_path).resolve(), "--threads", 1]
    singles = texts_of(folder, *model, "--audio-path", *(f"{i:04}.wav" for i in range(len(texts))))
    (whole,) = texts_of(folder, *model, "--audio-path", "joined.wav")
    apart, together = count_errors(texts, singles), Errors.between(" ".join(texts), whole)
    print(f"{len(texts)} utterances, {length / RATE / 60:.1f} minutes, pauses of noise {args.noise:g}")
    print(f"one by one  WER {apart.wer:.2f}  CER {apart.cer:.2f}")
    print(f"joined      WER {together.wer:.2f}  CER {together.cer:.2f}  ({together.wer - apart.wer:+.2f})")


def memory(args: argparse.Namespace, folder: Path) -> None:
    labels, config = Labels.read(ROOT / "labels.json"), ModelConfig()
    save_checkpoint(Checkpoint(config, AudioConfig(), labels, DeepSpeech(config).state_dict()), folder / "model.pth")
    rng = np.random.default_rng(args.seed)
    with soundfile.SoundFile(folder / "long.flac", "w", RATE, 1) as file:
        for _ in range(round(3600 * args.hours / 10)):  # noise that comes and goes, with a pause of 0.8 s in every 10
            loudness = 0.1 * np.abs(np.sin(np.linspace(0, 40, 10 * RATE))) + 0.001
            loudness[: RATE * 8 // 10] = 0.0005
            file.write((loudness * rng.normal(0, 1, 10 * RATE)).astype(np.float32))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    began = time.monotonic()
    texts_of(folder, "--model-path", "model.pth", "--audio-path", "long.flac", *(["--int8"] if args.int8 else []))
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{args.hours:g} hours{', int8' if args.int8 else ''}: at most {used.ru_maxrss / 1024:.0f} MiB; "
        f"{seconds:.0f} s ({used.ru_utime - before:.0f} s of CPU), real-time factor {seconds / 3600 / args.hours:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path")
    parser.add_argument("--test-manifest")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--int8", action="store_true")
    args = parser.parse_args()
    if (args.hours is None) == (args.model_path is None):
        parser.error("expected --hours, or --model-path and --test-manifest")
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        (memory if args.hours else joined)(args, Path(folder))


if __name__ == "__main__":
    main()
