"""Frames to seconds."""

from dataclasses import dataclass

from config import AudioConfig, ModelConfig
from model import PADDINGS, RELEASE1_PADDINGS, TIME_KERNEL, TIME_STRIDE


@dataclass(frozen=True)
class FrameTimes:
    """Frame i is centred `first + i * period` seconds into the recording, and lasts half a period to either side."""

    first: float
    period: float

    def begin(self, frame: int) -> float:
        """Seconds from the recording's beginning to the frame's, which may be a little less than nothing."""
        return self.first + (frame - 0.5) * self.period

    @classmethod
    def of_spectrogram(cls, audio: AudioConfig) -> "FrameTimes":
        """Windows are centred on every hop's first sample; one of odd length reaches half a sample further."""
        half_sample = 0.5 * (audio.window_samples % 2)
        return cls(half_sample / audio.sample_rate, audio.hop_samples / audio.sample_rate)

    @classmethod
    def of_output(cls, audio: AudioConfig, model: ModelConfig) -> "FrameTimes":
        """The middle of what the convolutions show to the recurrent layers, which hear all of it.

        Output frame j sees the first convolution's frames j - padding to j - padding + kernel - 1, and each of these so many
        spectrogram frames, at its stride.
        """
        (_, first), (_, second) = RELEASE1_PADDINGS if model.release1 else PADDINGS
        half = TIME_KERNEL // 2
        centre = TIME_STRIDE * (half - second) + half - first  # spectrogram frame at the middle of output frame 0
        frames = cls.of_spectrogram(audio)
        return cls(frames.first + centre * frames.period, TIME_STRIDE * frames.period)
