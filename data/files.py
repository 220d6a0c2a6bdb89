"""Files that are whole or not there: nobody ever reads half of one, whatever kills the process that writes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """A path to write to that becomes `path` if all goes well and vanishes if not; missing folders are made.

    `durable` waits until the disk has the file, so that it survives even a crash of the machine.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)  # the new name is the folder's to keep
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
