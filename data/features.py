"""What the network hears: a wave's log spectrogram, normalised by itself, or by what has been heard so far."""

import math
from functools import lru_cache

import numpy as np
import torch

from config import AudioConfig

# A spectrogram that varies less than this is silence: one bit of a 24-bit recording as noise already varies more.
# Dividing by it instead keeps silence at zero and rounding errors from being blown up into something like speech.
SILENCE_STD = 1e-7

# Normalising by what has been heard so far: before anything has, by what speech at usual levels measures, which counts as
# much as the first half second and is never forgotten, so that a long silence is not blown up into something like speech.
PRIOR_FRAMES, PRIOR_MEAN, PRIOR_STD = 50, 0.08, 0.22
MEMORY_FRAMES = 1000  # what was heard this long ago counts 1/e of what is heard now

# The predecessor divided 16-bit samples by 32767, libsndfile divides by 32768. Its models were taught the louder sound,
# and the logarithm keeps the difference: up to 1.3e-4 of a normalised spectrogram. The window makes up for it.
PREDECESSOR_GAIN = 32768 / 32767

WINDOW_FUNCTIONS = {
    "hamming": torch.hamming_window,
    "hann": torch.hann_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
}


class TooShort(ValueError):
    """A wave that holds no frame."""


def spectrogram(wave: np.ndarray, config: AudioConfig, norm: "RunningNorm | None" = None) -> torch.Tensor:
    """log(1 + magnitude), less its mean and over its standard deviation: loudness and microphone matter less.

    Mean and unbiased deviation are those of the whole utterance, or with `config.streaming_norm` a RunningNorm's: those of
    `norm`, which has heard what came before, or of a new one.

    The window is symmetric and centred, the wave continued by reflection at both ends (as librosa did until 0.9), so
    that models trained by the predecessor hear what they were taught. Digital silence gives zeros, where the whole normalises.

    wave: (S,) float32 at config.sample_rate.
    Returns: (F, T) float32, F = config.freq_bins, T = frame_count(S, config).
    Raises: TooShort if the wave cannot be reflected by half a window; ValueError if it has several channels.
    """
    half = config.window_samples // 2
    if wave.ndim != 1:
        raise ValueError(f"a wave of shape {wave.shape}, expected one dimension: average the channels first")
    check_length(len(wave), config)
    # numpy reflects, takes magnitudes and normalises several times faster than torch does on one thread
    spect_TF = log_magnitudes(np.pad(wave.astype(np.float32, copy=False), half, mode="reflect"), config)
    return torch.from_numpy(((norm or RunningNorm()) if config.streaming_norm else _whole_norm)(spect_TF)).T


def check_length(samples: int, config: AudioConfig) -> None:
    """Raises: TooShort if so few samples cannot be reflected by half a window."""
    half = config.window_samples // 2
    if samples <= half:
        raise TooShort(
            f"{samples} samples at {config.sample_rate} Hz, expected at least {half + 1}, half a window and one: "
            "leave recordings this short out"
        )


def log_magnitudes(padded: np.ndarray, config: AudioConfig) -> np.ndarray:
    """log(1 + magnitude) of every window that lies within a wave that has been continued at its ends.

    Returns: (T, F) float32, as it lies in memory.
    """
    window, wave = _window(config), torch.from_numpy(padded)
    transform = torch.stft(wave, len(window), config.hop_samples, window=window, center=False, return_complex=True)
    spect_TF = np.abs(transform.T.numpy())
    return np.log1p(spect_TF, out=spect_TF)


def _whole_norm(spect_TF: np.ndarray) -> np.ndarray:
    spect_TF -= spect_TF.mean()
    flat = spect_TF.ravel()
    std = math.sqrt(np.dot(flat, flat) / (flat.size - 1))
    spect_TF /= max(std, SILENCE_STD)
    return spect_TF


class RunningNorm:
    """Normalises each frame by the frames up to it: all that is known of a recording that goes on.

    Mean and variance are exponentially forgetting averages, together with the prior at the top of this file.
    """

    def __init__(self) -> None:
        self.frames = self.total = self.power = (
            0.0  # heard so far, less what is forgotten: how many, their means and mean squares
        )

    def __call__(self, spect_TF: np.ndarray) -> np.ndarray:
        """The next frames, (T, F) float32, in place. However they are cut into calls, they come out the same to the bit."""
        keep = math.exp(-1 / MEMORY_FRAMES)
        norms = np.empty((2, len(spect_TF), 1), dtype=np.float32)
        means = spect_TF.mean(axis=1, dtype=np.float64)
        powers = np.square(spect_TF).mean(axis=1, dtype=np.float64)
        for t, (mean, power) in enumerate(zip(means.tolist(), powers.tolist(), strict=True)):
            self.frames = keep * self.frames + 1
            self.total = keep * self.total + mean
            self.power = keep * self.power + power
            weight = PRIOR_FRAMES + self.frames
            centre = (PRIOR_FRAMES * PRIOR_MEAN + self.total) / weight
            spread = (PRIOR_FRAMES * (PRIOR_MEAN**2 + PRIOR_STD**2) + self.power) / weight - centre**2
            norms[:, t, 0] = centre, math.sqrt(spread)
        spect_TF -= norms[0]
        spect_TF /= norms[1]
        return spect_TF


@lru_cache
def _window(config: AudioConfig) -> torch.Tensor:
    """(window_samples,) float32. Symmetric: a periodic window moves the normalised spectrogram by 0.05."""
    window = WINDOW_FUNCTIONS[config.window](config.window_samples, periodic=False, dtype=torch.float64)
    return (window * PREDECESSOR_GAIN).float()
