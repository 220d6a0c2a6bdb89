"""Where words begin and end in the sound, given about where the network wrote the spaces between them.

CTC says little about time: a label is one spike, and where a network has heard all of a recording before it writes, the spike
may stand before the sound or after it. Over a pause the next word's first letters often come seconds early, and some networks
write through slowly spelled letters a whole letter late. The pauses themselves can be heard, though. So the spikes only say
roughly where two words meet, and the sound says where exactly.

T spectrogram frames, K words. An edge e is where frame e begins and frame e - 1 ends.

The constants were set by benchmarks/alignment.py with five networks, on speakers and synthetic voices that they had not heard.
"""

import numpy as np

QUIETEST = 0.1  # share of a recording's frames that are taken for noise alone
NOISE_PEAK, NOISE_LEFT = 2.0, 0.05  # of the noise's mean: what it seldom passes, and what it is counted as
LEVEL_WINDOW = 0.2  # seconds; levels are averaged over this to find silence and the loudest speech
SILENCE_WINDOW = 3.0  # seconds; the quietest of this is silence: longer than a word, so that there is some
LEAST_RANGE, MOST_RANGE = 15.0, 45.0  # dB between silence and the loudest speech
SILENT = 0.3  # of the way from silence to the loudest speech, on a scale of decibels
# A sound of at most this many seconds is no speech if it stays below this level, or has so many seconds of silence around it:
CLICK, CLICK_LEVEL, CLICK_ALONE = 0.1, 0.5, 0.2
SHORTEST_PAUSE = 0.15  # seconds; shorter silence may be a stop consonant
# What a boundary costs:
DISTANCE_WEIGHT = 0.5  # for each second from where it was expected
DRIFT_WEIGHT = 1.0  # for each second by which that differs from the boundary before: lags last for a while
DIP_WEIGHT = 0.33  # at full level rather than at none
PAUSE_WEIGHT, LONGEST_PAUSE = 1.5, 0.5  # gained for each second of pause, up to so many
REACH = 1.0  # seconds of speech; boundaries are looked for so far from where they are expected


def speech_level(spect: np.ndarray, period: float) -> np.ndarray:
    """How loud each frame is, between the silence around it and the loudest speech, whatever microphone and noise.

    The spectrogram's least value is taken for a magnitude of zero, which the normalisation has moved. Noise is subtracted in
    each bin by itself, so that speech stands out which is louder than it in few of them.

    spect: (F, T), normalised as a whole. period: seconds between frames.
    Returns: (T,), 0 for silence and 1 for the loudest.
    """
    magnitude = spect - spect.min()
    loudness = magnitude.mean(0)
    noise = magnitude[:, loudness <= np.quantile(loudness, QUIETEST)].mean(1)  # (F,)
    heard = np.maximum(magnitude - NOISE_PEAK * noise[:, None], 0.0).mean(0, dtype=np.float64) + NOISE_LEFT * noise.mean()
    level = 20 * np.log10(np.maximum(heard, 1e-9))
    smooth = _rolling(level, LEVEL_WINDOW / period, np.mean)
    loudest = smooth.max()
    silence = _rolling(np.maximum(smooth, loudest - MOST_RANGE), SILENCE_WINDOW / period, np.min)
    silence = np.minimum(silence, loudest - LEAST_RANGE)
    return np.clip((level - silence) / (loudest - silence), 0.0, 1.0)


def _rolling(values: np.ndarray, frames: float, function: np.ufunc) -> np.ndarray:
    """A function of the values around each, (T,) -> (T,); the ends are repeated."""
    half = round(frames / 2)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, mode="edge"), 2 * half + 1)
    return function(windows, axis=1)


def find_pauses(level: np.ndarray, period: float) -> np.ndarray:
    """The silences that no word has inside it: those long enough, and whatever length at either end of the recording.

    Returns: (T,) bool.
    """
    silent = level < SILENT
    sounds, far = _runs(~silent), len(level) + CLICK_ALONE / period
    befores, afters = [-far, *(end for _, end in sounds)][: len(sounds)], [*(begin for begin, _ in sounds), far][1:]
    for (begin, end), before, after in zip(sounds, befores, afters, strict=True):
        alone = min(begin - before, after - end) * period >= CLICK_ALONE and len(sounds) > 1
        if (end - begin) * period <= CLICK and (alone or level[begin:end].max() < CLICK_LEVEL):
            silent[begin:end] = True
    for begin, end in _runs(silent):
        if (end - begin) * period < SHORTEST_PAUSE and begin > 0 and end < len(silent):
            silent[begin:end] = False
    return silent


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of each run of true values."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))


def place_words(
    level: np.ndarray, pauses: np.ndarray, expected: np.ndarray, least: np.ndarray, period: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cut what is not pause into words, near where that is expected, best in a pause, else where the level dips.

    The cuts are chosen together, so that every word keeps its least length of speech: distances are measured along the
    speech, and pauses have no length.

    level (T,), pauses (T,) bool. expected (K - 1,) edges, need not be whole. least (K,) int frames of speech, at least 1.
    Returns: the edges at which each word begins and ends, (K,) int each.
    """
    speech = np.flatnonzero(~pauses)
    if len(speech) < len(least):  # as of a recording that is all silence
        speech = np.arange(len(level))
    if least.sum() > len(speech):
        least = np.ones_like(least)
    # Cut u is between the speech frames u - 1 and u, where there may be a pause.
    before, after = np.concatenate([[0], speech + 1]), np.concatenate([speech, [len(level)]])
    pause = np.minimum((after - before) * period, LONGEST_PAUSE)
    dip = np.zeros(len(before))
    dip[1:-1] = np.minimum(level[speech[1:]], level[speech[:-1]])
    cuts = _cheapest_cuts(DIP_WEIGHT * dip - PAUSE_WEIGHT * pause, np.searchsorted(speech, expected), least, period)
    return after[cuts[:-1]], before[cuts[1:]]


def _cheapest_cuts(cost: np.ndarray, expected: np.ndarray, least: np.ndarray, period: float) -> np.ndarray:
    """Dynamic programming over the cuts, each within reach of where it is expected.

    Costs besides those of the places: how far a cut is off, and how much that differs from the cut before.

    cost (U + 1,) of each place. expected (K - 1,) and least (K,) in places, the sum of `least` at most U.
    Returns: (K + 1,) int; the first is 0, the last U.
    """
    end, reach = len(cost) - 1, round(REACH / period)
    centres = _apart(expected, least, end)
    places, total, off = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    windows, choices = [places], []
    for centre, wanted, length in zip(centres, expected, least[:-1], strict=True):
        window = np.arange(max(centre - reach, 0), min(centre + reach, end) + 1)
        off_now = window - wanted
        steps = DRIFT_WEIGHT * period * np.abs(off_now[:, None] - off) + total  # (window, places before)
        steps[window[:, None] - places < length] = np.inf  # each leaves the word before its length
        choice = steps.argmin(1)
        total = steps[np.arange(len(window)), choice] + cost[window] + DISTANCE_WEIGHT * period * np.abs(off_now)
        choices.append(choice)
        windows.append(window)
        places, off = window, off_now
    best = int(np.argmin(np.where(places <= end - least[-1], total, np.inf)))
    cuts = [end, int(places[best])]
    for window, choice in zip(windows[-2::-1], choices[::-1], strict=True):
        best = int(choice[best])
        cuts.append(int(window[best]))
    return np.array(cuts[::-1])


def _apart(places: np.ndarray, least: np.ndarray, end: int) -> np.ndarray:
    """The places moved until they leave room for each word, so that the search around them always finds a way."""
    moved, begin = places.copy(), 0
    for k, place in enumerate(places):
        begin = moved[k] = max(place, begin + least[k])
    for k in reversed(range(len(places))):
        end = moved[k] = min(moved[k], end - least[k + 1])
    return moved
