"""Numbers that may be too many for memory: columns in temporary files, and lookups that go through them from front to back."""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from data.command_line import progress_bar

BLOCK = 1 << 17  # rows worked on at a time


class Column:
    """Numbers in a file without a name, which is gone with its process, however that ends.

    Written from front to back, then read as an array, whose pages the system loads, and drops again when memory is short.
    """

    def __init__(self, folder: str, dtype: type = np.int64) -> None:
        self._folder, self._dtype = folder, dtype
        # Unbuffered, or what a full disk has no room for would be tried again, and told again, when the file is closed.
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 (open until all is written)

    def append(self, numbers: np.ndarray) -> None:
        """Raises: OSError naming the folder if its disk is full."""
        rest = np.ascontiguousarray(numbers, self._dtype).view(np.uint8).data
        try:
            while len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno), self._folder) from None

    def array(self) -> np.ndarray:
        """All that was appended, (N,), read-only; nothing can be appended any more."""
        with self._file as file:
            if not file.tell():
                return np.empty(0, self._dtype)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), self._dtype)


def stored(blocks: Iterable[np.ndarray], folder: str, dtype: type = np.int64) -> np.ndarray:
    """A column of blocks as they come, (N,)."""
    column = Column(folder, dtype)
    for block in blocks:
        column.append(block)
    return column.array()


def parts(length: int, task: str = "") -> Iterator[slice]:
    """Rows 0 to `length`, a block at a time, with a progress bar if it is said what is done with them."""
    for start in progress_bar(range(0, length, BLOCK), task, shown=bool(task), unit="block"):
        yield slice(start, min(start + BLOCK, length))


def take(columns: Iterable[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """`column[rows]` of each column, read in the rows' order, so that no page of a file is loaded twice."""
    unique, inverse = np.unique(rows, return_inverse=True)
    return [column[unique][inverse] for column in columns]


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rows of sorted keys at which the wanted ones stand, looked up in their order, as `take` does."""
    unique, inverse = np.unique(wanted, return_inverse=True)
    return np.searchsorted(keys, unique)[inverse]
