"""data/synthetic.py: the corpus it makes is whole, clear, and the same bytes for the same arguments."""

import csv
import ctypes
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from config import AudioConfig
from data import synthetic

ROOT = Path(__file__).resolve().parents[1]
UTTERANCES = 60

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
espeakng_loader = pytest.importorskip("espeakng_loader", reason="pip install espeakng-loader: the synthesizer is missing")


def command(*arguments: object, script: str = "data/synthetic.py", **options) -> subprocess.CompletedProcess:
    """Run the script as people do: it forks, which a process with threads, such as this one, must not."""
    # the suite's rule, warnings are errors, for the script too
    line = [sys.executable, "-W", "error", script, *map(str, arguments)]
    return subprocess.run(line, cwd=options.pop("cwd", ROOT), capture_output=True, text=True, timeout=120, **options)


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its relative name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(manifest: Path) -> list[list[str]]:
    with manifest.open(newline="") as file:
        return list(csv.reader(file))


def voices(manifest: Path) -> set[str]:
    return {Path(audio).stem.partition("_")[2] for audio, _ in rows(manifest)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A small corpus, which no test changes."""
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    done = command("--target-dir", folder, "--utterances", UTTERANCES, "--seed", 3, "--jobs", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        rf"made {UTTERANCES} utterances, 0\.0\d hours, \d+ voices to train and \d+ others to validate: "
        rf"{folder}/train_manifest\.csv {folder}/val_manifest\.csv\n",
        done.stdout,
    )
    return folder


@pytest.fixture(scope="module")
def recordings(corpus) -> dict[str, np.ndarray]:
    """Each recording's samples (S,) int16."""
    found = {}
    for path in sorted(corpus.rglob("*.wav")):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (AudioConfig.sample_rate, 1, "PCM_16")
        found[str(path.relative_to(corpus))] = soundfile.read(path, dtype="int16")[0]
    return found


# What a corpus holds.


def test_manifests_name_every_utterance_once_and_shortest_first(corpus, recordings):
    named = []
    for split, count in (("train", 54), ("val", 6)):
        pairs = rows(corpus / f"{split}_manifest.csv")
        assert len(pairs) == count
        durations = [len(recordings[audio]) for audio, _ in pairs]
        assert durations == sorted(durations)
        for audio, text in pairs:
            assert audio.startswith(f"{split}/") and text == audio.removesuffix(".wav") + ".txt"
        named += [name for pair in pairs for name in pair]
    on_disk = {name for name in hashes(corpus) if name.startswith(("train/", "val/"))}
    assert len(named) == len(set(named)) and set(named) == on_disk


def test_nothing_half_written_is_left(corpus):
    outside = {name for name in hashes(corpus) if not name.endswith((".wav", ".txt"))}
    assert outside == {"corpus.json", "train_manifest.csv", "val_manifest.csv"}


def test_recordings_are_heard_and_do_not_clip(recordings):
    for name, samples in recordings.items():
        loudest = np.abs(samples.astype(int)).max()
        assert 0.29 * 32767 < loudest < 0.91 * 32767, name
        assert np.sqrt(np.mean(samples.astype(float) ** 2)) > 0.06 * loudest, name
        assert 0.3 < len(samples) / AudioConfig.sample_rate < 5, name


def test_no_word_is_cut_off(recordings):
    for name, samples in recordings.items():
        level = np.abs(samples.astype(float))
        heard = np.flatnonzero(level > level.max() / 300)  # 50 dB below the loudest
        before, after = heard[0] / AudioConfig.sample_rate, (len(level) - 1 - heard[-1]) / AudioConfig.sample_rate
        assert 0.045 < before < 0.2 and 0.045 < after < 0.4, name


def test_transcripts_are_words_of_letters(corpus, recordings):
    for name in recordings:
        text = (corpus / name).with_suffix(".txt").read_text()
        assert re.fullmatch(r"[A-Z]+( [A-Z]+){0,6}\n", text), name


def test_validation_has_voices_of_its_own(corpus):
    train, val = voices(corpus / "train_manifest.csv"), voices(corpus / "val_manifest.csv")
    assert len(train) >= 20 and len(val) >= 4
    assert {voice.partition("_")[2] for voice in train}.isdisjoint(voice.partition("_")[2] for voice in val)


def test_corpus_json_says_how_it_was_made(corpus):
    made = json.loads((corpus / "corpus.json").read_text())
    assert (made["utterances"], made["seed"], made["sample_rate"], made["format"]) == (UTTERANCES, 3, 16000, "wav")


# The same arguments, the same bytes.


def test_same_seed_same_bytes_in_another_folder_from_another_folder_with_other_jobs(corpus, tmp_path):
    arguments = ("--target-dir", tmp_path / "again", "--utterances", UTTERANCES, "--seed", 3, "--jobs", 3)
    assert command(*arguments, script="synthetic.py", cwd=ROOT / "data").returncode == 0
    assert hashes(tmp_path / "again") == hashes(corpus)


def test_a_shorter_corpus_is_the_beginning_of_a_longer(corpus, tmp_path):
    assert command("--target-dir", tmp_path, "--utterances", 10, "--seed", 3).returncode == 0
    recordings = {name: sha for name, sha in hashes(tmp_path).items() if name.endswith((".wav", ".txt"))}
    assert len(recordings) == 20
    assert recordings.items() <= hashes(corpus).items()


def test_another_seed_says_something_else():
    def texts(seed):
        return [line.text for line in synthetic.plan(50, seed, 0.1)]

    assert texts(3) == texts(3)
    assert sum(a == b for a, b in zip(texts(3), texts(4), strict=True)) < 10


def test_flac_and_another_rate_run_as_a_module(tmp_path):
    done = command(
        *("data.synthetic", "--target-dir", tmp_path, "--utterances", 3, "--format", "flac", "--sample-rate", 8000),
        script="-m",
    )
    assert done.returncode == 0, done.stderr
    info = [soundfile.info(path) for path in tmp_path.rglob("*.flac")]
    assert [(i.format, i.samplerate, i.subtype) for i in info] == [("FLAC", 8000, "PCM_16")] * 3


# Running it again.


def test_a_whole_corpus_is_reused(corpus):
    def times():
        return {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}

    before = times()
    done = command("--target-dir", corpus, "--utterances", UTTERANCES, "--seed", 3)
    assert done.returncode == 0 and done.stdout.startswith(f"reusing {UTTERANCES} utterances")
    assert times() == before


def test_what_is_missing_is_made_again(tmp_path):
    arguments = ("--target-dir", tmp_path, "--utterances", 8, "--seed", 5)
    command(*arguments)
    whole = hashes(tmp_path)
    wavs = sorted(tmp_path.rglob("*.wav"))
    wavs[0].unlink()
    wavs[1].with_suffix(".txt").write_text("SOMETHING EL")
    (tmp_path / "val_manifest.csv").unlink()
    assert command(*arguments).stdout.startswith("made 8 utterances")
    assert hashes(tmp_path) == whole


def test_interrupted_then_finished(corpus, tmp_path):
    utterances = 3 * UTTERANCES  # enough to be interrupted in; they start as the small corpus does
    arguments = ("--target-dir", tmp_path, "--utterances", utterances, "--seed", 3)
    line = [sys.executable, "-W", "error", "data/synthetic.py", *map(str, arguments)]
    # a group of its own, for Ctrl-C reaches a whole group
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.rglob("*.wav"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert stderr == "interrupted: the same command goes on from here\n"
    left = hashes(tmp_path)
    assert 2 * 5 < len(left) < 2 * utterances
    assert not [name for name in left if "manifest" in name or "part" in name]

    assert command(*arguments).returncode == 0
    finished = hashes(tmp_path)
    assert left.items() <= finished.items()
    assert {name: sha for name, sha in hashes(corpus).items() if "/" in name}.items() <= finished.items()
    assert len(rows(tmp_path / "train_manifest.csv") + rows(tmp_path / "val_manifest.csv")) == utterances


def test_another_corpus_is_not_overwritten(corpus):
    before = hashes(corpus)
    done = command("--target-dir", corpus, "--utterances", UTTERANCES, "--seed", 4)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {corpus}/corpus.json: the corpus there has seed 3, not 4: ")
    assert done.stderr.count("\n") == 1
    assert hashes(corpus) == before


@pytest.mark.parametrize(
    ("name", "content"), [("corpus.json", "{"), ("corpus.json", "[]"), ("train_manifest.csv", "a.wav,a.txt\n")]
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    assert synthetic.main(["--target-dir", str(tmp_path), "--utterances", "2"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name}: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == content


# What cannot be done.


@pytest.mark.parametrize(
    "arguments",
    [
        ["--utterances", "1"],
        ["--utterances", "many"],
        ["--seed", "-1"],
        ["--val-share", "0"],
        ["--val-share", "1"],
        ["--val-share", "nan"],
        ["--val-share", "0.999", "--utterances", "20"],
        ["--sample-rate", "0"],
        ["--jobs", "0"],
        ["--format", "mp3"],
        ["--no-such-flag"],
    ],
)
def test_bad_flags(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        synthetic.main(["--target-dir", str(tmp_path / "new"), *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and arguments[0] in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_target_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert synthetic.main(["--target-dir", str(tmp_path / "file" / "corpus"), "--utterances", "2"]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error and error.count("\n") == 1


def test_without_the_synthesizer(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert synthetic.main(["--target-dir", str(tmp_path), "--utterances", "2"]) == 1
    assert "pip install espeakng-loader" in capsys.readouterr().err


# What is said.


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "ZERO"),
        (10, "TEN"),
        (19, "NINETEEN"),
        (20, "TWENTY"),
        (42, "FORTY TWO"),
        (300, "THREE HUNDRED"),
        (916, "NINE HUNDRED SIXTEEN"),
        (1005, "ONE THOUSAND FIVE"),
        (9000, "NINE THOUSAND"),
        (7777, "SEVEN THOUSAND SEVEN HUNDRED SEVENTY SEVEN"),
    ],
)
def test_numbers_in_words(number, words):
    assert " ".join(synthetic.number_words(number)) == words


def test_plan_shares_out_exactly_and_holds_back_whole_speakers():
    lines = synthetic.plan(500, 1, 0.1)
    val = [line for line in lines if line.name.startswith("val/")]
    assert len(val) == 50
    assert {line.voice for line in val} <= {f"{a}+{s}" for a in synthetic.ACCENTS for s in synthetic.VAL_SPEAKERS}
    assert set(synthetic.TRAIN_SPEAKERS).isdisjoint(synthetic.VAL_SPEAKERS)
    assert len({line.name for line in lines}) == 500


def test_letters_are_said_by_their_names_in_company():
    """eSpeak would read A as the article and I as the pronoun; `TextToPhonemes` shows what it makes of our spelling."""
    espeak = synthetic.Espeak()
    library = ctypes.CDLL(espeakng_loader.get_library_path())  # the one already loaded
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    names = {"K": "k'eI", "A": "'eI", "I": "'aI", "W": "d'Vb@Lj,u:", "H": "'eItS", "Z": "z'i:", "SIX": "s'Iks"}
    assert espeak.sample_rate == 22050
    assert library.espeak_SetVoiceByName(b"en-us") == 0
    text = ctypes.create_string_buffer(synthetic.spoken_text(" ".join(names)).encode())
    rest = ctypes.c_void_p(ctypes.addressof(text))
    phonemes = library.espeak_TextToPhonemes(ctypes.byref(rest), 1, 0).decode()
    assert phonemes.split() == list(names.values())


def test_every_speaker_exists():
    """One that does not would silently be the accent's plain voice."""
    library = Path(espeakng_loader.get_data_path())
    for speaker in (*synthetic.TRAIN_SPEAKERS, *synthetic.VAL_SPEAKERS):
        assert (library / "voices" / "!v" / speaker).is_file(), speaker
