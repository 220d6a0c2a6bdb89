"""What happens to a training wave before it becomes a spectrogram: each a small function of (wave, its numbers)."""

import numpy as np
import soxr

from config import AugmentConfig

SPEED_STEPS = 100  # speeds are whole multiples of 1 / SPEED_STEPS: a resampling filter of few phases


def augment(wave: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """(S,) float32 -> (S',) float32, different in each epoch; `rng` follows from (seed, epoch, utterance)."""
    if config.speed_perturb:
        wave = change_speed(wave, rng.uniform(1 - config.speed_perturb, 1 + config.speed_perturb))
    return wave


def change_speed(wave: np.ndarray, speed: float) -> np.ndarray:
    """Play a wave `speed` times as fast, pitch and all, which makes another speaker of the same words (Ko et al. 2015)."""
    return soxr.resample(wave, round(speed * SPEED_STEPS), SPEED_STEPS, quality="HQ")
