"""What a file's own header promises, checked before it is decoded: libsndfile reads a file cut short without a word.

Each check reads headers only, never samples, and no more of them than a recording has, as nothing can interrupt it.
Containers whose reader already refuses a cut file (htk, voc) have no check here; `data/audio.py` counts the samples of every
file as well. What no header tells: where a streamed wav, aiff, au or caf was meant to end, and that a flac was cut within its
last frame (its decoder tells that).
"""

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from config import RATES
from data.mp3 import complete_mp3, id3_bytes, starts_like_mpeg
from data.random_access import spliced

READABLE = "wav, flac, ogg, opus, mp3, aiff, au, sph, w64 or caf"
CONVERT = "convert it first, for example with: ffmpeg -i INPUT -ac 1 OUTPUT.wav"

HEAD_BYTES = 1024  # enough for every magic number and for a NIST header
STREAMED_BYTES = 0x7F000000  # a writer that cannot seek back leaves a size from here to 0xFFFFFFFF: it promises nothing
FLAC_TAG_BYTES = 4096  # what other programs may have appended to a flac
MOST_CHUNKS = 4096  # also of tags and of streams; recordings have a dozen
MOST_BOXES = 2**18  # of an mp4: 12 hours in fragments of a second, five boxes each
MOST_PAGES = 5 * 2**19  # of an ogg: 14 hours, even with a page for every packet of 20 ms
READ_BYTES = 2**16  # at once, where headers stand close together
OGG_PAGE = struct.Struct("<5xB8xII4xB")  # flags, stream, number, segments

FOREIGN = (  # (where, magic number, what people call it): formats that libsndfile cannot read, or must not
    (4, b"ftyp", "m4a/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "webm/matroska"),
    (0, b"\xff\xf0", "aac"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf8", "aac"),
    (0, b"\xff\xf9", "aac"),
    (0, b"ADIF", "aac"),
    (0, b"\x30\x26\xb2\x75", "wma"),
    (0, b"wvpk", "wavpack"),
    (0, b"MAC ", "monkey's audio"),
    (0, b"#!AMR", "amr"),
    (8, b"8SVX", "amiga 8svx"),  # libsndfile never comes back from one whose chunks fill 100 kB
    (8, b"16SV", "amiga 16sv"),
    (0, b"\xf0\x7e", "midi sample dump"),  # and writes two lines to stdout for each damaged packet of these
)


class UnknownFormat(ValueError):
    """No audio, or none that can be read here; other faults are of recordings that are damaged."""


class TooLong(ValueError):
    """A recording goes on beyond what was allowed."""

    @classmethod
    def than(cls, seconds: float) -> "TooLong":
        return cls(f"longer than {seconds:.6g} s: cut it into parts")


def check_rate(rate: int) -> None:
    """Refuse what no recorder has. Raises: ValueError, without the file's name."""
    if rate not in RATES:
        raise ValueError(f"damaged: its header says {rate} Hz, expected {RATES.start} to {RATES.stop - 1}")


def foreign_format(head: bytes) -> str | None:
    """What people call the format of a file that begins so, if libsndfile cannot read it."""
    return next((called for where, magic, called in FOREIGN if head.startswith(magic, where)), None)


def checked(file: BinaryIO) -> BinaryIO:
    """Refuse a file that holds less than its header promises, and mend the two headers that libsndfile misreads.

    file: at any position, seekable.
    Returns: what to decode: the same file, or the part of it that is audio behind a header that tells the length (a
        streamed wav of declared size 0, an mp3). A format that libsndfile cannot read comes back as it is, but for an ID3 tag.
    Raises: ValueError, without the file's name, for an empty, truncated or damaged file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise ValueError(f"empty, 0 bytes; expected {READABLE}")
    tag_bytes = 0
    for _ in _steps(MOST_CHUNKS, "ID3 tags"):  # before the audio; mpg123 would write its opinion of them to stderr
        if not head.startswith(b"ID3"):
            break
        tag_bytes += id3_bytes(head)
        file.seek(min(tag_bytes, size))
        head = file.read(HEAD_BYTES)
        if not head:
            raise ValueError("truncated: nothing behind its ID3 tag; fetch it again")
    if tag_bytes:
        file = spliced(b"", file, tag_bytes, size)
        size -= tag_bytes
    called = foreign_format(head)
    if called is None and starts_like_mpeg(head):
        header, begin, end = complete_mp3(file, size)
        return spliced(header, file, begin, end)
    if head.startswith((b"RIFF", b"RIFX", b"RF64", b"BW64")):
        return _checked_wav(file, size, head)
    check = CHECKS.get(called or head[:4])
    if check is not None:
        check(file, size, head)
    return file


def _expect(there: int, promised: int) -> None:
    if there < promised:
        raise ValueError(f"truncated: {max(there, 0)} of the {promised} bytes its header promises; fetch it again")


def _steps(most: int, of: str) -> Iterator[int]:
    """Number the steps of a walk that whoever made the file can draw out. Raises: ValueError beyond what recordings need."""
    yield from range(most)
    raise ValueError(f"damaged: more than {most} {of}; fetch it again")


def _chunks(file: BinaryIO, size: int, start: int, layout: struct.Struct) -> Iterator[tuple[bytes, int, int]]:
    """Walk (identifier, first byte, length) of chunks padded to even lengths."""
    for _ in _steps(MOST_CHUNKS, "chunks"):
        if start + layout.size > size:
            return
        file.seek(start)
        identifier, length = layout.unpack(file.read(layout.size))
        start += layout.size
        yield identifier, start, length
        start += length + length % 2


def _checked_wav(file: BinaryIO, size: int, head: bytes) -> BinaryIO:
    order = ">" if head[:4] == b"RIFX" else "<"
    if head[8:12] == b"AVI ":
        _expect(size - 8, struct.unpack("<I", head[4:8])[0])
        return file
    long_length = None
    for identifier, start, length in _chunks(file, size, 12, struct.Struct(order + "4sI")):
        if identifier == b"ds64" and start + 16 <= size:  # RF64: lengths that do not fit 32 bits
            long_length = struct.unpack("<Q", file.read(16)[8:])[0]
        elif identifier == b"fmt " and start + 8 <= size:
            _, channels, rate = struct.unpack(order + "HHI", file.read(8))
            if not channels or not rate:
                raise ValueError(f"damaged: its header says {channels} channels at {rate} Hz")
        elif identifier == b"data":
            if length == 0xFFFFFFFF and long_length is not None:
                length = long_length
            elif length >= STREAMED_BYTES:
                return file
            if length == 0 and size > start and not _ends_in_chunks(file, size, start, order):
                return _with_data_length(file, start, size, order)
            _expect(size - start, length)
            return file
    return file  # no data chunk: libsndfile says so


def _ends_in_chunks(file: BinaryIO, size: int, start: int, order: str) -> bool:
    """Tell chunks behind an empty data chunk from samples whose writer never came back to fill in their length."""
    end = start
    for identifier, first, length in _chunks(file, size, start, struct.Struct(order + "4sI")):
        end = first + length
        if not (identifier.isascii() and identifier.decode().isprintable()):
            return False
    return size - end in (0, 1)


def _with_data_length(file: BinaryIO, start: int, size: int, order: str) -> BinaryIO:
    file.seek(0)
    header = file.read(start - 4)
    return spliced(header + struct.pack(order + "I", min(size - start, 0xFFFFFFFF)), file, start, size)


def _check_aiff(file: BinaryIO, size: int, head: bytes) -> None:
    for identifier, start, length in _chunks(file, size, 12, struct.Struct(">4sI")):
        if identifier == b"SSND" and length < STREAMED_BYTES:
            _expect(size - start, length)


def _check_caf(file: BinaryIO, size: int, head: bytes) -> None:
    for identifier, start, length in _chunks(file, size, 8, struct.Struct(">4sq")):
        if length < 0:  # -1: up to the end of the file
            return
        if identifier == b"data":
            _expect(size - start, length)


def _check_w64(file: BinaryIO, size: int, head: bytes) -> None:
    layout, start = struct.Struct("<16sQ"), 40
    for _ in _steps(MOST_CHUNKS, "chunks"):
        if start + layout.size > size:
            return
        file.seek(start)
        identifier, length = layout.unpack(file.read(layout.size))
        if identifier.startswith(b"data"):
            _expect(size - start, length)
        start += max(layout.size, length + -length % 8)  # the length counts its header; chunks start at multiples of 8


def _check_au(file: BinaryIO, size: int, head: bytes) -> None:
    if len(head) >= 12:
        start, length = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:12])
        if length < STREAMED_BYTES:
            _expect(size - start, length)


def _check_sphere(file: BinaryIO, size: int, head: bytes) -> None:
    fields = {}
    for line in head.split(b"\n")[2:]:
        words = line.split()
        if len(words) == 3 and words[1] == b"-i" and words[2].isdigit():
            fields[words[0]] = int(words[2])
    frame_bytes = fields.get(b"channel_count", 1) * fields.get(b"sample_n_bytes", 0)
    if head[8:16].strip().isdigit():
        _expect(size - int(head[8:16]), fields.get(b"sample_count", 0) * frame_bytes)


def _check_flac(file: BinaryIO, size: int, head: bytes) -> None:
    """Look for the header of the last frame near the end of the file; its number follows from the length promised.

    Layout: RFC 9639, sections 8.2 (stream information) and 9.1 (frame header).
    """
    if len(head) < 42 or head[4] & 0x7F != 0:
        return
    min_block, block = struct.unpack(">HH", head[8:12])
    max_frame_bytes = int.from_bytes(head[15:18], "big")
    samples = int.from_bytes(head[18:26], "big") & (1 << 36) - 1
    if not samples:
        raise ValueError("streamed: its header does not say how many samples follow; write it again as a file, or " + CONVERT)
    if not block or min_block != block or not max_frame_bytes:
        return
    last_frame = (samples - 1) // block
    numbers = re.escape(_utf8(last_frame)), re.escape(_utf8(last_frame * block))
    file.seek(max(0, size - max_frame_bytes - FLAC_TAG_BYTES))
    if not re.search(b"\xff\xf8..%b|\xff\xf9..%b" % numbers, file.read(), re.DOTALL):
        raise ValueError(f"truncated: its last frame, number {last_frame}, is missing; fetch it again")


def _utf8(number: int) -> bytes:
    """A frame's number as flac writes it: UTF-8 as first defined, up to 7 bytes, where Python's stops at 4."""
    if number < 0x80:
        return bytes((number,))
    tail = []
    while number >= 0x40 >> len(tail):
        tail.append(0x80 | number & 0x3F)
        number >>= 6
    return bytes((0xFF << 7 - len(tail) & 0xFF | number, *reversed(tail)))


def _check_ogg(file: BinaryIO, size: int, head: bytes) -> None:
    """Follow the pages: none may be missing, and the last one must be whole and say that it is the last.

    A damaged page is seen later, by the samples that are missing: libogg drops a page whose checksum is wrong.
    """
    start, last_page, flags = 0, {}, 0
    block, at = b"", 0  # what has been read ahead, and where in it the page starts
    for _ in _steps(MOST_PAGES, "Ogg pages"):
        if start >= size:
            break
        if at + 27 + 255 > len(block):
            file.seek(start)
            block, at = file.read(READ_BYTES), 0
        header = block[at : at + 27]
        if header[:4] != b"OggS":
            if flags & 4:  # a tag behind the end of the stream
                return
            raise ValueError(f"damaged: no Ogg page at byte {start}; fetch it again")
        if len(header) < 27 or len(block) < at + 27 + header[26]:
            break
        flags, stream, number, segments = OGG_PAGE.unpack(header)
        if number != last_page.get(stream, number - 1) + 1:
            raise ValueError(f"damaged: Ogg page {last_page[stream] + 1} is missing; fetch it again")
        last_page[stream] = number
        if len(last_page) > MOST_CHUNKS:
            raise ValueError(f"damaged: more than {MOST_CHUNKS} Ogg streams; fetch it again")
        page_bytes = 27 + segments + sum(block[at + 27 : at + 27 + segments])
        start, at = start + page_bytes, at + page_bytes
    if start != size:
        raise ValueError(f"truncated: its last Ogg page is cut, at byte {size}; fetch it again")
    if not flags & 4:
        raise ValueError("truncated: its last Ogg page is not marked as the end of the stream; fetch it again")


def _check_mp4(file: BinaryIO, size: int, head: bytes) -> None:
    """Walk the boxes: ISO/IEC 14496-12, section 4.2."""
    start, kinds = 0, set()
    for _ in _steps(MOST_BOXES, "boxes"):
        if start + 8 > size:
            break
        file.seek(start)
        length, kind, long_length = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        kinds.add(kind)
        if length == 0:  # up to the end of the file
            break
        length = long_length if length == 1 else length
        if length < 8:
            raise ValueError(f"damaged: a box of {length} bytes at byte {start}; fetch it again")
        start += length
    _expect(size, start)
    if b"moov" not in kinds:
        raise ValueError("truncated: its index, the moov box, is missing; fetch it again")


def _check_matroska(file: BinaryIO, size: int, head: bytes) -> None:
    """Read the length of the one segment behind the header, if it has one. Layout: RFC 8794, sections 4 and 5."""
    start = 4
    for _ in range(2):
        length_bytes = 9 - head[start].bit_length() if start < len(head) else 9
        if length_bytes > 8 or start + length_bytes > len(head):
            return
        ones = (1 << 7 * length_bytes) - 1
        length = int.from_bytes(head[start : start + length_bytes], "big") & ones
        start += length_bytes
        if head[start + length : start + length + 4] != b"\x18\x53\x80\x67":
            break
        start += length + 4
    if length != ones:  # which a writer leaves that cannot seek back
        _expect(size - start, length)


def _check_asf(file: BinaryIO, size: int, head: bytes) -> None:
    """Find the properties of the file: its size, unless it was broadcast. Layout: ASF specification, section 3.2."""
    start = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if start >= 0 and start + 92 <= len(head) and not head[start + 88] & 1:
        _expect(size, int.from_bytes(head[start + 40 : start + 48], "little"))


CHECKS = {  # by the name of a format that libsndfile cannot read, or by the first bytes
    "m4a/mp4": _check_mp4,
    "webm/matroska": _check_matroska,
    "wma": _check_asf,
    b"fLaC": _check_flac,
    b"FORM": _check_aiff,
    b"caff": _check_caf,
    b"riff": _check_w64,
    b".snd": _check_au,
    b"dns.": _check_au,
    b"NIST": _check_sphere,
    b"OggS": _check_ogg,
}
