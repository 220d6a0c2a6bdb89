"""Which utterances meet in a batch, and in which order."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

LENGTH_JITTER = 0.05  # lengths are taken for up to this share longer or shorter when batches are formed anew


class SampleKey(NamedTuple):
    """Which utterance, and in which epoch it is asked for: all that its augmentation depends on, besides the seed."""

    epoch: int
    index: int


class LengthBatchSampler:
    """Batches of utterances of like length, so that little is padding.

    The first epoch runs from the shortest to the longest (sortaGrad, Amodei et al. 2015, section 3.3); later ones form the
    batches anew with a little jitter of the lengths and shuffle their order. The order follows from (seed, epoch) alone.
    Without `shuffle` every epoch runs from the shortest to the longest.
    """

    def __init__(
        self,
        durations: Sequence[float],
        batch_size: int,
        *,
        shuffle: bool = True,
        sorta_grad: bool = True,
        seed: int = 0,
    ):
        self.durations = np.asarray(durations, np.float64)
        self.batch_size, self.shuffle, self.sorta_grad, self.seed = batch_size, shuffle, sorta_grad, seed
        self.epoch = 0  # 0-based; the caller sets it before each pass

    def __len__(self) -> int:
        return -(-len(self.durations) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        shuffled = self.shuffle and (self.epoch > 0 or not self.sorta_grad)
        lengths = self.durations
        if shuffled:
            rng = np.random.default_rng((self.seed, self.epoch))
            lengths = lengths * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths))
        order = np.argsort(lengths, kind="stable")
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if shuffled:
            rng.shuffle(batches)
        for batch in batches:
            yield [SampleKey(self.epoch, int(index)) for index in batch]
