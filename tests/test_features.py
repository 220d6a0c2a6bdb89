"""The spectrogram: the predecessor's numbers, the shape formula, and what must not turn into NaN."""

import numpy as np
import pytest
import soundfile
import torch
from shared_data import GOLDEN, needs_shared

from config import AudioConfig
from data.audio import load_audio
from data.features import RunningNorm, spectrogram
from data.lengths import frame_count

AUDIO = GOLDEN / "audio"


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@needs_shared
@pytest.mark.parametrize(
    ("wav", "expected", "window"),
    [
        ("a", "a.spect", "hamming"),
        ("b", "b.spect", "hamming"),
        ("c", "c.spect", "hamming"),
        ("d", "d.spect", "hamming"),  # loud edges: catches wrong padding
        ("d_stereo", "d_stereo.spect", "hamming"),
        ("c", "c.spect_hann", "hann"),
        ("c", "c.spect_blackman", "blackman"),
        ("c", "c.spect_bartlett", "bartlett"),
    ],
)
def test_the_predecessors_spectrograms(wav, expected, window):
    golden = np.load(AUDIO / f"{expected}.npy")
    spect = spectrogram(load_audio(AUDIO / f"{wav}.wav", 16000), AudioConfig(window=window))
    assert spect.dtype == torch.float32
    assert spect.shape == golden.shape
    np.testing.assert_allclose(spect.numpy(), golden, atol=2e-5, rtol=0)  # seen: 6.7e-6


@needs_shared
def test_another_sample_rate_changes_the_geometry_only():
    golden = np.load(AUDIO / "c.spect_sr8000conf.npy")
    wave, _ = soundfile.read(AUDIO / "c.wav", dtype="float32")  # as recorded: the file's own rate was ignored
    np.testing.assert_allclose(spectrogram(wave, AudioConfig(sample_rate=8000)).numpy(), golden, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        AudioConfig(),
        AudioConfig(sample_rate=8000),
        AudioConfig(sample_rate=22050),  # a window of 441 samples: odd
        AudioConfig(window_size=0.025),
        AudioConfig(window_size=0.032, window_stride=0.0125),
    ],
    ids=str,
)
def test_shape_follows_the_length(config):
    half, hop = config.window_samples // 2, config.hop_samples
    for samples in [half + 1, half + 2, *range(3 * hop - 2, 3 * hop + 3), *range(10 * hop - 2, 10 * hop + 3), 12345]:
        if samples > half:
            shape = spectrogram(noise(samples), config).shape
            assert shape == (config.freq_bins, frame_count(samples, config)), samples


def test_default_geometry():
    for samples in range(161, 3000, 7):
        assert frame_count(samples, AudioConfig()) == 1 + samples // 160
    assert spectrogram(noise(16000), AudioConfig()).shape == (161, 101)


def test_agrees_with_a_plain_double_precision_transform():
    wave, config = noise(4000), AudioConfig(window="hann")
    padded = np.pad(wave.astype(np.float64), 160, mode="reflect") * 32768 / 32767
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(320) / 319)  # symmetric
    frames = np.stack([padded[start : start + 320] * window for start in range(0, 4001, 160)])
    log = np.log1p(np.abs(np.fft.rfft(frames))).T
    expected = (log - log.mean()) / log.std(ddof=1)
    np.testing.assert_allclose(spectrogram(wave, config).numpy(), expected, atol=2e-5, rtol=0)


def test_is_normalised():
    spect = spectrogram(noise(16000), AudioConfig())
    assert abs(spect.mean().item()) < 1e-5
    assert spect.std().item() == pytest.approx(1, abs=1e-5)


def test_digital_silence_is_zeros():
    assert torch.equal(spectrogram(np.zeros(16000, np.float32), AudioConfig()), torch.zeros(161, 101))


@pytest.mark.parametrize("level", [1e-38, 1e-20, 1e-10, 1e-7])
def test_near_silence_is_not_blown_up(level):
    spect = spectrogram(np.sign(noise(16000)) * np.float32(level), AudioConfig())
    assert torch.isfinite(spect).all()
    assert spect.std().item() <= 1.001
    assert spect.abs().max().item() < 10


def test_a_quiet_recording_is_heard_like_a_loud_one():
    quiet = np.round(noise(16000) * 30).astype(np.float32) / 32768  # a few steps of a 16-bit recording
    assert spectrogram(quiet, AudioConfig()).std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("samples", [0, 1, 160])
def test_too_short_to_reflect(samples):
    with pytest.raises(ValueError, match=rf"^{samples} samples at 16000 Hz, expected at least 161"):
        spectrogram(noise(samples), AudioConfig())


def test_the_shortest_wave():
    spect = spectrogram(noise(161), AudioConfig())
    assert spect.shape == (161, 2)
    assert torch.isfinite(spect).all()


def test_channels_must_be_averaged_first():
    with pytest.raises(ValueError, match=r"shape \(2, 16000\)"):
        spectrogram(np.zeros((2, 16000), np.float32), AudioConfig())


def test_the_wave_is_left_as_it_was():
    wave = noise(1600)
    wave.flags.writeable = False
    before = wave.copy()
    first, second = spectrogram(wave, AudioConfig()), spectrogram(wave[::1].astype(np.float64), AudioConfig())
    assert np.array_equal(wave, before)
    assert torch.equal(first, second)  # and the cached window is as it was


def running(wave):
    return spectrogram(wave, AudioConfig(streaming_norm=True))


def test_a_running_norm_knows_nothing_of_what_comes():
    wave = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    louder = wave.copy()
    louder[16000:] *= 10
    now, then = running(wave), running(louder)
    assert torch.equal(now[:, :99], then[:, :99])
    assert not torch.allclose(now[:, 101:], then[:, 101:], atol=0.1)


def test_a_running_norm_is_the_same_in_any_pieces():
    rng = np.random.default_rng(1)
    frames = rng.gamma(1.0, 0.1, (700, 161)).astype(np.float32)
    whole = RunningNorm()(frames.copy())
    norm, pieces = RunningNorm(), np.split(frames.copy(), [1, 2, 9, 300, 301, 650])
    np.testing.assert_array_equal(whole, np.concatenate([norm(piece) for piece in pieces]))


def test_a_running_norm_settles_at_the_recordings_own_level():
    """A minute in, loud and soft alike vary about as much as normalising by the whole would make them, but for the prior."""
    rng = np.random.default_rng(2)
    for level in (0.05, 0.2, 1.0):
        late = RunningNorm()(rng.gamma(1.0, level, (6000, 161)).astype(np.float32))[4000:]
        assert abs(late.mean()) < 0.35
        assert 0.4 < late.std() < 1.1


def test_silence_before_speech_does_not_blow_the_speech_up():
    frames = np.concatenate([np.zeros((6000, 161)), np.random.default_rng(3).gamma(1.0, 0.2, (100, 161))]).astype(np.float32)
    assert abs(RunningNorm()(frames)).max() < 60  # by the silence alone it would be infinite; a norm of the whole gives 7
