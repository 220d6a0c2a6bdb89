"""Run a training script as several processes, on PyTorch's own elastic launcher.

    python -m multiproc train.py ARGS... --cuda [--device-ids 0,1]    one process per CUDA device, or per listed one
    python -m multiproc --nproc 2 train.py ARGS...                    two processes on the CPU

The flags below may stand anywhere before a --; everything else goes to the script as it is. Rank 0 writes to the terminal,
every other rank to its own file. If one process dies the others are stopped, and the exit status is not 0. For several
machines, type the same command on each, with --nnodes, --rdzv-endpoint and its own --node-rank.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

from data.command_line import UsageError, argument_parser, number, run_script
from data.processes import die_with_parent

AS_RANK = "--as-rank"  # how multiproc calls itself in each process, which then becomes the script
LAUNCHER = "MULTIPROC_LAUNCHER"  # environment variable: its process number


def build_parser() -> argparse.ArgumentParser:
    parser = argument_parser(__doc__)
    parser.usage = "python -m multiproc [flags] SCRIPT [the script's arguments, more flags]"
    count, at_least_0 = number(int, 1), number(int, 0)
    parser.add_argument("--device-ids", type=device_list, metavar="0,1", help="CUDA devices to use, instead of all")
    parser.add_argument("--nproc", type=count, metavar="N", help="run N processes on the CPU instead")
    parser.add_argument("--max-restarts", type=at_least_0, default=0, metavar="N", help="times to start again after a death")
    parser.add_argument("--grace", type=count, default=60, metavar="SECONDS", help="to finish in after Ctrl-C or SIGTERM")
    parser.add_argument("--rank-logs", default="models/rank-logs", metavar="DIR", help="gets a folder per run, a file per rank")
    parser.add_argument("--nnodes", type=count, default=1, metavar="N", help="machines")
    parser.add_argument("--node-rank", type=at_least_0, metavar="I", help="which of them this one is, counted from 0")
    parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="machine 0 as the others reach it, and a free port there")
    return parser


def device_list(text: str) -> list[str]:
    ids = text.split(",")
    if not all(word.isdecimal() for word in ids) or len(set(ids)) < len(ids):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different device numbers, such as 0,1")
    return ids


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Separate our flags, wherever they stand, from the script and its arguments, whose order and spelling are kept."""
    parser = build_parser()
    flags = {"--" + name.replace("_", "-") for name in vars(parser.parse_args([]))}
    ours, command = [], []
    words = list(reversed(argv))
    while words:
        word = words.pop()
        if word == "--":
            command += [word, *reversed(words)]
            break
        if word in ("-h", "--help") and not command:
            ours.append(word)
        elif word.partition("=")[0] not in flags:
            command.append(word)
        else:
            ours.append(word)
            if "=" not in word and words:
                ours.append(words.pop())
    return parser.parse_args(ours), command


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [AS_RANK]:
        become(argv[1:])
    args, command = parse_arguments(argv)
    return run_script(lambda: run(args, command))


def become(command: list[str]) -> None:
    """Turn this process, which the launcher has started, into the script: same process, same signals, nothing between."""
    die_with_parent(int(os.environ[LAUNCHER]))
    if os.environ.get("MULTIPROC_LOG"):
        os.dup2(sys.stdout.fileno(), sys.stderr.fileno())  # one log in the order it was written
    os.execv(sys.executable, [sys.executable, "-u", *command])


def run(args: argparse.Namespace, command: list[str]) -> int:
    """Start the script on every rank and wait for it. Returns: the exit status. Raises: UsageError."""
    check(args, command)
    processes = args.nproc or count_devices(args.device_ids, command)
    if args.nproc and "--cuda" in command:
        raise UsageError("--nproc: processes on the CPU, but the script is given --cuda; choose GPUs with --device-ids 0,1")
    # torchrun would give each process one thread, PyTorch by itself every core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # every address without a name would be a warning
    folder = Path(args.rank_logs) / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    if args.nnodes * processes > 1:
        who = "this machine's ranks write" if args.node_rank else "rank 0 writes here, the others"
        print(f"{who} to {folder}/rankN.log", file=sys.stderr)
    from asr.launch import launch  # torch comes with it, which --help and a mistyped flag need not wait for

    try:
        # Each process starts as this file, and becomes the script.
        return launch(args, ["-u", os.path.abspath(__file__), AS_RANK, *command], processes, folder)
    finally:
        with contextlib.suppress(OSError):  # there are logs in it, as a rule
            folder.rmdir()


def check(args: argparse.Namespace, command: list[str]) -> None:
    if not command or command[0].startswith("-"):
        raise UsageError(f"{command[0] if command else 'no script'}: expected a Python script such as train.py (see --help)")
    if not os.path.isfile(command[0]):
        raise UsageError(f"{command[0]}: no such file; expected a Python script, such as train.py")
    if args.nproc and args.device_ids:
        raise UsageError("--nproc and --device-ids: expected one of them; processes run either on the CPU or one on each GPU")
    if args.nnodes > 1 and (args.node_rank is None or args.rdzv_endpoint is None):
        raise UsageError("--nnodes: several machines also need --node-rank and --rdzv-endpoint")
    if (args.node_rank or 0) >= args.nnodes:
        raise UsageError(f"--node-rank {args.node_rank}: expected less than --nnodes, {args.nnodes}; machines count from 0")


def visible_devices(device_ids: list[str]) -> list[str]:
    """What a scheduler calls the devices of these numbers: theirs count within what it has given us."""
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not given:
        return device_ids
    if max(map(int, device_ids)) >= len(given):
        raise UsageError(f"--device-ids {','.join(device_ids)}: CUDA_VISIBLE_DEVICES leaves {len(given)}, counted from 0")
    return [given[int(number)] for number in device_ids]


def count_devices(device_ids: list[str] | None, command: list[str]) -> int:
    """How many GPUs there are for us; the parent must not touch them, so the driver is asked, not CUDA."""
    if device_ids:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible_devices(device_ids))
    import torch

    devices = torch.cuda.device_count()
    if devices < len(device_ids or "1"):
        wanted = f"--device-ids {','.join(device_ids)}: " if device_ids else ""
        raise UsageError(f"{wanted}torch {torch.__version__} can use {devices} CUDA devices; to run on the CPU, pass --nproc N")
    if "--cuda" not in command:
        raise UsageError(f"{command[0]} is not given --cuda, and would run on the CPU in each process; add it, or --nproc N")
    return devices


if __name__ == "__main__":
    raise SystemExit(main())
