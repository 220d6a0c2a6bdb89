"""How much faster a folder of recordings is transcribed than by a straightforward loop, in one run, in turns.

    python benchmarks/inference.py --audio-path ../shared/data/an4/test [--rounds 3] [--model-path models/deepspeech_final.pth]

The loop takes file after file: load, spectrogram, network in float32, decoder. Against it: transcribe.py's way, in float32 and
with --int8. Wall time, after one recording to warm up; all of them on as many threads as torch takes. Without --model-path, the
default network (5 x 800, bidirectional GRU) with random weights. Also told: in how many recordings the text differs from the
loop's.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from asr.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from asr.recognizer import Recognizer  # noqa: E402
from asr.runtime import Runtime  # noqa: E402
from asr.transcribing import transcribe_recordings  # noqa: E402
from config import AudioConfig, DecoderConfig, ModelConfig  # noqa: E402
from data.audio import load_audio  # noqa: E402
from data.features import spectrogram  # noqa: E402
from data.labels import Labels  # noqa: E402
from data.recordings import Recording, find_recordings  # noqa: E402
from data.samplers import BatchLimit  # noqa: E402
from model import DeepSpeech  # noqa: E402
from transcribe import BATCH_SECONDS  # noqa: E402


def write_random_model(path: Path) -> None:
    torch.manual_seed(0)
    labels, config = Labels.read(ROOT / "labels.json"), ModelConfig()
    save_checkpoint(Checkpoint(config, AudioConfig(), labels, DeepSpeech(config).state_dict()), path)


@torch.inference_mode()
def loop(recognizer: Recognizer, recordings: list[Recording]) -> list[str]:
    texts = []
    for recording in recordings:
        spect = spectrogram(load_audio(recording.source, recognizer.audio.sample_rate), recognizer.audio)
        logits, lens = recognizer.model(spect[None, None], torch.tensor([spect.shape[1]]))
        texts.append(recognizer.decoder.decode(logits.log_softmax(-1), lens)[0][0].text)
    return texts


def ours(recognizer: Recognizer, recordings: list[Recording]) -> list[str]:
    limit = BatchLimit.of(0, BATCH_SECONDS)
    return [outcome.transcript.text for outcome in transcribe_recordings(recognizer, recordings, limit, lambda _: None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio-path", nargs="+", required=True)
    parser.add_argument("--model-path")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    recordings = find_recordings(args.audio_path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.model_path or Path(folder) / "model.pth")
        if not args.model_path:
            write_random_model(path)
        plain, small = (Recognizer(path, DecoderConfig(), Runtime.choose(False), int8) for int8 in (False, True))
    ways = {"loop, float32": (loop, plain), "transcribe.py": (ours, plain), "transcribe.py --int8": (ours, small)}
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{torch.get_num_threads()} threads, {len(recordings)} recordings; load average {os.getloadavg()[0]:.1f}")
    seconds, texts = {name: [] for name in ways}, {}
    for way, recognizer in ways.values():
        way(recognizer, recordings[:1])
    for _ in range(args.rounds):
        for name, (way, recognizer) in ways.items():
            began = time.monotonic()
            texts[name] = way(recognizer, recordings)
            seconds[name].append(time.monotonic() - began)
    for name, times in seconds.items():
        ratios = [first / time_ for first, time_ in zip(seconds["loop, float32"], times, strict=True)]
        differ = sum(a != b for a, b in zip(texts["loop, float32"], texts[name], strict=True))
        print(f"{name:<22}{statistics.median(times):8.2f} s  {statistics.median(ratios):5.2f} x  text differs in {differ}")


if __name__ == "__main__":
    main()
