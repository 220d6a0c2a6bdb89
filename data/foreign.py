"""Formats that libsndfile cannot read, decoded by ffmpeg through PyAV where that is installed: webm, m4a, aac, wma, video.

Nothing but the given bytes is ever opened: ffmpeg gets a nameless file object, may use no protocol, and only demuxers that
read one file. A playlist, which would make it open other files or addresses, is to it no audio.
"""

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from data.containers import TooLong, UnknownFormat, check_rate
from data.random_access import Spliced, TemporaryFile

if TYPE_CHECKING:  # optional, and slow to import
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

INSTALL = "or have more formats read: pip install -r requirements-media.txt"
DEMUXERS = (  # no playlists (hls, dash, concat), no pictures, no raw samples, which anything could be
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flv,matroska,webm,mov,mp4,m4a,3gp,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,rm,tak,"
    "tta,w64,wav,wv,xwma"
)
TIMED = set("ape asf avi caf matroska mov mpc8 tak tta w64 wav wv".split())  # of these a header tells the length
SAMPLE_BYTES = 4
MOST_RATE = 48000  # Hz, of what is written: no recognizer hears what is above 24 kHz, and at 384 kHz an hour takes 5.5 GB
TOLERANCE = 0.25  # seconds by which a container may end before it says it would
MOST_BYTES = 2**33  # of decoded samples, 12 hours at 48 kHz: a small file may hold years of silence


class _Content(Spliced):
    """What ffmpeg reads, without a name from which it could guess.

    A fault in reading it ends it, as the file's end would, and is kept: PyAV would print the traceback of all but the last.
    """

    def __init__(self, content: BinaryIO, asked: BinaryIO) -> None:
        super().__init__(b"", content, 0, content.seek(0, os.SEEK_END))
        self.asked, self.fault = asked, None

    def readinto(self, buffer: memoryview) -> int:
        try:
            self.asked.read(0)
            return super().readinto(buffer)
        except BaseException as fault:
            self.fault = self.fault or fault
            return 0


def decode(content: BinaryIO, samples: TemporaryFile, reason: ValueError, asked: BinaryIO, longest: float = math.inf) -> int:
    """Decode the best audio track block by block, so that everything else can be done with it as with any recording.

    samples: gets them, channels averaged, float32 in the machine's byte order, full scale 1.
    reason: why libsndfile cannot; raised where PyAV cannot either.
    asked: read(0) of it raises, as that of a closed file does, once nobody wants the samples any more: a few bytes may hold
        hours, which nothing else could interrupt.
    longest: seconds that it may last.
    Returns: the rate of the samples in Hz: the recording's own, up to MOST_RATE.
    Raises: TooLong, or another ValueError, without the file's name; OSError if the disk is full; what `asked` raises.
    """
    whole = _Content(content, asked)
    try:
        return _decoded(whole, samples, reason, longest)
    finally:
        if whole.fault:
            raise whole.fault  # of which any other is only a consequence


def _decoded(whole: _Content, samples: TemporaryFile, reason: ValueError, longest: float) -> int:
    try:
        import av
    except ImportError:
        raise UnknownFormat(f"{reason}; {INSTALL}") from None
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": ""}
    try:
        container = av.open(whole, container_options=options, metadata_errors="replace")
    except av.FFmpegError:
        raise reason from None
    with container:
        stream = container.streams.best("audio")
        if stream is None:
            kinds = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
            raise UnknownFormat(f"no audio track: it holds {kinds}")
        if stream.codec_context is None:
            raise reason
        promised = _promised_seconds(container)
        if promised is not None and promised > longest + TOLERANCE:
            raise TooLong.than(longest)
        try:
            return _write_samples(_frames(container, stream, promised, whole.asked), samples, longest)
        except av.FFmpegError as fault:
            raise ValueError(f"damaged, or of an unknown codec ({fault.strerror}); fetch it again") from None


def _promised_seconds(container: "InputContainer") -> float | None:
    """How long its header says it is, if it does: of other formats ffmpeg only guesses it."""
    if TIMED.isdisjoint(container.format.name.split(",")) or container.duration is None:
        return None
    return container.duration / 1e6


def _frames(
    container: "InputContainer", stream: "AudioStream", promised: float | None, asked: BinaryIO
) -> "Iterator[AudioFrame]":
    """Decode one track. Raises: ValueError behind the last frame if the container ends before its header promises."""
    end = 0.0
    for packet in container.demux():  # of all tracks: one may end before the other
        asked.read(0)
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            yield from packet.decode()
    there = end - (container.start_time or 0) / 1e6
    if promised is not None and there < promised - TOLERANCE:
        raise ValueError(f"truncated or damaged: {max(there, 0):.3f} of {promised:.3f} s are there; fetch it again")


def _write_samples(frames: "Iterator[AudioFrame]", samples: TemporaryFile, longest: float) -> int:
    """Average the channels, all at the rate of the first frame or MOST_RATE, which is returned, in Hz."""
    from av import AudioResampler

    rate, kind, resampler = 0, None, None
    for frame in frames:
        rate = rate or min(frame.sample_rate, MOST_RATE)
        most = min(longest, MOST_BYTES / SAMPLE_BYTES / rate)
        if samples.tell() > most * SAMPLE_BYTES * rate:
            raise TooLong.than(most)
        if kind != (frame.format.name, frame.layout.name, frame.sample_rate):  # the first, or a stream that changes
            if resampler:
                _append(resampler.resample(None), samples)
            check_rate(frame.sample_rate)  # as it may be a damaged frame's
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            resampler = AudioResampler("fltp", frame.layout, rate)
        _append(resampler.resample(frame), samples)
    if not resampler:
        raise ValueError("no samples")
    _append(resampler.resample(None), samples)
    return rate


def _append(frames: "list[AudioFrame]", samples: TemporaryFile) -> None:
    for frame in frames:
        samples.append(frame.to_ndarray().mean(axis=0, dtype=np.float32).tobytes())
