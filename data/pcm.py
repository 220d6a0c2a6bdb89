"""Samples as a pipe brings them, cut anywhere, become waves: 16-bit little-endian PCM, plain or behind a WAV header."""

import struct

import numpy as np
import soxr

from config import RATES

BLOCKS_PER_SECOND = 50  # are resampled at a time, so that how the bytes came does not change a bit
HEADER_BYTES = 2**16  # before a WAV's samples, at most; recorders write a hundred
ENDLESS = 0x7FFF0000  # bytes: what says a WAV of so many, or of none, was written to a pipe, by who knew no better
INTEGERS, EXTENSIBLE = 0x0001, 0xFFFE  # formats of a WAV's samples
CHANNELS = range(1, 65)
# What a compressed recording begins with, which would be heard as noise.
OTHERS = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"\x1aE\xdf\xa3": "WebM", b"RF64": "RF64", b"FORM": "AIFF"}
WANTED = "expected 16-bit little-endian PCM or WAV, as from: ffmpeg -i FILE -f s16le -ac 1 -ar RATE -"


class PcmStream:
    """Bytes in, waves at the model's rate out. A WAV header overrules the rate; its channels are averaged."""

    def __init__(self, sample_rate: int, rate: int | None = None):
        """sample_rate: Hz of the waves. rate: Hz of the samples, if not the same.

        Raises: ValueError if no recording has such a rate.
        """
        self.sample_rate = sample_rate
        self.samples = 0  # received, of each channel
        self._bytes = b""  # not used yet
        self._begun = False  # whether it is known what comes
        self._left: int | None = None  # bytes of samples that a header promises, if it does
        self._set(sample_rate if rate is None else rate, channels=1)

    def feed(self, content: bytes) -> np.ndarray:
        """Go on with any number of bytes.

        Returns: (S,) float32 in [-1, 1], as many samples as are complete.
        Raises: ValueError if they are no such samples.
        """
        self._bytes += content
        if not self._begun and not self._recognised():
            return np.empty(0, dtype=np.float32)
        return self._resampled(self._samples())

    def finish(self) -> np.ndarray:
        """The last samples, (S,) float32.

        Raises: ValueError if nothing came. That the end cuts a sample is `odd_bytes`.
        """
        if not self._begun and self._bytes.startswith(b"RIFF"):
            raise ValueError("damaged WAV: it ends before its samples")
        self._begun = True  # less than a header is a sample
        wave = self._resampled(self._samples(), last=True)
        if not self.samples:
            raise ValueError("no samples")
        return wave

    @property
    def odd_bytes(self) -> int:
        """Bytes at the end that make no sample of every channel."""
        return 0 if self._left == 0 else len(self._bytes)

    def _set(self, rate: int, channels: int) -> None:
        if rate not in RATES:
            raise ValueError(f"{rate} Hz: expected {RATES.start} to {RATES.stop - 1}")
        self.rate, self.channels = rate, channels
        self._resampler = None
        if rate != self.sample_rate:
            self._resampler = soxr.ResampleStream(rate, self.sample_rate, 1, dtype="float32", quality="HQ")
        self._waiting = np.empty(0, dtype=np.float32)  # for a whole block

    def _samples(self) -> np.ndarray:
        """(S,) float32 of the bytes that are whole samples."""
        width = 2 * self.channels
        usable = len(self._bytes) if self._left is None else min(len(self._bytes), self._left)
        usable -= usable % width
        samples_SC = np.frombuffer(self._bytes[:usable], dtype="<i2").reshape(-1, self.channels)
        self._bytes = self._bytes[usable:]
        if self._left is not None:
            self._left -= usable
            if self._left < width:  # what follows is no sound
                self._left, self._bytes = 0, b""
        self.samples += len(samples_SC)
        wave_SC = np.multiply(samples_SC, np.float32(1 / 32768), dtype=np.float32)
        return wave_SC[:, 0] if self.channels == 1 else wave_SC @ np.full(self.channels, 1 / self.channels, dtype=np.float32)

    def _resampled(self, wave: np.ndarray, last: bool = False) -> np.ndarray:
        if self._resampler is None:
            return wave
        self._waiting = np.concatenate([self._waiting, wave])
        size = max(1, self.rate // BLOCKS_PER_SECOND)
        whole = len(self._waiting) // size * size
        blocks = [self._resampler.resample_chunk(self._waiting[i : i + size]) for i in range(0, whole, size)]
        self._waiting = self._waiting[whole:]
        if last:
            blocks.append(self._resampler.resample_chunk(self._waiting, last=True))
        return np.concatenate([np.empty(0, dtype=np.float32), *blocks])

    def _recognised(self) -> bool:
        """Whether enough came to know what it is; a header has been read then."""
        start = self._bytes[:12]
        for magic, kind in OTHERS.items():
            if start.startswith(magic):
                raise ValueError(f"{kind}, {WANTED}")
        if len(start) < (12 if start.startswith(b"RIFF") else 4):
            return False
        self._begun = not (start.startswith(b"RIFF") and start[8:] == b"WAVE") or self._read_header()
        return self._begun

    def _read_header(self) -> bool:
        """Read a WAV's chunks up to its samples. Returns: whether they have all come."""
        place, known = 12, False
        while len(self._bytes) >= place + 8:
            name, size = struct.unpack_from("<4sI", self._bytes, place)
            place += 8
            if name == b"data":
                if not known:
                    raise ValueError("damaged WAV: no format before its samples")
                self._left = None if size == 0 or size >= ENDLESS else size
                self._bytes = self._bytes[place:]
                return True
            if place + size > HEADER_BYTES:
                raise ValueError(f"damaged WAV: no samples in its first {HEADER_BYTES} bytes")
            if name == b"fmt " and len(self._bytes) >= place + size:
                self._read_format(self._bytes[place : place + size])
                known = True
            place += size + size % 2
        return False

    def _read_format(self, content: bytes) -> None:
        if len(content) < 16:
            raise ValueError("damaged WAV: its format is cut off")
        kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", content)
        if kind == EXTENSIBLE and len(content) >= 26:
            kind = struct.unpack_from("<H", content, 24)[0]
        if (kind, bits) != (INTEGERS, 16):
            numbers = "whole numbers" if kind == INTEGERS else f"format {kind:#x}"
            raise ValueError(f"WAV of {bits}-bit {numbers}, {WANTED}")
        if channels not in CHANNELS:
            raise ValueError(f"WAV of {channels} channels: expected {CHANNELS.start} to {CHANNELS.stop - 1}")
        self._set(rate, channels)
