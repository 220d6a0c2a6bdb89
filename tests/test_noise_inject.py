"""noise_inject.py as people type it."""

import math

import numpy as np
import pytest
import soundfile
from beeps import run
from shared_data import SHARED, needs_shared

from data.noise import rms

RATE = 16000


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    tone = 0.2 * np.sin(2 * np.pi * 300 * np.arange(2 * RATE) / RATE)
    soundfile.write(tmp_path / "input.wav", tone, RATE)
    soundfile.write(tmp_path / "noise.wav", rng.normal(0, 0.05, 5 * RATE), RATE)
    soundfile.write(tmp_path / "short.flac", rng.normal(0, 0.05, (4000, 2)), 44100)
    return tmp_path


def level(folder, output: str) -> float:
    speech, noisy = (soundfile.read(folder / name)[0] for name in ("input.wav", output))
    speech = speech * (speech.dot(noisy) / speech.dot(speech))
    return 20 * math.log10(rms(noisy - speech) / rms(speech))


@pytest.mark.parametrize("noise, output, wanted", [("noise.wav", "output.wav", 1.0), ("short.flac", "new/out.flac", 0.3)])
def test_noise_arrives_at_the_level_asked_for(folder, noise, output, wanted):
    done = run("noise_inject.py", "--noise-path", noise, "--output-path", output, "--noise-level", wanted, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{output}: 2.00 s at 16000 Hz")
    info = soundfile.info(folder / output)
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (2 * RATE, RATE, 1, "PCM_16")
    assert abs(level(folder, output) - 20 * math.log10(wanted)) < 0.1


def test_plain_flags_and_the_seed_say_which_part(folder):
    first = [
        run("noise_inject.py", "--seed", seed, "--output-path", f"{i}.wav", cwd=folder) for i, seed in enumerate((1, 1, 2))
    ]
    assert all(done.returncode == 0 for done in first)
    one, same, other = ((folder / f"{i}.wav").read_bytes() for i in range(3))
    assert one == same != other


def test_what_would_be_too_loud_is_made_quieter_as_a_whole(folder):
    done = run("noise_inject.py", "--noise-level", 20, cwd=folder)
    assert done.returncode == 0 and "dB quieter than its parts, to fit" in done.stdout
    noisy, _ = soundfile.read(folder / "output.wav")
    assert 0.999 < np.abs(noisy).max() < 1
    assert np.count_nonzero(np.abs(noisy) > 0.999) < 3, "nothing is clipped"


@needs_shared
@pytest.mark.parametrize("name", ["derived/source_61-70968-0000.flac"])
def test_other_rates_and_formats(folder, name):
    paths = ["--input-path", SHARED / "data" / "zoo" / name, "--noise-path", SHARED / "data/noise/speechbrain_noise2.flac"]
    done = run("noise_inject.py", *paths, "--sample-rate", 8000, "--output-path", "out.aiff", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert soundfile.info(folder / "out.aiff").samplerate == 8000


@pytest.mark.parametrize(
    "flags, status, told",
    [
        (["--input-path", "nowhere.wav"], 1, "nowhere.wav: No such file or directory"),
        (["--noise-path", "notes.txt"], 1, "notes.txt: not audio"),
        (["--output-path", "out.mp3"], 2, "--output-path out.mp3: expected a name that ends in one of .wav, .flac"),
        (["--noise-level", "-1"], 2, "--noise-level"),
        (["--noise-level", "nan"], 2, "--noise-level"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(folder, flags, status, told):
    (folder / "notes.txt").write_text("no sound\n")
    before = {path.name for path in folder.iterdir()}
    done = run("noise_inject.py", *flags, cwd=folder)
    assert done.returncode == status and told in done.stderr and len(done.stderr.splitlines()) == 1
    assert {path.name for path in folder.iterdir()} == before
