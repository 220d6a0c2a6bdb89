"""A tiny corpus of beeps that a tiny network learns in seconds, and the commands on it as people type them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
TONES = {"A": 400, "B": 900, "C": 1600}  # Hz: each letter is a beep
DATA = "--train-manifest train.csv --val-manifest val.csv --labels-path labels.json".split()
SMALL = "--hidden-size 32 --hidden-layers 1 --batch-size 8 --num-workers 1 --optimizer adamw --lr 0.01".split()


def write_utterance(folder: Path, name: str, text: str) -> str:
    """Beeps for letters, silence for spaces; returns the manifest's line."""
    rng = np.random.default_rng(len(text))
    parts = [rng.normal(0, 0.001, 1600)]
    for letter in text:
        t = np.arange(2400) / 16000
        beep = 0.3 * np.sin(2 * np.pi * TONES[letter] * t) if letter in TONES else np.zeros(3200)
        parts += [beep, np.zeros(800)]
    wave = np.concatenate(parts)
    soundfile.write(folder / f"{name}.wav", wave + rng.normal(0, 0.001, len(wave)), 16000)
    (folder / f"{name}.txt").write_text(text + "\n")
    return f"{name}.wav,{name}.txt\n"


def make_corpus(folder: Path) -> Path:
    """A folder with labels, a training manifest of 64 utterances and a validation manifest of 8."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    words = ["".join(rng.choice(list("ABC"), rng.integers(1, 4))) for _ in range(200)]
    lines = [write_utterance(folder, f"u{i}", " ".join(words[2 * i : 2 * i + 2])) for i in range(72)]
    (folder / "train.csv").write_text("".join(lines[:64]))
    (folder / "val.csv").write_text("".join(lines[64:]))
    (folder / "labels.json").write_text('["_", "A", "B", "C", " "]')
    return folder


def run(script: str, *args, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False, **kwargs)


def train(corpus: Path, *args, **kwargs) -> subprocess.CompletedProcess:
    return run("train.py", *DATA, *SMALL, *args, cwd=corpus, **kwargs)


def hear_signals() -> None:
    """For a child to be interrupted: a shell's background job, as this may be one, ignores Ctrl-C and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(script: str, *args, cwd: Path, command: list[str] | None = None, **kwargs) -> subprocess.Popen:
    """A command with a process group of its own, as a terminal gives it; its output is to be read."""
    return subprocess.Popen(
        command or [sys.executable, str(ROOT / script), *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        **kwargs,
    )
