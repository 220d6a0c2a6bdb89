"""SpecAugment (Park et al. 2019, arXiv 1904.08779), so that no one cue is leant upon: warped time, masked bins and frames."""

import numpy as np
import torch
from torch import Tensor

from config import AugmentConfig


def spec_augment(spect: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Warp a normalised spectrogram (F, T) in time, then mask bands and spans of it with its mean, zero.

    The warp moves a frame by at most a quarter of the utterance: the paper's 80 frames, made for LibriSpeech, would squeeze
    half of a short one into nothing.

    Returns: (F, T), in the memory of the one given unless that was warped. No part's draws depend on the others' settings.
    """
    if not config.spec_augment:
        return spect
    bins, frames = spect.shape
    draws = [np.random.default_rng(seed) for seed in rng.integers(2**63, size=3)]
    spect_TF = spect.T.numpy()  # as it lies in memory
    farthest = min(config.time_warp, (frames - 1) // 4)
    if farthest:
        spect_TF = warp_time(spect_TF, *_warp(draws[0], frames, farthest))
    widest = min(config.time_mask_width, int(config.time_mask_share * frames))
    spect_TF[:, _masked(draws[1], bins, config.num_freq_masks, min(config.freq_mask_width, bins))] = 0.0
    spect_TF[_masked(draws[2], frames, config.num_time_masks, widest)] = 0.0
    return torch.from_numpy(spect_TF).T


def warp_time(spect_TF: np.ndarray, point: int, distance: int) -> np.ndarray:
    """Move the frame at `point` by `distance` frames, and stretch or squeeze what lies on either side.

    The paper's sparse image warp with its control points on one line: both ends stay, and between control points the flow is
    linear, as is the interpolation of frames.

    spect_TF: (T, F); point and point + distance lie within 0 and T - 1.
    Returns: a new (T, F).
    """
    last = len(spect_TF) - 1
    came_from = np.interp(np.arange(last + 1), [0, point + distance, last], [0, point, last]).astype(np.float32)
    before = np.minimum(came_from.astype(int), last - 1)
    share = (came_from - before)[:, None]
    warped = spect_TF[before + 1]
    earlier = spect_TF[before]
    warped -= earlier
    warped *= share
    warped += earlier
    return warped


def _warp(rng: np.random.Generator, frames: int, farthest: int) -> tuple[int, int]:
    """Which frame is moved, by its position alone, and how far: the paper's (W, T - W), and -W to W."""
    point = rng.integers(farthest + 1, frames - 1 - farthest)
    return int(point), int(rng.integers(-farthest, farthest + 1))


def _masked(rng: np.random.Generator, size: int, count: int, widest: int) -> np.ndarray:
    """Which of `size` lie in one of `count` masks: each of a width from 0 to `widest`, both included, at any place alike."""
    widths = rng.integers(widest + 1, size=count)
    starts = rng.integers(size - widths + 1)
    places = np.arange(size)[:, None]
    return ((places >= starts) & (places < starts + widths)).any(1)
