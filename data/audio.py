"""Recordings become waves here and nowhere else; every fault of a file is one ValueError that starts with its name."""

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from data.containers import CONVERT, HEAD_BYTES, READABLE, TooLong, UnknownFormat, check_rate, checked, foreign_format
from data.foreign import decode
from data.random_access import Memory, TemporaryFile, spooled
from data.shards import file_bytes, is_member

BLOCK_SAMPLES = 2**24  # read at most this many at once (17 min at 16 kHz), so that no header can make us allocate memory
LOUDEST = 100.0  # full scale is 1; a float file may pass it, but not by 40 dB
ROUNDING = 0.05  # seconds; manifests round times, so that a segment's end may lie beyond the last sample
SEGMENT_TOLERANCE = 0.75 * ROUNDING  # by which checks let it: less than is read, which is counted in whole samples


class _Recording(soundfile.SoundFile):
    """A sound file read onwards: soundfile seeks after every read to where it is, unless it may not seek.

    In the midst of an mp3 that makes the decoder start anew, with samples a little off and complaints on stderr.
    """

    def seekable(self) -> bool:
        return False

    def can_seek(self) -> bool:
        return super().seekable()


def load_audio(
    source: Path | str | BinaryIO, sample_rate: int, offset: float = 0.0, duration: float | None = None
) -> np.ndarray:
    """Read a recording or a segment as one channel at the model's rate: a silently wrong rate trains a deaf model.

    Channels are averaged; other rates are resampled by soxr at high quality. Full scale is 1 whatever the sample
    format: integers stay within it, while floats that go beyond it (and overshoots of mp3 or resampling) are kept,
    because clipping them would destroy speech that is there; the features are normalised anyway.

    source: a path, also of a recording in a shard (data/shards.py), or a binary file object, which is read from where it
        stands to its end. While PyAV decodes it, before the first sample, it is asked again and again for 0 bytes: whoever
        closes it, or has its `read` raise, ends that.
    offset, duration: seconds; a duration of None goes to the end.
    Returns: (S,) float32, S samples at `sample_rate` Hz.
    Raises: ValueError if the file is no audio that can be read, is damaged or truncated, holds no samples or impossible
        ones, or if the segment lies outside it; OSError if it cannot be opened.
    """
    with _opened(source) as file:
        waves = list(_waves(file, *_segment(file, offset, duration), BLOCK_SAMPLES))
        rate = file.samplerate
    wave = waves[0] if len(waves) == 1 else np.concatenate(waves)
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate, quality="HQ")
    return wave


def audio_blocks(
    source: Path | str | BinaryIO,
    sample_rate: int,
    offset: float = 0.0,
    duration: float | None = None,
    seconds: float = 30.0,
    longest: float = math.inf,
) -> Iterator[np.ndarray]:
    """Read what load_audio would, piece by piece: hours of a recording need not fit into memory.

    seconds: about how long a block is; resampling makes the first one shorter, and the last one is what remains.
    longest: seconds that a recording may last; one that says it lasts longer is refused before it is read.
    Yields: (S,) float32, S > 0; joined they are load_audio's samples, to rounding.
    Raises: as load_audio, but damage only when the reading comes to it, after the blocks before it; TooLong.
    """
    with _opened(source, longest) as file:
        rate = file.samplerate
        waves = _waves(file, *_segment(file, offset, duration), max(1, round(min(seconds * rate, BLOCK_SAMPLES))))
        if rate == sample_rate:
            yield from waves
            return
        stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
        blocks = chain((stream.resample_chunk(wave) for wave in waves), _rest(stream))
        yield from (block for block in blocks if len(block))


def audio_duration(source: Path | str | BinaryIO) -> float:
    """Length of a recording in seconds, from its headers: a manifest of thousands is checked before training starts.

    What only PyAV reads (data/foreign.py) is decoded for it.
    Raises: as load_audio, for what headers can tell. Damage inside a file, and a flac cut within its last frame, show
        only when read.
    """
    with _opened(source) as file:
        if file.frames == 0:
            raise ValueError("no samples")
        return file.frames / file.samplerate


def rate_and_channels(source: Path | str | BinaryIO) -> tuple[int, int]:
    """How a recording is stored: samples a second and channels; if PyAV reads it, up to 48000 and 1.

    Raises: as audio_duration.
    """
    with _opened(source) as file:
        return file.samplerate, file.channels


def source_name(source: Path | str | BinaryIO) -> str:
    """What messages call a recording: its path, or the name its file object carries."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) or "''"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "audio"  # a temporary file's name may be a number


@contextmanager
def _opened(source: Path | str | BinaryIO, longest: float = math.inf) -> Iterator[_Recording]:
    """Open a recording whose header has been checked; faults found while it is open get the file's name in front."""
    name = source_name(source)
    try:
        with _binary(source) as binary, _decodable(checked(binary), source, longest) as file:
            check_rate(file.samplerate)
            if file.frames > longest * file.samplerate:
                raise TooLong.than(longest)
            yield file
    except soundfile.LibsndfileError as fault:
        raise ValueError(f"{name}: {_explained(fault)}") from None
    except ValueError as fault:
        kind = type(fault) if isinstance(fault, (TooLong, UnknownFormat)) else ValueError
        raise kind(f"{name}: {fault}") from None


@contextmanager
def _decodable(content: BinaryIO, source: Path | str | BinaryIO, longest: float) -> Iterator[_Recording]:
    """Open what libsndfile reads as it is, and of the rest what PyAV makes of it while the source is open."""
    content.seek(0)
    called = foreign_format(content.read(HEAD_BYTES))
    if called:
        reason = UnknownFormat(f"{called}, which cannot be read; expected {READABLE}: {CONVERT}")
    else:
        content.seek(0)
        try:
            # By descriptor where there is one: decoding does not pass through Python, and nothing is guessed from the
            # file's extension.
            file = _Recording(content.fileno() if isinstance(content, io.FileIO) else content, closefd=False)
        except soundfile.LibsndfileError as fault:
            reason = _explained(fault)
        else:
            with file:
                yield file
            return
    asked = content if isinstance(source, (str, os.PathLike)) else source
    with TemporaryFile() as samples:
        rate = decode(content, samples, reason, asked, longest)
        samples.seek(0)
        with _Recording(samples.fileno(), "r", rate, 1, "FLOAT", format="RAW", closefd=False) as file:
            yield file


def _binary(source: Path | str | BinaryIO) -> BinaryIO:
    if isinstance(source, io.FileIO) and stat.S_ISREG(os.fstat(source.fileno()).st_mode) and source.tell() == 0:
        return io.FileIO(os.dup(source.fileno()), "rb")  # needs no copy; whoever opened it closes it
    if not isinstance(source, (str, os.PathLike)):
        return spooled(source)
    if is_member(os.fspath(source)):
        return Memory(file_bytes(os.fspath(source)))
    mode = os.stat(source).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{'a directory' if stat.S_ISDIR(mode) else 'not a file'}; expected an audio file")
    return open(source, "rb", buffering=0)


def _explained(fault: soundfile.LibsndfileError) -> ValueError:
    reason = fault.error_string.removeprefix("Error : ").strip().rstrip(".")
    if fault.code == 1:
        return UnknownFormat(f"not audio that can be read ({reason}); expected {READABLE}: {CONVERT}")
    return ValueError(f"damaged, or of an unknown codec ({reason}); fetch it again, or {CONVERT}")


def _segment(file: _Recording, offset: float, duration: float | None) -> tuple[int, int]:
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


def _waves(file: _Recording, start: int, count: int, most: int) -> Iterator[np.ndarray]:
    """Decode `count` frames from `start` in blocks of at most `most` frames that are all there and all possible.

    Yields: (S,) float32 at the file's own rate.
    """
    if not file.frames:
        raise ValueError("no samples")
    most = max(1, min(most, BLOCK_SAMPLES // file.channels))
    _go_to(file, start, most)
    dtype = "int16" if file.subtype == "PCM_16" else "float32"  # numpy converts it five times faster than libsndfile
    done = 0
    while done < count:
        wanted = min(count - done, most)
        block_SC = file.read(wanted, dtype=dtype, always_2d=True)
        done += len(block_SC)
        if len(block_SC) < wanted:
            raise ValueError(f"truncated or damaged: {done} of {count} samples could be read; fetch it again")
        yield _averaged(block_SC)


def _go_to(file: _Recording, start: int, most: int) -> None:
    if start and file.can_seek():
        file.seek(start)
        return
    while start and (skipped := len(file.read(min(start, most), dtype="float32"))):  # GSM: from its beginning only
        start -= skipped


def _averaged(wave_SC: np.ndarray) -> np.ndarray:
    """Average the channels of samples that are possible. Returns: (S,) float32."""
    if wave_SC.dtype == np.int16:
        wave_SC = np.multiply(wave_SC, np.float32(1 / 32768), dtype=np.float32)
    loudest = max(wave_SC.max(), -wave_SC.min())
    if not np.isfinite(loudest):
        raise ValueError("damaged: some samples are not finite numbers (NaN or infinity)")
    if loudest > LOUDEST:
        raise ValueError(f"samples up to {loudest:g}, full scale is 1: damaged, or integers stored as floats")
    channels = wave_SC.shape[1]
    if channels == 1:
        return wave_SC[:, 0]
    return wave_SC @ np.full(channels, 1 / channels, dtype=np.float32)


def _rest(stream: soxr.ResampleStream) -> Iterator[np.ndarray]:
    """What the resampler still holds when all has been put in."""
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
