"""Utterances, and how millions of them are kept: in a few arrays, which forked processes share instead of copying."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np


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


class Strings:
    """A column of texts in UTF-8, any of which may be missing: one block of bytes, and where each begins and ends in it."""

    def __init__(self, block: bytes | bytearray, begins: np.ndarray, ends: np.ndarray):
        """A text that ends before it begins is missing."""
        kind = np.uint32 if len(block) < 2**32 else np.uint64
        self.block, self.begins, self.ends = block, np.asarray(begins, kind), np.asarray(ends, kind)

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> str | None:
        begin, end = int(self.begins[index]), int(self.ends[index])
        return None if end < begin else self.block[begin:end].decode("utf-8", "surrogatepass")

    def take(self, indices: np.ndarray) -> "Strings":
        return Strings(self.block, self.begins[indices], self.ends[indices])


class StringsBuilder:
    """Grows a column of texts. The first byte of its block is nobody's, so that a missing text has one to begin at."""

    def __init__(self) -> None:
        self._block, self._begins, self._ends = bytearray(b"\0"), array("Q"), array("Q")

    def add(self, text: str | None) -> None:
        if text is None:
            self._begins.append(1)
            self._ends.append(0)
            return
        self._begins.append(len(self._block))
        self._block += text.encode("utf-8", "surrogatepass")  # of a file name that is not UTF-8
        self._ends.append(len(self._block))

    def extend(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = list(accumulate(map(len, encoded), initial=len(self._block)))
        self._begins.extend(ends[:-1])
        self._ends.extend(ends[1:])
        self._block += b"".join(encoded)

    def build(self) -> Strings:
        return Strings(self._block, np.array(self._begins), np.array(self._ends))


class UtteranceTable(Sequence[Utterance]):
    """Utterances made from columns when they are asked for. Two million lines take some 100 MB besides their text.

    As Python objects they would take a gigabyte, and again in every data-loading process: counting its references is a write
    to an object's memory, which ends the sharing of it.
    """

    def __init__(
        self,
        audio: Strings,
        text: Strings | None,
        text_path: Strings | None,
        duration: np.ndarray | None,
        offset: np.ndarray | None,
        line: np.ndarray,
        manifest: Sequence[str],
        manifest_of: np.ndarray | None = None,
        folder: str = "",
    ):
        """Each column has a row for every utterance; None means that none has it, NaN that this one has not.

        duration, offset: (N,) float64 seconds. line: (N,) int. manifest: names, of which the utterances' are those at
        manifest_of, (N,) int, or all the first. folder, with its last slash: where relative paths start.
        """
        self._audio, self._text, self._text_path, self._folder = audio, text, text_path, folder
        self._duration, self._offset, self._line = duration, offset, line
        self._manifest, self._manifest_of = tuple(manifest), manifest_of

    @classmethod
    def of(cls, utterances: Iterable[Utterance]) -> "UtteranceTable":
        if isinstance(utterances, cls):
            return utterances
        audio, text, text_path = StringsBuilder(), StringsBuilder(), StringsBuilder()
        duration, offset, line, manifest_of, manifests = array("d"), array("d"), array("q"), array("q"), {}
        for utterance in utterances:
            audio.add(utterance.audio)
            text.add(utterance.text)
            text_path.add(utterance.text_path)
            duration.append(np.nan if utterance.duration is None else utterance.duration)
            offset.append(np.nan if utterance.offset is None else utterance.offset)
            line.append(utterance.line)
            manifest_of.append(manifests.setdefault(utterance.manifest, len(manifests)))
        numbers = (np.array(duration), np.array(offset), np.array(line).astype(np.uint32))
        which = np.array(manifest_of).astype(np.uint32) if len(manifests) > 1 else None
        return cls(audio.build(), text.build(), text_path.build(), *numbers, tuple(manifests), which)

    @property
    def durations(self) -> np.ndarray:
        """(N,) float64 seconds, NaN where it is not known."""
        return np.full(len(self), np.nan) if self._duration is None else self._duration

    def checked(self, indices: np.ndarray, text: Strings, duration: np.ndarray, offset: np.ndarray) -> "UtteranceTable":
        """The utterances at `indices`, with what a check has found out about them: columns with a row for each of these."""
        return UtteranceTable(
            self._audio.take(indices),
            text,
            None if self._text_path is None else self._text_path.take(indices),
            duration,
            offset,
            self._line[indices],
            self._manifest,
            None if self._manifest_of is None else self._manifest_of[indices],
            self._folder,
        )

    def __len__(self) -> int:
        return len(self._audio)

    def __getitem__(self, index: int) -> Utterance:
        index = range(len(self))[index]
        return Utterance(
            self._path(self._audio, index),
            None if self._text is None else self._text[index],
            self._path(self._text_path, index),
            _known(self._duration, index),
            _known(self._offset, index),
            self._manifest[0 if self._manifest_of is None else self._manifest_of[index]],
            int(self._line[index]),
        )

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # it may equal a list

    def _path(self, column: Strings | None, index: int) -> str | None:
        path = None if column is None else column[index]
        # os.path.join would take three times as long
        return path if not path or path[0] == "/" else self._folder + path


def _known(column: np.ndarray | None, index: int) -> float | None:
    value = None if column is None else float(column[index])
    return None if value != value else value
