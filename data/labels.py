"""Text to label indices and back: what the network spells with."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path

import numpy as np

BLANK = "_"
BLANK_INDEX = 0


def normalize_transcript(text: str) -> str:
    """Bring a transcript to the one form that is counted, encoded and scored.

    Unicode NFC; every run of white space, line breaks included, becomes one space; none at either end.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def frames_needed(text: str) -> int:
    """The fewest output frames CTC can align a text to: one for each character, and a blank between two alike."""
    return len(text) + sum(left == right for left, right in pairwise(text))


class Labels:
    """The characters a model can write, each at its index, with the CTC blank `_` at index 0.

    Symbols are normalised to NFC, so that an accented letter is one label however its file spells it.

    Raises: ValueError if there are fewer than two symbols, the first is not `_`, one is not a single character, or
        one comes twice.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(unicodedata.normalize("NFC", _single_string(symbol, i)) for i, symbol in enumerate(symbols))
        if len(self.symbols) < 2:
            raise ValueError(f"{len(self.symbols)} labels: expected the blank {BLANK!r} and at least one character")
        if self.symbols[BLANK_INDEX] != BLANK:
            raise ValueError(f"first label {self.symbols[BLANK_INDEX]!r}: expected the blank, {BLANK!r}")
        for symbol in self.symbols:
            if len(symbol) != 1:
                raise ValueError(f"label {symbol!r} is {len(symbol)} characters: expected one character for each label")
        self._index_of = {symbol: index for index, symbol in enumerate(self.symbols)}
        if len(self._index_of) < len(self.symbols):
            twice = sorted({symbol for symbol in self.symbols if self.symbols.count(symbol) > 1})
            raise ValueError(f"labels {_quoted(twice)} come more than once: expected each character once")
        self._spoken = self._index_of.keys() - {BLANK}

    @classmethod
    def read(cls, path: str | PathLike[str]) -> "Labels":
        """Read `labels.json`: a JSON list of single-character strings, the blank `_` first.

        Raises: ValueError naming the file if it is something else; OSError if it cannot be read.
        """
        try:
            symbols = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON in UTF-8 ({error}): expected a list such as {EXAMPLE}") from error
        if not isinstance(symbols, list):
            raise ValueError(f"{path}: holds a JSON {type(symbols).__name__}: expected a list such as {EXAMPLE}")
        try:
            return cls(symbols)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def encode(self, text: str) -> np.ndarray:
        """Spell a text in indices.

        Returns: (N,) int64, one index for each character; the blank is never among them.
        Raises: ValueError naming the characters that are not labels. The blank symbol in a text is such a character:
            nothing is dropped.
        """
        text = unicodedata.normalize("NFC", text)
        unknown = self.unknown(text)
        if unknown:
            raise ValueError(f"characters {_quoted(dict.fromkeys(unknown))} of {text!r} are not among the labels")
        return np.fromiter((self._index_of[character] for character in text), dtype=np.int64, count=len(text))

    def unknown(self, text: str) -> list[str]:
        """The characters of a text that cannot be encoded, one entry for each time one occurs, in their order."""
        return [character for character in unicodedata.normalize("NFC", text) if character not in self._spoken]

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return self.symbols == other.symbols if isinstance(other, Labels) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.symbols)

    def __repr__(self) -> str:
        return f"Labels({list(self.symbols)!r})"


EXAMPLE = '["_", "A", "B", " "]'


def _single_string(symbol: object, index: int) -> str:
    if not isinstance(symbol, str):
        raise ValueError(f"label {index} is a {type(symbol).__name__}: expected a string of one character")
    return symbol


def _quoted(characters: Iterable[str]) -> str:
    return ", ".join(repr(character) for character in characters)
