"""What each augmentation does to a wave, measured; that draws are each step's own; and the command that shows them."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from beeps import ROOT, make_corpus, train
from shared_data import AN4, SHARED, needs_shared

from config import AudioConfig, AugmentConfig
from data.audio import load_audio
from data.augment import GAINS, ORDER, TEMPOS, Augmentation
from data.channel import amplify, reverberate, telephone
from data.command_line import UsageError
from data.dataset import BatchLoader, SpectrogramDataset
from data.labels import Labels
from data.noise import add_noise, find_recordings, noise_part, repeated, rms
from data.samplers import BatchLimit, LengthBatchSampler, SampleKey
from data.tempo import OVERLAP, SEGMENT, change_speed, change_tempo
from data.utterances import Utterance
from model import output_frames

RATE = 16000
needs_sox = pytest.mark.skipif(shutil.which("sox") is None, reason="sox is not installed: tempo is not compared with it")


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def hiss(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).astype(np.float32)


def pitch(wave: np.ndarray, rate: int = RATE) -> float:
    """Hz of the strongest part, to 0.02."""
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 50 * rate)).argmax() / 50


def decibels(ratio: float) -> float:
    return 20 * np.log10(ratio)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Noises of several formats, rates and lengths in folders below each other, and two rooms."""
    noise, rooms = tmp_path_factory.mktemp("noise"), tmp_path_factory.mktemp("rooms")
    (noise / "deep" / "er").mkdir(parents=True)
    soundfile.write(noise / "long.wav", hiss(9, 1), RATE)
    soundfile.write(noise / "deep" / "stereo.flac", hiss(6, 2).reshape(-1, 2), 44100)
    soundfile.write(noise / "deep" / "er" / "short.ogg", hiss(0.2, 3), 8000)
    for name, decay in (("hall.wav", 4000), ("room.wav", 800)):
        response = hiss(0.5, 4, 0.05) * np.exp(-np.arange(8000) / decay)
        response[137] = 1.0
        soundfile.write(rooms / name, response, RATE)
    return noise, rooms


def everything(folders) -> AugmentConfig:
    noise, rooms = map(str, folders)
    return AugmentConfig(
        0.1, True, reverb_dir=rooms, reverb_prob=0.7, noise_dir=noise, noise_prob=0.7, codec_prob=0.5, spec_augment=True
    )


# tempo and speed


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("tempo", [0.85, 0.93, 1.0, 1.07, 1.15])
def test_tempo_keeps_the_pitch_and_the_level_and_changes_the_length(rate, tempo):
    wave = tone(220, 2, rate)
    changed = change_tempo(wave, tempo, rate)
    assert abs(len(changed) - len(wave) / tempo) <= (SEGMENT - OVERLAP) * rate, "one hop"
    assert len(changed) == round(len(wave) / tempo)
    assert abs(pitch(changed, rate) - 220) < 1
    middle = changed[rate // 10 : -rate // 10]
    assert abs(decibels(rms(middle) / rms(wave))) < 0.1
    assert changed.dtype == np.float32


def test_tempo_one_changes_nothing_and_silence_stays_silent():
    wave = hiss(1)
    assert np.array_equal(change_tempo(wave, 1.0, RATE), wave)
    assert not change_tempo(np.zeros(RATE, np.float32), 0.9, RATE).any()


@pytest.mark.parametrize("samples", [1, 161, 559, 560, 561, 900])
def test_tempo_of_very_short_waves(samples):
    wave = hiss(1)[:samples]
    assert len(change_tempo(wave, 1.15, RATE)) == (samples if samples < 560 else round(samples / 1.15))


@needs_sox
@needs_shared
@pytest.mark.parametrize("tempo", [0.85, 1.15])
def test_tempo_sounds_like_soxs_on_speech(tempo):
    """Log-mel distance to `sox tempo -s`: root mean square over bands, in dB, averaged over frames."""
    recordings = sorted((AN4 / "test").rglob("*.flac"))[::20]
    assert recordings
    distances = []
    for path in recordings:
        wave = load_audio(path, RATE)
        raw = "-t f32 -r 16000 -c 1 -".split()
        done = subprocess.run(
            ["sox", *raw, *raw, "tempo", "-s", str(tempo)], input=wave.tobytes(), capture_output=True, check=True
        )
        ours, theirs = log_mel(change_tempo(wave, tempo, RATE)), log_mel(np.frombuffer(done.stdout, np.float32))
        frames = min(ours.shape[1], theirs.shape[1])
        assert abs(ours.shape[1] - theirs.shape[1]) <= 2
        distances.append(np.sqrt(np.square(ours[:, :frames] - theirs[:, :frames]).mean(0)).mean())
    assert np.mean(distances) < 2 and max(distances) < 3.5


def log_mel(wave: np.ndarray) -> np.ndarray:
    """(40, T) dB, no less than 60 below the loudest."""
    import librosa  # slow to import

    mel = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40)
    level = 10 * np.log10(mel + 1e-10)
    return np.maximum(level, level.max() - 60)


def test_speed_moves_length_and_pitch_together():
    wave = tone(400)
    faster = change_speed(wave, 1.25)
    assert abs(len(faster) - len(wave) / 1.25) <= 1
    assert abs(pitch(faster) - 500) < 1


# noise


@pytest.mark.parametrize("level", [0.05, 0.5, 2.0])
def test_noise_arrives_at_the_stated_level(folders, level):
    speech = tone(300) * np.linspace(0, 1, RATE, dtype=np.float32)
    paths = find_recordings(folders[0], "--noise-dir")
    for path, duration in zip(paths.paths, paths.durations, strict=True):
        noise = noise_part(path, duration, len(speech), RATE, np.random.default_rng(1))
        added = add_noise(speech, noise, level).astype(np.float64) - speech
        assert abs(decibels(rms(added) / rms(speech)) - decibels(level)) < 0.1


def test_silence_makes_no_nan():
    silence, wave = np.zeros(RATE, np.float32), hiss(1)
    assert np.array_equal(add_noise(wave, silence, 1.0), wave)
    assert np.array_equal(add_noise(silence, wave, 1.0), silence), "no noise has a level beside silence"
    assert np.array_equal(reverberate(wave, silence), wave)
    assert np.array_equal(reverberate(silence, wave), silence)
    assert not telephone(silence, RATE).any()


@pytest.mark.parametrize("length", [1, 2, 3, 700, 5000])
def test_a_short_noise_is_repeated_without_seams(length):
    turn = 2 * np.pi * np.arange(length) / 100
    noise = (0.3 * np.sin(turn) + 0.2).astype(np.float32)
    long = repeated(noise, RATE, RATE, np.random.default_rng(0))
    assert len(long) == RATE and np.isfinite(long).all()
    if length > 100:
        assert np.abs(np.diff(long)).max() < 0.05, "its steepest step is 0.019, an unmended seam's up to 0.6"


def test_repeated_noise_is_as_loud_at_its_seams():
    """Two thirds of what 50 ms repeated are is seam; fading in step would cost 1 dB."""
    levels = [rms(repeated(hiss(0.05, seed), RATE, RATE, np.random.default_rng(seed))) for seed in range(200)]
    assert abs(decibels(np.mean(levels) / 0.1)) < 0.2


def test_of_a_long_noise_only_the_part_is_read(tmp_path):
    """The bytes that are read are counted by the kernel: 20 min of noise, of which 2 s are wanted."""
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for minute in range(20):
            file.write(np.full(60 * RATE, (minute + 1) / 32, np.float32))
    before = _bytes_read()
    parts = [noise_part(str(path), 1200, 2 * RATE, RATE, np.random.default_rng(seed)) for seed in range(20)]
    assert _bytes_read() - before < 20 * 2 * 2 * RATE * 2, "twice the parts at most; the file is 38 MB"
    assert len({round(float(part[0]) * 32) for part in parts}) > 8, "from all over the file"
    assert all(len(part) == 2 * RATE for part in parts)


def _bytes_read() -> int:
    counts = Path("/proc/self/io")
    if not counts.exists():
        pytest.skip("only Linux counts what a process reads")
    return int(dict(line.split(": ") for line in counts.read_text().splitlines())["rchar"])


def test_noises_are_found_by_content_and_what_is_none_is_named(folders, tmp_path):
    noise = tmp_path / "noise"
    shutil.copytree(folders[0], noise)
    (noise / "README.txt").write_text("recorded in a kitchen\n")
    (noise / ".hidden").write_text("x")
    (noise / "deep" / "cut.wav").write_bytes((noise / "long.wav").read_bytes()[:20000])
    (noise / "deep" / "empty.flac").touch()
    (noise / "unnamed").write_bytes((noise / "deep" / "stereo.flac").read_bytes())
    found = find_recordings(noise, "--noise-dir")
    assert [os.path.relpath(path, noise) for path in found.paths] == [
        "deep/er/short.ogg",
        "deep/stereo.flac",
        "long.wav",
        "unnamed",
    ]
    np.testing.assert_allclose(found.durations, [0.4, 48000 / 44100, 9, 48000 / 44100], atol=1e-3)
    named = [os.path.relpath(fault.partition(": ")[0], noise) for fault in found.unusable]
    assert named == ["README.txt", "deep/cut.wav", "deep/empty.flac"]


def test_a_folder_without_noise_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--noise-dir .*nowhere: no such folder"):
        Augmentation(AugmentConfig(noise_dir=str(tmp_path / "nowhere")), RATE)
    with pytest.raises(UsageError, match=r"--reverb-dir .*: no recording in it"):
        Augmentation(AugmentConfig(reverb_dir=str(tmp_path)), RATE)
    (tmp_path / "notes.txt").write_text("no sound\n")
    with pytest.raises(UsageError, match=r"--noise-dir .*: no recording in it \(.*notes\.txt: not audio"):
        Augmentation(AugmentConfig(noise_dir=str(tmp_path)), RATE)


# room, gain, telephone


def test_a_room_keeps_the_words_where_they_were(folders):
    click = np.zeros(RATE, np.float32)
    click[5000] = 0.5
    heard = reverberate(click, load_audio(folders[1] / "hall.wav", RATE))
    assert len(heard) == RATE and heard.dtype == np.float32
    assert np.abs(heard).argmax() == 5000
    assert abs(decibels(rms(heard) / rms(click))) < 0.01
    assert rms(heard[5200:9000]) > 100 * rms(heard[:4800])


@needs_shared
def test_real_rooms_of_all_kinds_are_read():
    steps = Augmentation(AugmentConfig(reverb_dir=str(SHARED / "data" / "rir"), reverb_prob=1), RATE).steps
    wave = hiss(1)
    for seed in range(20):
        assert abs(decibels(rms(steps["reverb"](wave, np.random.default_rng(seed))) / rms(wave))) < 0.01


def test_gain_is_clipped_like_any_recording():
    wave = tone(100)
    assert abs(decibels(rms(amplify(wave, -6)) / rms(wave)) + 6) < 0.01
    louder = amplify(wave, 8)
    assert louder.max() == 1 and louder.min() == -1
    np.testing.assert_allclose(louder[np.abs(louder) < 1], wave[np.abs(louder) < 1] * 10**0.4, rtol=1e-5)


def test_a_telephone_cuts_what_is_high_and_keeps_what_is_low():
    low, high = tone(1000), tone(6000)
    through = telephone(low, RATE)
    assert len(through) == len(low)
    noise = rms(through[800:-800] - low[800:-800])
    assert 30 < decibels(rms(low) / noise) < 45, "mu-law has about 38 dB"
    assert rms(telephone(high, RATE)) < 0.01 * rms(high)
    assert np.abs(telephone(3 * low, RATE)).max() < 1.3


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 44100])
@pytest.mark.parametrize("samples", [161, 1000, 1001])
def test_a_telephone_keeps_the_length(rate, samples):
    assert len(telephone(hiss(1)[:samples], rate)) == samples


# all together


def test_steps_stay_in_their_ranges(folders):
    augment, wave = Augmentation(everything(folders), RATE), tone(220)
    lengths = [len(augment.steps["tempo"](wave, np.random.default_rng(seed))) for seed in range(200)]
    assert min(lengths) >= RATE / TEMPOS[1] - 1 and max(lengths) <= RATE / TEMPOS[0] + 1
    assert max(lengths) - min(lengths) > 0.9 * RATE * (1 / TEMPOS[0] - 1 / TEMPOS[1])
    levels = [rms(augment.steps["gain"](wave / 8, np.random.default_rng(seed))) / rms(wave / 8) for seed in range(200)]
    assert GAINS[0] <= decibels(min(levels)) < GAINS[0] + 0.5 and GAINS[1] - 0.5 < decibels(max(levels)) <= GAINS[1] + 1e-4
    noisy = [augment.steps["noise"](wave, np.random.default_rng(seed)) for seed in range(200)]
    levels = [rms(heard - wave) / rms(wave) for heard in noisy if heard is not wave]
    assert 110 <= len(levels) <= 170, "7 of 10"
    assert min(levels) < 0.05 and 0.45 < max(levels) <= 0.5001


def test_switching_one_step_on_leaves_the_others_draws(folders):
    drawn = {name: recorded(everything(folders), name) for name in ORDER}
    only_noise = dataclasses.replace(AugmentConfig(), noise_dir=str(folders[0]), noise_prob=0.7)
    assert recorded(only_noise, "noise") == drawn["noise"]
    assert recorded(AugmentConfig(speed_volume_perturb=True), "gain") == drawn["gain"]
    assert len({*drawn.values()}) == len(ORDER), "and no two steps draw alike"


def recorded(config: AugmentConfig, name: str) -> float:
    """The first number that a step would draw for one utterance."""
    augment, drawn = Augmentation(config, RATE), []

    def step(wave, rng):
        drawn.append(rng.random())
        return wave

    augment.steps[name] = step
    augment(tone(100), np.random.default_rng((1, 2, 3)))
    return drawn[0]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_samples(folders, tmp_path, workers):
    paths = [tmp_path / f"{i}.wav" for i in range(7)]
    for i, path in enumerate(paths):
        soundfile.write(path, hiss(0.5 + i / 10, i), RATE)
    utterances = [Utterance(str(path), "AB", duration=0.5 + i / 10) for i, path in enumerate(paths)]
    dataset = SpectrogramDataset(utterances, AudioConfig(), Labels(["_", "A", "B"]), everything(folders), 7, output_frames)
    order = LengthBatchSampler([u.duration for u in utterances], BatchLimit(2), seed=5)
    spects = {}
    for batch in BatchLoader(dataset, order, workers):
        for row, frames, index in zip(batch.spects, batch.spect_lens, batch.indices, strict=True):
            spects[int(index)] = row[0, :, : int(frames)]
    assert len(spects) == 7
    for index, spect in spects.items():
        assert spect.equal(dataset[SampleKey(0, index)].spect) and spect.isfinite().all()
        assert not spect.equal(dataset[SampleKey(1, index)].spect)


# the commands


def test_train_tells_of_noise_before_it_starts(folders, tmp_path):
    corpus, noise = make_corpus(tmp_path / "corpus"), tmp_path / "noise"
    done = train(corpus, "--noise-dir", noise)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --noise-dir {noise}: no such folder; expected one of recordings\n"
    done = train(corpus, "--noise-min", 0.6)
    assert done.returncode == 2 and "--noise-min 0.6: expected at most the 0.5 of --noise-max" in done.stderr
    shutil.copytree(folders[0], noise)
    (noise / "README.txt").write_text("no sound\n")
    heard = ["--speed-volume-perturb", "--noise-dir", noise, "--noise_prob", 1, "--reverb-dir", folders[1], "--codec-prob", 0.5]
    done = train(corpus, *heard, "--spec-augment", "--W", 4, "--F", 8, "--T", 8, "--epochs", 1)
    assert done.returncode == 0 and "Training Summary Epoch: [1]" in done.stdout
    assert len(done.stderr.splitlines()) == 1 and f"left out: {noise}/README.txt: not audio" in done.stderr


def test_the_command_writes_what_each_step_does(folders, tmp_path):
    speech = tmp_path / "speech.flac"
    soundfile.write(speech, tone(220) * hiss(1, 3, 0.5), RATE)
    command = [sys.executable, "-m", "data.augment", "--input", speech, "--output-dir", tmp_path / "new" / "heard"]
    command += ["--noise-dir", folders[0], "--reverb-dir", folders[1]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made = {path.name for path in (tmp_path / "new" / "heard").iterdir()}
    assert made == {f"{name}.wav" for name in ("original", *ORDER, "all")} | {"spectrograms.png"}
    waves = {name: load_audio(tmp_path / "new" / "heard" / name, RATE) for name in made if name.endswith(".wav")}
    original = waves.pop("original.wav")
    assert all(len(wave) != RATE or np.abs(wave - original).max() > 0.01 for wave in waves.values())
    image = (tmp_path / "new" / "heard" / "spectrograms.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 20000


def test_the_command_says_in_one_line_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "data.augment", "--input", "nowhere.wav", "--output-dir", tmp_path / "heard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: nowhere.wav: No such file or directory\n")
    assert not (tmp_path / "heard").exists()
