"""Hot words: names and terms that a recording is known to hold, raised over what sounds alike."""

import errno
import math
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import HOTWORD_WEIGHT
from data.labels import normalize_transcript

SPACE = " "
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


@dataclass
class _State:
    children: dict[int, int] = field(default_factory=dict)  # state by label
    partial: float = 0.0
    bonus: float = 0.0
    ends: bool = False
    fail: int = 0


def build_hot_words(weights: Mapping[str, float], symbols: Sequence[str]) -> HotWords:
    """The automaton of hot words, or of phrases, for the labels of a model.

    Where words are separated by spaces, a hot word is one only as a whole word. The words of a phrase are known words too.

    Raises: ValueError if a word has characters that are no labels.
    """
    label_of = {symbol: label for label, symbol in enumerate(symbols) if label}
    patterns: dict[str, float] = {}
    for text, weight in weights.items():
        strange = sorted({c for c in text if c not in label_of})
        if strange:
            raise ValueError(f"hot word {text!r}: the model has no labels for {''.join(strange)!r}")
        patterns |= {part: 0.0 for part in text.split() if part not in weights} | {text: weight}
    states = [_State()]
    for text, weight in patterns.items():
        _add(states, [label_of[c] for c in text], weight, label_of.get(SPACE))
    _link(states)
    steps = [states[c].partial + states[c].bonus - state.partial for state in states for c in state.children.values()]
    children = [(label, child) for state in states for label, child in sorted(state.children.items())]
    tables = HotTables(
        np.cumsum([0, *(len(state.children) for state in states)], dtype=np.int32),
        np.array([label for label, _ in children], np.int32),
        np.array([child for _, child in children], np.int32),
        np.array([state.fail for state in states], np.int32),
        np.array([state.partial for state in states]),
        np.array([state.bonus for state in states]),
        np.array([state.ends for state in states]),
    )
    return HotWords(tables, states[0].children.get(label_of.get(SPACE), 0), max([0.0, *steps]))


def _add(states: list[_State], word: list[int], weight: float, space: int | None) -> None:
    """A word, spelled in labels; where there are spaces, with one before it, that adds nothing, and one that ends it."""
    path = word if space is None else [space, *word, space]
    state, said = states[0], 0
    for place, label in enumerate(path):
        if label not in state.children:
            state.children[label] = len(states)
            states.append(_State())
        state = states[state.children[label]]
        said += space is None or place > 0
        if place + 1 < len(path):
            state.partial = max(state.partial, weight * said / len(word))
    state.bonus, state.ends = weight, True


def _link(states: list[_State]) -> None:
    """Where each state goes on when its own word does not, and what it has from there."""
    queue = deque(states[0].children.values())
    while queue:
        state = states[queue.popleft()]
        for label, number in state.children.items():
            other = state.fail
            while other and label not in states[other].children:
                other = states[other].fail
            child = states[number]
            child.fail = states[other].children.get(label, 0)
            fallback = states[child.fail]
            child.partial = max(child.partial, fallback.partial)
            child.bonus += fallback.bonus
            child.ends |= fallback.ends
            queue.append(number)


def read_hot_words(given: str) -> dict[str, float]:
    """The weight of each hot word in "WORD:weight,WORD", or in a file of that name with one a line.

    Raises: ValueError naming the file and line, or the word, if a weight is no number or the same word comes twice; OSError.
    """
    if os.path.exists(given) and not os.path.isdir(given):
        text = Path(given).read_bytes()
        try:
            lines = text.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{given}: not UTF-8 ({error}): expected a hot word a line, as TANAKA or TANAKA:8") from None
        weights = _weights((f"{given}:{number}", line) for number, line in enumerate(lines, 1))
    elif ("." in given or os.sep in given) and not {",", ":"} & set(given):
        raise FileNotFoundError(errno.ENOENT, "no such file of hot words", given)
    else:
        weights = parse_hot_words(given.split(","), f"--hotwords {given}")
    if not weights:
        raise ValueError(f"--hotwords {given}: no words; expected as TANAKA:8,KYOTO or a file with one a line")
    return weights


def parse_hot_words(entries: Iterable[str], place: str) -> dict[str, float]:
    """The weight of each hot word of entries such as "WORD:weight" and "WORD". Raises: ValueError that begins with `place`."""
    return _weights((place, entry) for entry in entries)


def _weights(entries: Iterable[tuple[str, str]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for place, entry in entries:
        if entry.strip():
            word, weight = _read_entry(place, entry.strip())
            if weights.setdefault(word, weight) != weight:
                raise ValueError(f"{place}: {word!r} has another weight, {weights[word]:g}, before; leave one of them out")
    return weights


def _read_entry(place: str, entry: str) -> tuple[str, float]:
    word, colon, weight = entry.rpartition(":")
    if not colon:
        return normalize_transcript(entry), HOTWORD_WEIGHT
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not word.strip() or not abs(value) <= MOST_WEIGHT:
        raise ValueError(f"{place}: {entry!r}: expected a word, or a word and its weight up to {MOST_WEIGHT:g}, as TANAKA:8")
    return normalize_transcript(word), value
