"""The frames of an mp3, counted: where no header tells their number, libsndfile guesses it and reads no further.

A file of variable bit rate can lose most of its speech that way, and a cut file is read as a short one. Counting also
finds damage between frames before the decoder does, which would write to stderr. What cannot be known: a file
without a length header that is cut exactly between two frames, and damage inside a frame, which carries no checksum
(the decoder may then write a line to stderr, and go on).

Frame layout: ISO/IEC 11172-3, section 2.4; the length headers are LAME's (Xing, Info) and Fraunhofer's (VBRI).
"""

import struct
from typing import BinaryIO

# kbit/s of layer III by bit rate index; index 0 is a "free" rate and 15 is forbidden: neither is read here
BIT_RATES_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
BIT_RATES_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
SAMPLE_RATES_MPEG1 = (44100, 48000, 32000)  # Hz; halved for MPEG 2, quartered for MPEG 2.5

SAME_STREAM = 0xFFFE0C00  # the header's sync, version, layer and sample rate, which never change within a file
SEARCHED_BYTES = 65536  # where the first frame is looked for behind a tag, and further frames behind the last
READ_BYTES = 2**20  # at once; at least a frame, of up to 2881 bytes


def id3_bytes(head: bytes) -> int:
    """Length of the ID3v2 tag a file starts with, in bytes, its header and footer included; head: at least 10 bytes."""
    if len(head) < 10:
        return len(head)
    length = (head[6] & 0x7F) << 21 | (head[7] & 0x7F) << 14 | (head[8] & 0x7F) << 7 | head[9] & 0x7F
    return 10 + length + (10 if head[5] & 0x10 else 0)


def starts_like_mpeg(head: bytes) -> bool:
    """Whether libsndfile would take it for MPEG audio: eleven set bits, after zeros that pad a tag before them."""
    head = head.lstrip(b"\0")
    return len(head) >= 2 and head[0] == 0xFF and head[1] >= 0xE0


def complete_mp3(file: BinaryIO, size: int) -> tuple[bytes, int, int]:
    """Find what to give the decoder so that it need not guess an mp3's length.

    file: without its ID3v2 tag, of `size` bytes.
    Returns: a header that counts the frames, and where these begin and end: tags and padding are left out.
    Raises: ValueError if frames are missing, cut or damaged, or if this is no mp3.
    """
    data = _part(file, 0)
    first = _find_frames(data, 0)
    if first is None:
        raise ValueError("looks like mp3, but has no two MPEG layer III frames in a row; convert it to wav or flac")
    length = _frame_bytes(data[first : first + 4])
    header = data[first : first + length]
    end, frames = _walk(file, first, header)
    promised = _promised_frames(header)
    if promised is None:
        _check_end(file, size, end, header)
        if end - first == frames * length:  # all of one size: the guess is right
            return b"", first, end
        return _length_header(header[:4], frames), first, end
    if frames - 1 < promised:  # the header's own frame is silent and not counted
        raise ValueError(f"truncated or damaged: {frames - 1} of the {promised} frames its header promises; fetch it again")
    _check_end(file, size, end, header)
    if frames - 1 == promised and b"VBRI" not in header:
        return _with_size(header, end - first), first + length, end
    return _length_header(header[:4], frames - 1), first + length, end


def _part(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.read(READ_BYTES)


def _frame_bytes(header: bytes) -> int:
    """Length of a frame in bytes from its first four, or 0 if these are no layer III header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # sync; layer III
        return 0
    version = header[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate_index = header[2] >> 2 & 3
    kbits = (BIT_RATES_MPEG1 if version == 3 else BIT_RATES_MPEG2)[header[2] >> 4]
    if version == 1 or rate_index == 3 or not kbits:
        return 0
    sample_rate = SAMPLE_RATES_MPEG1[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    return (144 if version == 3 else 72) * kbits * 1000 // sample_rate + (header[2] >> 1 & 1)


def _stream(header: bytes) -> int:
    return int.from_bytes(header, "big") & SAME_STREAM


def _find_frames(data: bytes, start: int, stream: int | None = None) -> int | None:
    """Where, within the next bytes, two frames (of one stream) follow each other; one alone may be chance."""
    limit = start + SEARCHED_BYTES
    while (start := data.find(b"\xff", start, limit)) >= 0:
        header = data[start : start + 4]
        length = _frame_bytes(header)
        if length and stream in (None, _stream(header)):
            following = data[start + length : start + length + 4]
            if _frame_bytes(following) and _stream(following) == _stream(header):
                return start
        start += 1
    return None


def _walk(file: BinaryIO, start: int, header: bytes) -> tuple[int, int]:
    """Step from frame to frame, fast: a hundred megabytes may hold millions.

    start, header: of the first frame.
    Returns: the end of the last whole frame, and how many there are.
    """
    headers = [bytes((0xFF, header[1], third, 0)) for third in range(256)]  # within a stream, the third byte tells the length
    lengths = [_frame_bytes(other) if _stream(other) == _stream(header[:4]) else 0 for other in headers]
    second, frames = header[1] & 0xFE, 0
    while True:
        block, at = _part(file, start), 0
        while at + 4 <= len(block):
            length = lengths[block[at + 2]] if block[at] == 0xFF and block[at + 1] & 0xFE == second else 0
            if not length or at + length > len(block):
                break
            at += length
            frames += 1
        if not at:
            return start, frames
        start += at


def _check_end(file: BinaryIO, size: int, end: int, first: bytes) -> None:
    """Behind the last whole frame a tag or padding may follow, but neither part of a frame nor further frames."""
    data = _part(file, end)
    rest, stream = data[:4], _stream(first[:4])
    length = _frame_bytes(rest)
    if length and _stream(rest) == stream:
        raise ValueError(f"truncated: its last frame has {size - end} of {length} bytes; fetch it again")
    if 0 < len(rest) < 4 and rest == first[: len(rest)]:
        raise ValueError(f"truncated: its last frame has {len(rest)} bytes; fetch it again")
    if _find_frames(data, 0, stream) is not None:
        raise ValueError(f"damaged: no mp3 frame at byte {end} (tag not counted), but more behind it; fetch it again")


def _side_info_end(header: bytes) -> int:
    """Where a frame's Xing header stands: behind the side information, whose length the channels decide."""
    mono = header[3] >> 6 == 3
    if header[1] >> 3 & 3 == 3:
        return 4 + (17 if mono else 32)
    return 4 + (9 if mono else 17)


def _promised_frames(frame: bytes) -> int | None:
    """The count in the length header that the first frame may be; None if it is an ordinary frame."""
    where = _side_info_end(frame)
    if frame[where : where + 4] in (b"Xing", b"Info") and len(frame) >= where + 12:
        flags, frames = struct.unpack(">II", frame[where + 4 : where + 12])
        return frames if flags & 1 else 0
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return struct.unpack(">I", frame[50:54])[0]
    return None


def _with_size(frame: bytes, size: int) -> bytes:
    """Correct the count of bytes in a length header, as encoders disagree on what to count and mpg123 complains."""
    where = _side_info_end(frame) + 4
    flags = int.from_bytes(frame[where : where + 4], "big")
    if not flags & 2:
        return frame
    return frame[: where + 8] + struct.pack(">I", size) + frame[where + 12 :]


def _length_header(header: bytes, frames: int) -> bytes:
    """A silent frame that tells the decoder how many follow (Xing, flag 1: the count alone).

    It also makes the decoder leave out its own delay, the first 529 samples, in which there is no speech yet.
    """
    wanted = _side_info_end(header) + 12
    for index in range(1, 15):
        first = bytes((0xFF, header[1] | 1, index << 4 | header[2] & 0x0C, header[3]))  # no checksum, no padding
        length = _frame_bytes(first)
        if length >= wanted:
            break
    xing = b"Xing" + struct.pack(">II", 1, frames)
    return (first + bytes(_side_info_end(header) - 4) + xing).ljust(length, b"\0")
