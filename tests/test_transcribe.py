"""transcribe.py as people use it: files of any number and length, in every format, when all goes well and when it does not."""

import json
import os
import pty
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from beep_network import RATE, save_beep_network, sentence, sound
from beeps import ROOT, hear_signals

from asr.checkpoint import load_checkpoint, save_checkpoint
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from config import DecoderConfig

FILES = [f"u{i}.wav" for i in range(6)]
SPOKEN = [sentence(np.random.default_rng(i), 1 + i % 4) for i in range(6)]
LONG = [sentence(np.random.default_rng(100 + i), 3) for i in range(12)]  # 40 s with pauses


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Models, utterances, and a long recording."""
    folder = tmp_path_factory.mktemp("transcribe")
    save_beep_network(folder / "both.pth")
    save_beep_network(folder / "live.pth", bidirectional=False, streaming_norm=True)
    for name, text in zip(FILES, SPOKEN, strict=True):
        soundfile.write(folder / name, sound(text)[0], RATE)
    soundfile.write(folder / "long.flac", np.concatenate([sound(f"{text} .")[0] for text in LONG]), RATE)
    return folder


@pytest.fixture
def here(made, monkeypatch, capfd):
    """Run transcribe.py in this process, which need not import torch again: its exit status and what it prints."""
    monkeypatch.chdir(made)

    def transcribe(*args: object, model: str = "both.pth") -> tuple[int, str, str]:
        main = runpy.run_path(str(ROOT / "transcribe.py"), run_name="script")["main"]
        try:
            status = main(["--model-path", model, *map(str, args)])
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr()

    return transcribe


def started(made: Path, *args: object, **kwargs) -> subprocess.Popen:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(ROOT / "transcribe.py"), "--model-path", "both.pth", *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=made, preexec_fn=hear_signals, env=environment, **pipes | kwargs)


def test_one_file_gives_the_contracts_json(here):
    status, out, err = here("--audio-path", FILES[0])
    assert (status, err, out.count("\n")) == (0, "", 1)
    answer = json.loads(out)
    assert answer == {
        "output": [{"transcription": SPOKEN[0]}],
        "_meta": {
            "acoustic_model": {"name": "both.pth"},
            "language_model": {"name": None},
            "decoder": {"lm": False, "alpha": None, "beta": None, "type": "greedy"},
        },
    }
    _, out, _ = here("--audio-path", FILES[1], "--offsets", "--words")
    (reading,) = json.loads(out)["output"]
    assert list(reading) == ["transcription", "offsets", "words"]
    assert len(reading["offsets"]) == len(SPOKEN[1]) and reading["offsets"] == sorted(reading["offsets"])
    assert [word["word"] for word in reading["words"]] == SPOKEN[1].split()
    assert list(reading["words"][0]) == ["word", "start", "end", "confidence"]


def test_batches_change_no_text_and_no_order(here):
    paths = [FILES[3], "long.flac", *FILES]
    outputs = [
        here("--audio-path", *paths, "--format", "jsonl", "--words", *size)[1]
        for size in (("--batch-size", 20), ("--batch-size", 1))
    ]
    answers = [json.loads(line) for line in outputs[0].splitlines()]
    assert [answer["audio"] for answer in answers] == [FILES[3], "long.flac", *(name for name in FILES if name != FILES[3])]
    texts = {answer["audio"]: answer["output"][0]["transcription"] for answer in answers}
    assert texts == {**dict(zip(FILES, SPOKEN, strict=True)), "long.flac": " ".join(LONG)}
    for output in outputs[1:]:
        for line, answer in zip(output.splitlines(), answers, strict=True):
            other = json.loads(line)
            for word, same in zip(other["output"][0]["words"], answer["output"][0]["words"], strict=True):
                assert word.pop("confidence") == pytest.approx(same["confidence"], abs=1e-3)
                assert word == {name: value for name, value in same.items() if name != "confidence"}


def test_words_of_a_long_recording_are_where_they_are_said(here, made):
    _, out, _ = here("--audio-path", "long.flac", "--format", "ctm")
    rows = [line.split() for line in out.splitlines()]
    assert [row[4] for row in rows] == " ".join(LONG).split() and {row[0] for row in rows} == {"long"}
    begins, begin = [], 0
    for text in LONG:
        wave, labels = sound(f"{text} .")
        letters = np.flatnonzero(np.isin(labels, (1, 2, 3)))
        starts = letters[np.append(0, np.flatnonzero(np.diff(letters) > 3500) + 1)]
        begins += ((begin + starts) / RATE).tolist()
        begin += len(wave)
    found = np.array([[float(row[2]), float(row[3])] for row in rows])
    np.testing.assert_allclose(found[:, 0], begins, atol=0.15)
    assert (found[1:, 0] >= found[:-1].sum(1) - 0.0015).all(), "one behind the other"


def test_a_long_transcript_is_that_of_its_pieces(made):
    recognizer = Recognizer(made / "both.pth", DecoderConfig(decoder="beam", top_paths=4), Runtime.choose(cuda=False))
    transcript = recognizer.transcribe(made / "long.flac")
    pieces = list(recognizer.pieces(made / "long.flac"))
    assert len(pieces) == len(transcript.segments) > 1 and all(piece.pauses for piece, _ in pieces)
    assert transcript.duration == pytest.approx(soundfile.info(made / "long.flac").duration)
    for (piece, spect), segment in zip(pieces, transcript.segments, strict=True):
        log_probs = torch.from_numpy(recognizer.hear([(piece, spect)])[0].copy())[None]
        ((best, *_),) = recognizer.decoder.decode(log_probs, torch.tensor([log_probs.shape[1]]))
        assert segment[0].text == best.text
        assert segment[0].offsets == tuple(piece.frame + offset for offset in best.offsets)
    readings = transcript.readings(4)
    assert len({reading.text for reading in readings}) == 4 and readings[0].text == " ".join(LONG)
    scores = [reading.score for reading in readings]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(sum(segment[0].score for segment in transcript.segments))


def test_folders_patterns_manifests_and_segments(here, made):
    lines = [{"offset": 0, "duration": 1.5}, {"offset": 1.5, "duration": 1.0}, {"duration": 1}]
    (made / "list.jsonl").write_text(
        "".join(json.dumps({"audio_filepath": FILES[3], "text": "", **line}) + "\n" for line in lines)
    )
    status, out, _ = here("--audio-path", "list.jsonl", "--format", "jsonl")
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [answer["duration"] for answer in answers[:2]] == [1.5, 1.0]
    whole = soundfile.read(made / FILES[3])[0]
    soundfile.write(made / "cut.wav", whole[: 3 * RATE // 2], RATE)
    assert answers[0]["output"] == json.loads(here("--audio-path", "cut.wav")[1])["output"]
    assert answers[2]["output"][0]["transcription"] == SPOKEN[3], "without an offset, all of it"
    _, out, _ = here("--audio-path", "u[0-2].wav", "--format", "text")
    assert out.splitlines() == [f"{name}\t{text}" for name, text in zip(FILES[:3], SPOKEN, strict=False)]


def test_a_bad_file_is_named_and_the_others_are_done(here, made, tmp_path):
    content = bytearray((made / "long.flac").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 9000] = bytes(9000)
    (made / "damaged.flac").write_bytes(content)
    (made / "junk.wav").write_bytes(b"junk")
    soundfile.write(made / "short.wav", np.zeros(100), RATE)
    bad = ["junk.wav", "damaged.flac", "nix.wav", "short.wav"]
    paths = ["--audio-path", bad[0], FILES[0], *bad[1:], FILES[1]]
    status, out, err = here(*paths, "--format", "text")
    assert status == 1 and out.splitlines() == [f"{FILES[0]}\t{SPOKEN[0]}", f"{FILES[1]}\t{SPOKEN[1]}"]
    *each, last = err.splitlines()
    assert len(each) == 4 and all(line.startswith(f"failed: {name}: ") for line, name in zip(each, bad, strict=True))
    assert last.startswith("error: 4 of 6 recordings could not be") and last.endswith(", ".join(bad))
    status, out, err = here(*paths, "--output-dir", tmp_path / "new")
    assert status == 1 and sorted(os.listdir(tmp_path / "new")) == ["u0.json", "u1.json"]
    for name in bad:
        status, out, err = here("--audio-path", name, "--format", "tsv")
        assert (status, out, err.count("\n")) == (1, "", 1) and err.startswith(f"error: {name}: ")


def test_a_folder_of_results(here, made, tmp_path):
    for kind, ending in (("srt", "srt"), ("vtt", "vtt"), ("text", "txt"), ("tsv", "tsv"), ("json", "json")):
        folder = tmp_path / kind
        status, out, err = here("--audio-path", *FILES[:3], "--format", kind, "--output-dir", folder)
        assert (status, err) == (0, "") and out.startswith("3 transcripts in ") and "real-time factor" in out
        assert sorted(os.listdir(folder)) == [f"u{i}.{ending}" for i in range(3)]
    assert (tmp_path / "text/u1.txt").read_text() == SPOKEN[1] + "\n"
    assert list(json.loads((tmp_path / "json/u1.json").read_text())) == ["output", "_meta"], "of each as of one"
    assert (tmp_path / "srt/u0.srt").read_text().startswith("1\n00:00:00,")
    soundfile.write(made / "silent.wav", np.zeros(RATE), RATE)
    assert here("--audio-path", "silent.wav", "--format", "srt") == (0, "", "")
    assert here("--audio-path", "silent.wav", "--format", "vtt")[1] == "WEBVTT\n"


def test_a_name_that_is_no_text(here, made, tmp_path):
    name = os.fsdecode(b"\xffa\n.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes((made / FILES[0]).read_bytes())
    assert here("--audio-path", tmp_path / "in", "--format", "jsonl", "--output-dir", tmp_path / "out")[0] == 0
    (result,) = (tmp_path / "out").iterdir()
    assert json.loads(result.read_text())["audio"] == str(tmp_path / "in" / name)


def test_resume_does_what_is_missing_and_what_failed(here, tmp_path):
    folder = ["--format", "text", "--output-dir", tmp_path / "out", "--resume"]
    assert here("--audio-path", FILES[0], "nix.wav", FILES[1], *folder)[0] == 1
    (tmp_path / "out/u0.txt").write_text("MINE\n")
    status, _, err = here("--audio-path", *FILES[:4], *folder)
    assert status == 0 and "2 of 4 recordings are in" in err
    assert [(tmp_path / f"out/u{i}.txt").read_text().strip() for i in range(4)] == ["MINE", *SPOKEN[1:4]]
    status, out, err = here("--audio-path", *FILES[:4], *folder, model="nix.pth")
    assert (status, out) == (0, "") and "4 of 4" in err, "no need of the model"


def test_a_killed_run_leaves_whole_files_and_resume_completes_it(here, made, tmp_path):
    lines = [{"audio_filepath": "long.flac", "text": "", "offset": i / 10, "duration": 3.5} for i in range(400)]
    (made / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "out"
    args = ["--audio-path", "many.jsonl", "--output-dir", folder, "--batch-size", 2]
    with started(made, *args) as process:
        until = time.monotonic() + 60
        while len(list(folder.glob("*.json"))) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
    done = sorted(folder.glob("*.json"))
    assert 5 <= len(done) < 400 and process.returncode == -signal.SIGKILL
    times = [path.stat().st_mtime_ns for path in done]
    assert all("output" in json.loads(path.read_text()) for path in done)
    (folder / f".a.json.{process.pid}.tmp").touch()  # as if it had been writing
    (made / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[: len(done) + 20]))
    status, out, err = here(*args, "--resume")
    assert status == 0 and out.startswith("20 transcripts") and f"{len(done)} of {len(done) + 20} recordings" in err
    assert len(os.listdir(folder)) == len(done) + 20 and [path.stat().st_mtime_ns for path in done] == times


BAD_USE = [
    (["u0.wav", "u1.wav", "--format", "srt"], 2, "--output-dir"),
    (["u0.wav", "--resume"], 2, "--output-dir"),
    (["u0.wav", "-"], 2, "standard input"),
    (["u0.wav", "--output-dir", "u1.wav"], 2, "--output-dir u1.wav"),
    (["u0.wav", "--output-dir", "u1.wav/x"], 1, "u1.wav"),
    (["u0.wav", "--output-dir", "/proc/x"], 1, "/proc/x"),
    (["u0.wav", "--batch-size", "3", "--batch-seconds", "9"], 2, "not allowed with"),
    (["u0.wav", "--batch-size", "0"], 2, "--batch-size"),
    (["u0.wav", "--batch-seconds", "0"], 2, "--batch-seconds"),
    (["u0.wav", "--format", "doc"], 2, "--format"),
    (["u0.wav", "--pcm-rate", "8000"], 2, "--pcm-rate: expected --stream"),
    (["u0.wav", "--partials"], 2, "--partials: expected --stream"),
    (["u0.wav", "--pause", "1"], 2, "--pause: expected --stream"),
    (["u0.wav", "u1.wav", "--stream"], 2, "expected one --audio-path"),
    (["u0.wav", "--stream", "--format", "srt"], 2, "--format srt"),
    (["u0.wav", "--stream", "--output-dir", "x"], 2, "--output-dir"),
    (["u0.wav", "--stream", "--batch-size", "2"], 2, "--batch-size"),
    (["u0.wav", "--stream", "--words"], 2, "--words"),
    (["u0.wav", "--stream", "--pause", "0"], 2, "--pause"),
    (["u0.wav", "--stream", "--decoder", "beam", "--top-paths", "2"], 2, "--top-paths"),
    (["u0.wav", "--stream"], 1, "both.pth: a bidirectional network"),
    (["x*.mp3"], 1, "x*.mp3"),
    (["nix.csv"], 1, "nix.csv"),
    ([""], 1, "''"),
]


@pytest.mark.parametrize(("args", "status", "named"), BAD_USE, ids=str)
def test_bad_use_is_one_line(here, args, status, named):
    found, out, err = here("--audio-path", *args)
    assert (found, out) == (status, "") and named in err
    assert [line for line in err.splitlines() if "streaming-norm, which" not in line][1:] == []


def test_a_ruined_model_is_told(here, made):
    checkpoint = load_checkpoint(made / "both.pth")
    checkpoint.weights["head.weight"][1, 1] = float("nan")
    save_checkpoint(checkpoint, made / "ruined.pth")
    status, out, err = here("--audio-path", *FILES, "--format", "text", model="ruined.pth")
    assert (status, out, err.count("\n")) == (1, "", 1) and "diverged" in err


def test_a_full_disk_ends_it_in_one_line(made):
    with open("/dev/full", "w") as full, started(made, "--audio-path", *FILES, stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("\n") == 1 and "No space left" in err


def test_who_reads_no_more_is_told_nothing(here, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert here("--audio-path", *FILES) == (1, "", "")


def test_standard_input(here, made, monkeypatch):
    for name, status in (("long.flac", 0), ("junk.bin", 1)):
        (made / "junk.bin").write_bytes(b"junk")
        with open(made / name, "rb") as file:
            monkeypatch.setattr(sys, "stdin", file)
            found, out, err = here("--audio-path", "-", "--format", "jsonl")
        assert found == status
        if status:
            assert out == "" and err.startswith("error: standard input: not audio")
        else:
            answer = json.loads(out)
            assert answer["audio"] == "standard input" and answer["output"][0]["transcription"] == " ".join(LONG)


def test_ctrl_c_while_standard_input_is_waited_for(made):
    with started(made, "--audio-path", "-", stdin=subprocess.PIPE) as process:
        wait_for_reader(process.pid)
        process.send_signal(signal.SIGINT)
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:  # its standard input stays open
            time.sleep(0.05)
        assert process.returncode == 130
        assert process.stderr.read() == "interrupted\n" and process.stdout.read() == ""


def wait_for_reader(pid: int) -> None:
    """Until a second thread of a process waits in read(0, ...)."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name != str(pid) and (task / "wchan").read_text() in ("pipe_read", "anon_pipe_read"):
                return
        time.sleep(0.05)
    raise AssertionError("it does not read")


def test_progress_is_for_terminals(made):
    ours, theirs = pty.openpty()
    os.system(f"stty -F {os.ttyname(theirs)} rows 40 columns 200")
    with started(made, "--audio-path", *FILES, "nix.wav", "--format", "text", "--batch-size", 1, stderr=theirs) as process:
        os.close(theirs)
        out = process.stdout.read()
        shown = b""
        try:
            while content := os.read(ours, 65536):
                shown += content
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert out.count("\n") == 6
    text = shown.decode()
    assert re.search(r"transcribing:.* \d/7 \[\d\d:\d\d<\d\d:\d\d,.*of audio, real-time factor 0\.\d+", text), text
    assert "\rfailed: nix.wav: " in text, "on a line of its own"


def test_live_text_is_the_files(here):
    for name, text in zip(FILES, SPOKEN, strict=True):
        assert here("--audio-path", name, "--format", "text", model="live.pth") == (0, text + "\n", "")
        assert here("--stream", "--audio-path", name, model="live.pth") == (0, text + "\n", "")


def test_live_lines_come_from_a_pipe_as_they_are_said(made):
    wave = np.concatenate([sound(f"{text} ..")[0] for text in LONG[:4]])
    content, rng = np.round(wave * 32767).astype("<i2").tobytes(), np.random.default_rng(0)
    with started(
        made, "--model-path", "live.pth", "--stream", "--audio-path", "-", stdin=subprocess.PIPE, text=False, bufsize=0
    ) as process:
        place = 0
        while place < len(content):
            step = int(rng.choice([1, 7, 640, 3201, 100_000]))
            process.stdin.write(content[place : place + step])
            process.stdin.flush()
            place += step
        first = process.stdout.readline()
        assert first.decode() == LONG[0] + "\n", "while the pipe is open"
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"") and (first + out).decode().split("\n") == [*LONG[:4], ""]
