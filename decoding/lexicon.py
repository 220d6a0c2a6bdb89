"""The words of a language model as a trie of labels: what a spelling that has begun can still become, and how probable that is.

Words are parted by the label " ". Where there is none, as in Chinese or Japanese, every character is a word.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLANK = 0
SPACE = " "
MARKS = {"<unk>", "<UNK>", "<s>", "</s>"}  # in every model, and never spelled
LEAST_SHARE = 0.5  # of the words, which labels that fit can spell
EXAMPLES = 5
CHARACTERS = 0x110000  # of Unicode
TO_UPPER = r"sed -E '/^[-+]?[0-9]/{s/.*/\U&/;s/<(\/?S|UNK)>/\L&/g}'"  # the n-grams of an ARPA file, but for the marks
TO_LOWER = r"sed -E '/^[-+]?[0-9]/s/.*/\L&/'"


class LexiconTables(NamedTuple):
    """N nodes of a trie; node 0 is the empty spelling; C-contiguous."""

    first: np.ndarray  # (N + 1,) int32: the children of node n are entries first[n] to first[n + 1] - 1
    child_label: np.ndarray  # (N - 1,) int32, ascending within a node
    child_node: np.ndarray  # (N - 1,) int32
    word: np.ndarray  # (N,) int32: the word that ends here, or -1
    best: np.ndarray  # (N,) float32: highest unigram ln p of a word at or below


class Lexicon(NamedTuple):
    tables: LexiconTables
    spellable: int  # words of the model that the labels can spell
    refused: tuple[str, ...]  # a few that they cannot, the most probable ones


def build_lexicon(
    words: Sequence[str], unigram_ln_p: np.ndarray, symbols: Sequence[str], name: str = "language model"
) -> Lexicon:
    """Spell the words in labels, leaving out those that have other characters, as figures, if they are the minority.

    unigram_ln_p (words,); symbols, the label at each index, the blank first. Of words that are one in Unicode NFC, as the
    labels are, the most probable one is kept.

    Raises: ValueError saying what to do if the labels spell less than half of the words.
    """
    spellings, lens = _spellings(words, symbols)
    starts = np.cumsum(lens + 1) - (lens + 1)
    unknown = np.add.reduceat(spellings < 0, starts) - 1  # but the separator
    real = np.array([word not in MARKS for word in words])
    spelled = real & (unknown == 0) & ((lens > 0) if SPACE in symbols else (lens == 1))
    if spelled.sum() < max(1, LEAST_SHARE * real.sum()):
        refused = [words[index] for index in np.flatnonzero(real & ~spelled)]
        raise ValueError(f"{name}: {_misfit(refused, int(real.sum()), symbols)}")
    chosen = np.flatnonzero(spelled)
    chosen = chosen[np.argsort(unigram_ln_p[chosen], kind="stable")]
    tables = _trie(chosen, spellings, starts, lens, unigram_ln_p, len(symbols))
    refused = np.flatnonzero(real & ~spelled)
    refused = refused[np.argsort(-unigram_ln_p[refused], kind="stable")][:EXAMPLES]
    return Lexicon(tables, len(chosen), tuple(words[index] for index in refused))


def _spellings(words: Sequence[str], symbols: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all words one after the other, -1 for what is none and once after each word; and the words' lengths."""
    label_of = np.full(CHARACTERS, -1, np.int32)
    for label, symbol in enumerate(symbols):
        if label != BLANK and symbol != SPACE:
            label_of[ord(symbol)] = label
    text = unicodedata.normalize("NFC", "\n".join(words) + "\n")
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lens = np.diff(np.flatnonzero(characters == ord("\n")), prepend=-1) - 1
    return label_of[characters], lens


def _trie(
    chosen: np.ndarray, spellings: np.ndarray, starts: np.ndarray, lens: np.ndarray, unigram_ln_p: np.ndarray, num_labels: int
) -> LexiconTables:
    """The trie, level by level; of equal spellings among the chosen words, the last one's word stays."""
    node_of = np.zeros(len(lens), np.int64)
    parents, labels, levels = [], [], [1]  # where each level's nodes begin
    depth, longer = 0, chosen
    while len(longer):
        steps = node_of[longer] * num_labels + spellings[starts[longer] + depth]
        steps, step_of = np.unique(steps, return_inverse=True)  # ascending by parent and label
        node_of[longer] = levels[-1] + step_of
        parents.append(steps // num_labels)
        labels.append(steps % num_labels)
        levels.append(levels[-1] + len(steps))
        depth += 1
        longer = longer[lens[longer] > depth]
    nodes = levels[-1]
    word, best = np.full(nodes, -1, np.int32), np.full(nodes, -np.inf, np.float32)
    word[node_of[chosen]] = chosen
    best[node_of[chosen]] = unigram_ln_p[chosen]
    for above, begin, end in reversed(list(zip(parents, levels, levels[1:], strict=False))):
        np.maximum.at(best, above, best[begin:end])
    children = np.bincount(np.concatenate(parents), minlength=nodes)
    first = np.concatenate([[0], np.cumsum(children)]).astype(np.int32)
    return LexiconTables(first, np.concatenate(labels).astype(np.int32), np.arange(1, nodes, dtype=np.int32), word, best)


def _misfit(refused: Sequence[str], words: int, symbols: Sequence[str]) -> str:
    """Why the labels do not spell so many of a model's words, and what to do."""
    if not refused:
        return "has no words"
    few = f"spell {words - len(refused)} of its {words} words, not {refused[0]!r}"
    characters = {symbol for symbol in symbols[1:] if symbol != SPACE}
    if SPACE not in symbols and characters.issuperset(refused[0]):
        return f"the labels have no space and {few}: make the model from text with a space between all characters"
    for fold, case, command in ((str.upper, "upper", TO_UPPER), (str.lower, "lower", TO_LOWER)):
        if sum(characters.issuperset(fold(word)) for word in refused) >= LEAST_SHARE * len(refused):
            return (
                f"the labels are in {case} case and {few}: make the model from {case}-case text, or convert the ARPA file: "
                f"{command}"
            )
    missing = Counter(character for word in refused for character in dict.fromkeys(word) if character not in characters)
    shown = ", ".join(repr(character) for character, _ in missing.most_common(EXAMPLES))
    return f"the labels lack {shown} and {few}: give a model of the language and the spelling of the labels"
