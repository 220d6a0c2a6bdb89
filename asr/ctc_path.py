"""The most probable way to write a known transcript: CTC's Viterbi path.

Kürzinger et al. 2020 (arXiv 2007.09127) call it CTC segmentation; here the transcript is all that is said, so that the path
begins with the first frame and ends with the last.

L output frames, C labels, N characters, S = 2N + 1 states.
"""

import math

import numpy as np

from data.labels import BLANK_INDEX

KEPT_MOVES = 2**27  # bytes; a path with more moves than this computes them twice instead of keeping them all
MOST_CELLS = 10**11  # frames x states: some minutes of work


def best_path(log_probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The most probable way to write the targets (Viterbi), in memory that grows with the root of the length.

    Of 2N + 1 states, 2i + 1 writes target i, and the even ones are the blanks around them. All moves are kept as bytes as long
    as they are few; else only the scores at every so many frames, from which a stretch of moves is computed again when the
    path is followed back.

    log_probs (L, C), targets (N,) -> (L,) int, the state in each frame, never falling.
    Raises: ValueError if there is nothing to write, or not enough frames for it.
    """
    frames, labels = len(log_probs), state_labels(targets)
    if not len(targets):
        raise ValueError("nothing to align: the transcript is empty")
    if frames * len(labels) > MOST_CELLS:
        raise ValueError(
            f"{len(targets)} characters over {frames} output frames: their product is expected to be at most "
            f"{MOST_CELLS // 2:.0e}; cut the recording and its transcript into parts"
        )
    detour = np.full(len(labels), -np.inf)  # what leaving out the blank before a state costs: nothing if the labels differ
    detour[1], detour[3::2] = 0.0, np.where(targets[1:] == targets[:-1], -np.inf, 0.0)
    stretch = frames if frames * len(labels) <= KEPT_MOVES else 2 * math.isqrt(frames)
    begins = range(0, frames, stretch)
    scores = np.full(len(labels) + 2, -np.inf)  # with two before the first state, which nothing can come from
    scores[1] = 0.0  # except at the beginning, when the first two states are open
    kept = []
    for begin in begins:
        kept.append(scores.copy())
        moves = _advance(scores, log_probs[begin : begin + stretch], labels, detour)
    state = len(labels) - 1 if scores[-1] >= scores[-2] else len(labels) - 2
    if scores[state + 2] == -np.inf:
        raise ValueError(f"{frames} output frames: too few for a transcript of {len(targets)} characters")
    path = np.empty(frames, np.int64)
    for begin, before in zip(reversed(begins), reversed(kept), strict=True):
        if begin != begins[-1]:
            moves = _advance(before, log_probs[begin : begin + stretch], labels, detour)
        for t in range(len(moves) - 1, -1, -1):
            path[begin + t] = state
            state -= int(moves[t, state])
    return path


def state_labels(targets: np.ndarray) -> np.ndarray:
    """(N,) -> (2N + 1,) the label that each state writes."""
    labels = np.full(2 * len(targets) + 1, BLANK_INDEX)
    labels[1::2] = targets
    return labels


def _advance(scores: np.ndarray, log_probs: np.ndarray, labels: np.ndarray, detour: np.ndarray) -> np.ndarray:
    """Take the scores, in place, through some frames.

    scores (2 + S,), log_probs (L, C), labels and detour (S,) -> (L, S) uint8, how many states further each came from.
    """
    moves = np.empty((len(log_probs), len(labels)), np.uint8)
    here, one_before, two_before = scores[2:], scores[1:-1], scores[:-2]
    for frame, move in zip(log_probs, moves, strict=True):
        skipped = two_before + detour
        skips = skipped > one_before
        moved = np.maximum(skipped, one_before)
        goes_on = moved > here
        np.add(goes_on, skips & goes_on, out=move, dtype=np.uint8)
        np.maximum(here, moved, out=here)
        np.add(here, frame[labels], out=here)
        scores[1] = -np.inf
    return moves
