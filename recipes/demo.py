"""The demo behind `make demo`: speech without a download, a model trained on it, its error rate, one transcript.

    python recipes/demo.py

Everything goes to demo/ in the root; what is there already is used again. The commands it ran are printed at the end.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # run as a script, from whatever folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.command_line import argument_parser, number, run_script

ROOT = Path(__file__).resolve().parents[1]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("--utterances", type=number(int, 20), default=2000, help="size of the corpus")
    parser.add_argument("--epochs", type=number(int, 1), default=8, help="passes over it")
    return parser.parse_args(argv)


def demo(folder: Path, utterances: int, epochs: int) -> None:
    """Run the commands as one would type them in the root. Raises: ValueError if one of them fails."""
    os.chdir(ROOT)
    started = time.monotonic()
    corpus, model, trained = folder / "corpus", folder / "model.pth", folder / "trained"
    speak = command("data/synthetic.py", "--target-dir", corpus, "--utterances", utterances, "--seed", 1)
    train = command(
        *("train.py", "--train-manifest", corpus / "train_manifest.csv", "--val-manifest", corpus / "val_manifest.csv"),
        *("--model-path", model, "--rnn-type", "lstm", "--hidden-size", 256, "--hidden-layers", 2, "--batch-size", 16),
        *("--precision", "bf16", "--optimizer", "adamw", "--lr", "2e-3", "--lr-schedule", "onecycle", "--max-norm", 100),
        *("--epochs", epochs, "--num-workers", 1),
    )
    test = command("test.py", "--model-path", model, "--test-manifest", corpus / "val_manifest.csv")
    run(speak)
    if model.exists() and trained.exists() and trained.read_text() == train:
        print(f"\nusing {model}, made before by:\n$ {train}")
    else:
        run(train)
        trained.write_text(train)  # last, so that a training cut short is begun again
    run(test)
    with open(corpus / "val_manifest.csv", newline="", encoding="utf-8") as file:
        audio, text = list(csv.reader(file))[-1]
    transcribe = command("transcribe.py", "--model-path", model, "--audio-path", corpus / audio)
    answer = json.loads(run(transcribe, capture=True))
    print(f"reference:  {(corpus / text).read_text(encoding='utf-8').strip()}")
    print(f"hypothesis: {answer['output'][0]['transcription']}")
    print(f"\nDone in {time.monotonic() - started:.0f} s. Now by hand, after `. .venv/bin/activate`:\n")
    print("\n".join((train, test, transcribe)))


def command(script: str, *flags: object) -> str:
    return shlex.join(["python", script, *map(str, flags)])


def run(line: str, capture: bool = False) -> str:
    """Run a command with this Python and return what it printed, if captured.

    Raises: ValueError if it failed; what went wrong it has said itself.
    """
    print(f"\n$ {line}", flush=True)
    words = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        raise ValueError(f"status {done.returncode} of: {line}")
    return done.stdout or ""


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: demo(args.folder, args.utterances, args.epochs))


if __name__ == "__main__":
    raise SystemExit(main())
