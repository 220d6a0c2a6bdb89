"""Other speakers of the same words: played faster or slower, with the pitch or without."""

import numpy as np
import soxr

SPEED_STEPS = 100  # speeds are whole multiples of 1 / SPEED_STEPS: a resampling filter of few phases

# Of WSOLA, seconds: what sox chooses for speech at most tempos
SEGMENT = 0.035  # taken from the wave as it is: a few periods of a voice
OVERLAP = 0.014  # of a segment with the next, over which one fades into the other
SEARCH = 0.0164  # within which a segment may begin where it fits best
SEARCH_RATE = 8000  # Hz, at least; a place found at this rate is good enough, and found in half the time


def change_speed(wave: np.ndarray, speed: float) -> np.ndarray:
    """Play a wave `speed` times as fast, pitch and all, which makes another speaker of the same words (Ko et al. 2015)."""
    return soxr.resample(wave, round(speed * SPEED_STEPS), SPEED_STEPS, quality="HQ")


def change_tempo(wave: np.ndarray, tempo: float, sample_rate: int) -> np.ndarray:
    """Speak `tempo` times as fast in the same voice: WSOLA (Verhelst & Roelands 1993).

    Segments are taken at intervals longer or shorter than those they are laid down at; each begins, within the search, where it
    continues the one before most closely.

    wave: (S,) float32. A wave shorter than a segment is returned as it is.
    Returns: (round(S / tempo),) float32.
    """
    step = max(1, sample_rate // SEARCH_RATE)  # samples; of which all that follows is a whole multiple
    lengths = (round(seconds * sample_rate / step) for seconds in (SEGMENT, OVERLAP, SEARCH))
    segment, overlap, search = (max(1, length) for length in lengths)
    hop, samples = segment - overlap, round(len(wave) / tempo)
    if len(wave) < segment * step:
        return wave
    planned = np.arange(-(-samples // (hop * step))) * (hop * tempo)
    first = np.maximum(np.round(planned).astype(int) - search // 2, 0)
    padded = np.zeros((max(first[-1] + search + segment, -(-len(wave) // step)), step), np.float32)
    padded.reshape(-1)[: len(wave)] = wave
    coarse = padded @ np.ones(step, np.float32)  # their sums, which numpy's sum takes 25 times as long for
    starts = step * _best_starts(coarse, first, hop, overlap, search)
    segment, overlap, hop = segment * step, overlap * step, hop * step
    segments = np.lib.stride_tricks.sliding_window_view(padded.reshape(-1), segment)[starts]
    fade_in = np.arange(overlap, dtype=np.float32) / np.float32(overlap)
    laid = segments[:, :hop]
    laid[1:, :overlap] += (segments[:-1, hop:] - segments[1:, :overlap]) * (1 - fade_in)
    return laid.ravel()[:samples]


def _best_starts(wave: np.ndarray, first: np.ndarray, hop: int, overlap: int, search: int) -> np.ndarray:
    """Where each segment begins: at the one of `search` places from its `first` on whose beginning differs least, by the sum of
    squares, from what follows the segment before. Of (a - b)^2 only b^2 / 2 - a b depends on the place."""
    power = np.zeros(len(wave) + 1)
    np.cumsum(np.square(wave, dtype=np.float64) / 2, out=power[1:])
    half_energy = (power[overlap:] - power[:-overlap]).astype(np.float32)
    starts = [0]
    for place in first[1:].tolist():
        follows = starts[-1] + hop
        fit = np.correlate(wave[place : place + search + overlap - 1], wave[follows : follows + overlap])
        fit -= half_energy[place : place + search]
        starts.append(place + int(fit.argmax()))
    return np.array(starts)
