"""Lines of an ARPA file to numbers: compiled, because there may be millions of them."""

from typing import NamedTuple

import numpy as np

from decoding.compiled import compiled, entry_point
from decoding.ngrams import LN_10, NgramTables, child

# What the readers stop at.
BLOCK_END, HEADER, ORPHAN, NOT_A_NUMBER, POSITIVE, FIELDS, NOT_A_WORD, TWICE, TOO_MANY = range(9)


class Vocabulary(NamedTuple):
    """Words by their bytes, in a hash table. Word 0, `<unk>`, is found only once it is listed."""

    pool: np.ndarray  # uint8: the words, each followed by a line break
    starts: np.ndarray  # (words + 1,) int64
    slots: np.ndarray  # (a power of two,) int32: 1 + a word, or 0


class Section(NamedTuple):
    """The n-grams of one order, as the file lists them."""

    context: np.ndarray  # int32: node of all words but the last, -1 where the file does not list that
    word: np.ndarray  # int32
    ln_p: np.ndarray  # float32
    weight: np.ndarray  # float32: ln of the backoff weight
    line: np.ndarray  # int32


class Cursor(NamedTuple):
    """Where a reader is, and what it keeps from line to line."""

    count: np.ndarray  # (1,) int64: n-grams read
    line: np.ndarray  # (1,) int64: number of the next line
    fields: np.ndarray  # (order + 2, 2) int64: where the line's fields begin and end
    words: np.ndarray  # (order,) int32: of the last n-gram
    nodes: np.ndarray  # (order,) int32: nodes of its beginnings; -1: not listed


# The text is uint8 and ends with a line break, so that nothing looks beyond it.


@compiled
def _split(text: np.ndarray, at: int, fields: np.ndarray) -> tuple[int, int]:
    """Note where the fields of a line begin and end. Returns: their number, and where the next line begins.

    Only blanks, tabs and carriage returns part them: Unicode has other spaces, which may belong to a word.
    """
    count = 0
    while True:
        while text[at] == 32 or text[at] == 9 or text[at] == 13:
            at += 1
        if text[at] == 10:
            return count, at + 1
        if count < len(fields):
            fields[count, 0] = at
        while text[at] != 32 and text[at] != 9 and text[at] != 13 and text[at] != 10:
            at += 1
        if count < len(fields):
            fields[count, 1] = at
        count += 1


@compiled
def _number(text: np.ndarray, at: int, end: int) -> float:
    """A decimal number; NaN if the field is something else."""
    sign = -1.0 if text[at] == 45 else 1.0
    if text[at] == 45 or text[at] == 43:
        at += 1
    mantissa, exponent, digits, point = 0, 0, 0, 0
    while at < end and (48 <= text[at] <= 57 or (text[at] == 46 and not point)):
        if text[at] == 46:
            point = 1
        else:
            digits += 1
            if mantissa < 10**17:
                mantissa = mantissa * 10 + np.int64(text[at]) - 48
                exponent -= point
            else:  # more digits than a double holds
                exponent += 1 - point
        at += 1
    if digits and at + 1 < end and (text[at] == 101 or text[at] == 69):
        negative = text[at + 1] == 45
        at += 2 if negative or text[at + 1] == 43 else 1
        digits, power = end - at, 0
        while at < end and 48 <= text[at] <= 57:
            power = min(power * 10 + np.int64(text[at]) - 48, 9999)
            at += 1
        exponent += -power if negative else power
    return sign * mantissa * 10.0**exponent if digits and at == end else np.nan


@compiled
def _numbers(text: np.ndarray, fields: np.ndarray, count: int, order: int) -> tuple[int, float, float]:
    """What a line says: (fault or 0, ln p, ln backoff weight)."""
    if count < order + 1 or count > order + 2:
        return FIELDS, 0.0, 0.0
    ln_p, weight = _number(text, fields[0, 0], fields[0, 1]) * LN_10, 0.0
    if count == order + 2:
        weight = _number(text, fields[order + 1, 0], fields[order + 1, 1]) * LN_10
    if not (np.isfinite(np.float32(ln_p)) and np.isfinite(np.float32(weight))):
        return NOT_A_NUMBER, 0.0, 0.0
    return (POSITIVE if ln_p > 0 else 0), ln_p, weight


@compiled
def _slot(vocabulary: Vocabulary, text: np.ndarray, at: int, end: int) -> int:
    """Where in the hash table (FNV-1a, open addressing) a word is, or would be."""
    mixed = np.uint64(14695981039346656037)
    for i in range(at, end):
        mixed = (mixed ^ np.uint64(text[i])) * np.uint64(1099511628211)
    mask = len(vocabulary.slots) - 1
    slot = np.int64(mixed ^ (mixed >> np.uint64(32))) & mask
    while vocabulary.slots[slot]:
        word = vocabulary.slots[slot] - 1
        start = vocabulary.starts[word]
        if vocabulary.starts[word + 1] - 1 - start == end - at:
            same = 0
            while same < end - at and vocabulary.pool[start + same] == text[at + same]:
                same += 1
            if same == end - at:
                break
        slot = (slot + 1) & mask
    return slot


@compiled
def _names_unknown(text: np.ndarray, at: int, end: int) -> bool:
    """Whether a word is `<unk>` or, as some tools write it, `<UNK>`."""
    if end - at != 5 or text[at] != 60 or text[at + 4] != 62:
        return False
    lower = text[at + 1] == 117 and text[at + 2] == 110 and text[at + 3] == 107
    return lower or (text[at + 1] == 85 and text[at + 2] == 78 and text[at + 3] == 75)


@entry_point
def read_unigrams(
    text: np.ndarray, at: int, vocabulary: Vocabulary, words: int, promised: int, section: Section, cursor: Cursor
) -> tuple[int, int, int]:
    """Read 1-grams up to the end of a block, a header or a fault. Returns: where it stands, which it is, words so far.

    The unknown word, if listed, is word 0; were a file to list `<unk>` and then `<UNK>`, this would be a word like others.
    """
    pool, starts = vocabulary.pool, vocabulary.starts
    while at < len(text):
        count, after = _split(text, at, cursor.fields)
        if count:
            begin, end = cursor.fields[1, 0], cursor.fields[1, 1]
            if text[cursor.fields[0, 0]] == 92:
                return at, HEADER, words
            fault, ln_p, weight = _numbers(text, cursor.fields, count, 1)
            if fault or cursor.count[0] == promised:
                return at, fault if fault else TOO_MANY, words
            slot = _slot(vocabulary, text, begin, end)
            if vocabulary.slots[slot]:
                return at, TWICE, words
            word = words
            if section.line[0] == 0 and _names_unknown(text, begin, end):
                word = 0
            start = starts[word]
            for i in range(end - begin):
                pool[start + i] = text[begin + i]
            pool[start + end - begin] = 10
            if word:
                starts[word + 1] = start + end - begin + 1
                words += 1
            vocabulary.slots[slot] = 1 + word
            section.ln_p[word], section.weight[word] = ln_p, weight
            section.line[word] = cursor.line[0]
            cursor.count[0] += 1
        cursor.line[0] += 1
        at = after
    return at, BLOCK_END, words


@entry_point
def read_ngrams(
    text: np.ndarray, at: int, order: int, vocabulary: Vocabulary, tables: NgramTables, section: Section, cursor: Cursor
) -> tuple[int, int]:
    """Read n-grams up to the end of a block, a header, a fault, or behind an orphan. Returns: where it stands, which it is."""
    fields, words, nodes = cursor.fields, cursor.words, cursor.nodes
    while at < len(text):
        count, after = _split(text, at, fields)
        if count:
            if text[fields[0, 0]] == 92:
                return at, HEADER
            index = cursor.count[0]
            fault, ln_p, weight = _numbers(text, fields, count, order)
            if fault or index == len(section.word):
                return at, fault if fault else TOO_MANY
            same = True  # as in the line before: neighbours mostly share their context
            for i in range(order):
                word = vocabulary.slots[_slot(vocabulary, text, fields[i + 1, 0], fields[i + 1, 1])] - 1
                if word < 0:
                    return at, NOT_A_WORD
                if i < order - 1 and not (same and words[i] == word):
                    same = False
                    nodes[i] = 1 + word
                    if i:
                        nodes[i] = child(tables, nodes[i - 1], word) if nodes[i - 1] > 0 else -1
                words[i] = word
            section.context[index], section.word[index] = nodes[order - 2], words[order - 1]
            section.ln_p[index], section.weight[index] = ln_p, weight
            section.line[index] = cursor.line[0]
            cursor.count[0] += 1
            if nodes[order - 2] < 0:
                cursor.line[0] += 1
                return after, ORPHAN
        cursor.line[0] += 1
        at = after
    return at, BLOCK_END
