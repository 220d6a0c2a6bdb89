"""SpecAugment (Park et al. 2019, arXiv 1904.08779): masks over frequency and time, so that no one cue is leant upon."""

import numpy as np
from torch import Tensor

from config import AugmentConfig


def spec_augment(spect: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Mask bands of bins and spans of frames of a normalised spectrogram (F, T) with its mean, zero, in place."""
    if not config.spec_augment:
        return spect
    bins, frames = spect.shape
    for _ in range(config.num_freq_masks):
        start, end = _span(rng, bins, min(config.freq_mask_width, bins))
        spect[start:end] = 0.0
    for _ in range(config.num_time_masks):
        start, end = _span(rng, frames, min(config.time_mask_width, int(config.time_mask_share * frames)))
        spect[:, start:end] = 0.0
    return spect


def _span(rng: np.random.Generator, size: int, widest: int) -> tuple[int, int]:
    """A width from 0 to `widest`, both included, then a place for it, all places alike."""
    width = int(rng.integers(widest + 1))
    start = int(rng.integers(size - width + 1))
    return start, start + width
