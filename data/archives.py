"""Tar archives unpacked as if a stranger had packed them: nothing is written outside one folder, and no more than fits.

`tarfile` reads the format, and its extracting half is left alone: what its filters refuse differs from one Python
release to the next. Here only folders, regular files and links within the folder are made, with permissions of
our own. Refused: absolute names, `..`, names that lead through a link, links that lead out, devices and fifos, and
what swells beyond all proportion to the archive.
"""

import errno
import lzma
import os
import shutil
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data.command_line import progress_bar

# Speech swells little: 16-bit samples to a half or a third under gzip, and mp3 or flac not at all.
MAX_RATIO = 50
ALWAYS_ALLOWED_BYTES = 2**26
# The smallest recordings that a corpus really packs (AN4, single letters) take kilobytes.
BYTES_PER_MEMBER = 64
ALWAYS_ALLOWED_MEMBERS = 1_000
MAX_HEADER_BYTES = 2**20  # of a long name or other extended header, which tarfile reads into memory
RESERVE_BYTES = 2**26  # left free on the disk
BLOCK_BYTES = 2**20
DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz")


class Refused(ValueError):
    """Something no honest archive holds."""


class _Header(tarfile.TarInfo):
    """A member's header, refused before tarfile would read gigabytes of "long name" into memory."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED and header.size > MAX_HEADER_BYTES:
            raise Refused(f"a bomb: an extended header of {header.size} bytes")
        return header


@dataclass
class _Budget:
    """How much an archive may still become."""

    archive_bytes: int
    folder: Path
    bytes: int = field(init=False)
    members: int = field(init=False)

    def __post_init__(self) -> None:
        self.bytes = MAX_RATIO * self.archive_bytes + ALWAYS_ALLOWED_BYTES
        self.members = self.archive_bytes // BYTES_PER_MEMBER + ALWAYS_ALLOWED_MEMBERS

    def take(self, size: int, members: int = 1) -> None:
        """Account for what is about to be unpacked. Raises: Refused, or OSError if the disk has no room for it."""
        self.bytes -= size
        self.members -= members
        if self.bytes < 0:
            raise Refused(f"a bomb: its {self.archive_bytes} bytes unpack to more than {MAX_RATIO} times as many")
        if self.members < 0:
            raise Refused(f"a bomb: too many files for {self.archive_bytes} bytes")
        free = shutil.disk_usage(self.folder).free
        if free < size + RESERVE_BYTES:
            reason = f"no room to unpack ({free >> 20} MiB free): make room, or give another --target-dir"
            raise OSError(errno.ENOSPC, reason, os.fspath(self.folder))


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar, plain or compressed, into a folder that does not exist yet, whole or not at all.

    Raises: ValueError, naming the archive, if it is none, is damaged or cut, or holds what is refused; OSError.
    """
    temporary = folder.with_name(f".{folder.name}.unpacking")
    if temporary.exists():  # of a run that was killed
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        _unpack(archive, temporary)
        temporary.rename(folder)
    except Refused as fault:
        raise ValueError(f"{archive}: refused: {fault}; get the archive from its publisher") from None
    except DAMAGED as fault:
        if isinstance(fault, OSError) and fault.errno is not None:  # the system's; the decompressors' have no number
            raise
        raise ValueError(f"{archive}: not a tar archive, damaged or cut short ({fault}); fetch it again") from None
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def archive_stem(path: Path) -> str:
    """An archive's name without its ending: that of the folder it is unpacked to."""
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if path.name.endswith(ending) and path.name != ending:
            return path.name.removesuffix(ending)
    return path.name


def _unpack(archive: Path, folder: Path) -> None:
    size = archive.stat().st_size
    budget = _Budget(size, folder)
    links = []
    with (
        open(archive, "rb") as packed,
        tarfile.open(fileobj=packed, mode="r:*", tarinfo=_Header) as tar,
        progress_bar(desc=f"unpacking {archive.name}", total=size, unit="B", unit_scale=True, unit_divisor=1024) as progress,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # tarfile remembers every one: gigabytes, for a corpus of millions
            budget.take(max(member.size, 0))
            if _write(tar, member, folder):
                links.append(folder / member.name)
            progress.update(packed.tell() - progress.n)
        _check_end(tar, packed, budget)
    _check_links(links, folder)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> bool:
    """Unpack one member. Returns: whether it is a symbolic link."""
    relative = _relative(member.name)
    if member.isdir():
        _make_folders(folder, relative)
        return False
    if not relative.parts:
        raise Refused(f"a file named {member.name!r}")
    target = folder / relative
    _make_folders(folder, relative.parent)
    if target.is_dir() and not target.is_symlink():
        raise Refused(f"{member.name!r} is a folder and then something else")
    if os.path.lexists(target):  # packed twice: the later one counts, and nothing is written through a link
        target.unlink()
    if member.isreg():
        _write_file(tar, member, target)
    elif member.issym():
        _make_symlink(member, relative, target)
        return True
    elif member.islnk():
        _make_hard_link(member, folder, target)
    else:
        raise Refused(f"{member.name!r} is a device, a fifo or of an unknown type")
    return False


def _relative(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute():
        raise Refused(f"absolute name {name!r}")
    if ".." in path.parts:
        raise Refused(f"name {name!r} leads out of the folder")
    return path


def _make_folders(folder: Path, relative: PurePosixPath) -> None:
    """Make the folders of a path, none of which may be a link: what lies behind one is not what the name says."""
    for part in relative.parts:
        folder = folder / part
        try:
            folder.mkdir(mode=0o755)
        except FileExistsError:
            if folder.is_symlink() or not folder.is_dir():
                raise Refused(f"{os.fspath(relative)!r} leads through a link or a file") from None


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    with tar.extractfile(member) as source, open(target, "xb") as file:
        shutil.copyfileobj(source, file, BLOCK_BYTES)
        if file.tell() != member.size:
            raise EOFError(f"{member.name!r} has {file.tell()} of {member.size} bytes")


def _make_symlink(member: tarfile.TarInfo, relative: PurePosixPath, target: Path) -> None:
    aim = os.path.normpath(relative.parent / member.linkname)
    if PurePosixPath(member.linkname).is_absolute() or aim.split(os.sep)[0] == "..":
        raise Refused(f"link {member.name!r} leads out of the folder, to {member.linkname!r}")
    os.symlink(member.linkname, target)


def _make_hard_link(member: tarfile.TarInfo, folder: Path, target: Path) -> None:
    source = folder / _relative(member.linkname)
    if not source.is_file() or os.path.realpath(source) != os.path.join(os.path.realpath(folder), _relative(member.linkname)):
        raise Refused(f"hard link {member.name!r} to {member.linkname!r}, which is no file unpacked before")
    os.link(source, target, follow_symlinks=False)


def _check_links(links: list[Path], folder: Path) -> None:
    """Follow every link once all are made: one that looks harmless may lead out through another."""
    inside = os.path.join(os.path.realpath(folder), "")
    for link in links:
        if not os.path.join(os.path.realpath(link), "").startswith(inside):
            raise Refused(f"link {os.fspath(link.relative_to(folder))!r} leads out of the folder")


def _check_end(tar: tarfile.TarFile, packed: BinaryIO, budget: _Budget) -> None:
    """Read to the end, where compression keeps its checksum, and a plain tar the zeros that a cut one lacks."""
    if tar.fileobj is packed:
        packed.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if any(packed.read(tarfile.BLOCKSIZE)):
            raise EOFError("no end of archive")
        return
    while block := tar.fileobj.read(BLOCK_BYTES):
        budget.take(len(block), members=0)
