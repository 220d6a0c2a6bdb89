"""Waves become recordings again, whole or not at all."""

import os
from pathlib import Path

import numpy as np
import soundfile

from data.command_line import UsageError
from data.files import whole_file

FORMATS = "wav flac aiff au w64 caf".split()  # what libsndfile writes without loss


def format_of(path: str | os.PathLike[str], flag: str) -> str:
    """libsndfile's name of the format that a file's name asks for. Raises: UsageError with the flag if there is none."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UsageError(f"{flag} {path}: expected a name that ends in one of .{', .'.join(FORMATS)}")
    return suffix.upper()


def write_wave(path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int, flag: str) -> float:
    """Write a wave (S,), full scale 1, in the format of its name, in 16 bits.

    A wave beyond full scale is made quieter as a whole, because clipping would change what speech and noise are to each other.

    Returns: by how many dB it was made quieter, mostly 0.
    Raises: UsageError with the flag for an unknown format, ValueError for what the format cannot hold, OSError.
    """
    kind = format_of(path, flag)
    loudest = max(1.0, float(np.abs(wave).max()) * 32768 / 32767)
    with whole_file(path) as temporary:
        try:
            soundfile.write(temporary, wave / np.float32(loudest), sample_rate, format=kind)
        except soundfile.LibsndfileError as fault:
            raise ValueError(f"{path}: {fault.error_string.strip()}") from None
    return 20 * float(np.log10(loudest))
