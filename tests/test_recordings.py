"""What people type to say which recordings they mean, and what the results of these are called."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from beeps import ROOT

from asr.transcript_files import result_path
from data.command_line import UsageError
from data.recordings import find_recordings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """talks/ with recordings, other files, and folders."""
    for name in ("b.wav", "a.wav", "a.MP3", "notes.txt", "deep/a.flac", "deep/er/c.opus", ".hidden.wav", ".git/d.wav"):
        path = tmp_path / "talks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not looked into")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(*paths: str) -> list[str]:
    return [recording.shown for recording in find_recordings(paths)]


def names(*paths: str) -> list[str]:
    return [recording.name for recording in find_recordings(paths)]


def test_files_are_taken_as_they_are_named(folder):
    assert shown("talks/notes.txt", "talks/b.wav", "nix.wav") == ["talks/notes.txt", "talks/b.wav", "nix.wav"]
    assert names("talks/notes.txt", "talks/b.wav", "") == ["notes", "b", "audio"]
    (recording,) = find_recordings(["talks/b.wav"])
    assert (recording.source, recording.offset, recording.duration) == ("talks/b.wav", 0.0, None)


def test_folders_give_their_recordings_sorted(folder):
    found = ["talks/a.MP3", "talks/a.wav", "talks/b.wav", "talks/deep/a.flac", "talks/deep/er/c.opus"]
    assert shown("talks") == shown("talks/") == found
    assert names("talks") == ["a.MP3", "a.wav", "b", "deep/a", "deep/er/c"]
    with pytest.raises(ValueError, match="empty: no recordings"):
        find_recordings(["empty"])


def test_links_that_lead_back_and_folders_that_cannot_be_read(folder):
    plain = len(shown("talks"))
    (folder / "talks/deep/back").symlink_to(folder / "talks")
    (folder / "more").mkdir()
    (folder / "more/e.wav").touch()
    (folder / "talks/elsewhere").symlink_to(folder / "more")
    assert len(shown("talks")) == plain + 1, "each recording once, also what a link leads to"
    (folder / "gone").symlink_to(folder / "nowhere")
    assert shown("gone") == ["gone"], "whoever opens it will tell"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_told(folder):
    (folder / "talks/deep").chmod(0)
    try:
        with pytest.raises(OSError, match="deep"):
            find_recordings(["talks"])
    finally:
        (folder / "talks/deep").chmod(0o755)


def test_patterns(folder):
    assert shown("talks/*.wav") == ["talks/a.wav", "talks/b.wav"]
    assert shown("talks/**/*.opus") == ["talks/deep/er/c.opus"]
    assert shown("talks/[ab].*") == ["talks/a.MP3", "talks/a.wav", "talks/b.wav"]
    with pytest.raises(ValueError, match=r"\*\.sph: no file"):
        find_recordings(["talks/*.sph"])
    (folder / "what[1].wav").touch()
    assert shown("what[1].wav") == ["what[1].wav"], "a file of such a name is itself"


def test_each_once_in_its_place(folder):
    assert shown("talks/b.wav", "talks", "talks/b.wav", "talks/*.wav")[:2] == ["talks/b.wav", "talks/a.MP3"]
    assert len(shown("talks/b.wav", "talks", "talks/b.wav", "talks/*.wav")) == 5
    found = names("talks/a.wav", "talks/a.MP3", "talks/deep/a.flac", "talks/b.wav", "talks")
    assert len(found) == len(set(found)) == 5


def test_manifests_of_all_kinds(folder):
    (folder / "list.csv").write_text("talks/a.wav,a.txt\ntalks/b.wav,b.txt\ntalks/a.wav,other.txt\n")
    assert shown("list.csv") == [f"{folder}/talks/a.wav", f"{folder}/talks/b.wav"]
    entries = [
        {"offset": 0, "duration": 1.5},
        {"offset": 1.5, "duration": 2.25},
        {"duration": 3},
        {"offset": 1.5, "duration": 2.25},
    ]
    lines = [json.dumps({"audio_filepath": "talks/a.wav", "text": "X", **entry}) for entry in entries]
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n")
    found = find_recordings(["list.jsonl"])
    assert [(r.offset, r.duration) for r in found] == [(0, 1.5), (1.5, 2.25), (0, None)]
    assert [r.name for r in found] == ["a-0000000-0000150", "a-0000150-0000375", "a"]
    assert found[1].shown == f"{folder}/talks/a.wav from 1.5 s to 3.75 s"
    soundfile.write(folder / "x.wav", np.zeros(1600), 16000)
    with tarfile.open(folder / "part-0.tar", "w") as tar:
        for name in ("one/x.wav", "two/x.wav"):
            tar.add(folder / "x.wav", name)
    assert names("part-{0..0}.tar") == names("part-0.tar") == ["x.wav", "x.wav-2"]
    for name, content in (("nix.csv", None), ("bad.jsonl", "{}\n"), ("bad.csv", "no comma\n")):
        if content:
            (folder / name).write_text(content)
        with pytest.raises((ValueError, OSError), match=name):
            find_recordings([name])


HOSTILE = [
    "../../escape.wav",
    "/etc/passwd",
    "..",
    "/",
    "a/../..",
    ".wav",
    "...",
    "x\ty.wav",
    "~root.wav",
    "-.wav",
    "C:\\x.wav",
]


def test_no_name_leads_out_of_the_results_folder(folder):
    lines = [json.dumps({"audio_filepath": name, "text": "X", "duration": 1}) for name in HOSTILE * 2]
    lines += [json.dumps({"audio_filepath": name, "text": "X", "duration": 1, "offset": 2}) for name in HOSTILE]
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n")
    results = folder / "results"
    for kind in ("json", "text", "srt"):
        paths = [Path(os.path.normpath(result_path(str(results), r, kind))) for r in find_recordings(["list.jsonl"])]
        assert len(paths) == 2 * len(HOSTILE) == len(set(paths))
        assert all(path.parent == results for path in paths)


def test_standard_input_is_alone():
    for paths in (["-", "a.wav"], ["a.wav", "-"], ["-", "-"]):
        with pytest.raises(UsageError, match="nothing else"):
            find_recordings(paths)
    code = (
        "import sys; from data.recordings import find_recordings as f; r, = f(['-']); print(r.shown, r.name, r.source.read())"
    )
    heard = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, input=b"xyz", capture_output=True, check=False
    )
    assert (heard.stdout, heard.stderr) == (b"standard input stdin b'xyz'\n", b"")
    closed = subprocess.run(
        f"'{sys.executable}' -c \"{code}\" <&-", shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "UsageError: --audio-path -: standard input is closed" in closed.stderr
