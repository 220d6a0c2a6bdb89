import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from beeps import ROOT

from data.audio import load_audio
from data.convert_manifest import main
from data.formats import kind_of, read_entries
from data.manifest import read_manifest, read_transcript

RATE = 16000


def convert(*args, cwd: Path) -> subprocess.CompletedProcess:
    """The command without the half second that a process takes to start; one test does start it."""
    stdout, stderr, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = main(list(map(str, args)))
    except SystemExit as stop:
        status = stop.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(args, status, stdout.getvalue(), stderr.getvalue())


def recording(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(round(RATE * seconds)) / 9), RATE)
    return path


@pytest.fixture
def corpus(tmp_path):
    """Three utterances of two speakers, with names and words that formats stumble over."""
    words = {"ann/one": "IT'S ONE", "ann/two, too": 'SAY "TWO", PLEASE', "bo/drei": "GRÜẞE AUS KÖLN"}
    rows = []
    for i, (name, text) in enumerate(words.items()):
        recording(tmp_path / f"wav/{name}.wav", 1 + i / 4)
        (tmp_path / f"wav/{name}.txt").write_text(text + "\n", encoding="utf-8")
        rows.append((f"wav/{name}.wav", f"wav/{name}.txt"))
    with open(tmp_path / "m.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def content(path: Path, kind: str) -> list[tuple]:
    """What every format must keep."""
    entries = read_entries(str(path), kind).entries
    return sorted((Path(e.utterance.audio).resolve(), read_transcript(e.utterance), e.utterance.segment) for e in entries)


OUTPUTS = {"nemo": "o.jsonl", "kaldi": "kaldi", "mozilla": "o.csv", "huggingface": "metadata.csv", "csv": "again.csv"}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("via", OUTPUTS)
def test_round_trips(corpus, via, kind):
    """CSV to each format, from there to each other one, and what is read at the end is what was there in the beginning."""
    first, second = corpus / OUTPUTS[via], corpus / f"then-{OUTPUTS[kind]}"
    if kind == "huggingface":
        second = corpus / "metadata.jsonl"
    assert convert("--input", "m.csv", "--output", first, "--to", via, cwd=corpus).returncode == 0
    assert kind_of(str(first)) == via
    done = convert("--input", first, "--output", second, "--to", kind, cwd=corpus)
    assert (done.returncode, done.stderr) == (0, "")
    assert kind_of(str(second)) == kind
    assert content(second, kind) == content(corpus / "m.csv", "csv")


def test_what_is_written_is_what_the_other_toolkits_read(corpus):
    """The files, to the letter."""
    speaker = ("--speaker-pattern", r"wav/([^/]+)/")
    for kind, output in OUTPUTS.items():
        done = convert("--input", "m.csv", "--output", output, "--to", kind, *speaker, cwd=corpus)
        assert done.returncode == 0, done.stderr
        lost = {"mozilla": "lost: speakers of 3 utterances\n", "csv": "lost: speakers of 3 utterances\n"}.get(kind, "")
        assert done.stdout == f"3 utterances: {output}\n{lost}"
    read = {
        path.name: path.read_text().splitlines() for path in [*corpus.glob("*.*"), *corpus.glob("kaldi/*")] if path.is_file()
    }
    assert json.loads(read["o.jsonl"][0]) == {
        "audio_filepath": "wav/ann/one.wav",
        "duration": 1.0,
        "text": "IT'S ONE",
        "speaker": "ann",
    }
    size = (corpus / "wav/ann/two, too.wav").stat().st_size
    assert read["o.csv"][0] == "wav_filename,wav_filesize,transcript"
    assert read["o.csv"][2] == f'"wav/ann/two, too.wav",{size},"SAY ""TWO"", PLEASE"'
    assert read["metadata.csv"][:2] == ["file_name,transcription,speaker", "wav/ann/one.wav,IT'S ONE,ann"]
    assert read["text"] == ["ann-one IT'S ONE", 'ann-two,_too SAY "TWO", PLEASE', "bo-drei GRÜẞE AUS KÖLN"]
    assert read["wav.scp"] == [
        f"ann-one {corpus}/wav/ann/one.wav",
        f"ann-two,_too {corpus}/wav/ann/two, too.wav",
        f"bo-drei {corpus}/wav/bo/drei.wav",
    ]
    assert read["utt2spk"] == ["ann-one ann", "ann-two,_too ann", "bo-drei bo"]
    assert read["spk2utt"] == ["ann ann-one ann-two,_too", "bo bo-drei"]
    assert "segments" not in read


def kaldi(folder: Path, **tables: str) -> Path:
    (folder / "data").mkdir()
    for name, lines in tables.items():
        (folder / "data" / name.replace("_", ".")).write_text(lines)
    return folder / "data"


@pytest.fixture
def talks(tmp_path):
    recording(tmp_path / "talk.flac", 10)
    recording(tmp_path / "other talk.wav", 5)
    return kaldi(
        tmp_path,
        wav_scp="talk flac -c -d -s talk.flac |\nother other talk.wav\n",
        segments="bo-1 talk 0.5 2.25\nann-1 talk 3 4.5\nbo-2 other 1.0 -1\nbo-3 lost 0 1\nbo-4 talk 8 9\n",
        text="ann-1 HELLO THERE\nbo-1 GOOD MORNING\nbo-2 THE END\nbo-3 NOT HERE\n",
        utt2spk="ann-1 ann\nbo-1 bo\nbo-2 bo\n",
    )


def test_kaldi_segments_keep_id_speaker_and_time(talks, tmp_path):
    done = convert("--input", "data", "--output", "o.jsonl", "--to", "nemo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "3 utterances: o.jsonl\n"
        "lost: 1 transcripts of utterances without a recording\n"
        "lost: 1 utterances without a transcript\n"
    )
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(f["id"], f["speaker"], f["audio_filepath"], f["offset"], f["duration"], f["text"]) for f in found] == [
        ("ann-1", "ann", "talk.flac", 3.0, 1.5, "HELLO THERE"),
        ("bo-1", "bo", "talk.flac", 0.5, 1.75, "GOOD MORNING"),
        ("bo-2", "bo", "other talk.wav", 1.0, 4.0, "THE END"),
    ]
    assert convert("--input", "o.jsonl", "--output", "back", "--to", "kaldi", cwd=tmp_path).returncode == 0
    read = {path.name: path.read_text().splitlines() for path in (tmp_path / "back").iterdir()}
    assert read["segments"] == [
        "ann-1 talk 3.000000 4.500000",
        "bo-1 talk 0.500000 2.250000",
        "bo-2 other_talk 1.000000 5.000000",
    ]
    assert read["wav.scp"] == [f"other_talk {tmp_path}/other talk.wav", f"talk flac -c -d -s {tmp_path}/talk.flac |"]
    assert content(tmp_path / "back", "kaldi") == content(tmp_path / "o.jsonl", "nemo")


@pytest.mark.parametrize("kind", ["csv", "mozilla", "huggingface"])
def test_segments_are_cut_where_a_format_has_no_place_for_them(talks, tmp_path, kind):
    output = f"out/{OUTPUTS[kind]}"
    done = convert("--input", "data", "--output", output, "--to", kind, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.search(r"data/text:1: a segment of .*talk.flac: .*no place for segments; .*--audio-dir DIR", done.stderr)
    assert not (tmp_path / output).exists()
    done = convert("--input", "data", "--output", output, "--to", kind, "--audio-dir", "out/cut", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = read_entries(str(tmp_path / output), kind).entries
    assert [read_transcript(entry.utterance) for entry in found] == ["HELLO THERE", "GOOD MORNING", "THE END"]
    assert [entry.utterance.segment for entry in found] == [(0.0, None)] * 3
    assert found[1].utterance.audio == f"{tmp_path}/out/cut/bo-1.wav"
    np.testing.assert_allclose(
        load_audio(found[1].utterance.audio, RATE), load_audio(tmp_path / "talk.flac", RATE, 0.5, 1.75), atol=1 / 32768
    )
    assert ("ids of 3 utterances" in done.stdout) == (kind != "huggingface")


def test_hugging_face_does_not_look_outside_its_folder(corpus):
    done = convert("--input", "m.csv", "--output", "hf", "--to", "huggingface", cwd=corpus)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "one.wav is not below" in done.stderr and "--audio-dir" in done.stderr
    done = convert("--input", "m.csv", "--output", "hf", "--to", "huggingface", "--audio-dir", "away", cwd=corpus)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: --audio-dir away: expected a folder below {corpus}/hf, where Hugging Face looks\n",
    )
    assert (
        convert("--input", "m.csv", "--output", "hf", "--to", "huggingface", "--audio-dir", "hf/a", cwd=corpus).returncode == 0
    )
    assert (corpus / "hf/metadata.csv").read_text().splitlines()[1] == "a/one.wav,IT'S ONE"
    assert (corpus / "hf/a/one.wav").read_bytes() == (corpus / "wav/ann/one.wav").read_bytes()


def test_values_that_no_format_here_keeps_are_counted(corpus):
    (corpus / "n.jsonl").write_text(
        '{"audio_filepath": "wav/ann/one.wav", "text": "A", "duration": 1, "lang": "en", "pnc": "yes"}\n'
        '{"audio_filepath": "wav/bo/drei.wav", "text": "B", "duration": 1.5, "lang": "de"}\n'
    )
    done = convert("--input", "n.jsonl", "--output", "o.csv", "--to", "mozilla", cwd=corpus)
    assert done.stdout == "2 utterances: o.csv\nlost: 2 values of 'lang'\nlost: 1 values of 'pnc'\n"
    (corpus / "metadata.jsonl").write_text('{"file_name": "wav/ann/one.wav", "text": "A", "age": 7}\n')
    done = convert("--input", ".", "--output", "o.csv", "--to", "csv", cwd=corpus)
    assert done.stdout == "1 utterances: o.csv\nlost: 1 values of 'age'\n"
    assert (corpus / "o_txt/one.txt").read_text() == "A\n"
    assert [u.text_path for u in read_manifest(corpus / "o.csv")] == [f"{corpus}/o_txt/one.txt"]


@pytest.mark.parametrize(
    "source",
    [
        "cat a.wav |",
        "flac -cds a.wav|",
        "/usr/bin/sph2pipe -f wav -p 'a.wav' |",
        "sox a.wav -t wav - |",
        'flac --decode --stdout --silent "a.wav" |',
    ],
)
def test_pipes_that_only_decode_a_file_are_that_file(tmp_path, source):
    recording(tmp_path / "a.wav")
    folder = kaldi(tmp_path, wav_scp=f"a {source}\n", text="a WORDS\n")
    assert convert("--input", folder, "--output", "o.jsonl", "--to", "nemo", cwd=tmp_path).returncode == 0
    assert [u.audio for u in read_manifest(tmp_path / "o.jsonl")] == [f"{tmp_path}/a.wav"]


@pytest.mark.parametrize(
    "source",
    [
        "touch ran |",
        "cat a.wav | touch ran |",
        "cat a.wav; touch ran |",
        "cat a.wav && touch ran |",
        "cat $(touch ran) |",
        "cat `touch ran` |",
        "cat a.wav > ran |",
        "cat a.wav a.wav |",
        "sph2pipe -f wav -c 2 a.wav |",
        "sox a.wav -t wav - speed 1.1 |",
        "sox a.wav -r 8000 -t wav - |",
        "ffmpeg -i a.wav -f wav - |",
        "cat 'a.wav |",
        "|",
        "a.ark:1234",
        "-",
        "",
    ],
)
def test_other_pipes_are_refused_and_never_run(tmp_path, source):
    recording(tmp_path / "a.wav")
    folder = kaldi(tmp_path, wav_scp=f"ok a.wav\na {source}\n", text="a WORDS\n")
    done = convert("--input", folder, "--output", "o.jsonl", "--to", "nemo", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {folder}/wav.scp:2: ")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"text": "a X\na Y\n"}, "text:2: a comes twice"),
        ({"text": "a X\n\n"}, "text:2: an empty line"),
        ({"text": "b X\n"}, "no utterances; 1 transcripts of utterances without a recording"),
        ({"text": "a X\n", "segments": "a a 2 1\n"}, "segments:1: 2 s to 1 s"),
        ({"text": "a X\n", "segments": "a a 0\n"}, "segments:1: 'a 0' behind the id"),
        ({"text": "a X\n", "segments": "a a 0 1 A\n"}, "segments:1: channel A"),
        ({"text": "a X\n", "segments": "a a 0.5 2\n"}, "text:1: .*a.wav: 1.000 s long: expected 1.500 s from 0.500 s"),
    ],
)
def test_broken_kaldi_tables_are_named(tmp_path, tables, said):
    recording(tmp_path / "a.wav")
    folder = kaldi(tmp_path, wav_scp="a a.wav\n", **tables)
    done = convert("--input", folder, "--output", "o.csv", "--to", "csv", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("m.csv", "wav_filename,wav_filesize,transcript\na.wav,1\n", "m.csv:2: 2 columns: expected 3"),
        ("m.csv", "wav_filename,wav_filesize\na.wav,1\n", "m.csv:1: header"),
        ("m.csv", 'wav_filename,wav_filesize,transcript\n"a.wav,1,X\n', "m.csv:2: not CSV"),
        ("m.csv", "wav_filename,wav_filesize,transcript\n,1,X\n", "m.csv:2: no wav_filename"),
        ("m.csv", "wav_filename,wav_filesize,transcript\n", "m.csv: no utterances"),
        ("metadata.csv", "file_name,label\na.wav,1\n", 'metadata.csv:2: no "transcription" or "text" among file_name, label'),
        ("metadata.jsonl", '{"file_name": "a.wav", "text": "X"}\n[]\n', "metadata.jsonl:2: a JSON list"),
        ("metadata.jsonl", '{"file_name": 3, "text": "X"}\n', "metadata.jsonl:1: no file_name"),
        ("m.jsonl", '{"audio_filepath": "a.wav"}\n', 'm.jsonl:1: no "text"'),
        ("gone.csv", None, "gone.csv: No such file"),
    ],
)
def test_broken_lists_are_named(tmp_path, name, lines, said):
    if lines is not None:
        (tmp_path / name).write_text(lines)
    done = convert("--input", name, "--output", "o.jsonl", "--to", "nemo", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr


def test_what_was_typed_wrong(corpus):
    done = convert("--input", "m.csv", "--output", "m.csv", "--to", "nemo", cwd=corpus)
    assert (done.returncode, done.stderr) == (2, "error: --output m.csv: is the input; expected another path\n")
    done = convert("--input", "m.csv", "--output", "o", "--to", "nemo", "--speaker-pattern", "wav", cwd=corpus)
    assert done.returncode == 2 and "'wav': expected a group" in done.stderr


@pytest.mark.parametrize(("folder", "script"), [(ROOT, "data/convert_manifest.py"), (ROOT / "data", "convert_manifest.py")])
def test_runs_from_the_root_and_from_inside_data(corpus, folder, script):
    command = [sys.executable, script, "--input", corpus / "m.csv", "--output", corpus / "o.jsonl", "--to", "nemo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"3 utterances: {corpus}/o.jsonl\n", "")
