"""What a manifest of any format lists, and what reading and writing the formats has in common."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from data.audio import SEGMENT_TOLERANCE, audio_duration, load_audio
from data.command_line import progress_bar
from data.files import whole_file
from data.labels import normalize_transcript
from data.utterances import Utterance


@dataclass(slots=True)
class Entry:
    """An utterance, and what only some formats know of it."""

    utterance: Utterance
    name: str = ""  # Kaldi's utterance id, NeMo's and Hugging Face's "id" where there is one
    speaker: str = ""


@dataclass
class Contents:
    entries: list[Entry]
    losses: list[str]  # what was there and is not in the entries


@dataclass(frozen=True)
class Target:
    """Where entries go, and what may be done to recordings that a format cannot name as they are."""

    path: str
    audio_dir: str | None = None  # segments are cut, and recordings copied, into this folder; None: refused
    sample_rate: int = 16000  # Hz of what is cut


def settled(utterance: Utterance) -> Utterance:
    """The utterance with its duration, and with an offset only if it is a part of its recording.

    Raises: ValueError naming the manifest's line if its recording cannot be read, or is shorter than the manifest says.
    """
    try:
        whole = audio_duration(utterance.audio)
    except OSError as error:
        raise ValueError(f"{utterance.where}: {utterance.audio}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{utterance.where}: {error}") from None
    offset = utterance.offset or 0.0
    duration = whole - offset if utterance.duration is None else utterance.duration
    if not 0 < duration <= whole - offset + SEGMENT_TOLERANCE:
        raise ValueError(
            f"{utterance.where}: {utterance.audio}: {whole:.3f} s long: expected {duration:.3f} s from {offset:.3f} s, as the "
            "manifest says"
        )
    if not offset and duration >= whole - SEGMENT_TOLERANCE:
        return replace(utterance, offset=None, duration=whole)
    return replace(utterance, offset=offset, duration=duration)


def below(folder: str, path: str) -> str | None:
    """How a list in an absolute `folder` names a file below it, None if it is elsewhere.

    `..` is left alone: behind a symbolic link it is not what the text says.
    """
    prefix = os.path.join(folder, "")
    name = os.path.abspath(path) if not os.path.isabs(path) else path
    return name.removeprefix(prefix) if name.startswith(prefix) and ".." not in name.split(os.sep) else None


def whole_recordings(target: Target, entries: Sequence[Entry], why: str) -> list[Entry]:
    """Cut the segments among them into recordings of their own. Raises: ValueError if nobody said where to."""
    whole, name = [], unique_names()
    for entry in progress_bar(entries, "cutting", unit="utt", shown=target.audio_dir is not None):
        utterance = entry.utterance
        if utterance.offset is not None or utterance.duration is not None:
            utterance = settled(utterance)
        if utterance.offset is not None:
            if target.audio_dir is None:
                raise ValueError(
                    f"{utterance.where}: a segment of {utterance.audio}: {why}; write JSON Lines (.jsonl), or give "
                    "convert_manifest.py --audio-dir DIR, where segments are cut into recordings of their own"
                )
            begin, end = utterance.offset, utterance.offset + utterance.duration
            stem = entry.name or f"{Path(utterance.audio).stem}-{round(100 * begin):07d}-{round(100 * end):07d}"
            audio = os.path.join(os.path.abspath(target.audio_dir), name(word(stem).replace("/", "_")) + ".wav")
            _cut(utterance, audio, target.sample_rate)
            utterance = replace(utterance, audio=audio, offset=None)
        whole.append(replace(entry, utterance=utterance))
    return whole


def _cut(utterance: Utterance, audio: str, sample_rate: int) -> None:
    wave = load_audio(utterance.audio, sample_rate, *utterance.segment)
    with whole_file(audio) as temporary:
        soundfile.write(temporary, np.clip(wave, -1, 1), sample_rate, "PCM_16", format="WAV")


def listed(folder: str, utterance: Utterance) -> str:
    """A recording as a list in `folder` names it: relative if it is below, so that the folder can be moved."""
    path = below(folder, utterance.audio) or os.path.abspath(utterance.audio)
    if re.search("[\r\n\ud800-\udfff]", path):  # surrogates stand for bytes that are not UTF-8
        raise ValueError(f"{utterance.where}: path {path!r}: a list holds only UTF-8 without line breaks; rename the file")
    return path


def word(text: str) -> str:
    return "_".join(normalize_transcript(text).split())


def unique_names() -> Callable[[str], str]:
    """A function that gives every name it is asked for a second time a number."""
    times: Counter[str] = Counter()

    def unique(name: str) -> str:
        times[name] += 1
        if times[name] == 1:
            return name
        return unique(f"{name}-{times[name]}")

    return unique


def decoded(lines: Iterable[str], path: str) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason}); save it as UTF-8") from error


@contextmanager
def lines_to(path: str) -> Iterator[Callable[[str], None]]:
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        yield lambda line: file.write(line + "\n")
