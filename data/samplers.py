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
class Position:
    """Where in an epoch's order a training stands.

    The order is made by batches of `formed` utterances, of all processes together, and followed in these up to its end; if
    that many no longer fit, it is cut anew from utterance `cut_at` on.
    """

    epoch: int = 0  # 0-based
    done: int = 0  # utterances of the order that were seen
    formed: int = 0  # 0: as many as the batches hold now
    cut_at: int = 0
    cut: int = 0  # utterances of a batch since then; 0: it was never cut


class LengthBatchSampler:
    """Batches of utterances of like length, so that little is padding, and of each batch the share of one process.

    The first epoch runs from the shortest to the longest (sortaGrad, Amodei et al. 2015, section 3.3); later ones form the
    batches anew with a little jitter of the lengths and shuffle their order. The order follows from (seed, epoch) alone.
    Without `shuffle` every epoch runs from the shortest to the longest.

    With several processes a batch is `batch_size` utterances of each. They take turns in its order of lengths, so that their
    shares are alike and they finish together; at the end of an epoch a share may be empty.
    """

    def __init__(
        self,
        durations: Sequence[float],
        batch_size: int,
        *,
        shuffle: bool = True,
        sorta_grad: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.durations = np.asarray(durations, np.float64)
        self.batch_size, self.shuffle, self.sorta_grad, self.seed = batch_size * world_size, shuffle, sorta_grad, seed
        self.rank, self.world_size = rank, world_size
        self.go_to(Position())

    def go_to(self, position: Position) -> Position:
        """Make what remains of an epoch from `position` on the next pass. Returns: the position as it is to be kept."""
        formed = position.formed or self.batch_size
        batches = self._form(position.epoch, formed)
        last_cut = position.cut or formed
        cut_at, cut = position.cut_at, position.cut
        if last_cut != self.batch_size:  # other batches than before, from here on
            cut_at, cut = position.done, self.batch_size
        if cut:
            rest = np.concatenate(batches)[cut_at:]
            batches = [rest[i : i + cut] for i in range(0, len(rest), cut)]
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

    def _form(self, epoch: int, size: int) -> list[np.ndarray]:
        shuffled = self.shuffle and (epoch > 0 or not self.sorta_grad)
        lengths = self.durations
        if shuffled:
            rng = np.random.default_rng((self.seed, epoch))
            lengths = lengths * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths))
        order = np.argsort(lengths, kind="stable")
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if shuffled:
            rng.shuffle(batches)
        return batches
