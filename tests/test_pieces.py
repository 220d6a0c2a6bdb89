"""Long recordings in pieces: nothing is lost or heard twice, cuts are in pauses, and where there are none nobody notices."""

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from asr.checkpoint import Checkpoint, save_checkpoint
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from config import AudioConfig, DecoderConfig, ModelConfig
from data.features import spectrogram
from data.labels import Labels
from data.lengths import frame_count
from data.pieces import CONTEXT, LONGEST, SHORTEST, WHOLE, Piece, cut_pieces
from model import PADDINGS, RELEASE1_PADDINGS, TIME_STRIDE, DeepSpeech, output_frames

RATE, GRID = 16000, 320
GEOMETRIES = [
    AudioConfig(),
    AudioConfig(sample_rate=8000, window_stride=0.02),
    AudioConfig(sample_rate=22050),  # a window of 441 samples: odd
    AudioConfig(sample_rate=11025, window_stride=0.0125),
    AudioConfig(sample_rate=1000, window_size=0.037, window_stride=0.013),
]


def noise(seconds: float, rate: int = RATE, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * rate)).astype(np.float32)


def speech(parts: list[tuple[float, float]], rate: int = RATE, floor: float = 1e-4) -> np.ndarray:
    """Seconds of sound and of the pause behind it, in turns."""
    waves = [(noise(sound, rate, 0.1, i), noise(pause, rate, floor, i)) for i, (sound, pause) in enumerate(parts)]
    return np.concatenate([wave for pair in waves for wave in pair])


def in_blocks(wave: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (wave[i : i + size] for i in range(0, len(wave), size))


def grid_of(audio: AudioConfig) -> int:
    return TIME_STRIDE * audio.hop_samples


def check(wave: np.ndarray, found: list[tuple[Piece, np.ndarray]], rate: int, grid: int) -> None:
    """Pieces are the recording: each where it says, one behind the other, none too long or too short."""
    frame, seconds = 0, 0.0
    for i, (piece, heard) in enumerate(found):
        last = i == len(found) - 1
        begin = (piece.frame - piece.skip) * grid
        np.testing.assert_array_equal(heard, wave[begin : begin + len(heard)])
        assert piece.frame == frame and (piece.frames is None) == piece.pauses
        assert piece.skip == (0 if i == 0 or found[i - 1][0].pauses else round(CONTEXT * rate / grid))
        if last:
            assert begin + len(heard) == len(wave) and piece.pauses
        else:
            beyond = 0 if piece.pauses else round(CONTEXT * rate / grid) * grid
            frames = found[i + 1][0].frame - frame
            assert piece.frames in (None, frames)
            assert len(heard) == (piece.skip + frames) * grid + beyond
            assert piece.seconds == frames * grid / rate
            assert SHORTEST - grid / rate <= piece.seconds <= LONGEST + grid / rate
            frame += frames
        seconds += piece.seconds
    assert seconds == pytest.approx(len(wave) / rate)
    assert len(found) == 1 or found[-1][0].seconds >= WHOLE - LONGEST - grid / rate


@pytest.mark.parametrize("audio", GEOMETRIES, ids=str)
def test_pieces_tile_any_recording(audio):
    rate, grid = audio.sample_rate, grid_of(audio)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        parts = [(rng.exponential(3), rng.choice([0.05, 0.2, 0.5, 3]) * rng.random()) for _ in range(rng.integers(1, 40))]
        wave = speech(parts, rate, floor=rng.choice([0, 1e-4, 0.03]))
        wave = wave[: rng.integers(1, len(wave))]
        found = list(cut_pieces(in_blocks(wave, 30 * rate), rate, grid))
        check(wave, found, rate, grid)
        for size in (len(wave), 7 * rate + 1, rate // 3):
            again = list(cut_pieces(in_blocks(wave, size), rate, grid))
            assert [piece for piece, _ in again] == [piece for piece, _ in found]
            assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(again, found, strict=True))


@pytest.mark.parametrize("release1", [False, True])
@pytest.mark.parametrize("audio", GEOMETRIES, ids=str)
def test_frames_that_count_are_there_and_each_is_the_recordings(audio, release1):
    rate, grid = audio.sample_rate, grid_of(audio)
    paddings = RELEASE1_PADDINGS if release1 else PADDINGS

    def frames(samples: int) -> int:
        return output_frames(frame_count(samples, audio), paddings)

    wave = np.concatenate([noise(33.3, rate), speech([(4, 0.5), (6, 0.7)] * 4, rate), noise(47.777, rate)])
    places, pauses = [], []
    for piece, heard in cut_pieces([wave], rate, grid):
        pauses.append(piece.pauses)
        there = range(piece.frame, piece.frame - piece.skip + frames(len(heard)))
        places.append(there if piece.frames is None else there[: piece.frames])
    for (before, after), paused in zip(pairwise(places), pauses, strict=False):
        lost = after.start - before.stop
        odd = audio.window_samples % 2
        if release1:  # which has no frames for the ends of what it hears
            assert lost == (4 + odd if paused else 0)
        else:  # behind a pause the next piece begins with the frame that ends this one, unless odd windows have none there
            assert lost == (odd - 1 if paused else 0)
    assert places[0].start == 0 and places[-1].stop == frames(len(wave))


def test_cuts_are_in_the_middle_of_the_next_pause():
    lengths = [(5, 0.6), (3, 0.2), (3, 1.5), (0.2, 0.8), (16, 2), (6, 1.5), (25, 3), (9, 2), (7, 1)]
    wave = speech(lengths)
    found = list(cut_pieces([wave], RATE, GRID))
    check(wave, found, RATE, GRID)
    ends = np.cumsum([0, *map(sum, lengths)])
    middles = [end - pause / 2 for end, (_, pause) in zip(ends[1:], lengths, strict=True)]
    cuts = [piece.frame * GRID / RATE for piece, _ in found]
    wanted = [middles[i] for i in (0, 2, 3, 4, 5)]  # 0.2 s are no pause
    np.testing.assert_allclose(cuts[1:6], wanted, atol=0.03)
    assert [piece.pauses for piece, _ in found] == [True] * 5 + [False, True, True], "25 s without one"
    np.testing.assert_allclose(cuts[7:], middles[6:7], atol=0.03)


@pytest.mark.parametrize(
    ("wave", "pieces"),
    [(np.zeros(70 * RATE, np.float32), 5), (noise(70), 5), (noise(70, level=1e-6), 5)],
    ids=["digital silence", "noise", "faint noise"],
)
def test_without_a_pause_pieces_overlap(wave, pieces):
    found = list(cut_pieces([wave], RATE, GRID))
    check(wave, found, RATE, GRID)
    assert len(found) <= pieces and not any(piece.pauses for piece, _ in found[:-1])
    for (_, before), (piece, _) in pairwise(found):
        assert piece.skip * GRID == CONTEXT * RATE
        assert len(before) >= (CONTEXT + LONGEST / 2) * RATE


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 30 * RATE - 1, 30 * RATE])
def test_what_is_not_long_is_whole(samples):
    wave = noise(31)[:samples]
    ((piece, heard),) = cut_pieces(in_blocks(wave, 4000), RATE, GRID)
    assert piece == Piece(0, 0, None, True, samples / RATE) and np.array_equal(heard, wave)


def test_a_sample_more_is_cut():
    wave = noise(31)[: 30 * RATE + 1]
    found = list(cut_pieces([wave], RATE, GRID))
    assert len(found) == 2
    check(wave, found, RATE, GRID)


def test_memory_does_not_grow_with_the_recording():
    rate = 1000
    tracemalloc.start()
    count = sum(1 for _ in cut_pieces((noise(30, rate, seed=i) for i in range(240)), rate, 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 300 and peak < 20 * 30 * rate * 4, "two hours of it are 29 MB"


@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        ({"bidirectional": True}, 2000),
        ({"bidirectional": False}, 2000),
        ({"bidirectional": True, "release1": True}, 8000),
    ],
    ids=["bidirectional", "unidirectional", "release 1"],
)
def test_a_cut_in_no_pause_changes_nothing_that_is_seen(tmp_path, shape, rate):
    """Sound that is all alike, so that a piece is normalised as the whole is: what differs is what the network hears of it."""
    audio = AudioConfig(sample_rate=rate, window_stride=0.02)
    torch.manual_seed(1)
    config = ModelConfig(num_labels=5, hidden_size=24, hidden_layers=2, freq_bins=audio.freq_bins, **shape)
    model = DeepSpeech(config)
    save_checkpoint(Checkpoint(config, audio, Labels(["_", "A", "B", "C", " "]), model.state_dict()), tmp_path / "m.pth")
    recognizer = Recognizer(tmp_path / "m.pth", DecoderConfig(), Runtime.choose(cuda=False))
    wave = noise(75, rate)
    spect = spectrogram(wave, audio)
    with torch.inference_mode():
        logits, lens = recognizer.model(spect[None, None], torch.tensor([spect.shape[1]]))
    whole = logits[0, : lens[0]].softmax(-1).numpy()
    found = [(piece, spectrogram(heard, audio)) for piece, heard in cut_pieces([wave], rate, grid_of(audio))]
    rows = recognizer.hear(found)
    assert len(rows) > 3 and sum(map(len, rows)) == len(whole)
    difference = np.abs(np.exp(np.concatenate(rows)) - whole).max()
    assert difference < 0.01 < np.ptp(whole, axis=0).max(), "the network does tell frames from each other"
    shifted = np.abs(np.exp(np.concatenate(rows))[1:] - whole[:-1]).max()
    assert shifted > 3 * difference, "a frame off would show"
