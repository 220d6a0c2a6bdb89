"""What a beam holds, when it is asked: whole texts with their scores, and where and how surely each character was said."""

import math

import numpy as np

from decoding.compiled import compiled
from decoding.language import ASKS, NO_LABEL, Answers, Language, final_price
from decoding.prefixes import ASKED, BEAM, FRAME, Memory

# A text that the beam holds.
READING = np.dtype(
    [
        ("score", np.float64),
        ("acoustic", np.float64),  # ln p
        ("lm", np.float64),  # ln p
        ("node", np.int32),
        ("step", np.int32),
        ("end", np.int32),
        ("peak", np.float32),
    ],
    align=True,
)
# What is told of each of its characters.
SPELLED = np.dtype(
    [
        ("label", np.int32),
        ("start", np.int32),
        ("end", np.int32),
        ("peak", np.float32),
        ("before", np.float64),  # weight of all readings that begin like this one, until before the character
        ("through", np.float64),  # of those that go on with it, and at a word's last character, end the word there
    ],
    align=True,
)


@compiled
def read_prefix(memory: Memory, slot: int, reading: np.ndarray) -> None:
    """A prefix of the beam as the search sees it, with what is expected of an unfinished word."""
    entry = memory.beam[slot]
    reading.score = math.log(entry.p_blank + entry.p_label) + memory.scale[0]
    reading.acoustic = reading.score - memory.nodes[entry.node].total
    reading.lm, reading.node = memory.nodes[entry.node].lm, entry.node
    if entry.best_label > entry.best_blank:
        reading.step, reading.end, reading.peak = entry.step_label, memory.counts[FRAME], entry.peak_label
    else:
        reading.step, reading.end, reading.peak = entry.step_blank, entry.end_blank, entry.peak_blank


@compiled
def read_prefixes(memory: Memory, readings: np.ndarray) -> int:
    """All prefixes as they are, into readings (K,) READING, best first. Returns: how many."""
    for slot in range(memory.counts[BEAM]):
        read_prefix(memory, slot, readings[slot])
    return memory.counts[BEAM]


@compiled
def read_texts(language: Language, answers: Answers, memory: Memory, readings: np.ndarray) -> int:
    """Score the prefixes of the beam as whole texts, into readings (K,) READING. Returns: how many texts, or ASKS.

    A text and the same with a space behind it are one: their probabilities add up. Prefixes that end in a word that may not be
    are no texts; if all of them do, the best one is taken without that word.
    """
    nodes, counts = memory.nodes, memory.counts
    counts[ASKED] = 0
    reading_of = memory.heap_row  # idle between frames
    reading_of[: counts[BEAM]] = -1
    found = 0
    for with_space in (False, True):
        for slot in range(counts[BEAM]):
            node = memory.beam[slot].node
            if (nodes[node].label == language.space) != with_space:
                continue
            new = readings[found]
            if not read_text(language, answers, memory, slot, node, new):
                continue
            if with_space:
                drop_character(memory, new)
                shorter = nodes[new.node].slot
                if shorter >= 0 and reading_of[shorter] >= 0:
                    add_reading(readings[reading_of[shorter]], new)
                    continue
            reading_of[slot] = found
            found += 1
    if found == 0 and counts[ASKED] == 0:
        node = memory.beam[0].node
        while node > 0 and nodes[node].label != language.space:
            node = nodes[node].parent
        found += read_text(language, answers, memory, 0, node, readings[0])
        last = nodes[node].parent if node > 0 else 0  # the space goes too
        while readings[0].node != last:
            drop_character(memory, readings[0])
    return ASKS if counts[ASKED] > 0 else found


@compiled
def read_text(language: Language, answers: Answers, memory: Memory, slot: int, node: int, reading: np.ndarray) -> bool:
    """A prefix of the beam, priced as if its text ended at a node. Returns: whether it may end there."""
    price, lm, asks = final_price(language, answers, memory, node)
    if asks == ASKS or price == -np.inf:
        return False
    read_prefix(memory, slot, reading)
    reading.score, reading.lm = reading.acoustic + price, lm
    return True


@compiled
def drop_character(memory: Memory, reading: np.ndarray) -> None:
    step = memory.steps[reading.step]
    reading.end, reading.peak, reading.step = step.previous_end, step.previous_peak, step.previous
    reading.node = memory.nodes[reading.node].parent


@compiled
def add_reading(to: np.ndarray, other: np.ndarray) -> None:
    """Put two sets of paths to one text together; the frames are those of the more probable one."""
    high, low = max(to.acoustic, other.acoustic), min(to.acoustic, other.acoustic)
    more = high + math.log1p(math.exp(low - high)) - to.acoustic
    if other.acoustic > to.acoustic:
        to.step, to.end, to.peak = other.step, other.end, other.peak
    to.acoustic += more
    to.score += more


@compiled
def weigh(memory: Memory, readings: np.ndarray, ending: np.ndarray, begun: np.ndarray) -> None:
    """Sum the readings' probabilities by where they end, and by what they begin with; both (nodes,) float64, and 0."""
    best = readings[0].score
    for i in range(len(readings)):
        best = max(best, readings[i].score)
    for i in range(len(readings)):
        ending[readings[i].node] += math.exp(readings[i].score - best)
        begun[readings[i].node] = ending[readings[i].node]
    for node in range(len(begun) - 1, 0, -1):  # children come after their parents
        begun[memory.nodes[node].parent] += begun[node]


@compiled
def spell(memory: Memory, reading: np.ndarray, space: int, ending: np.ndarray, begun: np.ndarray, spelled: np.ndarray) -> int:
    """Write a reading's characters into spelled (N,) SPELLED. Returns: how many there are; only the last N are written."""
    nodes, steps = memory.nodes, memory.steps
    node, step, end, peak = reading.node, reading.step, reading.end, reading.peak
    count = 0
    while node > 0:
        count += 1
        if count <= len(spelled):
            character = spelled[len(spelled) - count]
            character.label, character.start, character.end, character.peak = nodes[node].label, steps[step].start, end, peak
            character.before = begun[nodes[node].parent]
            character.through = begun[node] if space == NO_LABEL else ending[node]
            child = nodes[node].first_child
            while space != NO_LABEL and child >= 0:
                if nodes[child].label == space:
                    character.through += begun[child]
                child = nodes[child].next_sibling
        end, peak = steps[step].previous_end, steps[step].previous_peak
        node, step = nodes[node].parent, steps[step].previous
    return count
