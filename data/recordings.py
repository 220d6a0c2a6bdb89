"""Which recordings are meant by what somebody types: files, folders, patterns, manifests, standard input."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from data.command_line import UsageError
from data.entries import unique_names
from data.manifest import read_manifest
from data.shards import AUDIO_ENDINGS

STANDARD_INPUT = "-"
MANIFEST_ENDINGS = (".csv", ".json", ".jsonl", ".tar")
# In folders, recordings are told by their endings; a file that is named, or fits a pattern, is read whatever it is.
ENDINGS = {f".{ending}" for ending in (*AUDIO_ENDINGS, "mp4", "mkv", "mov", "3gp")}


@dataclass(frozen=True)
class Recording:
    """A recording, or a segment of one, and what it is called."""

    source: str | BinaryIO
    shown: str  # as messages and results call it
    name: str  # for a file of results: a relative path without ending, of no other recording
    offset: float = 0.0  # seconds
    duration: float | None = None  # seconds; None: to the end


def find_recordings(paths: Sequence[str]) -> list[Recording]:
    """The recordings that paths name, each once, in their order; folders and patterns give theirs sorted.

    Raises: UsageError if standard input is not alone; OSError, ValueError naming a manifest that cannot be read, a folder
        without recordings, or a pattern that fits nothing.
    """
    if STANDARD_INPUT in paths and len(paths) > 1:
        raise UsageError("--audio-path -: standard input is one recording; expected nothing else beside it")
    found = {}
    for path in paths:
        for recording in _named(path):
            found.setdefault((recording.source, recording.offset, recording.duration), recording)
    times, unique = Counter(recording.name for recording in found.values()), unique_names()
    # Endings tell talk.wav and talk.mp3 apart, so that a result is never taken for the other one's.
    return [replace(r, name=unique(r.name if times[r.name] == 1 else _with_ending(r))) for r in found.values()]


def _with_ending(recording: Recording) -> str:
    return recording.name + Path(recording.shown).suffix


def standard_input() -> BinaryIO:
    """Unbuffered, because Python cannot end while a thread waits in a buffered one. Raises: UsageError if it is closed."""
    if sys.stdin is None:
        raise UsageError("--audio-path -: standard input is closed")
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _named(path: str) -> Iterator[Recording]:
    if path == STANDARD_INPUT:
        yield Recording(standard_input(), "standard input", "stdin")
    elif os.path.isdir(path):
        files = [file for file in _below(path) if file.suffix.lower() in ENDINGS]
        if not files:
            raise ValueError(f"{path}: no recordings in this folder: expected files such as .wav or .flac")
        for file in files:
            yield Recording(str(file), str(file), str(file.relative_to(path).with_suffix("")))
    elif path.lower().endswith(MANIFEST_ENDINGS):
        for utterance in read_manifest(path):
            offset, duration = utterance.offset or 0.0, utterance.duration if utterance.offset is not None else None
            stem = Path(utterance.audio).stem
            if duration is None:
                yield Recording(utterance.audio, utterance.audio, stem)
            else:
                shown = f"{utterance.audio} from {offset:g} s to {offset + duration:g} s"
                name = f"{stem}-{round(100 * offset):07d}-{round(100 * (offset + duration)):07d}"
                yield Recording(utterance.audio, shown, name, offset, duration)
    elif glob.has_magic(path) and not os.path.exists(path):
        files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not files:
            raise ValueError(f"{path}: no file fits this pattern")
        for file in files:
            yield Recording(file, file, Path(file).stem)
    else:
        yield Recording(path, path, Path(path).stem or "audio")


def _below(folder: str) -> list[Path]:
    """Files that are not hidden, sorted. Raises: OSError naming a folder that cannot be read."""
    files, known = [], set()
    for at, folders, names in os.walk(folder, onerror=_raised, followlinks=True):
        if os.path.realpath(at) in known:  # a link leads back
            folders.clear()
            continue
        known.add(os.path.realpath(at))
        folders[:] = (name for name in folders if name[0] != ".")
        files += (Path(at, name) for name in names if name[0] != ".")
    return sorted(files)


def _raised(error: OSError) -> None:
    raise error
