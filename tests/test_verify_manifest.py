import contextlib
import csv
import importlib.util
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from beeps import ROOT, make_corpus, train
from shared_data import AN4, ZOO, needs_shared

from config import AudioConfig
from data import checks, doctor, examine
from data.doctor import Manifest, dense
from data.examine import Examined
from data.labels import frames_needed
from data.lengths import frame_count
from data.manifest import read_manifest, read_transcript
from data.speakers import FOLDER, LIBRISPEECH, guess_pattern
from data.utterances import Utterance
from data.verify_manifest import main
from model import output_frames

RATE = 16000
AUDIO = AudioConfig()


def verify(*args, cwd: Path) -> subprocess.CompletedProcess:
    """The command without a process of its own, which would take seconds to load torch; one test starts some."""
    stdout, stderr, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = main(["--jobs", "1", *map(str, args)])
    except SystemExit as stop:
        status = stop.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(args, status, stdout.getvalue(), stderr.getvalue())


def speech(seconds: float = 2.0, seed: int = 0, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    """Noise of all frequencies that comes and goes: no two seeds alike."""
    t = np.arange(round(rate * seconds)) / rate
    return level * (0.2 + np.abs(np.sin(7 * t))) * np.random.default_rng(seed).uniform(-1, 1, len(t))


class Corpus:
    """A folder with a manifest that grows."""

    def __init__(self, folder: Path, manifest: str = "m.csv"):
        self.folder, self.manifest, self.count = folder, manifest, 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, wave: np.ndarray | None = None, text: str = "HELLO THERE", name: str = "", rate: int = RATE) -> Path:
        """One utterance more, its sound its own unless a wave is given. Returns: its recording."""
        self.count += 1
        audio = self.folder / f"{name or f'u{self.count}'}.wav"
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio, speech(seed=self.count) if wave is None else wave, rate)
        audio.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        with open(self.folder / self.manifest, "a") as file:
            file.write(f"{audio},{audio.with_suffix('.txt')}\n")
        return audio

    def report(self, *args) -> dict:
        done = verify("--manifest", self.manifest, "--json", *args, cwd=self.folder)
        assert done.stderr == ""
        report = json.loads(done.stdout)
        assert done.returncode == int(report["errors"] > 0)
        return report


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path)


def found(report: dict) -> list[tuple[str, str, int]]:
    """(severity, kind, line) of every problem."""
    return [(row["severity"], row["kind"], int(row["where"].rpartition(":")[2])) for row in report["problems"]]


def test_a_sound_corpus_has_no_problems_and_is_described(corpus):
    for i in range(24):
        corpus.add(speech(1 + i / 10, i), ["ONE TWO", "ONE", "THREE'S"][i % 3])
    report = corpus.report()
    assert (report["problems"], report["errors"], report["warnings"]) == ([], 0, 0)
    (stats,) = report["manifests"]
    assert stats["utterances"] == 24 and stats["hours"] == pytest.approx(sum(1 + i / 10 for i in range(24)) / 3600, abs=1e-4)
    assert (stats["seconds"]["min"], stats["seconds"]["median"], stats["seconds"]["max"]) == (1, 2.15, 3.3)
    assert stats["sample_rates"] == {"16000": 24}
    assert (stats["words"], stats["distinct_words"], stats["distinct_transcripts"]) == (32, 3, 3)
    assert stats["most_frequent_words"] == {"ONE": 16, "TWO": 8, "THREE'S": 8}
    assert stats["most_repeated_transcripts"] == {"ONE TWO": 8, "ONE": 8, "THREE'S": 8}
    done = verify("--manifest", "m.csv", cwd=corpus.folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "m.csv: 24 utterances, 0.01 hours; 16000 Hz 24x" and lines[-1] == "0 errors, 0 warnings"


def test_what_headers_do_not_tell_is_heard(corpus):
    sound = speech()
    corpus.add(np.zeros(RATE))
    corpus.add(np.full(RATE, 0.2))
    corpus.add(speech(level=0.001))
    corpus.add(np.clip(30 * sound, -1, 1))
    corpus.add(speech(seed=5, level=0.82))  # as loud as can be, and whole
    corpus.add(np.concatenate([sound, np.zeros(RATE)]))
    corpus.add(np.concatenate([np.zeros(RATE), sound]))
    corpus.add(speech(rate=8000), rate=8000)
    corpus.add(speech(rate=44100), rate=44100)
    spectrum = np.fft.rfft(speech(seed=9))
    spectrum[2 * 3400 :] = 0  # two seconds: half a hertz each
    corpus.add(np.fft.irfft(spectrum))
    corpus.add(speech(0.0099))
    cut = corpus.add()
    cut.write_bytes(cut.read_bytes()[:20000])
    corpus.add().write_bytes(b"")
    corpus.add().unlink()
    assert found(corpus.report()) == [
        ("error", examine.SILENT, 1),
        ("error", examine.SILENT, 2),
        ("warning", examine.QUIET, 3),
        ("warning", examine.CLIPPED, 4),
        ("warning", examine.CUT_OUT, 6),
        ("warning", examine.CUT_OUT, 7),
        ("warning", examine.OTHER_RATE, 8),
        ("warning", examine.OTHER_RATE, 9),
        ("warning", examine.NARROW_BAND, 10),
        ("error", checks.SHORT_AUDIO, 11),
        ("error", checks.UNREADABLE_AUDIO, 12),
        ("error", checks.UNREADABLE_AUDIO, 13),
        ("error", checks.MISSING_AUDIO, 14),
    ]


@needs_shared
def test_the_zoo_is_judged_as_a_careful_tool_would(tmp_path):
    """Recordings in every state found in the wild. zoo.csv says what three libraries make of each."""
    with open(ZOO / "zoo.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "t.txt").write_text("A")
    (tmp_path / "zoo.csv").write_text("".join(f"{ZOO / row['file']},t.txt\n" for row in rows))
    done = verify("--manifest", "zoo.csv", "--json", "--fix", "clean.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    kinds = {name: set() for name in [row["file"] for row in rows]}
    for severity, kind, line in found(report):
        kinds[rows[line - 1]["file"]].add((severity, kind))
    for row in rows:
        name, errors = row["file"], {kind for severity, kind in kinds[row["file"]] if severity == "error"}
        if name in READ_BY_PYAV and importlib.util.find_spec("av"):
            assert not errors, name
        elif row["soundfile"] != "ok" or name in ONLY_LOOKS_READABLE:
            assert errors == {checks.UNREADABLE_AUDIO}, name
        elif "silence" in name or "antiphase" in name:
            assert errors == {examine.SILENT}, name
        elif row["seconds"] == "0.000" and not name.startswith("broken"):
            assert errors == {checks.SHORT_AUDIO}, name
        else:
            assert not errors, name
            assert (("warning", examine.OTHER_RATE) in kinds[name]) == (row["rate"] != "16000"), name
    assert ("warning", examine.CLIPPED) in kinds["derived/wav_f32_over_full_scale.wav"]
    assert ("warning", doctor.DUPLICATE) in kinds["derived/wav_s16_16k.wav"], "the flac that it was made from is there"
    assert sum(("warning", examine.CLIPPED) in found_here for found_here in kinds.values()) == 1
    assert not any(kind == examine.NARROW_BAND for found_here in kinds.values() for _, kind in found_here)
    assert verify("--manifest", "clean.csv", cwd=tmp_path).returncode == 0


READ_BY_PYAV = {
    "derived/aac.m4a",
    "derived/aac_adts.aac",
    "derived/g722_16k.wav",
    "derived/opus.webm",
    "derived/speech.mp4",
    "derived/wavpack.wv",
    "derived/wma.wma",
    "native/audiomentations.m4a",
}
ONLY_LOOKS_READABLE = {  # soundfile opens them, and reads less than there should be, or no numbers
    "broken/mp3_truncated.mp3",
    "broken/pocketsphinx_null.wav",
    "broken/wav_nan_inf.wav",
    "broken/wav_odd_last_byte.wav",
}


def test_transcripts_and_the_labels_they_need(corpus):
    corpus.add(text="GRÜN")
    corpus.add(text="grün!")
    corpus.add(text=" ")
    corpus.add(text="A_B")
    corpus.add(speech(0.3), text="FAR TOO MANY WORDS FOR SO LITTLE TIME")
    corpus.add().with_suffix(".txt").unlink()
    report = corpus.report()
    assert found(report) == [
        ("error", checks.UNKNOWN_CHARACTERS, 1),
        ("error", checks.UNKNOWN_CHARACTERS, 2),
        ("error", checks.EMPTY_TRANSCRIPT, 3),
        ("error", checks.UNKNOWN_CHARACTERS, 4),
        ("error", checks.SHORT_FOR_CTC, 5),
        ("error", checks.UNREADABLE_TRANSCRIPT, 6),
    ]
    assert report["labels"]["outside"] == {"Ü": 1, "g": 1, "r": 1, "ü": 1, "n": 1, "!": 1, "_": 1}
    assert report["labels"]["suggested"] == ["_", *"ABDEFGILMNORSTWYgnrÜü", "!", " "]
    assert {"'", "C"} <= set(report["labels"]["unused"])
    (corpus.folder / "l.json").write_text(json.dumps(report["labels"]["suggested"]))
    left = [kind for _, kind, _ in found(corpus.report("--labels-path", "l.json"))]
    assert left.count(checks.UNKNOWN_CHARACTERS) == 1, "the blank's own symbol no label can be"


@pytest.mark.parametrize("seconds", [0.0101, 0.02, 0.05, 0.1, 0.3, 1.0, 2.5, 7.0])
def test_nothing_that_is_too_short_escapes_the_quick_look(seconds):
    """The length formula is asked about texts that are dense; whatever it finds too short must be among them."""
    available = output_frames(frame_count(round(seconds * RATE), AUDIO))
    refused = 0
    for length in range(1, 2 * available + 10):
        for text in ("A" * length, ("AB" * length)[:length]):
            if available < frames_needed(text):
                refused += 1
                utterance = Utterance("a.wav", text, duration=seconds)
                assert dense([Manifest("m.csv", [Examined(utterance, [])])])
    assert refused


def test_the_same_sound_twice(corpus):
    sound = speech(seed=77)
    corpus.add(sound, "ONE")
    corpus.add(text="OTHER")
    corpus.add(sound, "ONE")
    samples, _ = soundfile.read(corpus.folder / "u1.wav", dtype="int16")
    soundfile.write(corpus.add(text="ONE").with_suffix(".flac"), samples, RATE)
    lines = (corpus.folder / "m.csv").read_text().splitlines()
    (corpus.folder / "m.csv").write_text("\n".join([*lines[:3], lines[3].replace(".wav", ".flac")]) + "\n")
    assert found(corpus.report()) == [("warning", doctor.DUPLICATE, 3), ("warning", doctor.DUPLICATE, 4)]
    corpus.add(sound, "TWO")
    report = corpus.report("--fix", "clean.csv")
    assert found(report) == [("error", doctor.TWO_TEXTS, line) for line in (1, 3, 4, 5)]
    assert [Path(u.audio).name for u in read_manifest(corpus.folder / "clean.csv")] == ["u2.wav"]


def test_segments_are_compared_by_what_is_heard_in_them(tmp_path):
    sound = speech(1, 1)
    soundfile.write(tmp_path / "talk.wav", np.concatenate([sound, speech(1, 2), sound]), RATE)
    rows = [{"audio_filepath": "talk.wav", "text": "A", "duration": 1, "offset": offset} for offset in (0, 1, 2, 2.5)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = json.loads(verify("--manifest", "m.jsonl", "--json", cwd=tmp_path).stdout)
    assert found(report) == [("warning", doctor.DUPLICATE, 3), ("error", checks.UNREADABLE_AUDIO, 4)]
    verify("--manifest", "m.jsonl", "--fix", "clean.jsonl", cwd=tmp_path)
    assert [(u.offset, u.duration, u.text) for u in read_manifest(tmp_path / "clean.jsonl")] == [(0, 1, "A"), (1, 1, "A")]


def test_train_and_test_must_not_share_utterances_and_should_not_share_speakers(tmp_path):
    train_set, test_set = Corpus(tmp_path, "train.csv"), Corpus(tmp_path, "test.csv")
    for i in range(8):
        train_set.add(speech(seed=i), "A B", f"train/speaker{i // 2}/{i}")
    for i in range(8, 12):
        test_set.add(speech(seed=i), "A C", f"test/speaker{i // 2}/{i}")
    both = ("--manifest", "train.csv", "test.csv")
    report = json.loads(verify(*both, "--json", cwd=tmp_path).stdout)
    assert report["problems"] == [] and report["speakers_by"] == FOLDER.pattern
    assert report["manifests"][1]["words_not_in_first"] == 4 and report["manifests"][1]["transcripts_in_first"] == 0

    test_set.add(speech(seed=99), "A C", "test/speaker2/99")
    done = verify(*both, cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: same speaker in several manifests: 1\n" in done.stdout
    assert "speaker speaker2, 1 utterances here, 2 in train.csv" in done.stdout
    assert verify(*both, "--strict", cwd=tmp_path).returncode == 1
    pattern = ("--speaker-pattern", "/(train|test)/")
    assert json.loads(verify(*both, "--json", *pattern, cwd=tmp_path).stdout)["problems"] == []

    train_set.add(speech(seed=9), "A B", "train/speaker0/copy")
    report = json.loads(verify(*both, "--json", "--fix", "clean", cwd=tmp_path).stdout)
    (leak,) = [row for row in report["problems"] if row["severity"] == "error"]
    assert (leak["kind"], leak["where"]) == (doctor.LEAKED, "train.csv:9")
    assert "also test.csv:2" in leak["detail"]
    assert [(row["kept"], row["dropped"], row["why"]) for row in report["fixed"]] == [(8, 1, {doctor.LEAKED: 1}), (5, 0, {})]
    assert len(read_manifest(tmp_path / "clean/train.csv")) == 8, "a test set stays what it is"
    assert len(read_manifest(tmp_path / "clean/test.csv")) == 5


def test_who_speaks_is_not_guessed_where_paths_do_not_tell():
    people = [f"/x/{name}/{i}.wav" for name in ("ann", "bo") for i in range(3)]
    assert guess_pattern([people, people]) is FOLDER
    assert guess_pattern([[f"/x/{set_}/wav/{i}.wav" for i in range(6)] for set_ in ("train", "val")]) is None, "one folder"
    assert guess_pattern([people, ["/x/train/1.wav", "/x/test/1.wav"]]) is None, "nobody is called train"
    assert guess_pattern([[f"/x/{i}/{i}.wav" for i in range(6)]]) is None, "a folder for each"
    assert guess_pattern([["/x/70968/61-70968-0000.flac"], ["121-121726-0001.flac"]]) is LIBRISPEECH


def test_a_pace_far_from_the_usual_stands_out(corpus):
    rng = random.Random(0)
    for i in range(40):
        seconds = rng.uniform(1, 5)
        corpus.add(speech(seconds, i), "".join(rng.choice("ABCDE") for _ in range(round(seconds * rng.uniform(9, 16)))))
    assert corpus.report()["problems"] == []
    corpus.add(speech(1.5), "A VERY LONG SENTENCE IN A SECOND AND A HALF IS TOO MUCH")
    corpus.add(speech(9, 99), "SHORT")
    assert found(corpus.report()) == [("warning", doctor.PACE, 41), ("warning", doctor.PACE, 42)]


def test_fix_writes_what_is_left(corpus):
    good = [corpus.add(text="ONE"), corpus.add(text="TWO")]
    corpus.add(np.zeros(RATE))
    corpus.add(text="nope")
    done = verify("--manifest", "m.csv", "--fix", "clean.csv", cwd=corpus.folder)
    assert done.returncode == 1
    assert (
        f"clean.csv: 2 utterances kept, 2 dropped: {examine.SILENT} 1, {checks.UNKNOWN_CHARACTERS} 1\n" in done.stdout
        or f"clean.csv: 2 utterances kept, 2 dropped: {checks.UNKNOWN_CHARACTERS} 1, {examine.SILENT} 1\n" in done.stdout
    )
    assert (corpus.folder / "clean.csv").read_text().splitlines() == [f"{p.name},{p.stem}.txt" for p in good]
    assert verify("--manifest", "clean.csv", cwd=corpus.folder).returncode == 0
    assert verify("--manifest", "m.csv", "--fix", "clean.jsonl", cwd=corpus.folder).returncode == 1
    assert [(u.text, u.duration) for u in read_manifest(corpus.folder / "clean.jsonl")] == [("ONE", 2.0), ("TWO", 2.0)]
    done = verify("--manifest", "clean.csv", "--fix", "clean.csv", cwd=corpus.folder)
    assert (done.returncode, done.stderr) == (2, "error: --fix clean.csv: is a manifest that is read; expected another name\n")
    (corpus.folder / "labels.json").write_text('["_", "X"]')
    done = verify("--manifest", "m.csv", "--fix", "none.csv", "--labels-path", "labels.json", cwd=corpus.folder)
    assert done.returncode == 1 and "nothing written: 0 utterances kept, 4 dropped" in done.stdout
    assert not (corpus.folder / "none.csv").exists()


def test_what_was_typed_wrong_and_what_is_no_manifest(corpus):
    corpus.add()
    for args, status, said in (
        (("--manifest", "gone.csv"), 1, "gone.csv: no such manifest"),
        (("--manifest", "m.csv", "--labels-path", "gone.json"), 1, "gone.json: No such file"),
        (("--manifest", "m.csv", "--model-path", "gone.pth"), 1, "gone.pth"),
        (("--manifest", "m.csv", "../m.csv", "--fix", "out"), 2, "--fix out: two manifests have the same file name"),
        ((), 2, "--manifest"),
    ):
        done = verify(*args, cwd=corpus.folder)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
        assert said in done.stderr


def test_processes_find_what_one_finds(corpus):
    """As typed: from the root and from inside data/, by several processes."""
    for i in range(50):
        corpus.add(np.zeros(RATE) if i % 7 == 0 else speech(seed=i), "hello" if i % 5 == 0 else "HELLO")
    alone = corpus.report()
    manifest = corpus.folder / "m.csv"
    for folder, script, jobs in ((ROOT, "data/verify_manifest.py", 3), (ROOT / "data", "verify_manifest.py", 2)):
        command = [sys.executable, script, "--manifest", manifest, "--json", "--jobs", str(jobs)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (1, "")
        report = json.loads(done.stdout.replace(str(manifest), "m.csv"))
        assert report == alone


@needs_shared
def test_an4_is_sound(tmp_path):
    """Real speech: no false alarm in 130 recordings of 10 speakers."""
    recordings = sorted((AN4 / "test").rglob("*.flac"))
    (tmp_path / "test.csv").write_text("".join(f"{path},{path.with_suffix('.txt')}\n" for path in recordings))
    done = verify("--manifest", "test.csv", "--strict", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n0 errors, 0 warnings\n")


@pytest.fixture(scope="module")
def beeps(tmp_path_factory):
    """Beeps for letters, and a model that has learnt them."""
    folder = make_corpus(tmp_path_factory.mktemp("beeps"))
    done = train(folder, "--epochs", 8, "--lr-schedule", "onecycle")
    assert done.returncode == 0, done.stderr
    return folder


def test_wrong_transcripts_come_to_the_top(beeps):
    utterances = read_manifest(beeps / "train.csv")
    texts = [read_transcript(utterance) for utterance in utterances]
    wrong = [5, 20, 41]
    for index, other in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        texts[index] = read_transcript(utterances[other])
    assert all(texts[index] != read_transcript(utterances[index]) for index in wrong)
    rows = [
        {"audio_filepath": utterance.audio, "text": text, "duration": soundfile.info(utterance.audio).duration}
        for utterance, text in zip(utterances, texts, strict=True)
    ]
    (beeps / "shuffled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ("--model-path", beeps / "models/deepspeech_final.pth")
    done = verify("--manifest", "shuffled.jsonl", *model, "--json", "--batch-size", 7, cwd=beeps)
    assert (done.returncode, done.stderr) == (0, "")
    suspects = json.loads(done.stdout)["suspects"]
    losses = [row["loss_per_character"] for row in suspects]
    assert len(losses) == 64 and losses == sorted(losses, reverse=True)
    assert {row["where"] for row in suspects[:6]} >= {f"shuffled.jsonl:{index + 1}" for index in wrong}
    done = verify("--manifest", "shuffled.jsonl", *model, "--suspects", 3, cwd=beeps)
    shown = [line.split("\t") for line in done.stdout.splitlines() if "\tshuffled.jsonl:" in line]
    assert [line[1] for line in shown] == [row["where"] for row in suspects[:3]]
    assert done.stdout.count(f"{suspects[0]['transcript']}\t{suspects[0]['heard']}") >= 1
    done = verify("--manifest", "shuffled.jsonl", *model, "--labels-path", ROOT / "labels.json", cwd=beeps)
    assert done.returncode == 2 and "not the labels of" in done.stderr
    done = verify("--manifest", "shuffled.jsonl", *model, "--sample-rate", 8000, cwd=beeps)
    assert done.returncode == 2 and "has 16000 Hz" in done.stderr
