"""data/archives.py: what strangers may have packed. Every hostile archive is refused, and leaves nothing anywhere."""

import bz2
import gzip
import io
import os
import random
import stat
import tarfile
from pathlib import Path

import pytest

from data import archives

GOOD = ("corpus/etc/list", b"a list\n")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def packed(*members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w", finish: bool = True) -> bytes:
    """A tar of members and of (name, content); without its end if it is not to be finished."""
    buffer = io.BytesIO()
    tar = tarfile.open(fileobj=buffer, mode=mode)  # noqa: SIM115
    for item in members:
        if isinstance(item, tarfile.TarInfo):
            tar.addfile(item)
        else:
            tar.addfile(member(item[0], size=len(item[1])), io.BytesIO(item[1]))
    if finish:
        tar.close()
    return buffer.getvalue()


def symlink(name: str, aim: str) -> tarfile.TarInfo:
    return member(name, tarfile.SYMTYPE, aim)


def hard_link(name: str, aim: str) -> tarfile.TarInfo:
    return member(name, tarfile.LNKTYPE, aim)


def sparse_bomb() -> bytes:
    """A file that says it is 1 TiB of holes, in GNU's old format (the real size stands at byte 483)."""
    header = bytearray(member("holes", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**33
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def long_name_bomb() -> bytes:
    """A name of 100 MB, which tarfile would read into memory."""
    header = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=10**8).tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(header + b"n" * 10**6, 1)


ZEROS = bytes(archives.ALWAYS_ALLOWED_BYTES + 2**25)
HOSTILE = {
    "absolute name": (lambda: packed(("/tmp/owned", b"x")), "absolute name"),
    "dot dot": (lambda: packed(("../owned", b"x")), "leads out"),
    "dot dot further in": (lambda: packed(("corpus/../../owned", b"x")), "leads out"),
    "folder outside": (lambda: packed(member("../owned/", tarfile.DIRTYPE)), "leads out"),
    "link to an absolute name": (lambda: packed(symlink("l", "/etc")), "leads out"),
    "link to dot dot": (lambda: packed(symlink("corpus/l", "../../x")), "leads out"),
    # a/up is the folder itself, so a/up/.. is the one above, though the names alone say that it is a
    "links that lead out together": (lambda: packed(GOOD, symlink("a/up", ".."), symlink("out", "a/up/..")), "leads out"),
    "through a link": (lambda: packed(member("d", tarfile.DIRTYPE), symlink("l", "d"), ("l/x", b"x")), "through a link"),
    "through a link out": (lambda: packed(symlink("l", "../../.."), ("l/x", b"x")), "leads out"),
    "folder over a link": (lambda: packed(symlink("l", "d"), member("l", tarfile.DIRTYPE)), "through a link"),
    "hard link to an absolute name": (lambda: packed(hard_link("l", "/etc/passwd")), "absolute name"),
    "hard link to dot dot": (lambda: packed(hard_link("l", "../../x")), "leads out"),
    "hard link to nothing": (lambda: packed(hard_link("l", "later"), ("later", b"x")), "no file unpacked before"),
    "hard link through a link": (lambda: packed(GOOD, symlink("l", "corpus"), hard_link("h", "l/etc/list")), "hard link"),
    "character device": (lambda: packed(member("tty", tarfile.CHRTYPE)), "device"),
    "block device": (lambda: packed(member("sda", tarfile.BLKTYPE)), "device"),
    "fifo": (lambda: packed(member("pipe", tarfile.FIFOTYPE)), "fifo"),
    "unknown type": (lambda: packed(member("what", b"Z")), "unknown type"),
    "file named as its folder": (lambda: packed(GOOD, ("corpus/etc", b"x")), "folder and then something else"),
    "folder named as a file": (lambda: packed(("a", b"x"), ("a/b", b"x")), "through a link or a file"),
    "file without a name": (lambda: packed((".", b"x")), "named"),
    "bomb of zeros": (lambda: gzip.compress(packed(("zeros", ZEROS)), 1), "bomb"),
    "bomb of zeros, bzip2": (lambda: bz2.compress(packed(("zeros", ZEROS)), 1), "bomb"),
    "bomb by its header alone": (lambda: member("big", size=2**40).tobuf(tarfile.GNU_FORMAT) + bytes(1024), "bomb"),
    "sparse bomb": (sparse_bomb, "bomb"),
    "bomb of many files": (lambda: gzip.compress(packed(*(member(f"{i}") for i in range(3_000))), 9), "bomb: too many"),
    "bomb of a long name": (long_name_bomb, "bomb: an extended header"),
    "bomb behind the end": (lambda: gzip.compress(packed(GOOD) + ZEROS, 1), "bomb"),
}
NOISE = random.Random(1).randbytes(50_000)
DAMAGED = {
    "no archive": lambda: b"<html>404 Not Found</html>" * 100,
    "empty": lambda: b"",
    "gzip of no archive": lambda: gzip.compress(b"hello" * 1000),
    "tar cut in a file": lambda: packed(GOOD, ("noise", NOISE))[:30_000],
    "tar cut between files": lambda: packed(GOOD, ("noise", NOISE[:1024]), finish=False)[: 512 * 5],
    "gzip cut": lambda: gzip.compress(packed(GOOD, ("noise", NOISE)))[:-10_000],
    "gzip cut in its checksum": lambda: gzip.compress(packed(GOOD, ("noise", NOISE)))[:-3],
    "gzip with a flipped bit": lambda: flipped(gzip.compress(packed(("noise", NOISE)))),
    "bzip2 with a flipped bit": lambda: flipped(bz2.compress(packed(("noise", NOISE)))),
}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def expect_nothing(tmp_path: Path, content: bytes, named: str) -> None:
    archive = tmp_path / "in" / "corpus.tar.gz"
    archive.parent.mkdir()
    (tmp_path / "out").mkdir()
    archive.write_bytes(content)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=named) as refused:
        archives.extract(archive, tmp_path / "out" / "corpus")
    assert str(refused.value).startswith(f"{archive}: ")
    assert everything(tmp_path) == before and not Path("/tmp/owned").exists()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(tmp_path, case):
    content, named = HOSTILE[case]
    expect_nothing(tmp_path, content(), f"refused: .*{named}")


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives_are_told(tmp_path, case):
    expect_nothing(tmp_path, DAMAGED[case](), "damaged or cut short")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_honest_archives_are_unpacked(tmp_path, mode):
    links = [symlink("corpus/legacy/sph", "../data"), symlink("corpus/first", "data/0.sph"), hard_link("again", GOOD[0])]
    rights = member("corpus/tool", size=4)
    rights.mode = 0o6777
    folder = member("corpus/closed/", tarfile.DIRTYPE)
    folder.mode = 0
    content = packed(
        *(member("./", tarfile.DIRTYPE), GOOD, ("corpus/data/0.sph", b"old"), ("corpus/data/0.sph", NOISE), *links),
        *(folder, ("corpus/closed/file", b"x"), ("corpus/tool", b"tool"), ("long/" * 60 + "name", b"deep")),
        mode=mode,
    )
    archive, target = tmp_path / "corpus.tar", tmp_path / "out"
    archive.write_bytes(content)
    left_by_a_killed_run = tmp_path / ".out.unpacking" / "half"
    left_by_a_killed_run.mkdir(parents=True)
    archives.extract(archive, target)
    assert (target / "corpus/legacy/sph/0.sph").read_bytes() == NOISE == (target / "corpus/first").read_bytes()
    assert (target / "again").read_bytes() == GOOD[1] and (target / ("long/" * 60) / "name").read_bytes() == b"deep"
    assert stat.S_IMODE(os.stat(target / "corpus/tool").st_mode) & 0o7111 == 0, "nobody else's permissions"
    assert (target / "corpus/closed/file").read_bytes() == b"x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.tar", "out"]


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RESERVE_BYTES", 2**60)
    (tmp_path / "a.tar").write_bytes(packed(GOOD))
    with pytest.raises(OSError, match="no room to unpack"):
        archives.extract(tmp_path / "a.tar", tmp_path / "out")
    assert everything(tmp_path) == {str(tmp_path / "a.tar")}


def test_names_without_endings():
    names = ["a.tar.gz", "b.tgz", "c-1.0.tar.bz2", "d.tar", "e"]
    assert [archives.archive_stem(Path(name)) for name in names] == ["a", "b", "c-1.0", "d", "e"]
