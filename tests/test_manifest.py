import dataclasses
import json
import os
import re

import pytest

from data.manifest import read_manifest, read_transcript, sort_by_duration, write_manifest
from data.utterances import Utterance


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def paths_of(utterances):
    return [(utterance.audio, utterance.text_path) for utterance in utterances]


# CSV


def test_csv(tmp_path):
    path = written(tmp_path / "m.csv", "/a/1.wav,/t/1.txt\nb/2.wav,../t/2.txt\n~/3.wav,~/3.txt\n")
    first, second, third = read_manifest(path)
    assert first == Utterance("/a/1.wav", text_path="/t/1.txt", manifest=str(path), line=1)
    assert first.where == f"{path}:1"
    assert first.segment == (0.0, None)
    assert paths_of([second]) == [(f"{tmp_path}/b/2.wav", f"{tmp_path}/../t/2.txt")]
    assert third.audio == f"{tmp_path}/~/3.wav"
    assert third.line == 3


def test_csv_relative_to_a_manifest_in_the_working_folder(tmp_path, monkeypatch):
    written(tmp_path / "m.csv", "1.wav,1.txt")
    monkeypatch.chdir(tmp_path)
    (utterance,) = read_manifest("m.csv")
    assert utterance.audio == os.path.join(os.getcwd(), "1.wav")
    assert utterance.where == "m.csv:1"


@pytest.mark.parametrize(
    "content",
    [
        "/1.wav,/1.txt\n/2.wav,/2.txt",
        "/1.wav,/1.txt\r\n/2.wav,/2.txt\r\n",
        "\ufeff/1.wav,/1.txt\n/2.wav,/2.txt\n",
        "\n \n/1.wav,/1.txt\n\n/2.wav,/2.txt\n\n\n",
        '"/1.wav","/1.txt"\n/2.wav,/2.txt\n',
    ],
    ids=["no last newline", "CRLF", "byte order mark", "blank lines", "quoted"],
)
def test_csv_variants(tmp_path, content):
    utterances = read_manifest(written(tmp_path / "m", content))
    assert paths_of(utterances) == [("/1.wav", "/1.txt"), ("/2.wav", "/2.txt")]


def test_csv_line_numbers_count_blank_lines(tmp_path):
    path = written(tmp_path / "m.csv", '\n/1.wav,/1.txt\n\n"/2\n.wav",/2.txt\n/3.wav,/3.txt\n')
    assert [utterance.line for utterance in read_manifest(path)] == [2, 4, 6]


def test_csv_with_odd_names(tmp_path):
    path = written(tmp_path / "m.csv", '"/a,b.wav","/c""d.txt"\n{e}.wav,f g.txt\n/x\u2028y.wav,/ß.txt\n')
    assert paths_of(read_manifest(path)) == [
        ("/a,b.wav", '/c"d.txt'),
        (f"{tmp_path}/{{e}}.wav", f"{tmp_path}/f g.txt"),
        ("/x\u2028y.wav", "/ß.txt"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/2.wav", "1 column in '/2.wav'"),
        ("/2.wav,/2.txt,3", "3 columns in '/2.wav,/2.txt,3' .*quotes"),
        ("/2.wav,", "empty path"),
        (",/2.txt", "empty path"),
        ('"/2.wav,/2.txt', "not CSV"),
        ('"/2"x,/2.txt', "not CSV"),
    ],
)
def test_csv_malformed(tmp_path, line, message):
    path = written(tmp_path / "m.csv", f"/1.wav,/1.txt\n{line}\n/3.wav,/3.txt\n")
    with pytest.raises(ValueError, match=rf"m\.csv:2: {message}.*: expected /path/to/audio.wav,"):
        read_manifest(path)


# JSON Lines


def json_line(**entry):
    return json.dumps({"audio_filepath": "/1.wav", "text": "ONE", "duration": 1.5} | entry)


def test_json_lines(tmp_path):
    lines = [
        json_line(speaker="x"),
        "",
        json_line(audio_filepath="b/2.wav", duration=2, offset=0),
        json_line(offset=3.5),
    ]
    path = written(tmp_path / "anything.csv", "\ufeff" + "\r\n".join(lines))
    whole, first, later = read_manifest(path)
    assert whole == Utterance("/1.wav", "ONE", None, 1.5, None, str(path), 1)
    assert whole.segment == (0.0, None)
    assert (first.audio, first.line) == (f"{tmp_path}/b/2.wav", 3)
    assert first.segment == (0.0, 2.0)
    assert later.segment == (3.5, 1.5)


def test_json_offset_null_is_no_offset(tmp_path):
    (utterance,) = read_manifest(written(tmp_path / "m", json_line(offset=None)))
    assert utterance.offset is None


def test_json_text_with_line_separator_stays_one_line(tmp_path):
    line = json.dumps({"audio_filepath": "/1.wav", "text": "ONE\u2028TWO", "duration": 1}, ensure_ascii=False)
    (utterance,) = read_manifest(written(tmp_path / "m", line))
    assert read_transcript(utterance) == "ONE TWO"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/2.wav,/2.txt", "not JSON"),
        ('{"audio_filepath": "/2.wav"', "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("[1]", "a JSON list"),
        ('{"text": "ONE", "duration": 1}', 'no "audio_filepath" among'),
        ('{"audio_filepath": "/2.wav", "duration": 1}', 'no "text"'),
        ('{"audio_filepath": "/2.wav", "text": "ONE"}', 'no "duration"'),
        (json_line(audio_filepath=2), '"audio_filepath" is 2'),
        (json_line(audio_filepath=""), '"audio_filepath" is empty'),
        (json_line(text=["ONE"]), '"text" is .*"ONE"'),
        (json_line(duration="1.5"), '"duration" is "1.5"'),
        (json_line(duration=True), '"duration" is true'),
        (json_line(duration=-1), '"duration" is -1'),
        (json_line(duration=float("nan")), '"duration" is NaN'),
        (json_line(duration=float("inf")), '"duration" is Infinity'),
        (json_line(duration=10**400), '"duration" is 1000'),
        (json_line(offset=-0.5), '"offset" is -0.5'),
        (json_line(offset="0"), '"offset" is "0"'),
    ],
)
def test_json_malformed(tmp_path, line, message):
    path = written(tmp_path / "m.json", f"{json_line()}\n{line}\n")
    with pytest.raises(ValueError, match=rf'm\.json:2: {message}.*expected .*\{{"audio_filepath"') as raised:
        read_manifest(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


# neither


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", " \r\n"])
def test_empty_manifest(tmp_path, content):
    with pytest.raises(ValueError, match=r"m\.csv: no utterances: expected"):
        read_manifest(written(tmp_path / "m.csv", content))


@pytest.mark.parametrize("content", [b"/1.wav,/1.txt\n/\0,/2.txt", b"/1.wav,/1.txt\nRIFF\xff\xfe", "a,b\nc,d".encode("utf-16")])
def test_binary_manifest(tmp_path, content):
    with pytest.raises(ValueError, match=r"m\.csv:[12]: not "):
        read_manifest(written(tmp_path / "m.csv", content))


def test_missing_manifest(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        read_manifest(tmp_path / "m.csv")
    assert str(raised.value) == f"{tmp_path}/m.csv: no such manifest"


def test_folder_as_manifest(tmp_path):
    with pytest.raises(ValueError, match="a folder: expected a manifest"):
        read_manifest(tmp_path)


# transcripts


def test_transcript_in_the_manifest():
    assert read_transcript(Utterance("/1.wav", text=" ONE\nTWO")) == "ONE TWO"


@pytest.mark.parametrize("content", ["CAFÉ\nAU LAIT\n", "\ufeffCAFE\u0301 AU\r\nLAIT"])
def test_transcript_file(tmp_path, content):
    path = written(tmp_path / "1.txt", content)
    assert read_transcript(Utterance("/1.wav", text_path=str(path))) == "CAFÉ AU LAIT"


def test_transcript_missing(tmp_path):
    utterance = Utterance("/1.wav", text_path=f"{tmp_path}/1.txt", manifest="m.csv", line=7)
    with pytest.raises(ValueError, match=rf"^m\.csv:7: transcript {re.escape(str(tmp_path))}/1\.txt: No such file"):
        read_transcript(utterance)


def test_transcript_not_utf8(tmp_path):
    path = written(tmp_path / "1.txt", "CAFÉ".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^m\.csv:7: transcript .*1\.txt: not UTF-8") as raised:
        read_transcript(Utterance("/1.wav", text_path=str(path), manifest="m.csv", line=7))
    assert "\n" not in str(raised.value)


def test_no_transcript_at_all():
    with pytest.raises(ValueError, match=r"^/1\.wav: /1\.wav has neither"):
        read_transcript(Utterance("/1.wav"))


# writing and sorting


def test_write_manifest_comes_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    names = [
        f"{folder}/wav/a,b.wav",
        f'{folder}/c"d.wav',
        f"{tmp_path}/e.wav",
        f"{folder}/../f.wav",
        f"{folder}2/{{g}}.wav",
    ]
    utterances = [Utterance(name, text_path=name + ".txt") for name in names]
    path = folder / "m.csv"
    write_manifest(path, utterances)
    assert paths_of(read_manifest(path)) == paths_of(utterances)
    assert path.read_text().splitlines()[:3] == [
        '"wav/a,b.wav","wav/a,b.wav.txt"',
        '"c""d.wav","c""d.wav.txt"',
        f"{tmp_path}/e.wav,{tmp_path}/e.wav.txt",
    ]
    assert os.listdir(folder) == ["m.csv"]


def test_write_manifest_makes_relative_paths_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_manifest("sub/m.csv", [Utterance("1.wav", text_path="sub/1.txt")])
    assert (tmp_path / "sub" / "m.csv").read_text() == f"{os.getcwd()}/1.wav,1.txt\n"


def test_write_manifest_can_be_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    write_manifest(old / "m.csv", [Utterance(f"{old}/1.wav", text_path=f"{old}/1.txt")])
    old.rename(new)
    assert paths_of(read_manifest(new / "m.csv")) == [(f"{new}/1.wav", f"{new}/1.txt")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Utterance("/1.wav", text="ONE"), "has no transcript file"),
        (Utterance("/1.wav", text_path="/1.txt", offset=0.0, duration=1.0), "a segment of"),
        (Utterance("/\udcff.wav", text_path="/1.txt"), "UTF-8"),
        (Utterance("/1\r.wav", text_path="/1.txt"), "line breaks"),
    ],
)
def test_write_manifest_that_fails_leaves_the_old_one(tmp_path, bad, message):
    path = written(tmp_path / "m.csv", "/0.wav,/0.txt\n")
    with pytest.raises(ValueError, match=message):
        write_manifest(path, [Utterance("/2.wav", text_path="/2.txt"), bad])
    assert path.read_text() == "/0.wav,/0.txt\n"
    assert os.listdir(tmp_path) == ["m.csv"]


def test_sort_by_duration():
    utterances = [Utterance(name, duration=duration) for name, duration in (("a", 2.0), ("b", 1.0), ("c", 2.0))]
    assert [utterance.audio for utterance in sort_by_duration(utterances)] == ["b", "a", "c"]
    utterances.append(dataclasses.replace(utterances[0], duration=None, manifest="m.csv", line=4))
    with pytest.raises(ValueError, match=r"m\.csv:4: duration of a is not known"):
        sort_by_duration(utterances)
