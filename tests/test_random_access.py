"""What decoders read from anywhere: a header before a part of a file, a pipe that is kept, a disk that is full."""

import io
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from beeps import ROOT

from data import random_access
from data.random_access import Memory, Spliced, TemporaryFile, spliced, spooled

DATA = np.random.default_rng(0).bytes(5000)


class Trickle(io.RawIOBase):
    """A pipe, which gives 7 bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def read(self, size: int = -1) -> bytes:
        given, self.left = self.left[:7], self.left[7:]
        return given


def test_a_spliced_file_is_the_header_and_the_part(monkeypatch):
    expected = b"header" + DATA[100:3000]
    monkeypatch.setattr(random_access, "SMALL_BYTES", 1000)
    file = spliced(b"header", io.BytesIO(DATA), 100, 3000)
    assert isinstance(file, Spliced)
    assert file.read() == expected
    rng = np.random.default_rng(1)
    for place, size in zip(rng.integers(0, 3100, 300), rng.integers(1, 400, 300), strict=True):
        assert file.seek(int(place)) == place
        found = b""
        while block := file.read(int(size) - len(found)):
            found += block
        assert found == expected[place : place + size]
        assert file.tell() == place + len(found)
    assert file.seek(-10, os.SEEK_END) == len(expected) - 10
    assert file.seek(4, os.SEEK_CUR) == len(expected) - 6
    assert file.seek(-1) == len(expected) - 6, "as quiet as Memory"
    monkeypatch.setattr(random_access, "SMALL_BYTES", 3000)
    small = spliced(b"header", io.BytesIO(DATA), 100, 3000)
    assert isinstance(small, Memory)
    assert small.read() == expected


def test_what_comes_through_a_pipe_is_all_kept(monkeypatch):
    for small, kept in {5001: Memory, 5000: TemporaryFile, 100: TemporaryFile}.items():
        monkeypatch.setattr(random_access, "SMALL_BYTES", small)
        with spooled(Trickle(DATA)) as file:
            assert isinstance(file, kept)
            file.seek(0)
            assert file.read() == DATA


def test_a_temporary_file_has_no_name(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with TemporaryFile() as file:
        file.append(DATA)
        assert list(tmp_path.iterdir()) == []
        assert os.fstat(file.fileno()).st_size == 5000


def test_a_fault_of_what_is_kept_leaves_nothing_open(monkeypatch):
    class Broken(Trickle):
        def read(self, size: int = -1) -> bytes:
            if len(self.left) < 1000:
                raise InterruptedError("gone")
            return super().read(size)

    for small in (10000, 100):
        monkeypatch.setattr(random_access, "SMALL_BYTES", small)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(InterruptedError, match="gone"):
            spooled(Broken(DATA))
        assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_is_told_by_its_folder(tmp_path):
    code = (
        "import io, resource\n"
        "from data.random_access import spooled\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "try: spooled(io.BytesIO(bytes(2**26 + 1)))\n"
        "except OSError as error: print(error.filename)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path}\n", "")
    assert list(tmp_path.iterdir()) == []
