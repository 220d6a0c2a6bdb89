"""How fast and how right the beam search is, on one core, beside other people's on the same emissions and language model.

    python benchmarks/decoding.py --others-python others/bin/python [--rounds 5] [--json]

pyctcdecode needs a numpy below 2, so that the others live in an environment of their own (flashlight-text, which Python 3.12 is
the last to have, may be missing; kenlm is compiled, which takes a minute and g++):

    python3 -m venv others
    others/bin/python -m pip install "numpy<2" setuptools pyctcdecode==0.5.0 kenlm
    others/bin/python -m pip install flashlight-text==0.0.7

Without --others-python only ours is measured. All decode the same log probabilities, the others in a process of their own, in
short rounds by turns, so that a busy machine slows all alike; what counts is seconds of the core, and medians of the ratios.
Weights of the language model are tuned on one half of the utterances and used on the other, both ways: each decoder tries as
many of them, at beam 128.

Natural logarithms. An unknown word costs pyctcdecode alpha * ln 10 * its offset, and us alpha * ln p of <unk> and a penalty.
"""

import argparse
import contextlib
import gzip
import itertools
import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from asr.evaluation import Errors, count_errors  # noqa: E402
from config import DecoderConfig  # noqa: E402
from data.command_line import number, progress_bar, run_script  # noqa: E402
from decoder import BeamDecoder  # noqa: E402
from decoding.language_model import load_language_model  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "decoding"
LABELS = ["_", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", " "]
BEAMS = (10, 128, 512)
TUNED_BEAM = 128
UNPRUNED = {"token_min_logp": -math.inf, "beam_prune_logp": -math.inf}
LEAST_PROBABILITY = 1e-8  # of the emissions, which have zeros

ALPHAS, BETAS = (0.2, 0.3, 0.4, 0.5, 0.7), (1.0, 2.5, 4.0)
UNK_PENALTIES, UNK_OFFSETS = (4.0, 6.0, 8.0, 11.0, 14.0), (-3.0, -5.0, -8.0, -11.0, -15.0)
FLASHLIGHT_ALPHAS, FLASHLIGHT_BETAS = np.arange(1, 16) / 5, (0.0, 1.0, 2.0, 3.0, 4.0)  # it has no unknown words


def grid(**values: Sequence[float]) -> list[dict[str, float]]:
    return [dict(zip(values, map(float, point), strict=True)) for point in itertools.product(*values.values())]


GRIDS = {  # as many points each
    "ours": grid(alpha=ALPHAS, beta=BETAS, unk_penalty=UNK_PENALTIES),
    "pyctcdecode": grid(alpha=ALPHAS, beta=BETAS, unk_score_offset=UNK_OFFSETS),
    "flashlight": grid(alpha=FLASHLIGHT_ALPHAS, beta=FLASHLIGHT_BETAS),
}
CTCDECODE = {  # CPU seconds, WER: of 40 other utterances (README of the emissions), where ctcdecode does not install
    "unpruned": (2.25, 5.6),
    "pyctcdecode": (0.307, 2.6),
}
AT_LEAST, AT_MOST = "at least", "at most"


@dataclass(frozen=True)
class Emissions:
    log_probs: list[np.ndarray]  # (L, C) of each utterance
    references: list[str]

    @property
    def frames(self) -> int:
        return sum(map(len, self.log_probs))

    def errors(self, texts: dict[int, str]) -> Errors:
        return count_errors((self.references[row] for row in texts), texts.values())


@dataclass(frozen=True)
class Way:
    """A decoder with what is told to it."""

    name: str
    program: str  # ours, pyctcdecode, flashlight
    lm: bool
    settings: dict = field(default_factory=dict)
    beams: Sequence[int] = BEAMS
    fixed: bool = False  # its weights are its defaults


@dataclass
class Result:
    model: str
    decoder: str
    beam: int
    seconds: float  # of a core, for all utterances: median
    frames_per_second: float
    wer: float
    cer: float
    times_ours: list[float] | None = None  # its time over ours in the same round: quartiles


# ---- what is measured ----


class Ours:
    def __init__(self, emissions: Emissions, model: object) -> None:
        self.emissions = emissions
        self.decoders = {lm: BeamDecoder(LABELS, DecoderConfig("beam"), model if lm else None) for lm in (False, True)}

    def decode(self, way: Way, beam: int, weights: dict, rows: Sequence[int]) -> tuple[float, list[str]]:
        decoder = self.decoders[way.lm].with_weights(beam_width=beam, **(weights | way.settings))
        log_probs, lens = padded([self.emissions.log_probs[row] for row in rows])
        before = core_seconds()
        found = decoder.decode(log_probs, lens)
        return core_seconds() - before, [hypotheses[0].text for hypotheses in found]


class Others:
    """The process that has the others, asked by lines of JSON."""

    def __init__(self, python: str, emissions: Emissions, arpa: Path, folder: Path) -> None:
        np.savez(
            folder / "input.npz",
            log_probs=np.concatenate(emissions.log_probs),
            lens=[len(row) for row in emissions.log_probs],
            labels=LABELS,
        )
        plain = folder / "model.arpa"
        plain.write_bytes(gzip.decompress(arpa.read_bytes()) if arpa.suffix == ".gz" else arpa.read_bytes())
        self.complaints = folder / "complaints"
        command = [python, str(Path(__file__).with_name("other_decoders.py")), str(folder / "input.npz"), str(plain)]
        with open(self.complaints, "w", encoding="utf-8") as complaints:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, bufsize=1
            )
        self.versions = self._answer()

    def decode(self, way: Way, beam: int, weights: dict, rows: Sequence[int]) -> tuple[float, list[str]]:
        settings = {"lm": way.lm, "beam": beam, "weights": weights, **way.settings}
        self.process.stdin.write(json.dumps({"decoder": way.program, "settings": settings, "rows": list(rows)}) + "\n")
        answer = self._answer()
        return answer["seconds"], answer["texts"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"the others' process ended: {self.complaints.read_text(encoding='utf-8')[-2000:].strip()}")
        return json.loads(line)


def core_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def padded(log_probs: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.from_numpy(row) for row in log_probs]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def read_emissions(path: Path) -> Emissions:
    given = np.load(path)
    probs = np.maximum(given["probs"].astype(np.float64), LEAST_PROBABILITY)
    log_probs = np.log(probs / probs.sum(1, keepdims=True)).astype(np.float32)
    return Emissions(np.split(log_probs, np.cumsum(given["lens"])[:-1]), [str(text) for text in given["refs"]])


def ways(others: list[str]) -> list[Way]:
    """What is compared, for each model ours first; `others`: the packages there are."""
    found = [Way("ours", "ours", False), Way("ours, unpruned", "ours", False, UNPRUNED)]
    if "pyctcdecode" in others:
        found.append(Way("pyctcdecode", "pyctcdecode", False))
    if "flashlight-text" in others:
        everything = {"tokens": len(LABELS), "threshold": 1e9}
        found.append(Way("flashlight, unpruned", "flashlight", False, everything, BEAMS[:2]))
    found += [Way("ours", "ours", True), Way("ours, its own weights", "ours", True, fixed=True)]
    found.append(Way("ours, unpruned", "ours", True, UNPRUNED))
    if "pyctcdecode" in others:
        found.append(Way("pyctcdecode", "pyctcdecode", True))
        found.append(Way("pyctcdecode, its own weights", "pyctcdecode", True, fixed=True))
    if "flashlight-text" in others:
        found.append(Way("flashlight, 10 tokens, threshold 25", "flashlight", True, {"tokens": 10, "threshold": 25}))
        found.append(Way("flashlight, unpruned", "flashlight", True, everything, BEAMS[:2]))
    return found


# ---- weights ----


def tune(decoder: Ours | Others, way: Way, emissions: Emissions, halves: Sequence[range]) -> list[dict]:
    """For each half, the weights that make fewest errors on the other one; of equals, the first."""
    edits = []
    for weights in progress_bar(GRIDS[way.program], desc=f"weights of {way.program}"):
        rows = range(len(emissions.references))
        texts = dict(zip(rows, decoder.decode(way, TUNED_BEAM, weights, rows)[1], strict=True))
        found = [emissions.errors({row: texts[row] for row in half}) for half in halves]
        edits.append([(errors.word_edits, errors.char_edits) for errors in found])
    best = [min(range(len(edits)), key=lambda point: edits[point][half]) for half in range(len(halves))]
    return [GRIDS[way.program][best[1 - half]] for half in range(len(halves))]


# ---- speed and errors ----


def measure(
    decoders: dict[str, Ours | Others], compared: list[Way], tuned: dict[str, list[dict]], emissions: Emissions, rounds: int
) -> Iterator[Result]:
    """Rounds in turns of what has the same model and beam."""
    halves = split_in_halves(emissions)
    for lm, beam in itertools.product((False, True), BEAMS):
        group = [way for way in compared if way.lm == lm and beam in way.beams]
        times, texts = [], {}
        for _ in progress_bar(range(rounds + 1), desc=f"{'LM' if lm else 'no LM'}, beam {beam}"):
            times.append([])
            for way in group:
                weights = tuned[way.program] if lm and not way.fixed else [{}, {}]
                seconds = 0.0
                for half, its_weights in zip(halves, weights, strict=True):
                    took, found = decoders[way.program].decode(way, beam, its_weights, half)
                    seconds += took
                    texts.setdefault(way.name, {}).update(zip(half, found, strict=True))
                times[-1].append(seconds)
        seconds = np.array(times[1:])  # the first warms all up
        for column, way in enumerate(group):
            errors, median = emissions.errors(texts[way.name]), float(np.median(seconds[:, column]))
            ratios = np.quantile(seconds[:, column] / seconds[:, 0], [0.25, 0.5, 0.75]).tolist() if column else None
            yield Result(model_name(lm), way.name, beam, median, emissions.frames / median, errors.wer, errors.cer, ratios)


def model_name(lm: bool) -> str:
    return "3-gram" if lm else "none"


def split_in_halves(emissions: Emissions) -> list[range]:
    return [range(first, len(emissions.references), 2) for first in range(2)]


def speed_of_threads(model: object, weights: dict, emissions: Emissions, rounds: int) -> list[float]:
    """By how much two threads are faster than one, by the clock: quartiles of rounds, and the shortest times of all.

    The latter is what a quiet machine would show: others' work can only lengthen a time.
    """
    decoder = BeamDecoder(LABELS, DecoderConfig("beam", beam_width=TUNED_BEAM, **weights), model)
    log_probs, lens = padded(emissions.log_probs * 4)
    times = []
    for _ in progress_bar(range(10 * rounds + 1), desc="threads"):
        times.append([])
        for threads in (1, 2):
            its = decoder.with_weights(lm_workers=threads)
            started = time.perf_counter()
            its.decode(log_probs, lens)
            times[-1].append(time.perf_counter() - started)
    one, two = np.array(times[1:]).T
    return [*np.quantile(one / two, [0.25, 0.5, 0.75]).tolist(), one.min() / two.min()]


START = """
import json, sys, time, torch
from config import DecoderConfig
def now():
    return [time.perf_counter(), time.process_time()]
labels, path, cache = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
log_probs, lens = torch.zeros(1, 20, len(labels)).log_softmax(-1), torch.tensor([20])
times = [now()]
from decoder import BeamDecoder
from decoding.language_model import load_language_model
BeamDecoder(labels, DecoderConfig("beam")).decode(log_probs, lens)
times.append(now())
model = load_language_model(path, cache)
times.append(now())
BeamDecoder(labels, DecoderConfig("beam"), model).decode(log_probs, lens)
times.append(now())
print(json.dumps([[after[i] - before[i] for i in range(2)] for before, after in zip(times, times[1:])]))
"""
STAGES = ("compiled code", "language model", "words spelled in labels")


def measure_start(arpa: Path, rounds: int) -> dict[str, np.ndarray]:
    """(3, 2) of STAGES: seconds by the clock and of a core, for the very first start of a machine and for later ones."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", START, json.dumps(LABELS), str(arpa), folder]
        times = []
        for _ in range(rounds + 1):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(f"a fresh process failed: {done.stderr[-2000:].strip()}")
            times.append(json.loads(done.stdout))
    return {"first": np.array(times[0]), "later": np.median(times[1:], axis=0)}


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Work, and start processes that work, on the last of the cores, so that all compared suffer from the same neighbours."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(everywhere)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


# ---- the report ----


def targets(report: dict) -> list[tuple[str, str, float, float]]:
    """What was to be reached: (what, at least or at most, this, and what was)."""
    at_128 = {(result.model, result.decoder): result for result in report["results"] if result.beam == 128}
    found = []
    if ("none", "pyctcdecode") in at_128:
        ours, other = at_128["none", "ours"], at_128["none", "pyctcdecode"]
        found.append(("no model: pyctcdecode's time over ours", AT_LEAST, 4.0, other.times_ours[1]))
        found.append(("no model: WER, against pyctcdecode's", AT_MOST, other.wer, ours.wer))
        ours, other = at_128["3-gram", "ours"], at_128["3-gram", "pyctcdecode"]
        (slow, bad), (quick, good) = CTCDECODE["unpruned"], CTCDECODE["pyctcdecode"]
        faster, share = other.times_ours[1], ours.wer / other.wer
        than_ctcdecode = faster * slow / quick
        found.append(("model: WER, against pyctcdecode's", AT_MOST, other.wer, ours.wer))
        found.append(("model: WER over ctcdecode's, by way of pyctcdecode's", AT_MOST, 0.6, share * good / bad))
        found.append(("model: pyctcdecode's time over ours", AT_LEAST, 5.0, faster))
        found.append(("model: unpruned ctcdecode's time over ours, by way of pyctcdecode's", AT_LEAST, 20.0, than_ctcdecode))
        ours, other = at_128["3-gram", "ours, its own weights"], at_128["3-gram", "pyctcdecode, its own weights"]
        faster = other.seconds / ours.seconds
        found.append(("model, each with its own weights: WER, against pyctcdecode's", AT_MOST, other.wer, ours.wer))
        found.append(("model, each with its own weights: pyctcdecode's time over ours", AT_LEAST, 5.0, faster))
    if ("3-gram", "flashlight, unpruned") in at_128:
        share = at_128["3-gram", "ours"].wer / at_128["3-gram", "flashlight, unpruned"].wer
        found.append(("model: WER over flashlight's, whose words are ctcdecode's", AT_MOST, 0.6, share))
    found.append(("two threads over one, by the shortest times", AT_LEAST, 1.8, report["threads"][3]))
    found.append(("start: compiled code, seconds of a core", AT_MOST, 1.0, report["start"]["later"][0][1]))
    return found


def as_rows(report: dict) -> Iterator[str]:
    yield f"{report['date']}, {report['hardware']}, load {report['load'][0]:.1f} to {report['load'][1]:.1f}"
    for owner, versions in report["versions"].items():
        yield f"{owner}: " + ", ".join(f"{name} {which}" for name, which in versions.items())
    yield f"command: {report['command']}"
    yield (
        f"{report['utterances']} utterances, {report['frames']} frames, {report['words']} words; {report['rounds']} "
        f"rounds in turns, medians; seconds are of one core, for all utterances; ratio: its time over ours in the same round "
        f"(quartiles)"
    )
    for program, weights in report["weights"].items():
        shown = " and ".join("(" + ", ".join(f"{name} {value:g}" for name, value in half.items()) + ")" for half in weights)
        yield f"weights of {program}, tuned on the other half: {shown}"
    yield f"\n{'model':7} {'beam':>4} {'decoder':41} {'seconds':>8} {'frames/s':>9} {'WER':>6} {'CER':>6}  ratio"
    for result in report["results"]:
        ratio = "{1:.2f} ({0:.2f} to {2:.2f})".format(*result.times_ours) if result.times_ours else ""
        yield (
            f"{result.model:7} {result.beam:4} {result.decoder:41} {result.seconds:8.3f} {result.frames_per_second:9.0f} "
            f"{result.wer:6.2f} {result.cer:6.2f}  {ratio}"
        )
    yield "\ntwo threads over one, by the clock: {1:.2f} ({0:.2f} to {2:.2f}), by the shortest times {3:.2f}".format(
        *report["threads"]
    )
    for which, times in report["start"].items():
        stages = ", ".join(f"{stage} {core:.2f} ({clock:.2f})" for stage, (clock, core) in zip(STAGES, times, strict=True))
        yield f"{which} start, seconds of a core (by the clock): {stages}"
    yield "\nat beam 128:"
    for what, bound, wanted, was in targets(report):
        met = was >= wanted if bound == AT_LEAST else was <= wanted
        yield f"{'met   ' if met else 'MISSED'} {what}: {was:.2f}, wanted {bound} {wanted:.2f}"


def as_json(report: dict) -> dict:
    found = report | {"results": [asdict(result) for result in report["results"]]}
    found["start"] = {which: dict(zip(STAGES, times.tolist(), strict=True)) for which, times in report["start"].items()}
    found["targets"] = [dict(zip(("what", "bound", "wanted", "was"), target, strict=True)) for target in targets(report)]
    return found


def hardware() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, one of {os.cpu_count()} cores"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others-python", metavar="PATH", help="python of the environment with pyctcdecode")
    parser.add_argument("--emissions", type=Path, default=DATA / "emissions.npz", help="probs, lens and refs of utterances")
    parser.add_argument("--lm-path", type=Path, default=DATA / "fortunes_3gram.arpa.gz", help="ARPA")
    parser.add_argument("--rounds", type=number(int, 1), default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser.parse_args(argv)


def measure_all(args: argparse.Namespace, folder: Path) -> dict:
    emissions, load = read_emissions(args.emissions), os.getloadavg()[0]
    versions = {"ours": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "numpy", "numba")}}
    model = load_language_model(args.lm_path, folder)
    with one_core():
        decoders = dict.fromkeys(["ours"], Ours(emissions, model))
        if args.others_python:
            others = Others(args.others_python, emissions, args.lm_path, folder)
            decoders |= dict.fromkeys(["pyctcdecode", "flashlight"], others)
            versions["others"] = others.versions
        compared = ways(list(versions.get("others", {})))
        to_tune = {way.program: way for way in reversed(compared) if way.lm and not way.fixed}  # the first of each
        halves = split_in_halves(emissions)
        tuned = {name: tune(decoders[name], to_tune[name], emissions, halves) for name in decoders if name in to_tune}
        results = list(measure(decoders, compared, tuned, emissions, args.rounds))
        start = measure_start(args.lm_path, args.rounds)
    return {
        "date": str(date.today()),
        "hardware": hardware(),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions,
        "utterances": len(emissions.references),
        "frames": emissions.frames,
        "words": sum(len(reference.split()) for reference in emissions.references),
        "rounds": args.rounds,
        "weights": tuned,
        "results": results,
        "threads": speed_of_threads(model, tuned["ours"][0], emissions, args.rounds),
        "start": start,
        "load": [load, os.getloadavg()[0]],
    }


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)

    def work() -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            report = measure_all(args, Path(folder))
        print(json.dumps(as_json(report), indent=2) if args.json else "\n".join(as_rows(report)))

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
