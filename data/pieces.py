"""Recordings of any length, cut into pieces that a network hears one at a time, in bounded memory.

Cuts are made in pauses. Where nobody pauses, a piece is heard with some of the sound before and behind it, so that layers of
both directions know it too, and what the network writes there is left to its neighbours.

Samples are counted from the recording's beginning. A cut is at a multiple of `grid`, the samples between two output frames, so
that the frames of all pieces are frames of the recording.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

WHOLE = 30.0  # seconds; a recording, or what is left of it, is heard whole if it is no longer than this
SHORTEST, LONGEST = 1.0, 20.0  # seconds of a piece
CONTEXT = 2.0  # seconds heard beyond a cut that is in no pause
STEP = 0.01  # seconds; levels are measured over this
# Of a recording's steps: by these quantiles its speech and its silence are known, by the second where the first is speech too.
LOUD_SHARE, SILENT_SHARES = 0.95, (0.1, 0.02)
QUIET = 0.2  # of the way from the one to the other, in decibels
LEAST_RANGE = 10.0  # dB between them, or there is nothing to tell apart
LEAST_PAUSE = 0.3  # seconds; so short, because a network trained on utterances fares best with utterances
DIP = 0.1  # seconds; without a pause, the quietest of this length is cut in
FLOOR = 1e-5  # full scale is 1; digital silence is not taken for quieter than this, -100 dB


@dataclass(frozen=True)
class Piece:
    """Which part of a recording is heard, and how much of what the network writes to it counts."""

    frame: int  # of the recording, the output frame that the first one that counts is
    skip: int  # output frames before it that do not count
    # That count; None: all that follow. At a pause these are one more than the recording has, with which the next piece begins
    # again: networks like to write what they still have to write in their last frame.
    frames: int | None
    pauses: bool  # whether it ends in a pause, or with the recording; else the next piece goes on in the middle of it
    seconds: float  # of the recording that it stands for


def cut_pieces(blocks: Iterable[np.ndarray], rate: int, grid: int) -> Iterator[tuple[Piece, np.ndarray]]:
    """Cut a recording, in blocks (S,) float32 of any size at `rate` Hz, as it is read.

    Yields: pieces, and their samples; at least one piece.

    No more than a block, WHOLE and CONTEXT of it are kept in memory.
    """
    held, origin, begin = np.empty(0, np.float32), 0, 0  # `held` starts at sample `origin`, the next piece at `begin`
    whole, context = round(WHOLE * rate), round(CONTEXT * rate / grid) * grid
    for block in blocks:
        held = np.concatenate([held, block])
        while origin + len(held) - begin > whole:
            length, pause = find_cut(held[begin - origin :][:whole], rate, grid)
            end, reach = begin + length, 0 if pause else context
            skip, frames = (begin - origin) // grid, None if pause else length // grid
            yield Piece(begin // grid, skip, frames, pause, length / rate), held[: end + reach - origin]
            held, origin, begin = held[end - reach - origin :], end - reach, end
    left = (origin + len(held) - begin) / rate
    yield Piece(begin // grid, (begin - origin) // grid, None, True, left), held


def find_cut(wave: np.ndarray, rate: int, grid: int) -> tuple[int, bool]:
    """Where a piece shall end: in the middle of the next pause, or else where it is quietest.

    wave: (S,) from the beginning of the piece, longer than LONGEST.
    Returns: samples, a multiple of `grid`; and whether there is a pause.
    """
    step = round(STEP * rate)
    steps = wave[: len(wave) // step * step].reshape(-1, step)
    level = 20 * np.log10(np.sqrt(np.square(steps).mean(1)) + FLOOR)
    speech, often, seldom = np.quantile(level, (LOUD_SHARE, *SILENT_SHARES))
    silence = often if speech - often > LEAST_RANGE else seldom
    first, after = round(SHORTEST / STEP), round(LONGEST / STEP)
    quiet = np.zeros(len(level) + 2, bool)
    quiet[1:-1] = (level < silence + QUIET * (speech - silence)) & (speech - silence > LEAST_RANGE)
    quiet[after + 1 :] = False
    changes = np.flatnonzero(quiet[1:] != quiet[:-1])
    begins, ends = changes[::2], changes[1::2]
    pauses = (ends - begins >= LEAST_PAUSE / STEP) & (begins + ends >= 2 * first)
    if pauses.any():
        middle = (begins[pauses][0] + ends[pauses][0]) / 2
    else:
        width = round(DIP / STEP)
        dips = np.convolve(level, np.ones(width), "valid")[after // 2 : after - width]
        middle = after // 2 + np.argmin(dips) + width / 2
    return round(middle * step / grid) * grid, bool(pauses.any())
