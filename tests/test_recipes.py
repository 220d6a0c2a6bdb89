import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from shared_data import AN4, needs_shared

from data.manifest import read_manifest, read_transcript
from recipes import an4_manifests

ROOT = Path(__file__).resolve().parents[1]
SPEAKERS = {f"f{i:02}" for i in range(10)} | {f"m{i:02}" for i in range(30)}


def speakers_of(path):
    return {an4_manifests.speaker(utterance) for utterance in read_manifest(path)}


@needs_shared
@pytest.mark.parametrize(("folder", "script"), [(".", "recipes/an4_manifests.py"), ("recipes", "an4_manifests.py")])
def test_an4_manifests(tmp_path, folder, script):
    program = (
        "import runpy, sys; path, *args = sys.argv[1:]; sys.argv = [path, *args]; "
        "runpy.run_path(path, run_name='__main__'); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-W", "error", "-c", program, script, "--an4-dir", AN4, "--target-dir", tmp_path / "an4"]
    output = subprocess.run(command, cwd=ROOT / folder, check=True, capture_output=True, text=True).stdout
    train, test, tune_train, tune_val = (
        tmp_path / "an4" / f"{name}_manifest.csv" for name in ("train", "test", "tune_train", "tune_val")
    )
    assert f"{train}: 948 utterances, 0.7" in output
    assert f"{test}: 130 utterances, 0.0" in output
    assert len(read_manifest(train)) == 948
    assert len(read_manifest(test)) == 130
    assert len(read_manifest(tune_train)) + len(read_manifest(tune_val)) == 948
    held_out = output.splitlines()[-1].removeprefix("held out: ").split()
    assert len(held_out) == 8
    assert {name[0] for name in held_out} == {"f", "m"}
    assert speakers_of(tune_val) == set(held_out)
    assert speakers_of(tune_train) == speakers_of(train) - set(held_out)
    first = read_manifest(train)[0]
    assert first.audio.startswith(str(AN4.resolve()))
    assert read_transcript(first) == "GO"


def test_an4_manifests_as_a_script_in_its_folder(tmp_path):
    command = [sys.executable, "an4_manifests.py", "--an4-dir", tmp_path, "--target-dir", tmp_path]
    result = subprocess.run(command, cwd=ROOT / "recipes", capture_output=True, text=True)
    assert result.returncode == 1
    assert "train.csv" in result.stderr
    assert "Traceback" not in result.stderr


def test_choose_speakers_is_a_matter_of_the_seed():
    first = an4_manifests.choose_speakers(SPEAKERS, 8, seed=0)
    assert first == an4_manifests.choose_speakers(SPEAKERS, 8, seed=0)
    assert first != an4_manifests.choose_speakers(SPEAKERS, 8, seed=1)
    assert len(set(first) & SPEAKERS) == 8
    assert sum(name.startswith("f") for name in first) == 2


@pytest.mark.parametrize("count", [-1, 0, 1, 39, 40, 1000])
def test_choose_speakers_refuses_a_one_sided_choice(count):
    with pytest.raises(ValueError, match=f"--held-out-speakers {count} of 10 women and 30 men"):
        an4_manifests.choose_speakers(SPEAKERS, count, seed=0)


def test_choose_speakers_refuses_other_names():
    with pytest.raises(ValueError, match="'x1'"):
        an4_manifests.choose_speakers({"x1", "f1", "m1"}, 2, seed=0)


def test_an4_list_faults_are_named(tmp_path):
    listing = tmp_path / "train.csv"
    listing.write_text("audio;text\n")
    with pytest.raises(ValueError, match=r"train\.csv:1: header .*expected audio,text"):
        an4_manifests.read_an4_list(listing)
    listing.write_text("audio,text\n")
    with pytest.raises(ValueError, match="no utterances"):
        an4_manifests.read_an4_list(listing)
    listing.write_text("audio,text\na.flac\n")
    with pytest.raises(ValueError, match=r"train\.csv:2: expected two columns"):
        an4_manifests.read_an4_list(listing)


def test_an4_transcripts_must_agree(tmp_path):
    soundfile.write(tmp_path / "a.flac", [0.0] * 1600, 16000)
    (tmp_path / "a.txt").write_text("ONE\n")
    listing = tmp_path / "train.csv"
    listing.write_text("audio,text\na.flac,TWO\n")
    with pytest.raises(ValueError, match=r"train\.csv:2: .*a\.txt says 'ONE': expected 'TWO'"):
        an4_manifests.read_an4_list(listing)


def test_the_demo_runs_and_uses_again_what_is_there(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "demo.py"), "--folder", str(tmp_path), "--utterances", "20"]
    outputs = [
        subprocess.run([*command, "--epochs", "1"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        for _ in range(2)
    ]
    assert [done.returncode for done in outputs] == [0, 0], outputs[0].stderr
    assert "Training Summary Epoch: [1]" in outputs[0].stdout and "Training Summary" not in outputs[1].stdout
    for done in outputs:
        typed = [line.split()[1] for line in done.stdout.splitlines()[-3:]]
        assert typed == ["train.py", "test.py", "transcribe.py"]
        assert "Test Summary" in done.stdout and "reference:  " in done.stdout and "hypothesis: " in done.stdout
