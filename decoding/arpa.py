"""ARPA files to arrays, in one pass and little more memory than the arrays take.

The format: any text, a line `\\data\\`, a line `ngram N=count` for each order, then for each order a line `\\N-grams:` and
that many lines of a log10 probability, N words and, if longer n-grams begin with these, a log10 backoff weight; at last
`\\end\\`. What tools write differs in blanks, blank lines and missing columns.

Level upon level of the trie (decoding/ngrams.py) is filled as the file goes from order to order: the context of an n-gram is
looked up among the levels read so far, and once a whole level is read, it is sorted by context and word.
"""

import os
import re
import zlib
from gzip import BadGzipFile, GzipFile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.command_line import progress_bar
from decoding.arpa_lines import (
    BLOCK_END,
    FIELDS,
    HEADER,
    NOT_A_NUMBER,
    NOT_A_WORD,
    ORPHAN,
    POSITIVE,
    TOO_MANY,
    TWICE,
    Cursor,
    Section,
    Vocabulary,
    read_ngrams,
    read_unigrams,
)
from decoding.compiled import entry_point
from decoding.ngrams import LN_10, UNKNOWN, NgramModel, NgramTables, child, lower_bound

BLOCK = 1 << 20  # bytes of text looked at together; a longer line is none of an ARPA file
GZIP = b"\x1f\x8b"
GZIP_RATIO = 1032  # bytes that one byte of gzip can become, at most
MOST_NODES = 2**31 - 2  # what int32 can number
MISSING_UNKNOWN = -100.0  # log10 p of `<unk>` where the file has none: what KenLM takes
SHOWN = 60  # characters of a bad line in a message
COUNT_LINE = re.compile(r"ngram\s+(\d+)\s*=\s*(\d+)")

FAULTS = {
    NOT_A_NUMBER: "a number is not finite or not one: expected log10 of a probability, and of a backoff weight",
    POSITIVE: "a probability above 1: expected its log10, at most 0",
    FIELDS: "expected a log10 probability, {order} word(s), and a log10 backoff weight or nothing",
    NOT_A_WORD: "{stranger} is not among the 1-grams",
    TWICE: "listed a second time",
    TOO_MANY: "one more than the {promised} {order}-grams that the header promises",
}


def read_arpa(file: BinaryIO, path: str | os.PathLike[str]) -> NgramModel:
    """The model in an open ARPA file, plain or gzipped.

    Raises: ValueError naming path and line if the file is no ARPA file, is cut, or is not what its header promises.
    """
    with _Text(file, path) as text:
        counts = _counts(text)
        vocabulary, tables = _unigrams(text, counts[0])
        levels = [0, 1, len(tables.word)]  # where each order's nodes begin
        for order, count in enumerate(counts[1:], 2):
            tables = _add_level(text, tables, levels, vocabulary, order, count, order == len(counts))
        _expect(text, "\\end\\")
        while (line := text.next_line()) is not None:
            if line.strip():
                raise text.error(f"text after \\end\\: {_shown(line)}: expected one model in a file", text.line - 1)
    words = _words(vocabulary)
    inner = levels[len(counts)]
    tables = tables._replace(
        next=np.zeros(len(tables.word), np.int32), link=np.zeros(inner, np.int32), weight=tables.weight[:inner]
    )
    _link(tables)
    return NgramModel(Path(path).name, len(counts), words, tables)


class _Text:
    """A text file, maybe gzipped, in blocks of whole lines for compiled code, and by line for the rest."""

    def __init__(self, file: BinaryIO, path: str | os.PathLike[str]) -> None:
        self.path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        zipped = file.read(2) == GZIP
        file.seek(0)
        self._source = GzipFile(fileobj=file) if zipped else file
        self.at_most = size * GZIP_RATIO if zipped else size  # bytes of text
        self.block, self.at, self.line, self._rest, self._cut = b"", 0, 1, b"", False
        self._progress = progress_bar(total=size, unit="B", unit_scale=True, desc=f"reading {Path(path).name}")

    def __enter__(self) -> "_Text":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def more(self) -> bool:
        """Make the lines that follow the block; False if there are none."""
        lines, self._rest = self._rest, b""
        while len(lines) < BLOCK or b"\n" not in lines:
            if len(lines) > 2 * BLOCK:
                raise self.error("a line of more than a million bytes: this is no ARPA language model")
            read = self._read()
            if not read:
                break
            lines += read
        cut = lines.rfind(b"\n") + 1
        if cut:
            lines, self._rest = lines[:cut], lines[cut:]
        elif lines:
            lines += b"\n"
            self._cut = True
        self.block, self.at = lines, 0
        return bool(lines)

    def _read(self) -> bytes:
        try:
            read = self._source.read(BLOCK)
        except (EOFError, zlib.error, BadGzipFile) as error:
            raise self.error(f"the gzip file is cut or damaged ({error}): fetch or make it again") from error
        self._progress.update(self._file.tell() - self._progress.n)
        return read

    def next_line(self) -> str | None:
        if self.at == len(self.block) and not self.more():
            return None
        line = self.line_here()
        self.at = self.block.index(b"\n", self.at) + 1
        self.line += 1
        return line

    def line_here(self) -> str:
        return self.block[self.at : self.block.index(b"\n", self.at)].decode("utf-8", "backslashreplace")

    def in_cut_line(self) -> bool:
        """Whether the line is the last of the file, and without its end."""
        return self._cut and self.block.index(b"\n", self.at) + 1 == len(self.block)

    def error(self, message: str, line: int | None = None) -> ValueError:
        return ValueError(f"{self.path}:{line or self.line}: {message}")


def _shown(line: str) -> str:
    line = line.strip().replace("\t", " ")
    line = line if len(line) <= SHOWN else line[:SHOWN] + "..."
    return f"'{line}'" if line.isprintable() else repr(line)


def _counts(text: _Text) -> list[int]:
    """The n-grams of each order that the header promises; the text then stands at the first section."""
    read = 0
    while (line := text.next_line()) is not None and line.strip("\ufeff\r\t ") != "\\data\\":
        read += len(line) + 1
        if read > BLOCK:
            line = None
            break
    if line is None:
        raise text.error("no line \\data\\: this is no ARPA language model", 1)
    counts = []
    while (line := _next_filled(text)) is not None and not line.startswith("\\"):
        found = COUNT_LINE.fullmatch(line)
        if not found or int(found[1]) != len(counts) + 1:
            raise text.error(f"{_shown(line)}: expected ngram {len(counts) + 1}=COUNT or \\1-grams:", text.line - 1)
        counts.append(int(found[2]))
        if counts[-1] * 2 * (len(counts) + 1) > text.at_most or sum(counts) > MOST_NODES:
            raise text.error(f"{_shown(line)}: a file of this size cannot hold so many", text.line - 1)
    if line != "\\1-grams:":
        raise text.error(f"{_shown(line or 'the end of the file')}: expected \\1-grams:", text.line - 1)
    if not counts or not counts[0]:
        raise text.error("a model without words: expected ngram 1=COUNT before this line", text.line - 1)
    return counts


def _next_filled(text: _Text) -> str | None:
    """The next line that is not blank, without white space around it."""
    while (line := text.next_line()) is not None:
        if line.strip("\r\t "):
            return line.strip("\r\t ")
    return None


def _expect(text: _Text, header: str) -> None:
    line = _next_filled(text)
    if line is None:
        raise text.error(f"the file ends here, before {header.rstrip(':')}: it is cut; fetch or make it again")
    if line != header:
        raise text.error(f"{_shown(line)}: expected {header}", text.line - 1)


def _check_count(text: _Text, read: int, promised: int, order: int) -> None:
    """What follows the n-grams of an order, the next header or the end of the file, must not come too early."""
    if read < promised:
        ends = "the file ends" if text.at == len(text.block) else f"{_shown(text.line_here())} comes"
        raise text.error(f"{ends} after {read} of the {promised} {order}-grams that the header promises")


def _stopped(text: _Text, status: int, order: int, promised: int, vocabulary: Vocabulary) -> ValueError:
    line, stranger = text.line_here(), ""
    if text.in_cut_line():
        return text.error(f"the file ends in {_shown(line)}, before \\end\\: it is cut; fetch or make it again")
    if status == NOT_A_WORD:
        words = set(_words(vocabulary))
        stranger = next(_shown(word) for word in re.split("[ \t\r]+", line.strip(" \t\r"))[1:] if word not in words)
    return text.error(f"{_shown(line)}: {FAULTS[status].format(order=order, promised=promised, stranger=stranger)}")


def _cursor(order: int, line: int) -> Cursor:
    words, nodes = np.full(order, -1, np.int32), np.full(order, -1, np.int32)
    return Cursor(np.zeros(1, np.int64), np.array([line]), np.empty((order + 2, 2), np.int64), words, nodes)


def _section(count: int) -> Section:
    kinds = np.int32, np.int32, np.float32, np.float32, np.int32
    return Section(*(np.empty(count, kind) for kind in kinds))


def _unigrams(text: _Text, count: int) -> tuple[Vocabulary, NgramTables]:
    """Read the 1-grams: the words, and the first level of the trie below node 0."""
    slots = np.zeros(2 ** (2 * count + 2).bit_length(), np.int32)  # takes memory only as it is written to; so do these
    starts = np.empty(count + 2, np.int64)
    pool = np.frombuffer(bytearray(f"{UNKNOWN}\n".encode()), np.uint8)
    starts[:2] = 0, len(pool)
    section, cursor, words = _section(count + 1), _cursor(1, text.line), 1
    section.ln_p[0], section.weight[0], section.line[0] = MISSING_UNKNOWN * LN_10, 0, 0  # line 0: not listed
    status = BLOCK_END
    while status != HEADER and (text.at < len(text.block) or text.more()):
        room = int(starts[words]) + len(text.block)
        if room > len(pool):
            pool = np.concatenate([pool, np.empty(room, np.uint8)])
        vocabulary = Vocabulary(pool, starts, slots)
        block = np.frombuffer(text.block, np.uint8)
        text.at, status, words = read_unigrams(block, text.at, vocabulary, words, count, section, cursor)
        text.line = int(cursor.line[0])
        if status not in (BLOCK_END, HEADER):
            raise _stopped(text, status, 1, count, vocabulary)
    _check_count(text, int(cursor.count[0]), count, 1)
    vocabulary = Vocabulary(pool[: starts[words]].copy(), starts[: words + 1], slots)
    _check_text(text, vocabulary, section)
    nothing = np.empty(0, np.int32)
    ids = np.arange(-1, words, dtype=np.int32)  # the root has no word
    ln_p, weight = (np.concatenate([np.zeros(1, np.float32), of[:words]]) for of in (section.ln_p, section.weight))
    return vocabulary, NgramTables(ids, ln_p, nothing, np.array([1, 1 + words], np.int32), nothing, weight)


def _check_text(text: _Text, vocabulary: Vocabulary, section: Section) -> None:
    try:
        vocabulary.pool.tobytes().decode()
    except UnicodeDecodeError as error:
        word = np.searchsorted(vocabulary.starts, error.start, side="right") - 1
        shown = repr(vocabulary.pool[slice(*vocabulary.starts[word : word + 2])].tobytes().strip())
        message = f"{shown} is not UTF-8: convert the file, as by iconv -f LATIN1 -t UTF-8"
        raise text.error(message, int(section.line[word])) from error


def _words(vocabulary: Vocabulary) -> list[str]:
    return [UNKNOWN, *vocabulary.pool.tobytes().decode().split("\n")[1:-1]]


def _add_level(
    text: _Text, tables: NgramTables, levels: list[int], vocabulary: Vocabulary, order: int, count: int, last: bool
) -> NgramTables:
    """Read the n-grams of an order into the next level of the trie."""
    _expect(text, f"\\{order}-grams:")
    section, cursor, orphans = _section(count), _cursor(order, text.line), []
    status = BLOCK_END
    while status != HEADER and (text.at < len(text.block) or text.more()):
        block = np.frombuffer(text.block, np.uint8)
        text.at, status = read_ngrams(block, text.at, order, vocabulary, tables, section, cursor)
        text.line = int(cursor.line[0])
        if status == ORPHAN:
            orphans.append((cursor.count[0] - 1, *cursor.words[:-1]))
        elif status not in (BLOCK_END, HEADER):
            raise _stopped(text, status, order, count, vocabulary)
    _check_count(text, int(cursor.count[0]), count, order)
    if orphans:
        tables = _adopt(np.array(orphans), section, tables, levels)
    begin, end = levels[order - 1], levels[order]
    sort = _by_context_and_word(section, begin, end, len(vocabulary.starts) - 1)
    context, word = section.context[sort], section.word[sort]
    twice = np.flatnonzero((context[1:] == context[:-1]) & (word[1:] == word[:-1]))
    if len(twice):
        raise text.error(f"a {order}-gram that is {FAULTS[TWICE]}", int(section.line[sort[twice + 1]].min()))
    children = np.bincount(context - begin, minlength=end - begin)
    levels.append(end + count)
    return tables._replace(
        word=np.concatenate([tables.word, word]),
        ln_p=np.concatenate([tables.ln_p, section.ln_p[sort]]),
        first=np.concatenate([tables.first, (end + np.cumsum(children)).astype(np.int32)]),
        weight=tables.weight if last else np.concatenate([tables.weight, section.weight[sort]]),
    )


def _by_context_and_word(section: Section, begin: int, end: int, words: int) -> np.ndarray:
    """Indices that sort a section whose contexts are nodes from begin up to end."""
    by_word, by_both = np.empty(len(section.word), np.int32), np.empty(len(section.word), np.int32)
    _sort(section.word, 0, np.zeros(words + 1, np.int32), np.arange(len(by_word), dtype=np.int32), by_word)
    _sort(section.context, begin, np.zeros(end - begin + 1, np.int32), by_word, by_both)
    return by_both


def _adopt(orphans: np.ndarray, section: Section, tables: NgramTables, levels: list[int]) -> NgramTables:
    """Give n-grams the contexts that were pruned from the file: blank nodes, that cost what backing off would have.

    orphans (n, order): index in the section, and the words of the context.
    """
    contexts = orphans[:, 1:].astype(np.int32, order="C")
    for length in range(2, contexts.shape[1] + 1):
        beginnings = np.unique(contexts[:, :length], axis=0)
        words, nodes = beginnings[:, -1].copy(), np.empty(len(beginnings), np.int32)
        places, listed = np.empty(len(beginnings), np.int64), np.empty(len(beginnings), np.bool_)
        _walk(tables, beginnings[:, :-1].copy(), nodes)
        _find(tables, nodes, words, places, listed)
        nodes, words, places = nodes[~listed], words[~listed], places[~listed]
        children = np.diff(tables.first)
        np.add.at(children, nodes, 1)
        if length < contexts.shape[1]:
            children = np.insert(children, places, 0)
        tables = tables._replace(
            word=np.insert(tables.word, places, words),
            ln_p=np.insert(tables.ln_p, places, np.nan),
            first=np.concatenate([[1], 1 + np.cumsum(children)]).astype(np.int32),
            weight=np.insert(tables.weight, places, 0),
        )
        known = section.context >= 0
        section.context[known] += np.searchsorted(places, section.context[known], side="right").astype(np.int32)
        for level in range(length + 1, len(levels)):
            levels[level] += len(places)
    nodes = np.empty(len(contexts), np.int32)
    _walk(tables, contexts, nodes)
    section.context[orphans[:, 0]] = nodes
    return tables


# Compiled: the trie as it grows.


@entry_point
def _walk(tables: NgramTables, ngrams: np.ndarray, nodes: np.ndarray) -> None:
    """Find the nodes (n,) of n-grams (n, order) of words, all of which are there."""
    for i in range(len(ngrams)):
        nodes[i] = 0
        for j in range(ngrams.shape[1]):
            nodes[i] = child(tables, nodes[i], ngrams[i, j])


@entry_point
def _find(tables: NgramTables, contexts: np.ndarray, words: np.ndarray, places: np.ndarray, listed: np.ndarray) -> None:
    """Find where words are among the children of nodes, or would be, and whether they are there."""
    for i in range(len(words)):
        places[i] = lower_bound(tables, contexts[i], words[i])
        listed[i] = places[i] < tables.first[contexts[i] + 1] and tables.word[places[i]] == words[i]


@entry_point
def _sort(keys: np.ndarray, lowest: int, ends: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Put the indices `before` in the order of their keys, those of equal ones as they come, by counting.

    ends: a zero for each possible key, and one more.
    """
    for i in range(len(keys)):
        ends[keys[i] - lowest + 1] += 1
    for i in range(len(ends) - 1):
        ends[i + 1] += ends[i]
    for i in range(len(before)):
        key = keys[before[i]] - lowest
        after[ends[key]] = before[i]
        ends[key] += 1


@entry_point
def _link(tables: NgramTables) -> None:
    """Fill in link and next, add up the weights of links that skip nodes, and find the probabilities of blank nodes."""
    first, link, weight, ln_p = tables.first, tables.link, tables.weight, tables.ln_p
    inner = len(link)
    for context in range(inner):  # shorter contexts come first
        for node in range(first[context], first[context + 1]):
            suffix, cost = 0, 0.0
            if context:
                state, suffix = context, -1
                while suffix < 0:
                    cost += weight[state]
                    state = link[state]
                    suffix = child(tables, state, tables.word[node])
            if np.isnan(ln_p[node]):
                ln_p[node] = cost + ln_p[suffix]
            matters = node < inner and (first[node + 1] > first[node] or weight[node] != 0)
            tables.next[node] = node if matters else (tables.next[suffix] if suffix else 0)
            if node < inner:
                link[node] = suffix
                if suffix and first[suffix + 1] == first[suffix]:
                    link[node] = link[suffix]
                    weight[node] += weight[suffix]
