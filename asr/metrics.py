"""metrics.jsonl, the record of a run: one JSON object a line, {"kind": "step" or "epoch", ...}, beside its checkpoints."""

import io
import itertools
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST_FLOAT32 = 3.4e38  # event files hold float32


class Journal:
    """A file that grows by whole entries, handed to the system at once: a killed process leaves one cut entry at most."""

    def __init__(self, path: Path):
        self.path, self._file = path, io.FileIO(path, "a")

    def add(self, entry: bytes) -> None:
        rest = memoryview(entry)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None  # the system's own does not name the file

    def to_disk(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def lines_until(path: Path, epoch: int, step: int) -> list[bytes]:
    """The lines of a metrics.jsonl that a checkpoint after `epoch` epochs and `step` updates knows.

    What cannot be read ends the file: kill -9 cuts a line, a power failure more than that, and never before a checkpoint.
    """
    if not path.exists():
        return []
    limits, kept, reached = {"epoch": epoch, "step": step}, [], 0
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                kind, number = record["kind"], record[record["kind"]]
                if number <= limits[kind] and line.endswith(b"\n"):
                    kept.append(line)
                    reached = max(reached, record["step"])
            except (ValueError, KeyError, TypeError):
                break
    if reached < step:
        print(f"warning: {path} ends at update {reached}, the checkpoint at {step}: the curves have a gap", file=sys.stderr)
    return kept


def as_line(record: dict[str, Any]) -> bytes:
    """A record as a line of metrics.jsonl; numbers that are not finite, which JSON has not, are null."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


def told_by(path: Path, epoch: int, results: Sequence[dict[str, float]]) -> bool:
    """Whether a metrics.jsonl is of the run whose epochs had these results, each {"loss", "wer", "cer"}."""
    found = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
                if record["kind"] == "epoch" and record["epoch"] <= epoch:
                    found[record["epoch"]] = {key: record[key] for key in ("loss", "wer", "cer")}
            except (ValueError, KeyError, TypeError):
                break
    expected = [json.loads(as_line(of)) for of in results]
    return all(number > len(expected) or of == expected[number - 1] for number, of in found.items())


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """The points that a line of metrics.jsonl adds to the curves, by the name of the curve."""
    numbers = {key: value for key, value in record.items() if isinstance(value, (int, float)) and key not in ("epoch", "step")}
    return {f"{record['kind']}/{key}": float(v) for key, v in numbers.items() if abs(v) < LARGEST_FLOAT32}


def set_aside(path: Path) -> None:
    """Rename what an earlier run left: metrics.jsonl to metrics.1.jsonl, a folder F to F.1, or the next free number."""
    stem, suffix = (path.stem, path.suffix) if path.is_file() else (path.name, "")
    candidates = (path.with_name(f"{stem}.{number}{suffix}") for number in itertools.count(1))
    free = next(candidate for candidate in candidates if not candidate.exists())
    path.rename(free)
    print(f"{path} is of another run: now {free}", flush=True)
