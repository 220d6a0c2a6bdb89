"""A beam search from its first frame to its last, in as many pieces as the frames come in."""

from typing import NamedTuple

import numpy as np

from decoding.entry_points import (
    run_add_answers,
    run_collect,
    run_read_prefixes,
    run_read_texts,
    run_search,
    run_spell,
    run_weigh,
)
from decoding.language import ANSWERS, ASKS, Answers
from decoding.prefixes import ASKED, FRAME, NODES, ROOM, STEPS, new_memory, with_room
from decoding.readings import READING, SPELLED
from decoding.search import ASKING, DONE
from decoding.setup import Setup

MOST_ANSWERS = 2**20  # kept; a longer search forgets them all and asks again
ASKS_AT_ONCE = 4096
MOST_CHARACTERS = 256  # of a text that is spelled at the first attempt


class Reading(NamedTuple):
    """A text that a beam holds."""

    characters: np.ndarray  # (N,) SPELLED
    score: float
    acoustic: float  # ln p
    lm: float  # ln p


class BeamSearch:
    """The state of one search."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.memory = new_memory(setup.beam_width, setup.num_labels, setup.first_state, setup.first_hot)
        self.answers = _no_answers(1024 if setup.language.kind == ANSWERS else 1)
        self.known = 0  # answers

    @property
    def frames(self) -> int:
        """How many there were so far."""
        return int(self.memory.counts[FRAME])

    def feed(self, frames: np.ndarray) -> None:
        """Advance over frames (L, C) float32 of ln p, which have been checked."""
        done, why = 0, None
        while why != DONE:
            more, why = run_search(frames[done:], self.setup.limits, self.setup.language, self.answers, self.memory)
            done += more
            if why == ASKING:
                self._answer()
            elif why != DONE:
                self._make_room()

    def texts(self, most: int) -> list[Reading]:
        """The best texts of the beam, best first, as if nothing followed."""
        found = np.zeros(len(self.memory.beam), READING)
        while (count := run_read_texts(self.setup.language, self.answers, self.memory, found)) == ASKS:
            self._answer()
        return self._spell(found[:count], np.argsort(-found["score"][:count], kind="stable")[:most])

    def leading(self) -> Reading:
        """The text that leads so far; its last word may be unfinished, and counts as what is expected of it."""
        found = np.zeros(len(self.memory.beam), READING)
        return self._spell(found[: run_read_prefixes(self.memory, found)], [0])[0]

    def _spell(self, readings: np.ndarray, chosen: np.ndarray | list[int]) -> list[Reading]:
        weights = np.zeros((2, self.memory.counts[NODES]))
        run_weigh(self.memory, readings, *weights)
        spelled = []
        for i in chosen:
            characters = np.zeros(MOST_CHARACTERS, SPELLED)
            count = run_spell(self.memory, readings[i], self.setup.language.space, *weights, characters)
            if count > len(characters):
                characters = np.zeros(count, SPELLED)
                run_spell(self.memory, readings[i], self.setup.language.space, *weights, characters)
            scores = (float(readings[name][i]) for name in ("score", "acoustic", "lm"))
            spelled.append(Reading(characters[len(characters) - count :], *scores))
        return spelled

    def _make_room(self) -> None:
        nodes, steps = (np.full(self.memory.counts[what], -1, np.int32) for what in (NODES, STEPS))
        run_collect(self.memory, nodes, steps)
        self.memory = with_room(self.memory, int(self.memory.counts[ROOM]), self.setup.beam_width)

    def _answer(self) -> None:
        """Ask the model what the search found missing."""
        keys = np.unique(self.answers.asked[: self.memory.counts[ASKED]])
        if self.known + len(keys) > min(len(self.answers.key) // 2, MOST_ANSWERS):
            self._enlarge(len(keys))
        found = [self.setup.model.transition(int(key) >> 32, int(key) & 0xFFFFFFFF) for key in keys]
        ln_p, states = zip(*found, strict=True)
        run_add_answers(self.answers, keys, np.array(ln_p, np.float32), np.array(states, np.int32))
        self.known += len(keys)

    def _enlarge(self, more: int) -> None:
        old = self.answers
        if self.known + more > MOST_ANSWERS:
            self.answers, self.known = _no_answers(1024 + 4 * more), 0
            return
        self.answers = _no_answers(4 * (self.known + more))
        kept = old.key >= 0
        run_add_answers(self.answers, old.key[kept], old.ln_p[kept], old.state[kept])


def _no_answers(size: int) -> Answers:
    """An empty table of at least this size."""
    size = 1 << (size - 1).bit_length()
    return Answers(
        np.full(size, -1, np.int64), np.zeros(size, np.float32), np.zeros(size, np.int32), np.zeros(ASKS_AT_ONCE, np.int64)
    )
