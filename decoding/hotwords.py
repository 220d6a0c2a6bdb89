"""Hot words: names and terms that a recording is known to hold, raised over what sounds alike."""

import errno
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.labels import normalize_transcript

SPACE = " "
DEFAULT_WEIGHT = 6.0  # ln: of a hot word given without one
MOST_WEIGHT = 100.0


class HotTables(NamedTuple):
    """An automaton (Aho and Corasick 1975) that reads labels; N states, 0 where nothing of a hot word is said."""

    first: np.ndarray  # (N + 1,) int32: the children of state n are entries first[n] to first[n + 1] - 1
    child_label: np.ndarray  # (N - 1,) int32, sorted within a state
    child_node: np.ndarray  # (N - 1,) int32
    fail: np.ndarray  # (N,) int32: state of the longest other beginning that is said as well
    partial: np.ndarray  # (N,) float64: what the part said so far adds
    bonus: np.ndarray  # (N,) float64: what words that end here add
    ends: np.ndarray  # (N,) bool: whether any does


class HotWords(NamedTuple):
    tables: HotTables
    start: int  # state at the beginning of an utterance
    most: float  # that one label can add


def build_hot_words(weights: Mapping[str, float], symbols: Sequence[str]) -> HotWords:
    """The automaton of hot words, or of phrases, for the labels of a model.

    Where words are separated by spaces, a hot word is one only as a whole word. The words of a phrase are known words too.

    Raises: ValueError if a word has characters that are no labels.
    """
    label_of = {symbol: label for label, symbol in enumerate(symbols) if label}
    patterns: dict[tuple[int, ...], float] = {}
    for text, weight in weights.items():
        strange = sorted({c for c in text if c not in label_of})
        if strange:
            raise ValueError(f"hot word {text!r}: the model has no labels for {''.join(strange)!r}")
        for part in text.split():
            patterns.setdefault(_pattern(part, label_of), 0.0)
        patterns[_pattern(text, label_of)] = weight
    children: list[dict[int, int]] = [{}]
    partial, bonus, ends = [0.0], [0.0], [False]
    start = 0
    for labels, weight in patterns.items():
        state = 0
        for said, label in enumerate(labels, 1):
            if label not in children[state]:
                children[state][label] = len(children)
                children.append({})
                partial.append(0.0)
                bonus.append(0.0)
                ends.append(False)
            state = children[state][label]
            if said < len(labels):
                partial[state] = max(partial[state], weight * _share(said, labels, label_of))
        bonus[state] += weight
        ends[state] = True
    if SPACE in label_of and patterns:
        start = children[0][label_of[SPACE]]
    fail = _link(children, partial, bonus, ends)
    steps = [partial[c] + bonus[c] - partial[n] for n, below in enumerate(children) for c in below.values()]
    flat = [(label, child) for below in children for label, child in sorted(below.items())]
    tables = HotTables(
        np.cumsum([0, *(len(below) for below in children)], dtype=np.int32),
        np.array([label for label, _ in flat], np.int32),
        np.array([child for _, child in flat], np.int32),
        np.array(fail, np.int32),
        np.array(partial),
        np.array(bonus),
        np.array(ends),
    )
    return HotWords(tables, start, max([0.0, *steps]))


def _pattern(text: str, label_of: Mapping[str, int]) -> tuple[int, ...]:
    spelled = [label_of[c] for c in text]
    return tuple([label_of[SPACE], *spelled, label_of[SPACE]] if SPACE in label_of else spelled)


def _share(said: int, labels: Sequence[int], label_of: Mapping[str, int]) -> float:
    """Of a word's weight that its first labels get; the space before it gets nothing, and the one after it needs nothing."""
    return (said - 1) / (len(labels) - 2) if SPACE in label_of else said / len(labels)


def _link(children: list[dict[int, int]], partial: list[float], bonus: list[float], ends: list[bool]) -> list[int]:
    """Where each state goes on when its own word does not, and what it has from there."""
    fail = [0] * len(children)
    queue = deque(children[0].values())
    while queue:
        state = queue.popleft()
        for label, child in children[state].items():
            other = fail[state]
            while other and label not in children[other]:
                other = fail[other]
            fail[child] = children[other].get(label, 0)
            partial[child] = max(partial[child], partial[fail[child]])
            bonus[child] += bonus[fail[child]]
            ends[child] |= ends[fail[child]]
            queue.append(child)
    return fail


def read_hot_words(given: str) -> dict[str, float]:
    """The weight of each hot word in "WORD:weight,WORD", or in a file of that name with one a line.

    Raises: ValueError naming the file and line, or the word, if a weight is no number or the same word comes twice; OSError.
    """
    weights: dict[str, float] = {}
    if os.path.exists(given):
        text = Path(given).read_bytes()
        try:
            lines = text.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{given}: not UTF-8 ({error}): expected a hot word a line, as TANAKA or TANAKA:8") from None
        places = [(f"{given}:{number}", line) for number, line in enumerate(lines, 1)]
    elif ("." in given or os.sep in given) and not {",", ":"} & set(given):
        raise FileNotFoundError(errno.ENOENT, "no such file of hot words", given)
    else:
        places = [(f"--hotwords {given}", part) for part in given.split(",")]
    for place, entry in places:
        if entry.strip():
            word, weight = _read_entry(place, entry.strip())
            if weights.setdefault(word, weight) != weight:
                raise ValueError(f"{place}: {word!r} has another weight, {weights[word]:g}, before; leave one of them out")
    if not weights:
        raise ValueError(f"--hotwords {given}: no words; expected as TANAKA:8,KYOTO or a file with one a line")
    return weights


def _read_entry(place: str, entry: str) -> tuple[str, float]:
    word, colon, weight = entry.rpartition(":")
    if not colon:
        return normalize_transcript(entry), DEFAULT_WEIGHT
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not word.strip() or not abs(value) <= MOST_WEIGHT:
        raise ValueError(f"{place}: {entry!r}: expected a word, or a word and its weight up to {MOST_WEIGHT:g}, as TANAKA:8")
    return normalize_transcript(word), value
