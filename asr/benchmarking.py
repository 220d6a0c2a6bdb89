"""Whether training fits, and how fast it goes: trials in processes of their own, and reports of them.

Nothing here imports torch: the process that asks stays small, and leaves the memory to the one that trains.
"""

import argparse
import contextlib
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from asr.watched import RESERVE, TooLarge, available_memory, watched

GIB = 2**30
OPTIMIZER = "optimizer"  # the part that has no forward and backward


@dataclass(frozen=True)
class Setting:
    """What is measured, known before the first step."""

    main: bool  # of several processes, the one that tells
    processes: int
    device: str
    software: str
    device_memory: int | None  # bytes that this process can have of it; None on a CPU
    precision: str
    parameters: int
    untimed_steps: int
    timed_steps: int  # of all runs


@dataclass(frozen=True)
class Step:
    """One step, and the most memory until then."""

    run: int  # counted from 1; 0: untimed
    utterances: int  # of all processes
    seconds: dict[tuple[str, str], float]  # by part and direction; they add up to the step
    skipped: bool  # no update, because of a gradient that is not finite
    peak_memory: int  # bytes


Tell = Callable[[Setting | Step], None]


@dataclass
class Report:
    """What a trial has told so far, which is all there is to say after Ctrl-C."""

    args: argparse.Namespace
    available: int | None  # bytes of memory that training can have, as far as known
    setting: Setting | None = None
    steps: list[Step] = field(default_factory=list)
    refusal: TooLarge | None = None
    interrupted: bool = False

    @property
    def fits(self) -> bool | None:
        """None: not known. An update needs more memory than the first step, which has no optimizer state yet."""
        if self.refusal:
            return False
        return True if sum(not step.skipped for step in self.steps) > 1 else None

    @property
    def peak(self) -> int:
        return self.steps[-1].peak_memory if self.steps else 0

    @property
    def counted(self) -> list[Step]:
        """The steps that speak for the speed: the timed ones, or if there are none yet, the untimed without the first."""
        return [step for step in self.steps if step.run] or self.steps[1:]

    @property
    def is_warm_up(self) -> bool:
        return not any(step.run for step in self.steps)

    def split(self) -> dict[str, dict[str, float]]:
        """Seconds of an average step by part and direction."""
        parts: dict[str, dict[str, float]] = {}
        for part, direction in self.counted[0].seconds if self.counted else ():
            seconds = [step.seconds[part, direction] for step in self.counted]
            parts.setdefault(part, {})[direction] = sum(seconds) / len(seconds)
        return parts

    def step_seconds(self) -> list[float]:
        return [sum(step.seconds.values()) for step in self.counted]

    def utterances_per_second(self) -> float:
        return sum(step.utterances for step in self.counted) / sum(self.step_seconds())

    def run_speeds(self) -> list[float]:
        """Utterances per second of each finished run."""
        per_run = self.setting.timed_steps // self.args.runs if self.args.runs else 0
        runs = [[step for step in self.steps if step.run == run] for run in range(1, self.args.runs + 1)]
        return [
            sum(step.utterances for step in run) / sum(sum(step.seconds.values()) for step in run)
            for run in runs
            if len(run) == per_run
        ]


def run_trial(measure: Callable[[Tell, argparse.Namespace], None], args: argparse.Namespace, bar: tqdm) -> Report:
    """Train as the flags say by `measure`, in a process of its own. Raises: UsageError, RuntimeError with what is wrong."""
    limit = None if args.memory_limit is None else int(args.memory_limit * GIB)
    room = available_memory()
    free = [bytes_ for bytes_ in (limit, None if room is None else max(0, room - RESERVE)) if bytes_ is not None]
    report = Report(args, available=None if args.cuda or not free else min(free))
    try:
        with contextlib.closing(watched(measure, args, None if args.cuda else limit)) as told:
            for news in told:
                _take(report, news, bar)
        if limit is not None and report.peak > limit:  # between two looks of the watch
            raise TooLarge(limit, "--memory-limit")
    except TooLarge as refusal:
        report.refusal = refusal
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _take(report: Report, news: Setting | Step, bar: tqdm) -> None:
    if report.setting is None:
        report.setting = news
        report.available = news.device_memory or report.available
        bar.reset(total=news.untimed_steps + news.timed_steps)
        return
    report.steps.append(news)
    if report.fits:
        bar.set_postfix_str(
            f"{'warming up' if report.is_warm_up else f'run {news.run}/{report.args.runs}'}, it fits: {gib(report.peak)} GiB, "
            f"{report.utterances_per_second():.3g} utterances/s",
            refresh=False,
        )
    bar.update()


def largest_that_fits(fits: Callable[[int], bool], start: int, at_most: int) -> int:
    """The largest number up to `at_most` that fits, 0 if none does: doubled from `start` until one does not, then bisected."""
    good, bad, size = 0, at_most + 1, min(start, at_most)
    while bad - good > 1:
        if fits(size):
            good = size
        else:
            bad = size
        size = min(2 * good, at_most) if bad > at_most else (good + bad) // 2
    return good


def gib(size: int) -> str:
    return f"{size / GIB:.{2 if size < 10 * GIB else 1}f}"


def verdict(report: Report) -> str:
    """The answer to the first question, in a line."""
    if report.fits is None:
        return "Training fits: unknown, interrupted before its second update"
    if report.fits:
        room = f" of {gib(report.available)}" if report.available else ""
        return f"Training fits: yes, peak memory {gib(report.peak)} GiB{room}"
    args = report.args
    return f"Training fits: no, batch size {args.batch_size} of {args.seconds:g} s, {_network(args)} {_need(report)}"


def _need(report: Report) -> str:
    """What is known of a trial that needed too much."""
    held, how = report.refusal.held or report.available, report.refusal.how
    need = f"needs more than {gib(held)} GiB" if held else "needs more memory than there is"
    return f"{need} ({how})" if how else need


def _network(args: argparse.Namespace) -> str:
    return f"{args.rnn_type} {args.hidden_size} x {args.hidden_layers}{'' if args.bidirectional else ' unidirectional'}"


def describe(report: Report) -> str:
    """The report for a person, without its verdict."""
    args, setting = report.args, report.setting
    lines = [
        f"batch of {args.batch_size} x {args.seconds:g} s, {_network(args)}, {setting.parameters:,} parameters, "
        f"{setting.precision}, {args.optimizer}",
        f"{f'{setting.processes} x ' if setting.processes > 1 else ''}{setting.device}; {setting.software}",
    ]
    if report.fits and report.counted:
        lines += ["", *_speed(report), "", *_table(report)]
    return "\n".join(lines)


def _speed(report: Report) -> list[str]:
    speed, seconds, runs = report.utterances_per_second(), report.step_seconds(), report.run_speeds()
    spread = f"; by run {min(runs):.4g} to {max(runs):.4g}" if len(runs) > 1 else ""
    lines = [
        f"{speed:.4g} utterances/s, {speed * report.args.seconds:.4g} seconds of audio/s{spread}",
        f"step {sum(seconds) / len(seconds):.4g} s on average of {len(seconds)}, {min(seconds):.4g} to {max(seconds):.4g}",
    ]
    if report.is_warm_up:
        lines.append("interrupted before the first timed step: these are steps of the warm-up")
    elif report.interrupted:
        lines.append(f"interrupted: {len(seconds)} of {report.setting.timed_steps} timed steps")
    skipped = sum(step.skipped for step in report.counted)
    if skipped:
        lines.append(f"{skipped} of these steps left out their update, for gradients that are not finite")
    return lines


def _table(report: Report) -> list[str]:
    """Seconds by part; they add up to the step."""
    parts = report.split()
    whole = sum(sum(directions.values()) for directions in parts.values())
    lines = [f"{'seconds of a step':<18}{'forward':>10}{'backward':>10}{'both':>10}{'share':>8}"]
    for part, directions in parts.items():
        total = sum(directions.values())
        both = " " * 20 if part == OPTIMIZER else "".join(f"{seconds:10.4f}" for seconds in directions.values())
        note = ", ".join(f"{name} {seconds:.4f}" for name, seconds in directions.items()) if part == OPTIMIZER else ""
        lines.append(f"{part:<18}{both}{total:10.4f}{total / whole:8.1%}{f'  ({note})' if note else ''}")
    lines.append(f"{'step':<38}{whole:10.4f}{1:8.1%}")
    if report.setting.processes > 1:
        lines.append("clipping includes adding up the gradients of all processes, and waiting for them")
    return lines


def as_json(report: Report) -> dict[str, object]:
    """The report for a program: bytes, seconds, utterances per second."""
    setting, seconds = report.setting, report.step_seconds()
    told: dict[str, object] = {
        "fits": report.fits,
        "verdict": verdict(report),
        "interrupted": report.interrupted,
        "hardware": hardware(report),
        "configuration": configuration(report),
        "memory": {
            "kind": "allocated on the device" if report.args.cuda else "resident set of the process",
            "peak_bytes": report.peak or None,
            "available_bytes": report.available,
        },
    }
    if seconds:
        speed = report.utterances_per_second()
        told["throughput"] = {
            "utterances_per_second": speed,
            "audio_seconds_per_second": speed * report.args.seconds,
            "step_seconds": sum(seconds) / len(seconds),
            "step_seconds_fastest": min(seconds),
            "step_seconds_slowest": max(seconds),
            "steps": len(seconds),
            "skipped_updates": sum(step.skipped for step in report.counted),
            "runs_utterances_per_second": report.run_speeds(),
            "is_warm_up": report.is_warm_up,
            "processes": setting.processes,
        }
        told["split_seconds"] = report.split()
    return told


def hardware(report: Report) -> dict[str, object]:
    setting = report.setting
    return {"device": setting.device, "software": setting.software, "processes": setting.processes} if setting else {}


def configuration(report: Report) -> dict[str, object]:
    """The flags, and what followed from them."""
    flags = {name: value for name, value in sorted(vars(report.args).items()) if name not in ("json", "find_batch_size")}
    setting = report.setting
    return flags | ({"parameters": setting.parameters, "numbers": setting.precision} if setting else {})


def trial_line(report: Report) -> str:
    """A trial of a search for the batch size."""
    size = f"batch size {report.args.batch_size}:"
    if not report.fits:
        return f"{size} too large, {_need(report)}"
    return f"{size} fits, peak memory {gib(report.peak)} GiB, a step {report.step_seconds()[-1]:.3g} s"


def search_verdict(args: argparse.Namespace, reports: list[Report], interrupted: bool) -> str:
    """The answer of a search for the batch size, in a line."""
    known = f"{args.seconds:g} s, {_network(args)}"
    best, worst = _bounds(reports)
    if best is None:
        if interrupted:
            return "Largest batch that fits: unknown, interrupted"
        return f"Largest batch that fits: none of {known}: even one utterance {_need(worst)}"
    size = best.args.batch_size
    room = f" of {gib(best.available)}" if best.available else ""
    answer = f"Largest batch that fits: {size} of {known}, peak memory {gib(best.peak)} GiB{room}"
    if interrupted:
        return f"{answer}; interrupted, {f'{worst.args.batch_size} does not fit' if worst else 'larger ones were not tried'}"
    return f"{answer}; larger ones were not tried (--max-batch-size)" if worst is None else answer


def search_as_json(args: argparse.Namespace, reports: list[Report], interrupted: bool) -> dict[str, object]:
    best, worst = _bounds(reports)
    last = reports[-1] if reports else Report(args, None)
    return {
        "largest_batch_size": best.args.batch_size if best else None,
        "smallest_too_large": worst.args.batch_size if worst else None,
        "verdict": search_verdict(args, reports, interrupted),
        "interrupted": interrupted,
        "hardware": hardware(last),
        "configuration": configuration(replace(last, args=args)),
        "trials": [
            {
                "batch_size": report.args.batch_size,
                "fits": report.fits,
                "peak_bytes": report.peak if report.fits else None,
                "available_bytes": report.available,
                "step_seconds": report.step_seconds()[-1] if report.fits else None,
            }
            for report in reports
        ],
    }


def _bounds(reports: list[Report]) -> tuple[Report | None, Report | None]:
    """The largest that fits and the smallest that does not."""
    fitting = [report for report in reports if report.fits]
    too_large = [report for report in reports if not report.fits]
    size = operator.attrgetter("args.batch_size")
    return max(fitting, key=size, default=None), min(too_large, key=size, default=None)
