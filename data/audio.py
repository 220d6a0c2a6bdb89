"""Recordings become waves here and nowhere else; every fault of a file is one ValueError that starts with its name."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from config import RATES
from data.containers import CONVERT, READABLE, Memory, checked
from data.shards import file_bytes, is_member

BLOCK_FRAMES = 2**24  # read at most this many at once (17 min at 16 kHz), so that no header can make us allocate memory
LOUDEST = 100.0  # full scale is 1; a float file may pass it, but not by 40 dB
ROUNDING = 0.05  # seconds; manifests round times, so that a segment's end may lie beyond the last sample
SEGMENT_TOLERANCE = 0.75 * ROUNDING  # by which checks let it: less than is read, which is counted in whole samples


def load_audio(
    source: Path | str | BinaryIO, sample_rate: int, offset: float = 0.0, duration: float | None = None
) -> np.ndarray:
    """Read a recording or a segment as one channel at the model's rate: a silently wrong rate trains a deaf model.

    Channels are averaged; other rates are resampled by soxr at high quality. Full scale is 1 whatever the sample
    format: integers stay within it, while floats that go beyond it (and overshoots of mp3 or resampling) are kept,
    because clipping them would destroy speech that is there; the features are normalised anyway.

    source: a path, also of a recording in a shard (data/shards.py), or a binary file object, which is read from where it
        stands to its end.
    offset, duration: seconds; a duration of None goes to the end.
    Returns: (S,) float32, S samples at `sample_rate` Hz.
    Raises: ValueError if the file is no audio that can be read, is damaged or truncated, holds no samples or impossible
        ones, or if the segment lies outside it; OSError if it cannot be opened.
    """
    with _opened(source) as file:
        start, count = _segment(file, offset, duration)
        wave = _checked_wave(_read(file, start, count), count)
        rate = file.samplerate
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate, quality="HQ")
    return wave


def audio_duration(source: Path | str | BinaryIO) -> float:
    """Length of a recording in seconds, from its headers: a manifest of thousands is checked before training starts.

    Raises: as load_audio, for what headers can tell. Damage inside a file, and a flac cut within its last frame, show
        only when read.
    """
    with _opened(source) as file:
        if file.frames == 0:
            raise ValueError("no samples")
        return file.frames / file.samplerate


def rate_and_channels(source: Path | str | BinaryIO) -> tuple[int, int]:
    """How a recording is stored: samples a second and channels. Raises: as audio_duration."""
    with _opened(source) as file:
        return file.samplerate, file.channels


def source_name(source: Path | str | BinaryIO) -> str:
    """What messages call a recording: its path, or the name its file object carries."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) or "''"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "audio"  # a temporary file's name may be a number


@contextmanager
def _opened(source: Path | str | BinaryIO) -> Iterator[soundfile.SoundFile]:
    """Open a recording whose header has been checked; faults found while it is open get the file's name in front."""
    name = source_name(source)
    try:
        with _binary(source) as binary:
            content = checked(binary)
            content.seek(0)
            # By descriptor where there is one: decoding does not pass through Python, and nothing is guessed from the
            # file's extension.
            target = content if isinstance(content, Memory) else content.fileno()
            with soundfile.SoundFile(target, closefd=False) as file:
                if file.samplerate not in RATES:
                    raise ValueError(
                        f"damaged: its header says {file.samplerate} Hz, expected {RATES.start} to {RATES.stop - 1}"
                    )
                yield file
    except soundfile.LibsndfileError as fault:
        raise ValueError(f"{name}: {_explained(fault)}") from None
    except ValueError as fault:
        raise ValueError(f"{name}: {fault}") from None


def _binary(source: Path | str | BinaryIO) -> BinaryIO:
    if not isinstance(source, (str, os.PathLike)):
        return Memory(source.read())
    if is_member(os.fspath(source)):
        return Memory(file_bytes(os.fspath(source)))
    mode = os.stat(source).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{'a directory' if stat.S_ISDIR(mode) else 'not a file'}; expected an audio file")
    return open(source, "rb", buffering=0)


def _explained(fault: soundfile.LibsndfileError) -> str:
    reason = fault.error_string.removeprefix("Error : ").strip().rstrip(".")
    if fault.code == 1:
        return f"not audio that can be read ({reason}); expected {READABLE}: {CONVERT}"
    return f"damaged, or of an unknown codec ({reason}); fetch it again, or {CONVERT}"


def _segment(file: soundfile.SoundFile, offset: float, duration: float | None) -> tuple[int, int]:
    """First sample and number of samples of a segment given in seconds, at the file's own rate."""
    if not 0 <= offset < float("inf") or (duration is not None and not 0 < duration < float("inf")):
        raise ValueError(f"segment of {duration} s from {offset} s: expected an offset >= 0 and a duration > 0")
    start = round(offset * file.samplerate)
    rest = file.frames - start
    count = rest if duration is None else round(duration * file.samplerate)
    if rest < count <= rest + ROUNDING * file.samplerate:
        count = rest
    if file.frames and not 0 < count <= rest:
        raise ValueError(
            f"segment of {duration} s from {offset} s: outside the file, which is "
            f"{file.frames / file.samplerate:.3f} s long; correct the manifest"
        )
    return start, count


def _read(file: soundfile.SoundFile, start: int, count: int) -> np.ndarray:
    """Decode `count` frames from `start`, or as many as there are.

    Returns: (S, C) float32, or int16 where the file holds that: numpy converts it five times faster than libsndfile.
    """
    if start and not file.seekable():  # GSM and its like can only be read from their beginning
        return _read(file, 0, start + count)[start:]
    if start:
        file.seek(start)
    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    blocks = []
    while True:
        wanted = min(count, BLOCK_FRAMES)
        blocks.append(file.read(wanted, dtype=dtype, always_2d=True))
        count -= wanted
        if count == 0 or len(blocks[-1]) < wanted:
            return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _checked_wave(wave_SC: np.ndarray, count: int) -> np.ndarray:
    """Average the channels of samples that are all there and all possible. Returns: (S,) float32."""
    samples, channels = wave_SC.shape
    if samples < count:
        raise ValueError(f"truncated or damaged: {samples} of {count} samples could be read; fetch it again")
    if samples == 0:
        raise ValueError("no samples")
    if wave_SC.dtype == np.int16:
        wave_SC = np.multiply(wave_SC, np.float32(1 / 32768), dtype=np.float32)
    loudest = max(wave_SC.max(), -wave_SC.min())
    if not np.isfinite(loudest):
        raise ValueError("damaged: some samples are not finite numbers (NaN or infinity)")
    if loudest > LOUDEST:
        raise ValueError(f"samples up to {loudest:g}, full scale is 1: damaged, or integers stored as floats")
    if channels == 1:
        return wave_SC[:, 0]
    return wave_SC @ np.full(channels, 1 / channels, dtype=np.float32)
