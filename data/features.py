"""What the network hears: a wave's log spectrogram, normalised by itself."""

import math
from functools import lru_cache

import numpy as np
import torch

from config import AudioConfig

# A spectrogram that varies less than this is silence: one bit of a 24-bit recording as noise already varies more.
# Dividing by it instead keeps silence at zero and rounding errors from being blown up into something like speech.
SILENCE_STD = 1e-7

# The predecessor divided 16-bit samples by 32767, libsndfile divides by 32768. Its models were taught the louder sound,
# and the logarithm keeps the difference: up to 1.3e-4 of a normalised spectrogram. The window makes up for it.
PREDECESSOR_GAIN = 32768 / 32767

WINDOW_FUNCTIONS = {
    "hamming": torch.hamming_window,
    "hann": torch.hann_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
}


def spectrogram(wave: np.ndarray, config: AudioConfig) -> torch.Tensor:
    """log(1 + magnitude), minus its mean, over its unbiased standard deviation: loudness and microphone matter less.

    The window is symmetric and centred, the wave continued by reflection at both ends (as librosa did until 0.9), so
    that models trained by the predecessor hear what they were taught. Digital silence gives zeros.

    wave: (S,) float32 at config.sample_rate.
    Returns: (F, T) float32, F = config.freq_bins, T = frame_count(S, config).
    Raises: ValueError if the wave is too short to be reflected by half a window, or has several channels.
    """
    length, half = config.window_samples, config.window_samples // 2
    if wave.ndim != 1:
        raise ValueError(f"a wave of shape {wave.shape}, expected one dimension: average the channels first")
    if len(wave) <= half:
        raise ValueError(
            f"{len(wave)} samples at {config.sample_rate} Hz, expected at least {half + 1}, half a window and one: "
            "leave recordings this short out"
        )
    # numpy reflects, takes magnitudes and normalises several times faster than torch does on one thread
    padded = torch.from_numpy(np.pad(wave.astype(np.float32, copy=False), half, mode="reflect"))
    transform = torch.stft(padded, length, config.hop_samples, window=_window(config), center=False, return_complex=True)
    spect_TF = np.abs(transform.T.numpy())  # as it lies in memory: T frames of F bins
    np.log1p(spect_TF, out=spect_TF)
    spect_TF -= spect_TF.mean()
    flat = spect_TF.ravel()
    std = math.sqrt(np.dot(flat, flat) / (flat.size - 1))
    spect_TF /= max(std, SILENCE_STD)
    return torch.from_numpy(spect_TF).T


@lru_cache
def _window(config: AudioConfig) -> torch.Tensor:
    """(window_samples,) float32. Symmetric: a periodic window moves the normalised spectrogram by 0.05."""
    window = WINDOW_FUNCTIONS[config.window](config.window_samples, periodic=False, dtype=torch.float64)
    return (window * PREDECESSOR_GAIN).float()
