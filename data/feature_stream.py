"""The spectrogram of a wave that is still being recorded: the same frames as data/features.py makes of the whole."""

import numpy as np
import torch

from config import AudioConfig
from data.features import RunningNorm, check_length, log_magnitudes

# Frames are made so many at a time: how a wave is cut must not show, and a transform's last bits may depend on their number.
BLOCK_FRAMES = 10


class SpectrogramStream:
    """Waves in, normalised frames out: those of spectrogram() with `streaming_norm`, whatever `config` says of it.

    What a frame of the end is reflected from comes with the end, so frames lag half a window behind.
    """

    def __init__(self, config: AudioConfig):
        self.config = config
        self.samples = 0  # received
        self._half = config.window_samples // 2
        self._norm = RunningNorm()
        self._wave = np.empty(0, dtype=np.float32)  # what is still needed of the wave, reflected at its beginning
        self._next = 0  # where in it the next frame begins; beyond its end where windows lie apart

    def feed(self, wave: np.ndarray) -> list[torch.Tensor]:
        """Go on with samples (S,) float32 at config.sample_rate, any number of them.

        Returns: blocks of (F, BLOCK_FRAMES) float32.
        """
        if wave.ndim != 1:
            raise ValueError(f"a wave of shape {wave.shape}, expected one dimension: average the channels first")
        begun = self.samples > self._half
        self.samples += len(wave)
        self._wave = np.concatenate([self._wave, wave], dtype=np.float32)
        if not begun and self.samples > self._half:
            self._wave = np.concatenate([self._wave[self._half : 0 : -1], self._wave])
        blocks = []
        while self.samples > self._half and self._complete() >= BLOCK_FRAMES:
            blocks.append(self._frames(BLOCK_FRAMES))
        # A window may need samples that are long gone by, and the end is reflected from the last half window.
        gone = max(0, min(self._next, len(self._wave) - self._half - 1))
        self._wave, self._next = self._wave[gone:], self._next - gone
        return blocks

    def finish(self) -> torch.Tensor:
        """The last frames, (F, T), T possibly 0. Raises: ValueError if all in all the wave is too short, as spectrogram()."""
        check_length(self.samples, self.config)
        self._wave = np.concatenate([self._wave, self._wave[-2 : -2 - self._half : -1]])
        return self._frames(max(0, self._complete()))

    def _complete(self) -> int:
        """How many frames can be made."""
        return (len(self._wave) - self._next - self.config.window_samples) // self.config.hop_samples + 1

    def _frames(self, count: int) -> torch.Tensor:
        begin = self._next
        self._next += count * self.config.hop_samples
        if not count:
            return torch.empty(self.config.freq_bins, 0)
        end = self._next - self.config.hop_samples + self.config.window_samples
        return torch.from_numpy(self._norm(log_magnitudes(self._wave[begin:end], self.config))).T
