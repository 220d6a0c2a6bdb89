"""Utterances cut out of a stream: none is lost, and how the stream came does not matter."""

from itertools import pairwise

import numpy as np
import pytest

from data.utterance_cutter import LEAD, LONGEST, UtteranceCutter

RATE, GRID = 16000, 320


def noise(seconds: float, level: float = 0.001, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).astype(np.float32)


def speech(seconds: float, level: float = 0.1) -> np.ndarray:
    """A voice's ups and downs: syllables, which no pause parts."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 200 * t) * (0.55 + 0.45 * np.cos(2 * np.pi * 4 * t))).astype(np.float32)


def cut(wave: np.ndarray, sizes: list[int], **kwargs) -> list[tuple[float, np.ndarray]]:
    cutter, found = UtteranceCutter(RATE, GRID, **kwargs), []
    edges = [0, *np.cumsum(sizes).clip(max=len(wave)), len(wave)]
    for begin, end in pairwise(edges):
        found += cutter.feed(wave[begin:end])
    return found + cutter.finish()


def spans(found: list[tuple[float, np.ndarray]]) -> list[tuple[float, float]]:
    return [(start, start + len(wave) / RATE) for start, wave in found]


TALK = np.concatenate([noise(2), speech(1.5), noise(1), speech(0.3), noise(0.3), speech(1), noise(3), speech(0.5), noise(0.2)])


def test_utterances_are_found_where_they_are():
    found = spans(cut(TALK, [len(TALK)]))
    assert len(found) == 3
    for (start, end), (begins, ends) in zip(found, [(2.0, 3.5), (4.5, 6.1), (9.1, 9.8)], strict=True):
        assert begins - LEAD - 0.05 <= start <= begins - 0.05
        assert ends - 0.15 <= end <= ends + LEAD + 0.05


@pytest.mark.parametrize("seed", range(4))
def test_how_it_comes_changes_nothing(seed):
    wave = np.concatenate([TALK, speech(40), noise(2)])
    rng = np.random.default_rng(seed)
    whole, parts = cut(wave, [len(wave)]), cut(wave, rng.integers(0, [50, 500, 5000, 60000][seed], 4000).tolist())
    assert [start for start, _ in whole] == [start for start, _ in parts]
    for (start, one), (_, other) in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, wave[round(start * RATE) :][: len(one)])


def test_who_does_not_pause_is_cut_and_loses_nothing():
    wave = np.concatenate([noise(1), speech(70), noise(2)])
    found = spans(cut(wave, [1600] * 800))
    assert len(found) >= 4 and all(end - start <= LONGEST for start, end in found)
    for (_, end), (start, _) in pairwise(found):
        assert start == pytest.approx(end, abs=1e-9)
    assert found[0][0] <= 1 and found[-1][1] >= 71


def test_who_speaks_at_once_is_heard_from_the_first_sample():
    found = spans(cut(np.concatenate([speech(2), noise(2)]), [160] * 500))
    assert [start for start, _ in found] == [0.0] and found[0][1] >= 2


def test_the_end_of_the_stream_ends_an_utterance():
    (found,) = spans(cut(np.concatenate([noise(1), speech(1)]), [1000] * 40))
    assert found[1] == 2.0


@pytest.mark.parametrize("wave", [np.zeros(0, np.float32), np.zeros(5 * RATE, np.float32), noise(20, 0.0005)], ids=len)
def test_there_is_nothing_in_silence(wave):
    assert cut(wave, [777] * 500) == []


def test_a_click_is_no_speech():
    wave = noise(6, 0.0005)
    wave[3 * RATE : 3 * RATE + 300] = 0.5
    assert cut(wave, [len(wave)]) == []


def test_steady_noise_becomes_the_silence_that_it_is_compared_with():
    """A fan may be taken for speech for some seconds; then words are found in it."""
    loud = noise(30, 0.02)
    for begin in (12, 20):
        loud[begin * RATE : (begin + 1) * RATE] += speech(1, 0.5)
    found = spans(cut(loud, [1600] * 400))
    assert [round(start + LEAD) for start, _ in found[-2:]] == [12, 20] and found[-1][1] - found[-1][0] < 3
    assert len(found) <= 3


def test_memory_does_not_grow():
    cutter = UtteranceCutter(RATE, GRID)
    for seed in range(60):
        cutter.feed(noise(1, 0.001, seed))
    assert len(cutter._held) <= (LEAD + 0.05) * RATE
    for _ in range(60):
        cutter.feed(speech(1))
        assert len(cutter._held) <= (LONGEST + 1) * RATE


@pytest.mark.parametrize("pause", [0.3, 1.2])
def test_how_long_a_pause_is(pause):
    wave = np.concatenate([noise(1), *(part for _ in range(3) for part in (speech(1), noise(0.7)))])
    assert len(cut(wave, [len(wave)], pause=pause)) == (3 if pause < 0.7 else 1)
