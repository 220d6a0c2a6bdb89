"""Prefix beam search over CTC outputs (Hannun et al. 2014, algorithm 1; Graves 2012), compiled.

A prefix is a text so far. Its probability sums over all its paths, split by whether they end in blank, because only then does
the same label begin a new character. Runs of spaces are one space, as in transcripts.

Probabilities are multiplied as they are and renormalised in each frame, so that there are no logarithms in the loop. What the
language adds to a prefix is a factor that its node of the tree carries. Prefixes that stay are scored first: the worst of them
bounds what may still enter, and spares most of the others being looked at.
"""

import math
from typing import NamedTuple

import numpy as np

from decoding.compiled import compiled
from decoding.language import BLANK, NO_LABEL, Answers, Language, make_child
from decoding.prefixes import ASKED, BEAM, FRAME, NODES, ROOM, STEPS, Memory

DONE, FULL, ASKING, DIES = range(4)
LEAST = 1e-200  # factor of a frame: less is none
FLOOR = 1e-30  # probability of every label, where otherwise no prefix would survive


class Limits(NamedTuple):
    """What is worth looking at."""

    top_n: int  # labels of a frame
    top_prob: float  # labels of a frame, most probable first, until they add up to this
    token_min_logp: float  # ln p of a label in its frame
    beam_prune: float  # share of the best prefix's score
    floor: float  # least probability of what is looked at


# ---- the labels of a frame ----


@compiled
def choose_labels(frame: np.ndarray, limits: Limits, memory: Memory) -> int:
    """Sort the labels that the limits leave of a frame (C,) of ln p, and note their probabilities. Returns: how many."""
    labels, probs, prob_of = memory.labels, memory.probs, memory.prob_of
    best = 0
    for label in range(1, len(frame)):
        if frame[label] > frame[best]:
            best = label
    count = 0
    for label in range(len(frame)):
        if frame[label] >= limits.token_min_logp or label == best:
            count = insert_label(frame, label, count, min(limits.top_n, len(frame)), labels)
    covered = 0.0
    for place in range(count):
        if covered >= limits.top_prob and place > 0:
            count = place
            break
        probs[place] = max(math.exp(np.float64(frame[labels[place]])), limits.floor)
        prob_of[labels[place]] = probs[place]
        covered += probs[place]
    prob_of[BLANK] = max(math.exp(np.float64(frame[BLANK])), limits.floor)  # never left out: it keeps prefixes alive
    return count


@compiled
def insert_label(frame: np.ndarray, label: int, count: int, most: int, labels: np.ndarray) -> int:
    """Put a label among the `count` likeliest so far, of which `most` are kept. Returns: the new count."""
    if count == most:
        if frame[label] <= frame[labels[count - 1]]:
            return count
        count -= 1
    place = count
    while place > 0 and frame[labels[place - 1]] < frame[label]:
        labels[place] = labels[place - 1]
        place -= 1
    labels[place] = label
    return count + 1


# ---- the best K of all that is looked at: a heap whose root is the least ----


@compiled
def sift_down(memory: Memory, size: int, place: int) -> None:
    score, row = memory.heap_score, memory.heap_row
    moved_score, moved_row = score[place], row[place]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and score[child + 1] < score[child]:
            child += 1
        if score[child] >= moved_score:
            break
        score[place], row[place] = score[child], row[child]
        place = child
    score[place], row[place] = moved_score, moved_row


@compiled
def push(memory: Memory, size: int, score: float) -> int:
    """Enter a score, in place of the least if the heap is full. Returns: the row that is its own."""
    if size == len(memory.rows):
        row = memory.heap_row[0]
        memory.heap_score[0] = score
        sift_down(memory, size, 0)
        return row
    place = size
    while place > 0 and memory.heap_score[(place - 1) // 2] > score:
        memory.heap_score[place] = memory.heap_score[(place - 1) // 2]
        memory.heap_row[place] = memory.heap_row[(place - 1) // 2]
        place = (place - 1) // 2
    memory.heap_score[place], memory.heap_row[place] = score, size
    return size


# ---- one frame ----


@compiled
def stay(language: Language, memory: Memory, slot: int) -> float:
    """What becomes of a prefix that gets no new character, into the row of its slot. Returns: its score."""
    nodes, prob_of, time = memory.nodes, memory.prob_of, memory.counts[FRAME]
    old, new = memory.beam[slot], memory.rows[slot]
    node = nodes[old.node]
    blank, label = prob_of[BLANK], prob_of[node.label]
    new.node, new.is_new = old.node, False
    if old.node == 0:  # nothing said so far, and spaces are nothing
        if language.space != NO_LABEL:
            blank += prob_of[language.space]
        label = 0.0
    new.p_blank = blank * (old.p_blank + old.p_label)
    if old.best_label > old.best_blank:
        new.best_blank = blank * old.best_label
        new.step_blank, new.end_blank, new.peak_blank = old.step_label, time, old.peak_label
    else:
        new.best_blank = blank * old.best_blank
        new.step_blank, new.end_blank, new.peak_blank = old.step_blank, old.end_blank, old.peak_blank
    p_label, best, step, peak = old.p_label, old.best_label, old.step_label, old.peak_label
    if node.label == language.space:  # another space is the same one
        p_label += old.p_blank
        if old.best_blank > best:
            best, step, peak = old.best_blank, old.step_blank, old.peak_blank
    new.p_label, new.best_label = label * p_label, label * best
    new.step_label, new.peak_label = step, max(peak, np.float32(label))
    if node.parent >= 0 and nodes[node.parent].slot >= 0 and label > 0:
        begin_label(memory, memory.beam[nodes[node.parent].slot], new, node.label, label * node.gain)
    return new.p_blank + new.p_label


@compiled
def begin_label(memory: Memory, parent: np.ndarray, new: np.ndarray, label: int, factor: float) -> None:
    """Add to a prefix's row the paths on which its last label begins in this frame."""
    time = memory.counts[FRAME]
    repeats = memory.nodes[parent.node].label == label  # then there must be a blank between the two
    new.p_label += factor * (parent.p_blank if repeats else parent.p_blank + parent.p_label)
    after_blank = repeats or parent.best_blank >= parent.best_label
    best = factor * (parent.best_blank if after_blank else parent.best_label)
    if best <= new.best_label:
        return
    new.best_label, new.is_new = best, True
    if after_blank:
        new.step_label, new.end_before, new.peak_before = parent.step_blank, parent.end_blank, parent.peak_blank
    else:
        new.step_label, new.end_before, new.peak_before = parent.step_label, time, parent.peak_label
    new.peak_label = memory.prob_of[label]


@compiled
def score_frame(limits: Limits, language: Language, answers: Answers, memory: Memory, num_labels: int) -> tuple[int, float]:
    """Fill the heap with the best prefixes after one more frame. Returns: how many they are, and the best one's score."""
    size, best, width = memory.counts[BEAM], 0.0, len(memory.rows)
    for slot in range(size):
        score = stay(language, memory, slot)
        memory.heap_score[slot], memory.heap_row[slot] = score, slot
        best = max(best, score)
    for place in range(size // 2 - 1, -1, -1):
        sift_down(memory, size, place)
    bar = lowest_bar(limits, memory, size, best)
    p_space = memory.prob_of[language.space] if language.space != NO_LABEL else 0.0
    for slot in range(memory.counts[BEAM]):
        old = memory.beam[slot]
        p_any = old.p_blank + old.p_label
        if p_space > 0 and old.node != 0 and memory.nodes[old.node].label != language.space:
            score = enter(language, answers, memory, old, language.space, p_space, size, bar)
            if score > bar:
                size, best = min(size + 1, width), max(best, score)
                bar = lowest_bar(limits, memory, size, best)
        for place in range(num_labels):
            label, prob = memory.labels[place], memory.probs[place]
            if p_any * prob * language.most_gain <= bar:
                break
            if label == BLANK or label == language.space:
                continue
            score = enter(language, answers, memory, old, label, prob, size, bar)
            if score > bar:
                size, best = min(size + 1, width), max(best, score)
                bar = lowest_bar(limits, memory, size, best)
    return size, best


@compiled
def lowest_bar(limits: Limits, memory: Memory, size: int, best: float) -> float:
    """The score that a prefix must exceed to enter."""
    bar = best * limits.beam_prune
    return max(bar, memory.heap_score[0]) if size == len(memory.rows) else bar


@compiled
def enter(
    language: Language, answers: Answers, memory: Memory, old: np.ndarray, label: int, prob: float, size: int, bar: float
) -> float:
    """Put a prefix with one more character into the heap, if its score exceeds the bar. Returns: that score, or 0."""
    nodes = memory.nodes
    weight = prob * (old.p_blank if label == nodes[old.node].label else old.p_blank + old.p_label)
    if weight == 0:
        return 0.0
    child = nodes[old.node].first_child
    while child >= 0 and nodes[child].label != label:
        child = nodes[child].next_sibling
    if child < 0:
        child = make_child(language, answers, memory, old.node, label)
        if child < 0:
            return 0.0
    elif nodes[child].slot >= 0:  # in the beam already, where `stay` has counted this
        return 0.0
    score = weight * nodes[child].gain
    if score <= bar:
        return 0.0
    row = memory.rows[push(memory, size, score)]
    row.node, row.p_blank, row.p_label, row.best_blank, row.best_label = child, 0.0, 0.0, 0.0, -1.0
    row.step_blank = -1  # no path ends in blank yet
    begin_label(memory, old, row, label, prob * nodes[child].gain)
    return score


@compiled
def settle(limits: Limits, memory: Memory, size: int, best: float) -> None:
    """Make what is in the heap the beam, most probable first, renormalised."""
    nodes, steps, counts, beam = memory.nodes, memory.steps, memory.counts, memory.beam
    for slot in range(counts[BEAM]):
        nodes[beam[slot].node].slot = -1
    while memory.heap_score[0] < best * limits.beam_prune or memory.heap_score[0] == 0:
        size -= 1
        memory.heap_score[0], memory.heap_row[0] = memory.heap_score[size], memory.heap_row[size]
        sift_down(memory, size, 0)
    counts[BEAM] = size
    best_path = 0.0
    for slot in range(size - 1, -1, -1):
        row = memory.rows[memory.heap_row[0]]
        memory.heap_score[0], memory.heap_row[0] = memory.heap_score[slot], memory.heap_row[slot]
        sift_down(memory, slot, 0)
        beam[slot] = row
        new = beam[slot]
        nodes[new.node].slot = slot
        best_path = max(best_path, new.best_blank, new.best_label)
        if new.is_new:
            step = steps[counts[STEPS]]
            step.start, step.previous = counts[FRAME], new.step_label
            step.previous_end, step.previous_peak = new.end_before, new.peak_before
            new.step_label = counts[STEPS]
            counts[STEPS] += 1
    scale, path_scale = 1 / best, 1 / max(best_path, LEAST)
    for slot in range(size):
        new = beam[slot]
        new.p_blank *= scale
        new.p_label *= scale
        new.best_blank *= path_scale
        new.best_label *= path_scale
    memory.scale[0] += math.log(best)
    counts[FRAME] += 1


@compiled
def search(frames: np.ndarray, limits: Limits, language: Language, answers: Answers, memory: Memory) -> tuple[int, int]:
    """Advance the beam over frames (L, C) of ln p.

    Returns: how many frames are done, and why no more: DONE, FULL (no room for another frame), ASKING (for transitions).
    """
    for done in range(len(frames)):
        why = search_frame(frames[done], limits, language, answers, memory)
        if why == DIES:
            anything = Limits(len(memory.labels), np.inf, -np.inf, limits.beam_prune, FLOOR)
            why = search_frame(frames[done], anything, language, answers, memory)
        if why != DONE:
            return done, why
    return len(frames), DONE


@compiled
def search_frame(frame: np.ndarray, limits: Limits, language: Language, answers: Answers, memory: Memory) -> int:
    """Advance the beam over one frame (C,), or leave it as it was. Returns: DONE, or why not."""
    counts = memory.counts
    num_labels = choose_labels(frame, limits, memory)
    counts[ROOM], counts[ASKED] = counts[BEAM] * num_labels, 0
    has_room = counts[NODES] + counts[ROOM] <= len(memory.nodes) and counts[STEPS] + len(memory.rows) <= len(memory.steps)
    size, best = 0, 0.0
    if has_room:
        size, best = score_frame(limits, language, answers, memory, num_labels)
    for place in range(num_labels):
        memory.prob_of[memory.labels[place]] = 0.0
    memory.prob_of[BLANK] = 0.0
    if not has_room:
        return FULL
    if counts[ASKED] > 0:
        return ASKING
    if best < LEAST:
        return DIES
    settle(limits, memory, size, best)
    return DONE
