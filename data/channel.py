"""What lies between a mouth and a file: the room, the microphone's gain, the telephone line."""

import io

import numpy as np
import soundfile
import soxr

from data.noise import SILENCE, rms

TELEPHONE_RATE = 8000  # Hz


def reverberate(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Say a wave (S,) in the room of an impulse response (R,), at the loudness it had.

    The strongest sample of the response is taken for the direct path and moved to time zero, so that the words stay where they
    were; what sounds after the end is cut off. A silent response changes nothing.
    Returns: (S,) float32.
    """
    samples = len(wave) + len(response) - 1
    size = min(m << (-(-samples // m) - 1).bit_length() for m in (1, 3, 5))  # of small factors, which transforms fast
    sounding = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)
    direct = int(np.abs(response).argmax())
    heard = sounding[direct : direct + len(wave)].astype(np.float32)
    level = rms(heard)
    return heard * np.float32(rms(wave) / level) if level >= SILENCE else wave


def amplify(wave: np.ndarray, decibels: float) -> np.ndarray:
    """Louder or quieter, clipped at full scale, as a recorder would."""
    return np.clip(wave * np.float32(10 ** (decibels / 20)), -1, 1)


def telephone(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Through a telephone and back: 8 kHz, 8 bits of mu-law (G.711), clipped at full scale.

    Returns: (S,) float32, as long as it came. Below 8 kHz only the mu-law is heard.
    """
    rate = min(sample_rate, TELEPHONE_RATE)
    narrow = np.clip(soxr.resample(wave, sample_rate, rate, quality="HQ"), -1, 1)
    line = io.BytesIO()
    soundfile.write(line, narrow, rate, format="RAW", subtype="ULAW")
    line.seek(0)
    received, _ = soundfile.read(line, dtype="float32", samplerate=rate, channels=1, format="RAW", subtype="ULAW")
    heard = soxr.resample(received, rate, sample_rate, quality="HQ")[: len(wave)]
    return np.pad(heard, (0, len(wave) - len(heard)))
