"""The n-gram language model at run time: compact arrays that compiled code walks, because a beam search asks millions of times.

The n-grams are a trie read forwards. Node 0 is the empty context, node 1 + w the unigram of word w, and below a node come the
words that may follow it, sorted by their ids, which are the ids of their nodes too: the levels of the trie lie one after the
other, in each of them brothers side by side. A state of the search is a node: the longest listed context that can still matter.
"""

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from decoding.compiled import compiled, entry_point

UNKNOWN = "<unk>"
BEGIN, END = "<s>", "</s>"
LN_10 = math.log(10)


class NgramTables(NamedTuple):
    """N nodes, the first I of which may have children (those of the highest order do not); C-contiguous, logarithms natural."""

    word: np.ndarray  # (N,) int32: the last word of the node's n-gram
    ln_p: np.ndarray  # (N,) float32: of this word after the others
    next: np.ndarray  # (N,) int32: state after it, the longest suffix that is not worth the same as a shorter one
    first: np.ndarray  # (I + 1,) int32: the children of node n are first[n] to first[n + 1] - 1
    link: np.ndarray  # (I,) int32: where to back off to, the longest proper suffix that has children
    weight: np.ndarray  # (I,) float32: what that costs


# What numba keeps of arpa.py and arpa_lines.py has the next two in it: touch these files when you change them.


@compiled
def lower_bound(tables: NgramTables, node: int, word: int) -> int:
    """Where among the children of a node a word is, or would be."""
    low, high = tables.first[node], tables.first[node + 1]
    while low < high:
        middle = (low + high) >> 1
        if tables.word[middle] < word:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def child(tables: NgramTables, node: int, word: int) -> int:
    """The node of a word after a node that may have children, or -1."""
    if node == 0:
        return 1 + word
    place = lower_bound(tables, node, word)
    return place if place < tables.first[node + 1] and tables.word[place] == word else -1


@compiled
def transition(tables: NgramTables, state: int, word: int) -> tuple[float, int]:
    """What a word costs in a state: (ln p, next state). Backs off (Katz 1987) until the word is listed; state 0 lists all."""
    weight = np.float32(0)
    node = child(tables, state, word)
    while node < 0:
        weight += tables.weight[state]
        state = tables.link[state]
        node = child(tables, state, word)
    return weight + tables.ln_p[node], tables.next[node]


@entry_point
def score_words(tables: NgramTables, state: int, words: np.ndarray) -> float:
    """ln p of words (n,) in a row, by their ids."""
    total = 0.0
    for i in range(len(words)):
        ln_p, state = transition(tables, state, words[i])
        total += ln_p
    return total


class NgramModel:
    """A language model in arrays. Words are numbered; word 0 is `<unk>`, which stands for all that are not listed."""

    def __init__(self, name: str, order: int, words: list[str], tables: NgramTables) -> None:
        self.name, self.order, self.words, self.tables = name, order, words, tables
        self.begin = int(tables.next[1 + self.word_id(BEGIN)]) if BEGIN in self._id_of else 0
        self.end = self._id_of.get(END, -1)

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def word_id(self, word: str) -> int:
        return self._id_of.get(word, 0)

    @property
    def unigram_ln_p(self) -> np.ndarray:
        """(words,) float32"""
        return self.tables.ln_p[1 : 1 + len(self.words)]

    def score(self, sentence: str, bos: bool = True, eos: bool = True) -> float:
        """log10 p of a sentence, its words separated by white space, as `kenlm.Model.score` computes it."""
        words = [self.word_id(word.decode()) for word in sentence.encode().split()]  # Unicode's other spaces are letters here
        ids = np.array(words + [max(self.end, 0)] * eos, np.int64)
        return score_words(self.tables, self.begin if bos else 0, ids) / LN_10
