"""Find out whether training fits on this machine at a batch and model size, and how fast it goes.

    python benchmark.py --batch-size 32 --seconds 15
    python benchmark.py --batch-size 8 --seconds 5 --steps 3 --runs 2        a quick look
    python benchmark.py --cuda --precision bf16 --find-batch-size            the largest batch that fits

Synthetic utterances go through train_step, the function that train.py calls, in a process of their own: where that needs more
memory than there is, the answer is no, and the exit status 1. Ctrl-C reports what was measured until then. Data workers are not
part of this: a training on a CPU needs their memory besides.
"""

import argparse
import json
import os
import sys

from asr import benchmarking, options
from config import AudioConfig
from data.command_line import STATUS_FAILED, STATUS_INTERRUPTED, UsageError, argument_parser, number, progress_bar, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    work = parser.add_argument_group("what is measured")
    work.add_argument("--batch-size", type=number(int, 1), default=32, help="utterances per batch, of each process")
    work.add_argument("--seconds", type=number(float, above=0), default=15.0, help="length of an utterance")
    work.add_argument("--dry-runs", type=number(int, 0), default=2, help="untimed runs before those; two updates at the least")
    work.add_argument("--runs", type=number(int, 1), default=5, help="runs that are timed")
    work.add_argument(
        "--num-samples",
        type=number(int, 1),
        default=1024,
        help="utterances in a run, of all processes, rounded up to whole batches",
    )
    work.add_argument("--steps", type=number(int, 1), metavar="N", help="steps in a run, instead of --num-samples")
    work.add_argument("--labels-path", default="labels.json", help="JSON list of output labels, blank _ first")
    work.add_argument("--cuda", action="store_true", help="train on CUDA")
    work.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="AdamW keeps twice as much state")
    work.add_argument("--json", action="store_true", help="print one JSON object instead")
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--memory-limit", type=number(float, above=0), metavar="GIB", help="count as too large what needs more, on this device"
    )
    memory.add_argument(
        "--find-batch-size",
        action="store_true",
        help="find the largest batch that fits, by trials of two steps that begin at --batch-size",
    )
    memory.add_argument("--max-batch-size", type=number(int, 1), default=1024, help="the largest to try")
    options.add_audio_options(parser)
    options.add_model_options(parser)
    options.add_training_precision_options(parser)
    # Without defaults of their own: the flags that they stand for have them.
    aliases = parser.add_argument_group("other names of these", argument_default=argparse.SUPPRESS)
    aliases.add_argument("--mixed-precision", action="store_true", default=False, help="--opt-level O1")
    aliases.add_argument("--static-loss-scale", dest="loss_scale", metavar="X", help="--loss-scale X")
    aliases.add_argument(
        "--dynamic-loss-scale", dest="loss_scale", action="store_const", const="dynamic", help="--loss-scale dynamic"
    )
    options.add_process_options(parser)
    args = parser.parse_args(argv)
    if args.mixed_precision:
        for flag, value in (("--opt-level", args.opt_level), ("--precision", args.precision)):
            if value not in (None, "O1", "fp16", "bf16"):
                parser.error(f"--mixed-precision and {flag} {value} contradict each other; leave one of them out")
        args.opt_level = "O1"
    del args.mixed_precision  # what it stands for says it
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: answer(args))


def answer(args: argparse.Namespace) -> int:
    """Returns: the exit status. Raises: UsageError for flags that cannot be meant."""
    audio = options.config_from(AudioConfig, args)
    if int(args.seconds * audio.sample_rate) < audio.window_samples:
        raise UsageError(f"--seconds {args.seconds:g}: expected at least a window, {audio.window_size:g} seconds")
    return find_batch_size(args) if args.find_batch_size else benchmark(args)


def measure(tell: benchmarking.Tell, args: argparse.Namespace) -> None:
    from asr import step_times  # torch comes with it, which only the process that trains needs

    step_times.measure(tell, args)


def benchmark(args: argparse.Namespace) -> int:
    """Measure one batch size and say what came of it. Returns: the exit status."""
    with progress_bar(total=0, desc="benchmark", unit="step") as bar:
        report = benchmarking.run_trial(measure, args, bar)
    if report.setting and not report.setting.main:
        if report.refusal:  # the main process may only see that this one has gone
            print(benchmarking.verdict(report), file=sys.stderr)
    elif args.json:
        print(json.dumps(benchmarking.as_json(report), indent=2))
    else:
        print(benchmarking.verdict(report))
        if report.setting:
            print(benchmarking.describe(report))
    return STATUS_INTERRUPTED if report.interrupted else STATUS_FAILED if report.refusal else 0


def find_batch_size(args: argparse.Namespace) -> int:
    """Try batch sizes, each in a process of its own, tell each, then the largest that fits. Returns: the exit status."""
    if args.world_size > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("--find-batch-size: of one process; start it alone, each of several can have as large a batch")
    reports: list[benchmarking.Report] = []

    def fits(size: int) -> bool:
        one = argparse.Namespace(**vars(args) | {"batch_size": size, "dry_runs": 0, "runs": 0})
        with progress_bar(total=0, desc=f"batch size {size}", unit="step") as bar:
            report = benchmarking.run_trial(measure, one, bar)
        if report.interrupted:
            raise KeyboardInterrupt
        reports.append(report)
        if not args.json:
            print(benchmarking.trial_line(report), flush=True)
        return report.fits

    interrupted = False
    try:
        benchmarking.largest_that_fits(fits, args.batch_size, args.max_batch_size)
    except KeyboardInterrupt:
        interrupted = True
    if args.json:
        print(json.dumps(benchmarking.search_as_json(args, reports, interrupted), indent=2))
    else:
        print(benchmarking.search_verdict(args, reports, interrupted))
    fitting = any(report.fits for report in reports)
    return STATUS_INTERRUPTED if interrupted else 0 if fitting else STATUS_FAILED


if __name__ == "__main__":
    raise SystemExit(main())
