"""Bytes that can be read from any place, which every decoder needs, wherever they come from: a pipe, memory, part of a file."""

import io
import os
import tempfile
from typing import BinaryIO

SMALL_BYTES = 2**26  # up to here kept in memory, from which decoders read twice as fast as through Spliced
COPIED_BYTES = 2**20


class Memory(io.BytesIO):
    """A file in memory whose seeks fail as quietly as a real one's: soundfile would print a traceback of any other."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.tell() if offset < 0 and whence == os.SEEK_SET else super().seek(offset, whence)


class Spliced(io.RawIOBase):
    """A header and the part of a file that belongs behind it, as one file: hours of mp3 are not copied for a better header."""

    def __init__(self, header: bytes, file: BinaryIO, begin: int, end: int) -> None:
        self.header, self.file, self.begin = header, file, begin
        self.size = len(header) + end - begin
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        if place >= 0:  # or nothing happens, as with Memory
            self.place = place
        return self.place

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self.size - self.place))
        if self.place < len(self.header):
            found = self.header[self.place : self.place + count]
        else:
            self.file.seek(self.begin + self.place - len(self.header))
            found = self.file.read(count)
        buffer[: len(found)] = found
        self.place += len(found)
        return len(found)


def spliced(header: bytes, file: BinaryIO, begin: int, end: int) -> BinaryIO:
    """The header and the part of the file as one: in memory if that is small."""
    if end - begin > SMALL_BYTES:
        return Spliced(header, file, begin, end)
    file.seek(begin)
    return Memory(header + file.read(end - begin))


def spooled(source: BinaryIO) -> BinaryIO:
    """What a file object still holds: a small recording in memory, a large one in a file on disk that has no name.

    Raises: OSError naming the folder of temporary files if that is full.
    """
    head = _read(source, SMALL_BYTES)
    if len(head) < SMALL_BYTES:
        return Memory(head)
    file = TemporaryFile()
    try:
        while head:
            file.append(head)
            head = source.read(COPIED_BYTES)
    except BaseException:
        file.close()
        raise
    return file


class TemporaryFile(io.FileIO):
    """A file on disk without a name, so that none is left whatever kills the process; unbuffered, for reading by descriptor."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            super().__init__(os.dup(file.fileno()), "r+")

    def append(self, data: bytes) -> None:
        """Write all of it, where the system may take a part at a time. Raises: OSError naming the folder if that is full."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno), tempfile.gettempdir()) from None


def _read(source: BinaryIO, size: int) -> bytes:
    """`size` bytes, or less only at the end: a pipe gives as much at a time as was put in."""
    blocks = []
    while size and (block := source.read(size)):
        blocks.append(block)
        size -= len(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)
