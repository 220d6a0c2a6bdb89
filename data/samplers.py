"""Which utterances meet in a batch, in which order, and which process takes which of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LENGTH_JITTER = 0.05  # lengths are taken for up to this share longer or shorter when batches are formed anew


class SampleKey(NamedTuple):
    """Which utterance, and in which epoch it is asked for: all that its augmentation depends on, besides the seed."""

    epoch: int
    index: int


@dataclass(frozen=True)
class BatchLimit:
    """The most that is in a batch: so many utterances, or so many seconds of audio, padding included."""

    utterances: int = 0  # 0: as many as fit into the seconds
    seconds: float = 0.0  # an utterance longer than that is a batch of its own

    @classmethod
    def of(cls, utterances: int, seconds: float | None) -> "BatchLimit":
        """By seconds if these are given, else by utterances."""
        return cls(seconds=seconds) if seconds else cls(utterances)

    def times(self, processes: int) -> "BatchLimit":
        return BatchLimit(self.utterances * processes, self.seconds * processes)

    def cut(self, order: np.ndarray, durations: np.ndarray) -> list[np.ndarray]:
        """Batches of the utterances `order`, as they come."""
        if self.utterances:
            return [order[i : i + self.utterances] for i in range(0, len(order), self.utterances)]
        batches, begin, longest = [], 0, 0.0
        for i, seconds in enumerate(durations[order].tolist()):
            longest = max(longest, seconds)
            if i > begin and (i + 1 - begin) * longest > self.seconds:
                batches.append(order[begin:i])
                begin, longest = i, seconds
        return [*batches, order[begin:]] if len(order) else []


@dataclass(frozen=True)
class Position:
    """Where in an epoch's order a training stands.

    The order is made by batches `formed` by a limit, of all processes together, and followed in these up to its end; if that
    is no longer the limit, it is cut anew from utterance `cut_at` on.
    """

    epoch: int = 0  # 0-based
    done: int = 0  # utterances of the order that were seen
    formed: BatchLimit | None = None  # None: by the limit of now
    cut_at: int = 0
    cut: BatchLimit | None = None  # None: it was never cut

    @classmethod
    def read(cls, kept: dict) -> "Position":
        """From the dict that `dataclasses.asdict` makes of one. Raises: TypeError, ValueError, KeyError if it is not one."""
        limits = {name: None if kept[name] is None else BatchLimit(**kept[name]) for name in ("formed", "cut")}
        position = cls(**kept | limits)
        counts = [position.epoch, position.done, position.cut_at, *(limit.utterances for limit in limits.values() if limit)]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a count is not a whole number")
        if not all(limit.utterances or limit.seconds > 0 for limit in limits.values() if limit):
            raise ValueError("a batch without a limit")
        return position


class LengthBatchSampler:
    """Batches of utterances of like length, so that little is padding, and of each batch the share of one process.

    The first epoch runs from the shortest to the longest (sortaGrad, Amodei et al. 2015, section 3.3); later ones form the
    batches anew with a little jitter of the lengths and shuffle their order. The order follows from (seed, epoch) alone.
    Without `shuffle` every epoch runs from the shortest to the longest.

    With several processes the limit is each one's, which for seconds one utterance may exceed. They take turns in a batch's
    order of lengths, so that their shares are alike and they finish together; at the end of an epoch a share may be empty.
    """

    def __init__(
        self,
        durations: Sequence[float],
        limit: BatchLimit,
        *,
        shuffle: bool = True,
        sorta_grad: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.durations = np.asarray(durations, np.float64)
        self.limit, self.shuffle, self.sorta_grad, self.seed = limit.times(world_size), shuffle, sorta_grad, seed
        self.rank, self.world_size = rank, world_size
        self.go_to(Position())

    def go_to(self, position: Position) -> Position:
        """Make what remains of an epoch from `position` on the next pass. Returns: the position as it is to be kept."""
        formed = position.formed or self.limit
        batches = self._form(position.epoch, formed)
        cut_at, cut = position.cut_at, position.cut
        if (cut or formed) != self.limit:  # other batches than before, from here on
            cut_at, cut = position.done, self.limit
        if cut:
            batches = cut.cut(np.concatenate(batches)[cut_at:], self.durations)
        else:
            cut_at = 0
        begins = cut_at + np.cumsum([0] + [len(batch) for batch in batches])
        first = int(np.searchsorted(begins, position.done))
        self.batches: list[np.ndarray] = batches[first:]  # what remains, of all processes together
        self.position = Position(position.epoch, position.done, formed, cut_at, cut)
        return self.position

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.position.epoch
        for batch in self.batches:
            yield [SampleKey(epoch, int(index)) for index in batch[self.rank :: self.world_size]]

    @property
    def padding(self) -> float:
        """The share of padding in the batches that remain."""
        padded = sum(len(batch) * self.durations[batch].max() for batch in self.batches)
        return 1 - sum(self.durations[batch].sum() for batch in self.batches) / padded if padded else 0.0

    def _form(self, epoch: int, limit: BatchLimit) -> list[np.ndarray]:
        shuffled = self.shuffle and (epoch > 0 or not self.sorta_grad)
        lengths = self.durations
        if shuffled:
            rng = np.random.default_rng((self.seed, epoch))
            lengths = lengths * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths))
        order = np.argsort(lengths, kind="stable")
        batches = limit.cut(order, self.durations)
        if shuffled:
            rng.shuffle(batches)
        return batches
