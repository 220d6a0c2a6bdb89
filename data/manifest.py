"""The list of utterances a run is fed with: read, written and sorted.

Two formats are recognised by what is in the file:

- CSV, `path/to/audio.wav,path/to/transcript.txt` on each line; a path with a comma or a quote is quoted, as CSV
  quotes it;
- JSON Lines as NeMo writes them, `{"audio_filepath": ..., "text": ..., "duration": ...}` on each line, optionally with
  the `offset` at which the utterance starts in a longer recording.

Relative paths start at the manifest's folder. Reading a manifest does not look at the files it names: `data/checks.py`
does that.
"""

import csv
import gc
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from data.files import whole_file
from data.labels import normalize_transcript

CSV_LINE = "/path/to/audio.wav,/path/to/transcript.txt"
JSON_LINE = '{"audio_filepath": "/path/to/audio.wav", "text": "WORDS", "duration": 1.5}'


@dataclass(slots=True)
class Utterance:
    """One recording, or a segment of one, and what is said in it. Treat it as immutable; `dataclasses.replace` it.

    Made millions at a time, hence two things left out: paths are plain strings (absolute, from a manifest), because two
    million lines of pathlib take 20 s; and the class is not frozen, because that costs another 2 s.
    """

    audio: str
    text: str | None = None  # given in the manifest; comes before text_path
    text_path: str | None = None
    duration: float | None = None  # seconds; None: not known yet
    offset: float | None = None  # seconds; None: not said, and once checked (data/checks.py), the whole file
    manifest: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """`manifest:line`, for messages."""
        return f"{self.manifest}:{self.line}" if self.manifest else str(self.audio)

    @property
    def segment(self) -> tuple[float, float | None]:
        """What `load_audio` shall read of a checked utterance: offset and duration in seconds; (0.0, None) is all of it."""
        return (0.0, None) if self.offset is None else (self.offset, self.duration)


def read_manifest(path: str | PathLike[str]) -> list[Utterance]:
    """Read a manifest of either format, in its order.

    Raises: FileNotFoundError or another OSError if it cannot be opened; ValueError, naming the file and the line, if it
        is a folder, not text, empty, or has a line that is neither format's.
    """
    path = os.fspath(path)
    text = _manifest_text(path)
    folder = os.path.join(os.path.dirname(os.path.abspath(path)), "")
    with _collector_paused():
        if text.lstrip()[:1] == "{":
            utterances = list(_json_utterances(text, path, folder))
        else:
            utterances = list(_csv_utterances(text, path, folder))
    if not utterances:
        raise ValueError(f"{path}: no utterances: expected lines such as {CSV_LINE} or {JSON_LINE}")
    return utterances


def read_transcript(utterance: Utterance) -> str:
    """What is said in an utterance, normalised (`normalize_transcript`): its own text, or else its transcript file's.

    Raises: ValueError naming `manifest:line` and the file, if it is missing, cannot be read or is not UTF-8.
    """
    if utterance.text is not None:
        return normalize_transcript(utterance.text)
    if utterance.text_path is None:
        raise ValueError(f"{utterance.where}: {utterance.audio} has neither a text nor a transcript file")
    try:
        with open(utterance.text_path, "rb") as file:
            return normalize_transcript(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{utterance.where}: transcript {utterance.text_path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or no possible file name
        raise ValueError(
            f"{utterance.where}: transcript {utterance.text_path}: not UTF-8 text ({error}); save it as UTF-8"
        ) from error


def write_manifest(path: str | PathLike[str], utterances: Iterable[Utterance]) -> None:
    """Write a CSV manifest whole or not at all, so that a crash never leaves half of one under its name.

    Files below the manifest's folder are named relative to it, so that the folder can be moved; others absolutely.

    Raises: ValueError if an utterance has no transcript file, is a segment of a recording (CSV has no place for
        these), or has a path that is not UTF-8 or has a line break.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    rows = [_csv_row(utterance, os.path.join(folder, "")) for utterance in utterances]
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def sort_by_duration(utterances: Iterable[Utterance]) -> list[Utterance]:
    """Shortest first, equal ones in their order: the order that eases training in, and pads least.

    Raises: ValueError naming the first utterance whose duration is not known.
    """
    utterances = list(utterances)
    for utterance in utterances:
        if utterance.duration is None:
            raise ValueError(f"{utterance.where}: duration of {utterance.audio} is not known: expected seconds")
    return sorted(utterances, key=lambda utterance: utterance.duration)


def _manifest_text(path: str) -> str:
    if os.path.isdir(path):
        raise ValueError(f"{path}: a folder: expected a manifest file with lines such as {CSV_LINE}")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such manifest") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not text in UTF-8 ({error.reason}): expected {CSV_LINE}") from error
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise ValueError(f"{path}:{line}: not a text file (it holds a NUL byte): expected {CSV_LINE}")
    return text


def _csv_utterances(text: str, path: str, folder: str) -> Iterator[Utterance]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1  # where the row starts: a quoted path may hold a line break
    try:
        for row in reader:
            if len(row) == 2 and row[0] and row[1]:
                audio, text_path = row
                # os.path.join would take three times as long
                audio = audio if audio[0] == "/" else folder + audio
                text_path = text_path if text_path[0] == "/" else folder + text_path
                yield Utterance(audio, None, text_path, None, None, path, line)
            elif len(row) > 1 or (row and row[0].strip()):
                raise ValueError(f"{path}:{line}: {_csv_fault(row)}: expected {CSV_LINE}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: not CSV ({error}): expected {CSV_LINE}") from error


def _csv_fault(row: list[str]) -> str:
    if len(row) == 2:
        return f"empty path in {row[0]!r},{row[1]!r}"
    shown = ",".join(row)[:120]
    if len(row) > 2:
        return f"{len(row)} columns in {shown!r} (put a path that has a comma in double quotes)"
    return f"1 column in {shown!r}"


def _json_utterances(text: str, path: str, folder: str) -> Iterator[Utterance]:
    for line, content in enumerate(io.StringIO(text), 1):
        if not content.strip():
            continue
        where = f"{path}:{line}"
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}): expected {JSON_LINE}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: a JSON {type(entry).__name__}: expected {JSON_LINE}")
        audio = _json_string(entry, "audio_filepath", where)
        if not audio:
            raise ValueError(f'{where}: "audio_filepath" is empty: expected {JSON_LINE}')
        yield Utterance(
            audio if audio[0] == "/" else folder + audio,
            _json_string(entry, "text", where),
            None,
            _json_seconds(entry, "duration", where),
            None if entry.get("offset") is None else _json_seconds(entry, "offset", where),
            path,
            line,
        )


def _json_string(entry: dict, key: str, where: str) -> str:
    value = _json_value(entry, key, where)
    if not isinstance(value, str):
        raise ValueError(f'{where}: "{key}" is {_shown(value)}: expected a string, as in {JSON_LINE}')
    return value


def _json_seconds(entry: dict, key: str, where: str) -> float:
    value = _json_value(entry, key, where)
    # the upper limit keeps out infinity and NaN, and integers too long for a float
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f'{where}: "{key}" is {_shown(value)}: expected seconds, at least 0, as in {JSON_LINE}')
    return float(value)


def _json_value(entry: dict, key: str, where: str) -> object:
    if key not in entry:
        raise ValueError(f'{where}: no "{key}" among {_shown(list(entry))}: expected {JSON_LINE}')
    return entry[key]


def _shown(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _csv_row(utterance: Utterance, folder: str) -> tuple[str, str]:
    if utterance.text_path is None:
        raise ValueError(f"{utterance.where}: {utterance.audio} has no transcript file, which a CSV manifest must name")
    if utterance.offset is not None:
        raise ValueError(f"{utterance.where}: a segment of {utterance.audio}, for which a CSV manifest has no place")
    return _named_from(folder, utterance.audio), _named_from(folder, utterance.text_path)


def _named_from(folder: str, path: str | PathLike[str]) -> str:
    absolute = os.path.join(os.getcwd(), path)
    if re.search("[\r\n\ud800-\udfff]", absolute):  # surrogates stand for bytes that are not UTF-8
        raise ValueError(f"path {absolute!r}: a manifest holds only UTF-8 without line breaks; rename the file")
    below = absolute.removeprefix(folder)
    # `..` is left alone: behind a symbolic link it is not what the text says
    return absolute if ".." in below.split(os.sep) else below


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking millions of new utterances again and again, none of which is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
