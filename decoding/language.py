"""What a prefix's words are worth: the language model, its words' spellings and the hot words, as the search adds them up.

A word is scored by the model at its end. Until then it counts as the likeliest word of the model that begins like it, or, at a
price, as a word that the model does not know; or else the first prefix to end a word would fall behind all that do not.
"""

import math
from typing import NamedTuple

import numpy as np

from decoding.compiled import compiled
from decoding.hotwords import HotTables
from decoding.lexicon import LexiconTables
from decoding.ngrams import NgramTables, transition
from decoding.prefixes import ASKED, NODES, Memory

NO_MODEL, NGRAMS, ANSWERS = range(3)
IMPOSSIBLE, ASKS = -1, -2  # instead of a node
BLANK = 0
ROOT, UNLISTED = 0, -1  # of the lexicon
NO_LABEL = -1
MOST_GAIN = 300.0  # ln: of one label, so that no sum of bonuses is too large a factor; the labels after it bring the rest


class Answers(NamedTuple):
    """Transitions of a model that only Python can ask, in a hash table; M is a power of two."""

    key: np.ndarray  # (M,) int64: state << 32 | word; -1: free
    ln_p: np.ndarray  # (M,) float32
    state: np.ndarray  # (M,) int32
    asked: np.ndarray  # (A,) int64: keys that were looked for in vain


class Language(NamedTuple):
    """All that turns words into numbers."""

    kind: int  # NO_MODEL, NGRAMS, ANSWERS
    alpha: float
    beta: float
    unk_penalty: float
    least_ln_p: float  # what an unknown word at least costs by the model, the penalty apart
    unlisted: float  # ln, weighted: what a word outside the lexicon is expected to add
    unlisted_hot: float  # the same for a hot word
    most_gain: float  # by which a label that ends no word can at most raise a prefix
    end: int  # word id of </s>; -1: none
    space: int  # label between words; NO_LABEL: every label is a word
    word_of: np.ndarray  # (C,) int32: word of a label that is a word
    ngrams: NgramTables
    lexicon: LexiconTables
    hot: HotTables


@compiled
def find_in_trie(first: np.ndarray, child_label: np.ndarray, child_node: np.ndarray, node: int, label: int) -> int:
    """The child of a trie's node by a label, or -1."""
    low, end = first[node], first[node + 1]
    high = end
    while low < high:
        middle = (low + high) >> 1
        if child_label[middle] < label:
            low = middle + 1
        else:
            high = middle
    return child_node[low] if low < end and child_label[low] == label else -1


@compiled
def hot_state(hot: HotTables, state: int, label: int) -> int:
    """How much of a hot word is said after one more label (Aho and Corasick 1975)."""
    while True:
        found = find_in_trie(hot.first, hot.child_label, hot.child_node, state, label)
        if found >= 0 or state == 0:
            return max(found, 0)
        state = hot.fail[state]


@compiled
def ask(language: Language, answers: Answers, memory: Memory, state: int, word: int) -> tuple[float, int]:
    """(ln p, next state), or next state ASKS if Python has to be asked first."""
    if language.kind == NGRAMS:
        return transition(language.ngrams, state, word)
    if language.kind == NO_MODEL:
        return np.float32(0), np.int32(0)
    key = (np.int64(state) << 32) | np.int64(word)
    place = place_of(answers, key)
    if answers.key[place] == key:
        return answers.ln_p[place], answers.state[place]
    if memory.counts[ASKED] < len(answers.asked):
        answers.asked[memory.counts[ASKED]] = key
        memory.counts[ASKED] += 1
    return np.float32(0), np.int32(ASKS)


@compiled
def place_of(answers: Answers, key: int) -> int:
    """Where a key is, or is to be put."""
    mask = len(answers.key) - 1
    place = ((key ^ (key >> 29)) * 0x9E3779B97F4A7C1 >> 20) & mask
    while answers.key[place] != key and answers.key[place] != -1:
        place = (place + 1) & mask
    return place


@compiled
def add_answers(answers: Answers, keys: np.ndarray, ln_p: np.ndarray, states: np.ndarray) -> None:
    for i in range(len(keys)):
        place = place_of(answers, keys[i])
        answers.key[place] = keys[i]
        answers.ln_p[place] = ln_p[i]
        answers.state[place] = states[i]


@compiled
def word_price(language: Language, word: int, ln_p: float, is_hot: bool) -> float:
    """What a finished word adds, weighted, `beta` apart."""
    if language.kind == NO_MODEL:
        return 0.0
    if word > 0:
        return language.alpha * ln_p
    price = language.alpha * max(np.float64(ln_p), language.least_ln_p)
    return price if is_hot else price - language.unk_penalty


@compiled
def word_spelled(language: Language, spelling: int) -> int:
    """The model's id of a finished word, 0 if it has none."""
    return 0 if spelling == UNLISTED else max(language.lexicon.word[spelling], 0)


@compiled
def expected(language: Language, spelling: int, hot: int) -> float:
    """What an unfinished word will add at best, weighted, `beta` apart."""
    outside = language.unlisted if hot == 0 else language.unlisted_hot
    if spelling == UNLISTED:
        return outside
    return max(language.alpha * np.float64(language.lexicon.best[spelling]), outside)


@compiled
def make_child(language: Language, answers: Answers, memory: Memory, parent: int, label: int) -> int:
    """Add to the tree what a prefix becomes by one more label, and what that is worth.

    Returns: its node, or IMPOSSIBLE, or ASKS; the two leave the tree as it was.
    """
    before = memory.nodes[parent]
    hot = hot_state(language.hot, before.hot, label)
    fixed = before.fixed + language.hot.bonus[hot]
    lm, state, spelling, ahead, word = before.lm, before.state, ROOT, 0.0, -1
    if language.space == NO_LABEL:
        word = language.word_of[label]
        fixed += language.beta
    elif label == language.space:
        word = word_spelled(language, before.spelling)
    elif language.kind != NO_MODEL:
        if before.label == language.space or parent == 0:
            fixed += language.beta
        spelling = before.spelling
        if spelling != UNLISTED:
            tables = language.lexicon
            spelling = find_in_trie(tables.first, tables.child_label, tables.child_node, spelling, label)
        ahead = expected(language, spelling, hot)
    if word >= 0:
        ln_p, state = ask(language, answers, memory, before.state, word)
        if state == ASKS:
            return ASKS
        fixed += word_price(language, word, ln_p, language.hot.ends[hot])
        lm += ln_p
    total = min(fixed + ahead + language.hot.partial[hot], before.total + MOST_GAIN)
    if total == -np.inf:
        return IMPOSSIBLE
    node = memory.counts[NODES]
    memory.counts[NODES] += 1
    new = memory.nodes[node]
    new.parent, new.label, new.first_child, new.next_sibling, new.slot = parent, label, -1, before.first_child, -1
    new.spelling, new.state, new.hot = spelling, state, hot
    new.gain, new.fixed, new.total, new.lm = math.exp(total - before.total), fixed, total, lm
    before.first_child = node
    return node


@compiled
def final_price(language: Language, answers: Answers, memory: Memory, node: int) -> tuple[float, float, int]:
    """What a prefix adds to its acoustic score if nothing follows: (ln, weighted; ln p of the model; ASKS or not)."""
    last = memory.nodes[node]
    fixed, lm, state = last.fixed, last.lm, last.state
    if language.space != NO_LABEL and node != 0 and last.label != language.space:
        word = word_spelled(language, last.spelling)
        ln_p, state = ask(language, answers, memory, state, word)
        if state == ASKS:
            return 0.0, 0.0, ASKS
        hot = hot_state(language.hot, last.hot, language.space)
        fixed += word_price(language, word, ln_p, language.hot.ends[hot]) + language.hot.bonus[hot]
        lm += ln_p
    if language.kind != NO_MODEL and language.end >= 0:
        ln_p, state = ask(language, answers, memory, state, language.end)
        if state == ASKS:
            return 0.0, 0.0, ASKS
        fixed += language.alpha * ln_p
        lm += ln_p
    return fixed, lm, 0
