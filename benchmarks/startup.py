"""How long `--help` keeps a person waiting, beside what importing torch alone would cost.

python benchmarks/startup.py [--rounds 5]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "train.py --help": ["train.py", "--help"],
    "test.py --help": ["test.py", "--help"],
    "transcribe.py --help": ["transcribe.py", "--help"],
    "import torch": ["-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="each command once in every round; medians are printed")
    args = parser.parse_args(argv)
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(args.rounds + 1)][1:]
    for name in COMMANDS:
        print(f"{name:<22} {statistics.median(times[name] for times in rounds):.2f} s")


if __name__ == "__main__":
    main()
