"""data/download.py against a real server: whatever the connection does, the file is whole or not there."""

import hashlib
import os
import random
import socket

import pytest
from loopback import serving

from data import download

CONTENT = random.Random(1).randbytes(1_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving({"/corpus.tar.gz": CONTENT}) as site:
        yield site


def fetch(site, tmp_path, checksum=MD5):
    download.fetch(f"{site.url}/corpus.tar.gz", tmp_path / "corpus.tar.gz", checksum)


def left(tmp_path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".json"}


WHOLE = {"corpus.tar.gz": len(CONTENT)}


def test_a_file_comes_whole_and_nothing_else_is_left(site, tmp_path):
    fetch(site, tmp_path)
    assert (tmp_path / "corpus.tar.gz").read_bytes() == CONTENT and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("cut", [0, 300_000, 300_001], ids=["at once", "in the middle", "by a reset"])
def test_a_cut_connection_goes_on_where_it_stopped(site, tmp_path, capsys, cut):
    site.cuts = [cut, 50_000]
    fetch(site, tmp_path)
    assert (tmp_path / "corpus.tar.gz").read_bytes() == CONTENT
    ranges = site.asked_for("/corpus.tar.gz")
    assert len(ranges) == 3 and ranges[0] is None
    assert cut == 300_001 or ranges[2] == f"bytes={cut + 50_000}-", "a reset may lose what was on its way"
    assert capsys.readouterr().err.count("trying again") == 2


def test_the_next_run_goes_on_where_this_one_gave_up(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.cuts = [400_000]
    with pytest.raises(OSError, match=r"corpus\.tar\.gz: .*cut after 400000 of 1000000.*the same command goes on"):
        fetch(site, tmp_path)
    assert left(tmp_path) == {"corpus.tar.gz.part": 400_000}
    fetch(site, tmp_path)
    assert site.asked_for("/corpus.tar.gz") == [None, "bytes=400000-"]
    assert left(tmp_path) == WHOLE


def half_fetched(site, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(download, "ATTEMPTS", 1)
        site.cuts = [400_000]
        with pytest.raises(OSError):
            fetch(site, tmp_path)


@pytest.mark.parametrize("how", ["no ranges", "another file", "another file, no If-Range", "another address"])
def test_what_cannot_be_continued_starts_over(site, tmp_path, monkeypatch, how):
    half_fetched(site, tmp_path, monkeypatch)
    expected, address = CONTENT, "/corpus.tar.gz"
    if how == "no ranges":
        site.ranges = False
    elif how == "another address":
        address = "/mirror/corpus.tar.gz"
        site.files[address] = CONTENT
    else:
        site.if_range = how == "another file"
        expected = site.files[address] = CONTENT[::-1] + b"more"
    download.fetch(site.url + address, tmp_path / "corpus.tar.gz")
    assert (tmp_path / "corpus.tar.gz").read_bytes() == expected


def test_a_server_without_etags_is_believed_by_the_length(site, tmp_path, monkeypatch):
    site.etags = False
    half_fetched(site, tmp_path, monkeypatch)
    fetch(site, tmp_path)
    assert site.asked_for("/corpus.tar.gz")[1] == "bytes=400000-" and left(tmp_path) == WHOLE


def test_killed_between_the_last_byte_and_the_name(site, tmp_path, monkeypatch):
    half_fetched(site, tmp_path, monkeypatch)
    with open(tmp_path / "corpus.tar.gz.part", "ab") as file:
        file.write(CONTENT[400_000:])
    fetch(site, tmp_path)
    assert site.asked_for("/corpus.tar.gz")[1] == "bytes=1000000-" and left(tmp_path) == WHOLE


def test_a_server_that_always_cuts_and_cannot_resume_is_given_up(site, tmp_path):
    site.ranges, site.cuts = False, [500_000] * 99
    with pytest.raises(OSError, match=f"cut after 500000 of 1000000 bytes, {download.ATTEMPTS} times in a row"):
        fetch(site, tmp_path)
    assert len(site.asked) == download.ATTEMPTS


def test_a_wrong_checksum_is_no_file(site, tmp_path):
    for checksum in ("md5:" + "0" * 32, "sha256:" + "0" * 64):
        with pytest.raises(ValueError, match=r"corpus\.tar\.gz: its (md5|sha256) is .*published is 0000"):
            fetch(site, tmp_path, checksum)
        assert not list(tmp_path.iterdir())


def test_a_passing_fault_is_tried_again_and_a_lasting_one_is_not(site, tmp_path):
    site.refusals = [503, 429]
    fetch(site, tmp_path)
    assert left(tmp_path) == WHOLE and len(site.asked) == 3
    with pytest.raises(OSError, match="nix: HTTP 404 Not Found"):
        download.fetch(f"{site.url}/nix", tmp_path / "nix")
    assert len(site.asked) == 4


@pytest.mark.parametrize(
    ("headers", "named"),
    [({"Content-Length": None}, "how long the file is"), ({"Content-Encoding": "gzip"}, "Content-Encoding gzip")],
)
def test_what_cannot_be_verified_is_refused(site, tmp_path, headers, named):
    site.headers = headers
    with pytest.raises(ValueError, match=named):
        fetch(site, tmp_path)
    assert not left(tmp_path)


def test_no_room_is_said_before_the_transfer(site, tmp_path, monkeypatch):
    usage = os.statvfs(tmp_path)
    site.headers = {"Content-Length": str(usage.f_bsize * usage.f_blocks * 2)}
    with pytest.raises(OSError, match="MiB to come"):
        fetch(site, tmp_path)


def test_nobody_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        with pytest.raises(OSError, match=r"nix: Connection refused, 5 times in a row") as refused:
            download.fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/nix", tmp_path / "nix")
    assert "\n" not in str(refused.value)


def test_text_is_read_whole_or_not_at_all(site, monkeypatch):
    site.files["/list"] = b"one\ntwo\n" * 1000
    site.cuts = [100]
    assert download.fetch_text(f"{site.url}/list") == "one\ntwo\n" * 1000
    assert download.fetch_text(f"{site.url}/nix") is None
