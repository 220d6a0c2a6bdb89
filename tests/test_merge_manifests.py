import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from beeps import ROOT

from data.manifest import read_manifest, read_transcript

SCRIPT = ROOT / "data/merge_manifests.py"


def recording(path: Path, seconds: float = 2.0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(round(1000 * seconds))
    soundfile.write(path, 0.1 * rng.standard_normal(round(16000 * seconds)), 16000)
    return str(path)


def spoken(folder: Path, name: str, seconds: float, words: str) -> str:
    """A recording with its transcript somewhere else and by another name. Returns the CSV line."""
    recording(folder / "wav" / f"{name}.wav", seconds)
    text = folder / "words" / f"of-{name}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(words + "\n")
    return f"wav/{name}.wav,words/of-{name}.txt\n"


def json_line(audio: str, text: str, duration: float, **others) -> str:
    return json.dumps({"audio_filepath": audio, "text": text, "duration": duration, **others}) + "\n"


def merge(*args, cwd: Path, script: Path = SCRIPT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def merged(path: Path) -> list[tuple[str, str]]:
    return [(Path(u.audio).name, read_transcript(u)) for u in read_manifest(path)]


@pytest.fixture
def manifests(tmp_path):
    """Two folders with a manifest each, of which `manifests/` has copies that name everything absolutely or from there."""
    folder = tmp_path / "manifests"
    first = [spoken(folder, "b", 2.5, "TWO"), spoken(folder, "a", 1.25, "ONE"), spoken(folder, "click", 0.5, "X")]
    (folder / "first.csv").write_text("".join(first))
    audio = recording(tmp_path / "elsewhere" / "c.wav", 16)
    (folder / "second.jsonl").write_text(json_line("wav/a.wav", "ONE", 1.25) + json_line(audio, "LONG", 16.0, lang="en"))
    (folder / "notes.md").write_text("no manifest")
    return folder


def test_merges_prunes_sorts_and_counts(manifests, tmp_path):
    done = merge("--merge-dir", "manifests/", "--output-path", "merged_manifest.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "in:  5 utterances, 0.006 hours\n"
        "left out: 1 duplicates, 2 not 1 to 15 s long\n"
        "out: 2 utterances, 0.001 hours: merged_manifest.csv\n"
    )
    assert done.stderr == "manifests/second.jsonl: not kept: 1 values of 'lang'\n"
    lines = (tmp_path / "merged_manifest.csv").read_text().splitlines()
    assert lines == [f"manifests/wav/{name}.wav,manifests/words/of-{name}.txt" for name in "ab"]


def test_zero_is_no_bound_and_fractions_count(manifests, tmp_path):
    done = merge("--merge-dir", manifests, "--output-path", "all.csv", "--min-duration", 0, "--max-duration", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert merged(tmp_path / "all.csv") == [("click.wav", "X"), ("a.wav", "ONE"), ("b.wav", "TWO"), ("c.wav", "LONG")]
    assert (tmp_path / "all_txt" / "c.txt").read_text() == "LONG\n", "words of JSON Lines get a file that a CSV can name"
    done = merge(
        "--merge-dir", manifests, "--output-path", "some.csv", "--min-duration", 1.3, "--max-duration", 2.5, cwd=tmp_path
    )
    assert merged(tmp_path / "some.csv") == [("b.wav", "TWO")]
    done = merge(
        "--merge-dir", manifests, "--output-path", "none.csv", "--min-duration", 3, "--max-duration", 2.5, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--min-duration 3 is more than --max-duration 2.5" in done.stderr


def test_works_from_inside_data_and_where_it_lies(manifests, tmp_path):
    target = tmp_path / "deep" / "er" / "merged.csv"
    done = merge("--merge-dir", manifests, "--output-path", target, cwd=ROOT / "data", script=Path("merge_manifests.py"))
    assert done.returncode == 0, done.stderr
    assert merged(target) == [("a.wav", "ONE"), ("b.wav", "TWO")]
    inside = manifests / "merged.csv"
    for _ in range(2):  # the second time its own output is in the folder
        done = merge("--merge-dir", manifests, "--output-path", inside, cwd=tmp_path)
        assert "in:  5 utterances" in done.stdout
    (tmp_path / "manifests").rename(tmp_path / "moved")
    assert merged(tmp_path / "moved" / "merged.csv") == [("a.wav", "ONE"), ("b.wav", "TWO")], "the folder can be moved"


def test_segments_survive_in_json_lines_and_a_csv_says_what_to_do(tmp_path):
    folder = tmp_path / "manifests"
    talk = recording(folder / "talk.wav", 10)
    lines = [json_line("talk.wav", "SECOND", 3, offset=4.5), json_line("talk.wav", "FIRST", 2), json_line(talk, "FIRST", 2)]
    (folder / "m.json").write_text("".join(lines))
    done = merge("--merge-dir", "manifests", "--output-path", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: 1 duplicates, 0 not" in done.stdout
    found = read_manifest(tmp_path / "out.jsonl")
    assert [(u.text, u.offset, u.duration) for u in found] == [("FIRST", None, 2.0), ("SECOND", 4.5, 3.0)]
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["audio_filepath"] == "manifests/talk.wav"
    done = merge("--merge-dir", "manifests", "--output-path", "out.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "manifests/m.json:2: a segment of" in done.stderr and ".jsonl" in done.stderr and "--audio-dir" in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_the_same_recording_with_other_words_is_no_duplicate(tmp_path):
    folder = tmp_path / "manifests"
    (folder).mkdir()
    (folder / "a.csv").write_text(spoken(folder, "a", 2, "YES"))
    (folder / "b.jsonl").write_text(json_line("wav/a.wav", "NO", 2) + json_line("wav/a.wav", " YES\n", 2.0))
    done = merge("--merge-dir", "manifests", "--output-path", "out.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert merged(tmp_path / "out.csv") == [("a.wav", "YES"), ("a.wav", "NO")]
    assert "1 recordings come more than once with different words" in done.stderr
    assert "left out: 1 duplicates" in done.stdout


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("gone.wav,t.txt\n", "m.csv:1: .*gone.wav: No such file or directory"),
        ("t.txt,t.txt\n", "m.csv:1: .*t.txt: not audio that can be read"),
        ("a,b,c\n", "m.csv:1: 3 columns in 'a,b,c'"),
        ("", "m.csv: no utterances"),
    ],
)
def test_what_cannot_be_merged_is_one_line(tmp_path, lines, said):
    (tmp_path / "t.txt").write_text("WORDS\n" * 100)
    (tmp_path / "m.csv").write_text(lines)
    (tmp_path / "out").mkdir()
    done = merge("--merge-dir", tmp_path, "--output-path", tmp_path / "out/o.csv", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert re.search(said, done.stderr), done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_has_no_manifests_or_is_none(tmp_path):
    done = merge("--merge-dir", tmp_path, "--output-path", "o.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path}: no manifests: expected files named *.csv, *.json, *.jsonl\n",
    )
    done = merge("--merge-dir", tmp_path / "gone", "--output-path", "o.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/gone: No such file or directory\n")
