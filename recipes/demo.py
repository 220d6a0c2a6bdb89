"""The demo behind `make demo`: speech without a download, a model trained on it, its error rate, one transcript.

    python recipes/demo.py

Everything goes to demo/; what is there already is used again. The commands it runs are printed at the end.
"""

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path("demo")
CORPUS, MODEL, TRAINED = DEMO / "corpus", DEMO / "model.pth", DEMO / "trained"
SPEAK = f"python data/synthetic.py --target-dir {CORPUS} --utterances 2000 --seed 1"
TRAIN = (
    f"python train.py --train-manifest {CORPUS}/train_manifest.csv --val-manifest {CORPUS}/val_manifest.csv "
    f"--model-path {MODEL} --rnn-type lstm --hidden-size 256 --hidden-layers 2 --precision bf16 --batch-size 16 "
    "--optimizer adamw --lr 2e-3 --lr-schedule onecycle --max-norm 100 --epochs 6 --num-workers 1"
)
TEST = f"python test.py --model-path {MODEL} --test-manifest {CORPUS}/val_manifest.csv"


def run(command: str, capture: bool = False) -> str:
    """Run a command as it would be typed in the root, with this Python; its failure ends the demo with its status."""
    print(f"\n$ {command}", flush=True)
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, stdout=subprocess.PIPE if capture else None, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def main() -> None:
    started = time.monotonic()
    run(SPEAK)
    os.chdir(ROOT)
    if TRAINED.exists() and TRAINED.read_text() == TRAIN:
        print(f"\nusing {MODEL}, which this command trained before:\n$ {TRAIN}")
    else:
        run(TRAIN)
        TRAINED.write_text(TRAIN)  # last, so that a training cut short is begun again
    run(TEST)
    with open(CORPUS / "val_manifest.csv", newline="", encoding="utf-8") as file:
        audio, text = list(csv.reader(file))[-1]
    transcribe = f"python transcribe.py --model-path {MODEL} --audio-path {shlex.quote(str(CORPUS / audio))}"
    answer = json.loads(run(transcribe, capture=True))
    print(f"reference:  {(CORPUS / text).read_text(encoding='utf-8').strip()}")
    print(f"hypothesis: {answer['output'][0]['transcription']}")
    print(f"\nDone in {time.monotonic() - started:.0f} s. Now by hand (after `. .venv/bin/activate`):\n")
    print("\n".join((TRAIN, TEST, transcribe)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
