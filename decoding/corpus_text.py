"""The sentences of a language model: text, or the transcripts of manifests, in the words that a model's labels can spell."""

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from data.command_line import progress_bar
from data.labels import BLANK, Labels, normalize_transcript
from data.manifest import read_manifest, read_transcript
from data.transcripts import spoken_text

SPACE = " "
GZIP = b"\x1f\x8b"
LINES_A_STEP = 1000  # of the progress bar
SHOWN = 8  # characters named in a message


class CorpusText:
    """Sentences as lists of words, and a count of what was left out.

    A text is brought to the labels by the policy of `data/transcripts.py`, in upper or lower case if the labels' letters all
    are. What a manifest lists is taken as it is, because that is what its model learns to write. A sentence with a character
    that is no label, a digit for instance, is left out as a whole: the model can never write it, and without it, words would
    be neighbours that are not. Labels without a space make every character a word.
    """

    def __init__(self, labels: Labels) -> None:
        self.sentences = self.words = self.empty = self.foreign = 0
        self.strange: Counter[str] = Counter()  # characters that are no labels, by the number of sentences they cost
        self._known = set(labels.symbols) - {BLANK}
        self._spaced = SPACE in self._known
        self._in_case = _in_case_of(self._known)

    def read_text(self, path: str) -> Iterator[list[str]]:
        """The sentences of a text file, plain or gzip, one on each line.

        Raises: OSError; ValueError naming the file, and the line that is not UTF-8.
        """
        for number, line in enumerate(_lines(path), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not text in UTF-8 ({error.reason}); save it as UTF-8") from None
            yield from self._sentence(self._in_case(text))

    def read_manifest(self, path: str) -> Iterator[list[str]]:
        """The transcripts of a manifest. Raises: as `read_manifest` and `read_transcript`."""
        for utterance in progress_bar(read_manifest(path), "reading", unit="utt"):
            yield from self._sentence(read_transcript(utterance))

    def left_out(self) -> list[str]:
        """What was left out and why, in words."""
        told = [f"{self.empty} lines without words"] if self.empty else []
        if self.foreign:
            often = sorted(self.strange.items(), key=lambda item: (-item[1], item[0]))
            names = ", ".join(f"{character!r} in {count}" for character, count in often[:SHOWN])
            more = ", ..." if len(self.strange) > SHOWN else ""
            told.append(f"{self.foreign} sentences with characters that are not labels ({names}{more})")
        return told

    def _sentence(self, text: str) -> Iterable[list[str]]:
        strange = set(text) - self._known - {SPACE}
        words = text.split(SPACE) if self._spaced else list(text.replace(SPACE, ""))
        if strange:
            self.foreign += 1
            self.strange.update(strange)
        elif not text:
            self.empty += 1
        else:
            self.sentences += 1
            self.words += len(words)
            return (words,)
        return ()


def _in_case_of(characters: Iterable[str]) -> Callable[[str], str]:
    """The one normalising function, with the case that these characters have."""
    letters = {c for c in characters if c.upper() != c.lower() and len(c.upper()) == len(c.lower()) == 1}
    if all(c.isupper() for c in letters):
        return lambda text: spoken_text(text, keep_signs=True)
    if all(c.islower() for c in letters):
        return lambda text: normalize_transcript(spoken_text(text, keep_case=True, keep_signs=True).lower())
    return lambda text: spoken_text(text, keep_case=True, keep_signs=True)


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a file, unpacked if it is gzip, with a progress bar that follows what is read of it."""
    with open(path, "rb") as file, progress_bar(desc="reading", total=_size(file), unit="B", unit_scale=True) as progress:
        lines = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file
        try:
            for number, line in enumerate(lines):
                if number % LINES_A_STEP == 0 and progress.total:
                    progress.update(file.tell() - progress.n)
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); pack or fetch it again") from None


def _size(file: BinaryIO) -> int | None:
    return os.fstat(file.fileno()).st_size if file.seekable() else None  # of a pipe nobody knows
