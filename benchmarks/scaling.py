"""How well several processes share the work: P processes of one thread against one of P threads, side by side.

    python benchmarks/scaling.py --processes 2 --hidden-size 512 --hidden-layers 3 --batch-size 20 --seconds 2.57

Both train with the same number of utterances per update, through benchmark.py, in turns, so that a noisy machine disturbs both.
Efficiency is the speed of the processes over that of the threads; 1 is what ideal sharing of these cores would give.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def speed(processes: int, threads: int, batch_size: int, flags: list[str]) -> float:
    """Utterances per second of a training on so many processes."""
    launcher = ["-m", "multiproc", "--nproc", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "benchmark.py", "--json", "--batch-size", str(batch_size), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["throughput"]["utterances_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=20, help="utterances of all processes together")
    parser.add_argument("--rounds", type=int, default=3)
    args, flags = parser.parse_known_args()
    flags += ["--dry-runs", "1", "--steps", "2", "--runs", "2"]
    ratios = []
    for number in range(1, args.rounds + 1):
        threads = speed(1, args.processes, args.batch_size, flags)
        processes = speed(args.processes, 1, args.batch_size // args.processes, flags)
        single = speed(1, 1, args.batch_size, flags)
        ratios.append(processes / threads)
        print(
            f"round {number}: 1 process x 1 thread {single:.2f} utterances/s, 1 x {args.processes} {threads:.2f}, "
            f"{args.processes} x 1 {processes:.2f}: processes over threads {ratios[-1]:.2f}, over a single thread "
            f"{processes / single:.2f}",
            flush=True,
        )
    print(f"median of processes over threads: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
