"""Noise for training: folders of recordings, a random part of one, and how loud it is beside the speech."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.audio import audio_duration, load_audio
from data.command_line import UsageError, message

SEAM = 0.02  # seconds over which the end of a repeated noise fades into its beginning
SILENCE = 1e-6  # RMS; what is quieter than the rounding of 16 bits is not there


@dataclass(frozen=True)
class Recordings:
    """The usable recordings of a folder, in an order that is the same on every machine."""

    paths: tuple[str, ...]
    durations: tuple[float, ...]  # seconds
    unusable: tuple[str, ...]  # what is wrong with the other files, each line with its path


def find_recordings(folder: str | Path, flag: str) -> Recordings:
    """Find what can be read in a folder and those below it, before training starts; hidden files are passed over.

    Files are judged by their content, as `audio_duration` does: by headers alone, whatever they are called.

    Raises: UsageError with the flag if there is no such folder, or no recording in it.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{flag} {folder}: no such folder; expected one of recordings")
    found = sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names if not name.startswith("."))
    paths, durations, unusable = [], [], []
    for path in found:
        try:
            durations.append(audio_duration(path))
        except (ValueError, OSError) as error:
            unusable.append(message(error))
        else:
            paths.append(str(path))
    if not paths:
        raise UsageError(f"{flag} {folder}: no recording in it ({unusable[0] if unusable else 'nor any other file'})")
    return Recordings(tuple(paths), tuple(durations), tuple(unusable))


def noise_part(path: str, duration: float, samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of a noise, of which no more is read, or all of a shorter one, repeated from a random point on.

    duration: the recording's, seconds.
    Returns: (samples,) float32 at `sample_rate` Hz.
    Raises: as load_audio, for damage that headers do not show.
    """
    wanted = (samples + 1) / sample_rate  # one more, as resampling may round down
    if duration <= wanted:
        return repeated(load_audio(path, sample_rate), samples, sample_rate, rng)
    part = load_audio(path, sample_rate, rng.uniform(0, duration - wanted), wanted)
    return part[:samples] if len(part) >= samples else repeated(part, samples, sample_rate, rng)


def repeated(noise: np.ndarray, samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Repeat a noise from a random point on, its end faded into its beginning at equal power, so that no click tells of it."""
    fade = min(round(SEAM * sample_rate), len(noise) // 2)
    loop = noise[: len(noise) - fade].copy()
    rising = np.sqrt((np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1))
    loop[:fade] = loop[:fade] * rising + noise[len(noise) - fade :] * rising[::-1]
    return np.resize(np.roll(loop, -int(rng.integers(len(loop)))), samples)


def add_noise(wave: np.ndarray, noise: np.ndarray, level: float) -> np.ndarray:
    """Mix in noise (S,) of `level` times the RMS of the wave (S,), pauses included, as the predecessor counts it.

    Silent speech stays silent, as no noise has a level beside it, and silent noise adds nothing.
    """
    noise_rms = rms(noise)
    if noise_rms < SILENCE:
        return wave
    return wave + noise * np.float32(level * rms(wave) / noise_rms)


def rms(wave: np.ndarray) -> float:
    return math.sqrt(np.dot(wave, wave) / len(wave))
