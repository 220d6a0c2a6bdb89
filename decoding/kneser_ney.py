"""Interpolated modified Kneser-Ney: from how often n-grams occur to how probable words are.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998), in passes over sorted n-grams as in
Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation" (2013), whose program is KenLM's lmplz. For a word w
after a context c:

    a(c w)     the n-gram's count if it is of the highest order or begins with <s>, else how many different words come before it
    p(w | c)   = (a(c w) - D) / sum over v of a(c v)  +  gamma(c) p(w | c without its first word)
    gamma(c)   = what all n-grams c v gave, D each, or all of a(c v) if pruned, / sum over v of a(c v)

D is D1, D2 or D3 for an adjusted count a of 1, of 2, or of more, one set for each order. Below the single words, all words are
equally probable, <unk> included and <s>, which never follows, not. gamma(c) is also the backoff weight of c.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from decoding.columns import Column, find, parts, take
from decoding.ngram_counts import BEGIN, END, UNKNOWN, Table

FALLBACK = (0.5, 1.0, 1.5)  # D1, D2, D3 where a text is too small to estimate them, or too repetitive
SUM_BYTES = 24  # that a context takes while its n-grams are summed up


class Discounts(NamedTuple):
    amounts: np.ndarray  # (4,): what an n-gram with an adjusted count of 0, 1, 2, or 3 and more gives
    seen: tuple[int, ...]  # how many n-grams have an adjusted count of 1, 2, 3, 4
    estimated: bool  # False: FALLBACK

    def of(self, adjusted: np.ndarray) -> np.ndarray:
        return self.amounts[np.minimum(adjusted, 3)]


class Order(NamedTuple):
    """The n-grams of one length, a row for each, in the order of their table."""

    keys: np.ndarray  # (N,) int64
    pruned: np.ndarray  # (N,) bool
    probabilities: np.ndarray  # (N,) float64; without meaning where pruned
    backoffs: np.ndarray | None  # (N,) float64; None for the highest order
    discounts: Discounts


class _Counted(NamedTuple):
    """What is known of the n-grams of one length before their probabilities."""

    keys: np.ndarray  # (N,) int64
    contexts: np.ndarray  # (N,) int64: row of all words but the last, among the n-grams one shorter
    num_contexts: int
    adjusted: np.ndarray  # (N,) int64: adjusted counts
    pruned: np.ndarray  # (N,) bool


def estimate(tables: Sequence[Table], thresholds: Sequence[int], dropped: np.ndarray, memory: int, folder: str) -> list[Order]:
    """Probabilities and backoff weights of the n-grams of each length.

    thresholds: for each length, the count up to which n-grams are pruned; they must not fall from one length to the next.
    dropped: (W,) bool, words that the model shall do without: n-grams with them are pruned. <unk>, <s> and </s> stay.
    memory: bytes for sums. Temporary files go to a folder. Neither changes anything in the result.
    """
    words = len(dropped)
    contexts, pruned = _contexts(tables, folder), _pruned(tables, thresholds, dropped, folder)
    below = np.array([1 / (np.count_nonzero(~pruned[0]) - 1)])  # <s> is not among what may follow
    orders: list[Order] = []
    for n in range(len(tables)):
        keys, longer = tables[n].keys, tables[n + 1] if n + 1 < len(tables) else None
        adjusted = _adjusted(tables[n], longer, words, folder)
        counted = _Counted(keys, contexts[n], len(tables[n - 1].keys) if n else 1, adjusted, pruned[n])
        discounts = _discounts(adjusted)
        totals, gammas = _sums(counted, discounts, memory, folder)
        if orders:
            orders[-1] = orders[-1]._replace(backoffs=gammas)
        below = _probabilities(counted, discounts, (totals, gammas), below, words, folder)
        orders.append(Order(keys, pruned[n], below, None, discounts))
    return orders


def _contexts(tables: Sequence[Table], folder: str) -> list[np.ndarray]:
    """For each n-gram the row of its context: that of its suffix's context with the n-gram's first word before it."""
    words = len(tables[0].keys)
    contexts = [np.zeros(words, np.int64)]
    for length, (shorter, table) in enumerate(pairwise(tables), 2):
        column, of_suffix = Column(folder), contexts[-1]
        for part in parts(len(table.keys), f"contexts of {length}-grams"):
            suffix, first = np.divmod(table.keys[part], words)
            column.append(find(shorter.keys, of_suffix[suffix] * words + first))
        contexts.append(column.array())
    return contexts


def _pruned(tables: Sequence[Table], thresholds: Sequence[int], dropped: np.ndarray, folder: str) -> list[np.ndarray]:
    words = len(dropped)
    pruned = [dropped | (tables[0].counts <= thresholds[0])]
    pruned[0][[UNKNOWN, BEGIN, END]] = False
    for table, threshold in zip(tables[1:], thresholds[1:], strict=True):
        column, of_suffix = Column(folder, np.bool_), pruned[-1]
        for part in parts(len(table.keys)):
            suffix, first = np.divmod(table.keys[part], words)
            column.append((table.counts[part] <= threshold) | of_suffix[suffix] | pruned[0][first])
        pruned.append(column.array())
    return pruned


def _adjusted(table: Table, longer: Table | None, words: int, folder: str) -> np.ndarray:
    """(N,) adjusted counts of a table's n-grams; `longer` is the table of those one longer, if there is one."""
    if longer is None:
        return table.counts
    column = Column(folder)
    for part in parts(len(table.keys)):
        # The n-grams one longer are sorted by what follows their first word: this n-gram's are next to each other.
        ends = np.searchsorted(longer.keys, np.arange(part.start, part.stop + 1) * words)
        column.append(np.where(table.keys[part] % words == BEGIN, table.counts[part], np.diff(ends)))
    return column.array()


def _discounts(adjusted: np.ndarray) -> Discounts:
    """Chen and Goodman, equation 26; where that has no answer, FALLBACK."""
    counts = np.zeros(5, np.int64)
    for part in parts(len(adjusted)):
        counts += np.bincount(np.minimum(adjusted[part], 5), minlength=6)[:5]
    seen = n1, n2, n3, n4 = tuple(map(int, counts[1:]))
    if min(n1, n2, n3):
        y = n1 / (n1 + 2 * n2)
        amounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < amount <= count for count, amount in enumerate(amounts, 1)):  # 0 would make backoff weights of 0
            return Discounts(np.array([0, *amounts]), seen, True)
    return Discounts(np.array([0, *FALLBACK]), seen, False)


def _sums(counted: _Counted, discounts: Discounts, memory: int, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """For each context the sum of its n-grams' adjusted counts, and gamma, which is 1 where nothing follows.

    Contexts are as many at a time as fit into memory; each time, all n-grams are gone through.
    """
    totals, gammas = Column(folder, np.float64), Column(folder, np.float64)
    size = max(1, memory // SUM_BYTES)
    for start in range(0, counted.num_contexts, size):
        stop = min(start + size, counted.num_contexts)
        total, given = np.zeros(stop - start), np.zeros(stop - start)
        for part in parts(len(counted.keys), "summing up"):
            contexts, adjusted = counted.contexts[part], counted.adjusted[part]
            here = (start <= contexts) & (contexts < stop)
            gives = np.where(counted.pruned[part], adjusted, discounts.of(adjusted))
            # One after the other, as bincount would not: the result must not depend on where blocks end.
            np.add.at(total, contexts[here] - start, adjusted[here])
            np.add.at(given, contexts[here] - start, gives[here])
        totals.append(total)
        gammas.append(np.divide(given, total, out=np.ones_like(total), where=total > 0))
    return totals.array(), gammas.array()


def _probabilities(
    counted: _Counted, discounts: Discounts, sums: tuple[np.ndarray, np.ndarray], below: np.ndarray, words: int, folder: str
) -> np.ndarray:
    """p of each n-gram's last word after the words before it; `below` is p after one word less, for each suffix."""
    column = Column(folder, np.float64)
    for part in parts(len(counted.keys), "estimating"):
        total, gamma = take(sums, counted.contexts[part])
        adjusted = counted.adjusted[part]
        column.append((adjusted - discounts.of(adjusted)) / total + gamma * below[counted.keys[part] // words])
    return column.array()
