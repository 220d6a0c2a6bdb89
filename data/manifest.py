"""The list of utterances a run is fed with: read, written and sorted.

Two formats are recognised by what is in the file:

- CSV, `path/to/audio.wav,path/to/transcript.txt` on each line; a path with a comma or a quote is quoted, as CSV
  quotes it;
- JSON Lines as NeMo writes them, `{"audio_filepath": ..., "text": ..., "duration": ...}` on each line, optionally with
  the `offset` at which the utterance starts in a longer recording.

Relative paths start at the manifest's folder. Reading a manifest does not look at the files it names: `data/checks.py`
does that.
"""

import codecs
import csv
import io
import json
import math
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np

from data.files import whole_file
from data.labels import normalize_transcript
from data.shards import names_shards, read_shards
from data.utterances import Strings, StringsBuilder, Utterance, UtteranceTable

CSV_LINE = "/path/to/audio.wav,/path/to/transcript.txt"
JSON_LINE = '{"audio_filepath": "/path/to/audio.wav", "text": "WORDS", "duration": 1.5}'
CHUNK_BYTES = 2**24
JSON_LINES = 1000


def read_manifest(path: str | PathLike[str]) -> UtteranceTable:
    """Read a manifest of either format, or shards (data/shards.py), in their order.

    Raises: FileNotFoundError or another OSError if it cannot be opened; ValueError, naming the file and the line, if it
        is a folder, not text, empty, or has a line that is neither format's.
    """
    path = os.fspath(path)
    if names_shards(path):
        return read_shards(path)
    folder = os.path.join(os.path.dirname(os.path.abspath(path)), "")
    if _is_json(path):
        utterances = _json_table(path, folder)
    else:
        content = _csv_bytes(path)
        utterances = _plain_csv(content, path, folder) or UtteranceTable.of(_csv_utterances(content, path, folder))
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


def _is_json(path: str) -> bool:
    if os.path.isdir(path):
        raise ValueError(f"{path}: a folder: expected a manifest file with lines such as {CSV_LINE}")
    try:
        with open(path, "rb") as file:
            return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such manifest") from error


def _csv_bytes(path: str) -> bytes:
    """All of a manifest, without a byte order mark, known to be text in UTF-8."""
    content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        for _ in codecs.iterdecode(_chunks(content), "utf-8"):
            pass
    except UnicodeDecodeError:
        # said again with its position in the file
        error = _decoding_error(content)
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not text in UTF-8 ({error.reason}): expected {CSV_LINE}") from error
    nul = content.find(b"\0")
    if nul >= 0:
        line = content.count(b"\n", 0, nul) + 1
        raise ValueError(f"{path}:{line}: not a text file (it holds a NUL byte): expected {CSV_LINE}")
    return content


def _chunks(content: bytes) -> Iterator[bytes]:
    """Parts of a content that may be gigabytes, whose every byte would otherwise be needed two or four times more."""
    return (content[i : i + CHUNK_BYTES] for i in range(0, len(content), CHUNK_BYTES))


def _decoding_error(content: bytes) -> UnicodeDecodeError:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError("decoded whole what could not be decoded in parts")


def _plain_csv(content: bytes, path: str, folder: str) -> UtteranceTable | None:
    """Read a CSV manifest without quotes, carriage returns and faults, by the places of its commas and line ends.

    Returns: None if it is no such one, which the csv module then reads, 20 times slower, or says what is wrong.
    """
    if b'"' in content or b"\r" in content:
        return None
    ends, commas = _places(content, b"\n"), _places(content, b",")
    if not content.endswith(b"\n"):
        ends = np.append(ends, len(content))
    begins = np.append(0, ends[:-1] + 1)
    lines = np.flatnonzero(begins < ends)  # the others are empty
    begins, ends = begins[lines], ends[lines]
    if len(commas) != len(lines) or not (np.all(begins < commas) and np.all(commas + 1 < ends)):
        return None
    audio, text_path = Strings(content, begins, commas), Strings(content, commas + 1, ends)
    return UtteranceTable(audio, None, text_path, None, None, (lines + 1).astype(np.uint32), [path], folder=folder)


def _places(content: bytes, byte: bytes) -> np.ndarray:
    found = [np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord(byte)) for chunk in _chunks(content)]
    return np.concatenate([np.empty(0, np.int64), *(places + i * CHUNK_BYTES for i, places in enumerate(found))])


def _csv_utterances(content: bytes, path: str, folder: str) -> Iterator[Utterance]:
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=""), strict=True)
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


def _json_table(path: str, folder: str) -> UtteranceTable:
    """Read JSON Lines a thousand at a time, so that the text of the file is not kept beside what it says."""
    audio, text, duration, offset, line = StringsBuilder(), StringsBuilder(), array("d"), array("d"), array("q")
    with open(path, "rb") as file:
        first = 1
        while told := list(islice(file, JSON_LINES)):
            if first == 1:
                told[0] = told[0].removeprefix(codecs.BOM_UTF8)
            columns = _plain_json(told, first) or _columns(_json_entries(told, first, path))
            for column, values in zip((audio, text, duration, offset, line), columns, strict=True):
                column.extend(values)
            first += len(told)
    lines = np.array(line, np.uint32)
    return UtteranceTable(audio.build(), text.build(), None, np.array(duration), np.array(offset), lines, [path], folder=folder)


def _plain_json(told: list[bytes], first: int) -> tuple[Sequence, ...] | None:
    """Columns of the lines from number `first` on, if all of them are entries without a fault.

    They are parsed as one list, four times faster than one by one, with a number between any two, so that neither an entry
    over two lines nor two entries on one go unnoticed.

    Returns: audio, text, duration, offset, line; None if something is otherwise, which `_json_entries` reads, or names.
    """
    try:
        parsed = json.loads("[" + ",0,".join([line.decode() for line in told]) + "]")
        entries = parsed[::2]
        if len(entries) != len(told) or {*map(type, entries)} != {dict} or any(parsed[1::2]):
            return None
        audio, text, duration = ([entry[key] for entry in entries] for key in ("audio_filepath", "text", "duration"))
        offset = [entry.get("offset") for entry in entries]
        seconds = duration + [value for value in offset if value is not None]
        if {*map(type, audio), *map(type, text)} != {str} or not {*map(type, seconds)} <= {int, float}:
            return None
        if not all(audio) or not all(0 <= value <= sys.float_info.max for value in seconds):
            return None
    except (ValueError, KeyError, RecursionError):
        return None
    return audio, text, duration, [math.nan if value is None else value for value in offset], range(first, first + len(told))


def _columns(rows: Iterable[tuple]) -> tuple[Sequence, ...]:
    return tuple(zip(*rows, strict=True)) or ((),) * 5


def _json_entries(told: list[bytes], first: int, path: str) -> Iterator[tuple[str, str, float, float, int]]:
    """Rows of audio, text, duration, offset (NaN: none) and line. Raises: ValueError naming the line that is no such entry."""
    for line, content in enumerate(told, first):
        if not content.strip():
            continue
        where = f"{path}:{line}"
        try:
            entry = json.loads(content.decode())  # given bytes, it would look for other encodings
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}): expected {JSON_LINE}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: a JSON {type(entry).__name__}: expected {JSON_LINE}")
        audio = _json_string(entry, "audio_filepath", where)
        if not audio:
            raise ValueError(f'{where}: "audio_filepath" is empty: expected {JSON_LINE}')
        text, duration = _json_string(entry, "text", where), _json_seconds(entry, "duration", where)
        yield audio, text, duration, math.nan if entry.get("offset") is None else _json_seconds(entry, "offset", where), line


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
