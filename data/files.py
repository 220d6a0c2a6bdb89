"""Files that are whole or not there: nobody ever reads half of one, whatever kills the process that writes it."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """A path to write to that becomes `path` if all goes well and vanishes if not; missing folders are made.

    `durable` waits until the disk has the file, so that it survives even a crash of the machine.
    """
    path = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file: expected the name of a file to write", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)  # the new name is the folder's to keep
    except OSError as error:
        if error.filename is None and error.errno is not None:  # as of a full disk
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files of processes that were killed while they wrote in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        found = re.search(r"\.(\d+)\.tmp$", path.name)
        if found and not _runs(int(found[1])):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether another process has this number: this one's own may have been a killed one's before."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before hours of work whether their result can be written. Raises: OSError naming the path."""
    if not os.path.basename(path) or os.path.isdir(path):
        raise OSError(errno.EISDIR, "a folder: expected the name of a file to write", os.fspath(path) or "''")
    with whole_file(Path(path).with_name(f".{Path(path).name}.check")) as trial:
        trial.touch()
    Path(path).with_name(f".{Path(path).name}.check").unlink()
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a regular file: expected the name of a file to write", os.fspath(path))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
