"""How far off the words of a forced alignment are, on speech whose word boundaries are known.

    python benchmarks/alignment.py --model-path models/deepspeech_final.pth
    python benchmarks/alignment.py --model-path demo/model.pth --material synthetic

an4: utterances of AN4's test part, cut where their level rises and falls and joined five at a time, with 0.2 to 1 s of their
own noise between, or with nothing; the cuts are the boundaries. Joined as they are, pauses and all, what counts is by how
much a word reaches beyond the join. Those cuts are made by loudness, which the aligner goes by too. synthetic: numbers and
letters in voices that the demo's model never heard; the synthesizer tells when it begins each word, whatever is heard.

Beside it, what the spikes alone would say: words meet where the space is written.
"""

import argparse
import ctypes
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the synthesizer forks

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from asr.alignment import Aligner  # noqa: E402
from asr.ctc_path import best_path  # noqa: E402
from asr.evaluation import acoustic_output  # noqa: E402
from asr.recognizer import Recognizer  # noqa: E402
from asr.runtime import Runtime  # noqa: E402
from config import DecoderConfig  # noqa: E402
from data.audio import load_audio  # noqa: E402
from data.dataset import Sample, collate  # noqa: E402
from data.features import spectrogram  # noqa: E402
from data.labels import normalize_transcript  # noqa: E402
from data.synthetic import Espeak, Line, plan, recording, say_all  # noqa: E402

RATE = 16000
STEP = 80  # samples over which the level is taken, 5 ms
JOINED = 5  # utterances
SYNTHETIC_SEED = 77  # not the demo's


@dataclass(frozen=True)
class Speech:
    """Words, and what is known of when they are said."""

    wave: np.ndarray  # (S,) float32 at RATE
    words: list[str]
    starts: dict[int, float]  # seconds, of some words
    ends: dict[int, float]
    joins: dict[int, float]  # seconds, of what lies between the word and the one before


def an4(folder: Path, gaps: tuple[float, float] | None, seed: int) -> Iterator[Speech]:
    """Utterances joined with so many seconds of noise between, or, without `gaps`, as they are."""
    rng = np.random.default_rng(seed)
    paths = sorted(folder.rglob("*.flac"))
    if len(paths) < JOINED:
        raise SystemExit(f"{folder}: {len(paths)} recordings; give AN4's test folder with --an4")
    rng.shuffle(paths)
    for first in range(0, len(paths) - JOINED + 1, JOINED):
        yield _joined(paths[first : first + JOINED], gaps, rng)


def _joined(paths: list[Path], gaps: tuple[float, float] | None, rng: np.random.Generator) -> Speech:
    pieces, words, starts, ends, joins, at = [], [], {}, {}, {}, 0
    for path in paths:
        wave = load_audio(path, RATE)
        begin, end, noise = _measured(wave)
        if gaps is not None:
            between = rng.uniform(*gaps) if pieces or gaps[1] else 0.3
            pieces += [_silence(noise, between, rng), wave[begin:end]]
            begin, end = at + len(pieces[-2]), at + len(pieces[-2]) + end - begin
        else:
            if pieces:
                joins[len(words)] = at / RATE
            pieces.append(wave)
            begin, end = at + begin, at + end
        said = normalize_transcript(path.with_suffix(".txt").read_text()).split()
        if gaps is not None:
            starts[len(words)], ends[len(words) + len(said) - 1] = begin / RATE, end / RATE
        words += said
        at = sum(map(len, pieces))
    if gaps is not None:
        pieces.append(_silence(noise, 0.3, rng))
    return Speech(np.concatenate(pieces), words, starts, ends, joins)


def _measured(wave: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Where speech begins and ends, in samples, and the quietest tenth of a second."""
    power = np.square(wave[: len(wave) // STEP * STEP].reshape(-1, STEP), dtype=np.float64).mean(1) + 1e-10
    noise, loud = np.percentile(10 * np.log10(power), [10, 95])
    heard = np.flatnonzero(10 * np.log10(power) > noise + 0.45 * (loud - noise))
    quietest = int(np.argmin(np.convolve(power, np.ones(20), "valid"))) * STEP
    return heard[0] * STEP, (heard[-1] + 1) * STEP, wave[quietest : quietest + 20 * STEP]


def _silence(noise: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """As much of a noise as wanted, from overlapping pieces of it."""
    count, piece = round(seconds * RATE), len(noise) // 2
    silence, window = np.zeros(count + piece, np.float32), np.sqrt(np.hanning(piece)).astype(np.float32)
    for at in range(0, count, piece // 2):
        begin = rng.integers(0, len(noise) - piece + 1)
        silence[at : at + piece] += noise[begin : begin + piece] * window
    return silence[:count]


class Event(ctypes.Structure):
    """eSpeak's espeak_EVENT."""

    _fields_ = (
        *(("type", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int)),
        *(
            ("audio_position", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p),
            ("id", ctypes.c_char * 8),
        ),
    )


class TellingEspeak(Espeak):
    """eSpeak, which also tells at which sample it begins each word."""

    WORD = 1

    def _collect(self, samples: int | None, count: int, events: int | None) -> int:
        event = ctypes.cast(events, ctypes.POINTER(Event))
        while event.contents.type:
            if event.contents.type == self.WORD:
                self._begins.append(event.contents.sample)
            event = ctypes.cast(ctypes.addressof(event.contents) + ctypes.sizeof(Event), ctypes.POINTER(Event))
        return super()._collect(samples, count, events)

    def speak(self, line: Line) -> bytes:
        """Returns: the words' samples as a line of JSON, then what it said."""
        self._begins: list[int] = []
        pcm = super().speak(line)
        return json.dumps(self._begins).encode() + b"\n" + pcm


def synthetic(utterances: int) -> Iterator[Speech]:
    espeak = TellingEspeak()
    lines = [line for line in plan(2 * utterances, SYNTHETIC_SEED, 0.5) if line.name.startswith("val")]
    for line, told in say_all(espeak, lines, 1):
        begins, _, pcm = told.partition(b"\n")
        sounding = np.flatnonzero(np.frombuffer(pcm, np.int16))
        begins = (np.array(json.loads(begins)) - sounding[0]) / espeak.sample_rate + line.lead
        words = line.text.split()
        if len(begins) != len(words):
            raise SystemExit(f"{line.text}: eSpeak told of {len(begins)} words")
        starts = dict(enumerate(begins.tolist())) | {0: line.lead}
        wave = recording(pcm, espeak.sample_rate, line, RATE).astype(np.float32) / 32768
        yield Speech(wave, words, starts, {len(words) - 1: line.lead + np.ptp(sounding) / espeak.sample_rate}, {})


def measure(title: str, speeches: Iterator[Speech], recognizer: Recognizer, aligner: Aligner) -> None:
    """Print the errors: ours, and those of the spikes alone."""
    ours, spikes = [], []
    for speech in speeches:
        spect, text = spectrogram(speech.wave, recognizer.audio), " ".join(speech.words)
        batch = collate([Sample(spect, torch.empty(0, dtype=torch.int64), 0)])
        log_probs, _ = acoustic_output(recognizer.model, batch, recognizer.runtime)
        loudness = spectrogram(speech.wave, replace(recognizer.audio, streaming_norm=False))
        alignment = aligner.align(log_probs[0].numpy(), loudness.numpy(), text, len(speech.wave) / RATE)
        ours += errors(speech, [(word.start, word.end) for word in alignment.words])
        spikes += errors(speech, spike_times(log_probs[0].numpy(), text, recognizer, aligner))
    (median, ninety), (spike_median, spike_ninety) = (np.percentile(np.abs(e), [50, 90]) * 1000 for e in (ours, spikes))
    print(f"{title:38} {len(ours):5} {median:6.0f} {ninety:6.0f} {spike_median:9.0f} {spike_ninety:6.0f}", flush=True)


def errors(speech: Speech, times: list[tuple[float, float]]) -> list[float]:
    """Seconds, early is negative; of a join, how far the words on both sides of it reach beyond."""
    found = [times[word][0] - start for word, start in speech.starts.items()]
    found += [times[word][1] - end for word, end in speech.ends.items()]
    return found + [max(times[word - 1][1] - join, join - times[word][0], 0) for word, join in speech.joins.items()]


def spike_times(log_probs: np.ndarray, text: str, recognizer: Recognizer, aligner: Aligner) -> list[tuple[float, float]]:
    """Words from space to space, the outer ones from their first character or to their last."""
    path = best_path(log_probs, recognizer.labels.encode(text))
    frames = np.searchsorted(path, 2 * np.arange(len(text)) + 1)
    seconds = aligner.output_times.first + aligner.output_times.period * frames
    meetings = [seconds[0], *(seconds[i] for i, character in enumerate(text) if character == " "), seconds[-1]]
    return list(pairwise(meetings))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--material", choices=("an4", "synthetic"), default="an4")
    parser.add_argument("--an4", type=Path, default=ROOT.parent / "shared" / "data" / "an4" / "test", help="folder of speech")
    parser.add_argument("--utterances", type=int, default=150, help="of synthetic speech")
    parser.add_argument("--spike-lead", type=float, help="seconds; default: as align.py's")
    args = parser.parse_args(argv)
    recognizer = Recognizer(args.model_path, DecoderConfig(), Runtime.choose(False))
    aligner = Aligner(recognizer.labels, recognizer.audio, recognizer.model.config, args.spike_lead)
    print(f"{date.today()}, {platform.machine()}; {args.model_path.name}; absolute errors in ms")
    print(f"{'':38} {'n':>5} {'median':>6} {'90 %':>6} {'by spikes':>9} {'90 %':>6}")
    if args.material == "synthetic":
        measure("synthetic, words", synthetic(args.utterances), recognizer, aligner)
    else:
        measure("AN4 utterances, 0.2 to 1 s between", an4(args.an4, (0.2, 1.0), 1), recognizer, aligner)
        measure("AN4 utterances, nothing between", an4(args.an4, (0.0, 0.0), 2), recognizer, aligner)
        measure("AN4 utterances as they are, beyond joins", an4(args.an4, None, 3), recognizer, aligner)
    print(f"spike lead: {aligner.spike_lead:.2f} s")


if __name__ == "__main__":
    main()
