"""What a search for decoder weights found: the list that it writes in the end, and the rows kept while it runs.

Nothing here imports torch, so that a result is shown at once.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from asr.metrics import Journal
from data.files import whole_file


class Point(NamedTuple):
    """The settings of the decoder that are searched."""

    alpha: float
    beta: float
    unk_penalty: float
    beam_width: int


@dataclass(frozen=True)
class Row:
    """How good a point is."""

    point: Point
    word_edits: int  # up to where it was cut short, if it was
    wer: float | None  # percent; None: cut short, because it could not win any more
    cer: float | None

    @property
    def complete(self) -> bool:
        return self.wer is not None

    @property
    def result(self) -> list[float]:
        return [self.point.alpha, self.point.beta, self.wer, self.cer]


class RowFile:
    """Rows as they are finished, one a line, so that a killed search loses none of them.

    Each has the key of its search, which follows from everything but the point that has a say in it: searches of other data,
    or by another language model, can share a file and see nothing of each other.
    """

    def __init__(self, path: Path, search: str):
        """Raises: OSError naming the file if it cannot be read and written."""
        self.rows = {row.point: row for key, row in read_rows(path) if key == search}
        self._search, self._file = search, Journal(path)
        if path.read_bytes()[-1:] not in (b"", b"\n"):  # the line at which a killed search stopped
            self._file.add(b"\n")

    def add(self, row: Row) -> None:
        """A row of a point that was cut short before takes that one's place."""
        self.rows[row.point] = row
        line = {"search": self._search, **row.point._asdict(), "word_edits": row.word_edits, "wer": row.wer, "cer": row.cer}
        self._file.add(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def row_file_of(output: str | Path) -> Path:
    return Path(f"{output}.partial.jsonl")


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The key of its search and the row, of each line that is one; others a power failure may have left. Raises: OSError."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            told = json.loads(line)
            point = Point(*(float(told[name]) for name in Point._fields[:-1]), int(told["beam_width"]))
            scores = (None if told[name] is None else float(told[name]) for name in ("wer", "cer"))
            found.append((str(told["search"]), Row(point, int(told["word_edits"]), *scores)))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def write_results(path: str | Path, rows: Iterable[Row]) -> None:
    """Write [alpha, beta, WER, CER] of each complete row as a JSON list. Raises: OSError."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps([row.result for row in rows if row.complete]) + "\n")


def read_results(path: str | Path) -> list[list[float]]:
    """Raises: ValueError naming the file if it is no list of [alpha, beta, WER, CER], or an empty one; OSError."""
    expected = "expected a list of [alpha, beta, WER, CER], as search_lm_params.py writes it"
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}): {expected}") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: {'an empty list' if rows == [] else f'a {type(rows).__name__}'}: {expected}")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 4 or not all(type(v) in (int, float) and math.isfinite(v) for v in row):
            raise ValueError(f"{path}: row {number} is {json.dumps(row)[:80]}: {expected}")
    return rows


def best_result(results: Iterable[Sequence[float]]) -> Sequence[float]:
    """The lowest WER; of equal ones the lowest CER, then the smallest alpha."""
    return min(results, key=lambda result: (result[2], result[3], result[0], result[1]))


def describe(result: Sequence[float]) -> str:
    alpha, beta, wer, cer = result
    return f"Alpha: {alpha:g} Beta: {beta:g} WER: {wer:.3f} CER: {cer:.3f}"


def decoder_flags(point: Point) -> str:
    """What test.py, transcribe.py and the server are given to decode so."""
    return " ".join(["--decoder beam", *(f"--{name.replace('_', '-')} {value:g}" for name, value in point._asdict().items())])


def point_of(result: Sequence[float], path: str | Path) -> Point | None:
    """With which other settings a result came about, if the rows beside its file tell just one answer. Raises: OSError."""
    points = {row.point for _, row in read_rows(row_file_of(path)) if row.complete and row.result == list(result)}
    return points.pop() if len(points) == 1 else None
