"""A language model as it was last read, kept on disk in a form that the next start maps into memory instead of parsing.

Which file it was read from is told by the SHA-256 of that file's bytes. To spare every start the reading of gigabytes, the
bytes are taken to be the same as long as the system says that nothing has been written: device, inode, size and both times
are those of the file that was read, and its last change was well before the reading. Otherwise they are hashed again.
"""

import errno
import fcntl
import glob
import hashlib
import json
import mmap
import os
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.command_line import message, tell
from data.files import whole_file
from decoding.arpa import read_arpa
from decoding.compiled import entry_point
from decoding.ngrams import NgramModel, NgramTables

MAGIC = f"n-gram tables 1 {sys.byteorder}\n".encode()
KINDS = ("u1", "i4", "f4", "i4", "i4", "i4", "f4")  # of the words, and of the tables
ALIGNMENT = 64  # bytes
SETTLED = 2 * 10**9  # ns; two changes within a tick of a file system's clock look like one
BLOCK = 1 << 20  # bytes
PROGRAM = "deepspeech-toolkit"  # folder in the user's cache folder


def read_through_cache(file: BinaryIO, path: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> NgramModel:
    """The model in an open ARPA file, from its cache if there is a good one; otherwise it is read, and a cache written.

    The cache is beside the file, or where nothing can be written there, in the user's cache folder; or in `folder`.
    Of several processes that start together, one reads and the others wait.

    Raises: ValueError as `read_arpa` does; OSError if the file changes meanwhile, or if nothing can be written to `folder`.
    """
    name, stamp, caches = Path(path).name, _stamp(file), _cache_files(path, folder)
    model = _first(caches, name, stamp=stamp)
    if model:
        return model
    written = next((cache for cache in caches if _writable(cache.parent)), None)
    if written is None:
        model = _first(caches, name, digest=_digest(file))
        if model is None and folder is not None:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return model or read_arpa(file, path)
    with _locked(written.parent):
        model = _first([written], name, stamp=stamp)  # another process may have been here
        return model or _read_and_write(file, path, caches, written)


def _read_and_write(file: BinaryIO, path: str | os.PathLike[str], caches: list[Path], written: Path) -> NgramModel:
    name, stamp, began = Path(path).name, _stamp(file), time.time_ns()
    digest = _digest(file)
    model = _first(caches, name, digest=digest) or read_arpa(file, path)
    if _stamp(file) != stamp:
        raise OSError(f"{path}: changed while it was read: start again once it is complete")
    try:
        _write(written, model, {"digest": digest, "stamp": stamp, "began": began})
    except OSError as error:  # a full disk costs the next start its time, not this one its work
        tell(f"not cached: {message(error)}", error=True)
        return model
    del model  # before its copy is mapped
    return _mapped(written, name, digest=digest) or read_arpa(file, path)


def _cache_files(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> list[Path]:
    """Where a cache may be, in order of preference."""
    real = Path(os.path.realpath(path))
    apart = f"{real.name}.{hashlib.sha256(os.fsencode(real)).hexdigest()[:12]}.cache"
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return [Path(folder, apart)]
    files = [real.with_name(f"{real.name}.cache")]
    users = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), PROGRAM)
    with suppress(OSError):
        if users.is_absolute():  # there are users without a home
            users.mkdir(parents=True, exist_ok=True)
            files.append(users / apart)
    return files


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)  # what is closed to all is left alone by root too


def _stamp(file: BinaryIO) -> list[int]:
    stat = os.fstat(file.fileno())
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock however its holder ends.

    Where there are no locks, each process writes a whole file, and the last one stays.
    """
    descriptor = None
    try:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _write(cache: Path, model: NgramModel, source: dict[str, object]) -> None:
    for left in glob.glob(f"{glob.escape(str(cache.with_name(f'.{cache.name}')))}.*.tmp"):  # by processes killed at this
        os.unlink(left)
    arrays = [np.frombuffer("\n".join(model.words).encode(), np.uint8), *model.tables]
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(array, checksum)
    header = {**source, "order": model.order, "sizes": [len(array) for array in arrays], "checksum": checksum}
    text = json.dumps(header).encode()
    with whole_file(cache) as temporary, open(temporary, "wb") as file:
        file.write(MAGIC + b"%d %d\n" % (len(text), zlib.crc32(text)) + text)
        for array in arrays:
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.write(array)


def _first(caches: list[Path], name: str, **source: object) -> NgramModel | None:
    return next((model for cache in caches if (model := _mapped(cache, name, **source))), None)


def _mapped(cache: Path, name: str, stamp: list[int] | None = None, digest: str | None = None) -> NgramModel | None:
    """The model in a cache, if this was made from a file of that stamp or digest, and is as it was written."""
    try:
        with open(cache, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # processes share what none of them writes to
    except (OSError, ValueError):  # not there, or empty
        return None
    header, at = _header(data)
    if header is None or (digest is not None and header["digest"] != digest):
        return None
    if stamp is not None and (header["stamp"] != stamp or stamp[-1] + SETTLED > header["began"]):
        return None
    arrays, checksum = [], 0
    for kind, size in zip(KINDS, header["sizes"], strict=True):
        at += -at % ALIGNMENT
        if at + size * np.dtype(kind).itemsize > len(data):
            return None
        arrays.append(np.frombuffer(data, kind, size, at))
        checksum = zlib.crc32(arrays[-1], checksum)
        at += arrays[-1].nbytes
    if checksum != header["checksum"] or at != len(data):
        return None
    words, tables = arrays[0].tobytes().decode().split("\n"), NgramTables(*arrays[1:])
    return NgramModel(name, header["order"], words, tables) if _consistent(tables, len(words)) else None


def _header(data: mmap.mmap) -> tuple[dict | None, int]:
    """What a cache begins with, None if that is not what was written, and where it ends."""
    end = data.find(b"\n", len(MAGIC), len(MAGIC) + 40) + 1
    fields = data[len(MAGIC) : end].split()
    if data[: len(MAGIC)] != MAGIC or len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None, 0
    at = end + int(fields[0])
    text = data[end:at]
    return (json.loads(text) if zlib.crc32(text) == int(fields[1]) else None), at


@entry_point
def _consistent(tables: NgramTables, words: int) -> bool:
    """Whether every index is one: compiled code does not look a second time."""
    nodes, inner = len(tables.word), len(tables.link)
    if not (words > 0 and nodes > words and 0 < inner <= nodes and len(tables.first) == inner + 1):
        return False
    if not (len(tables.ln_p) == len(tables.next) == nodes and len(tables.weight) == inner):
        return False
    if tables.first[0] != 1 or tables.first[1] != 1 + words or tables.first[inner] != nodes:
        return False
    for node in range(inner):
        if tables.first[node + 1] < tables.first[node] or not 0 <= tables.link[node] < max(node, 1):
            return False
    for node in range(1, nodes):
        if not (0 <= tables.word[node] < words and 0 <= tables.next[node] < inner and np.isfinite(tables.ln_p[node])):
            return False
    return True
