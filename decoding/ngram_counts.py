"""How often each n-gram occurs in a text, of whatever size: sorted keys of 64 bits, in runs that fit into memory.

Words are numbers, W of them: 0 is <unk>, 1 <s>, 2 </s>, then those of the text as they first occur. The n-grams of one length
are a table, sorted by their last word, then the one before it and so on: an n-gram's key is the row of all its words but the
first (its suffix, in the table one shorter) times W, plus its first word. So keys stay one integer however long n-grams are,
and rows sort as n-grams do.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from decoding.columns import BLOCK, Column, find, parts, stored

UNKNOWN, BEGIN, END = range(3)
SPECIAL = ("<unk>", "<s>", "</s>")
RESERVED = {*SPECIAL, "<UNK>"}  # which readers of ARPA files, too, take for the unknown word
KEY_BYTES = 40  # that one key takes while it is sorted and counted
SHORTEST_HEAD = 256  # keys of a run looked at together while runs are merged


class Text(NamedTuple):
    """Sentences as numbers, one after the other, each between <s> and </s>."""

    tokens: np.ndarray  # (padding + T,) int32
    padding: int  # tokens <s> before the first sentence, so that every token has as many before it as an n-gram asks for
    words: list[str]  # (W,)
    longest: int  # tokens of the longest sentence, <s> and </s> included


class Table(NamedTuple):
    """The n-grams of one length. Of the single words all are there, and <unk> and <s> occur 0 times."""

    keys: np.ndarray  # (N,) int64, ascending
    counts: np.ndarray  # (N,) int64


def read_sentences(sentences: Iterable[Sequence[str]], order: int, folder: str) -> Text:
    """Number the words of sentences, and write the numbers to a temporary file in a folder.

    Raises: ValueError if a word is one of those that only an ARPA file has; OSError.
    """
    numbers = {word: number for number, word in enumerate(SPECIAL)}
    tokens, longest, held = Column(folder, np.int32), 0, [BEGIN] * order
    for sentence in sentences:
        if not RESERVED.isdisjoint(sentence):
            word = min(RESERVED.intersection(sentence))
            raise ValueError(f"{word}: a word that a text cannot have, because in language models it has a meaning of its own")
        held.append(BEGIN)
        held += [numbers.setdefault(word, len(numbers)) for word in sentence]
        held.append(END)
        longest = max(longest, len(sentence) + 2)
        if len(held) >= BLOCK:
            tokens.append(np.array(held, np.int32))
            held = []
    tokens.append(np.array(held, np.int32))
    return Text(tokens.array(), order, list(numbers), longest)


def count_ngrams(text: Text, order: int, memory: int, folder: str) -> list[Table]:
    """Tables of the n-grams of every length up to `order`; those that would begin before <s> are none.

    memory: bytes for sorting; what is more goes through temporary files in a folder. They change nothing in the result.
    """
    tables = [_words(text)]
    rows = text.tokens[text.padding :]  # of the n-gram that ends at each token; -1 if there is none
    for length in range(2, order + 1):
        keys = (block[block >= 0] for block in _keys(text, rows, length, f"counting {length}-grams"))
        tables.append(_counted(keys, memory, folder))
        if length < order:
            rows = stored((_rows(tables[-1].keys, block) for block in _keys(text, rows, length)), folder)
    return tables


def _words(text: Text) -> Table:
    counts = np.zeros(len(text.words), np.int64)
    tokens = text.tokens[text.padding :]
    for part in parts(len(tokens)):
        counts += np.bincount(tokens[part], minlength=len(counts))
    counts[BEGIN] = 0  # nothing is ever followed by <s>
    return Table(np.arange(len(counts)), counts)


def _keys(text: Text, rows: np.ndarray, length: int, task: str = "") -> Iterator[np.ndarray]:
    """Keys of the n-grams of a length that end at each token, from the rows of those one shorter; -1 if there is none."""
    first = text.tokens[text.padding - length + 1 :]  # the n-gram's first word
    for part in parts(len(rows), task):
        inside = (rows[part] >= 0) & (first[1:][part] != BEGIN)
        yield np.where(inside, rows[part].astype(np.int64) * len(text.words) + first[part], -1)


def _rows(keys: np.ndarray, block: np.ndarray) -> np.ndarray:
    return np.where(block >= 0, find(keys, block), -1)


def _counted(blocks: Iterable[np.ndarray], memory: int, folder: str) -> Table:
    """Sort keys and count equal ones: as much as fits into memory becomes a sorted run on disk; runs are merged at the end."""
    buffer = np.empty(max(1, memory // KEY_BYTES), np.int64)
    column, ends, filled = Column(folder), [], 0
    for block in blocks:
        while len(block):
            room = min(len(block), len(buffer) - filled)
            buffer[filled : filled + room] = block[:room]
            block, filled = block[room:], filled + room
            if filled == len(buffer):
                ends.append(_write_run(column, buffer))
                filled = 0
    ends.append(_write_run(column, buffer[:filled]))
    numbers = column.array()
    runs = []
    for end in ends:
        runs.append(Table(numbers[:end], numbers[end : 2 * end]))
        numbers = numbers[2 * end :]
    return _merged(runs, folder)


def _write_run(column: Column, keys: np.ndarray) -> int:
    """Returns: how many different keys there are; they are written first, then how often each comes."""
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    column.append(keys[first])
    column.append(np.diff(first, append=len(keys)))
    return len(first)


def _merged(runs: Sequence[Table], folder: str) -> Table:
    """One table of several. From each run its next keys are looked at, and all of them are taken up to the lowest last one."""
    if len(runs) == 1:
        return runs[0]
    keys, counts = Column(folder), Column(folder)
    size = max(SHORTEST_HEAD, BLOCK // len(runs))
    runs = [run for run in runs if len(run.keys)]
    while runs:
        bound = min(run.keys[:size][-1] for run in runs)
        ends = [np.searchsorted(run.keys[:size], bound, side="right") for run in runs]
        taken = np.concatenate([run.keys[:end] for run, end in zip(runs, ends, strict=True)])
        times = np.concatenate([run.counts[:end] for run, end in zip(runs, ends, strict=True)])
        order = np.argsort(taken, kind="stable")
        taken, times = taken[order], times[order]
        first = np.flatnonzero(np.diff(taken, prepend=-1))
        keys.append(taken[first])
        counts.append(np.add.reduceat(times, first))
        rest = [Table(run.keys[end:], run.counts[end:]) for run, end in zip(runs, ends, strict=True)]
        runs = [run for run in rest if len(run.keys)]
    return Table(keys.array(), counts.array())
