"""When each word and character of a known transcript is said: what align.py does with each utterance, and with all of them.

The best path through the transcript (asr/ctc_path.py) says which output frame writes which character, and how probable that is;
then the sound says where words begin and end (asr/boundaries.py).

L output frames, C labels, N characters, K words, F frequency bins, T spectrogram frames. Times are in seconds.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from asr.boundaries import find_pauses, place_words, speech_level
from asr.ctc_path import best_path, state_labels
from asr.evaluation import acoustic_output
from asr.frame_times import FrameTimes
from asr.recognizer import Recognizer
from config import AudioConfig, ModelConfig
from data.audio import load_audio
from data.checks import CheckResult, apply_policy, check_utterances
from data.command_line import progress_bar
from data.dataset import BatchLoader, SpectrogramDataset
from data.features import spectrogram
from data.labels import Labels
from data.manifest import read_manifest
from data.samplers import BatchLimit, SampleKey
from data.utterances import Utterance, UtteranceTable
from model import output_frames

# Seconds by which a network writes the space before the words part, which it hears coming. With these times are best on
# speakers and voices that the networks had not heard (benchmarks/alignment.py --spike-lead).
SPIKE_LEAD, LOOKAHEAD_SPIKE_LEAD = 0.05, 0.15
WORD_SECONDS, CHARACTER_SECONDS = 0.06, 0.03  # a word takes at least so long, and so much more for each character
SORTED_TOGETHER = 20  # batches' worth of utterances, among which they are formed by length, so that results come in good time
MOST_SECONDS = 600  # of audio in a batch that is limited by its utterances: twenty long recordings would fill the memory


@dataclass(frozen=True)
class Span:
    """A piece of text, from when to when it is said, and how well the network hears it there."""

    text: str
    start: float  # seconds
    end: float
    score: float  # natural log probability of the path, per character

    @property
    def confidence(self) -> float:
        """0 to 1: the geometric mean of what the network gives each character; near 0 where something else is said."""
        return math.exp(self.score)


@dataclass(frozen=True)
class Word(Span):
    characters: tuple[Span, ...]


@dataclass(frozen=True)
class Alignment(Span):
    """A whole utterance; it starts where its recording does, unless it is a segment of it."""

    words: tuple[Word, ...]


class Aligner:
    """Aligns transcripts by one network's output."""

    def __init__(self, labels: Labels, audio: AudioConfig, model: ModelConfig, spike_lead: float | None = None):
        """spike_lead: seconds by which the network writes the space before the words part, negative if it is late."""
        usual = SPIKE_LEAD if model.bidirectional else LOOKAHEAD_SPIKE_LEAD
        self.labels, self.spike_lead = labels, usual if spike_lead is None else spike_lead
        self.spectrogram_times = FrameTimes.of_spectrogram(audio)
        self.output_times = FrameTimes.of_output(audio, model)

    def align(self, log_probs: np.ndarray, spect: np.ndarray, text: str, duration: float, offset: float = 0.0) -> Alignment:
        """Align a transcript, normalised as checked ones are (data/checks.py).

        log_probs (L, C) and spect (F, T), normalised as a whole, of an utterance of `duration` seconds, `offset` seconds into
        its recording.
        Raises: ValueError if it is empty, holds characters that are not among the labels, or is too long for the audio.
        """
        targets = self.labels.encode(text)
        path = best_path(log_probs, targets)
        spikes = _Spikes.of(path, log_probs, targets)
        words = text.split(" ")
        lengths = np.array([len(word) for word in words])
        firsts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])  # of each word, its first character
        starts, ends = self._word_times(spect, spikes.begins[firsts[1:] - 1], lengths)
        duration = max(duration, (spect.shape[1] - 1) * self.spectrogram_times.period)  # a header may have told too little
        starts, ends = np.clip(starts, 0, duration), np.clip(ends, 0, duration)
        centres = self.output_times.first + self.output_times.period * (spikes.begins + spikes.ends - 1) / 2
        placed = []
        for word, first, start, end in zip(words, firsts, starts, ends, strict=True):
            after = first + len(word)
            edges = offset + character_edges(centres[first:after], start, end)
            scores = spikes.scores[first:after]
            characters = tuple(map(Span, word, edges[:-1].tolist(), edges[1:].tolist(), scores.tolist()))
            placed.append(Word(word, float(edges[0]), float(edges[-1]), spikes.score(first, after), characters))
        return Alignment(text, offset, offset + duration, spikes.total / len(text), tuple(placed))

    def _word_times(self, spect: np.ndarray, spaces: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """spaces (K - 1,) output frames in which the spaces are written, lengths (K,) characters -> starts, ends (K,)."""
        first, period = self.spectrogram_times.first, self.spectrogram_times.period
        level = speech_level(spect, period)
        pauses = find_pauses(level, period)
        written = (self.output_times.first + self.output_times.period * spaces - first) / period  # spectrogram frames
        least = np.rint((WORD_SECONDS + CHARACTER_SECONDS * lengths) / period).astype(np.int64).clip(1)
        # An edge is half a frame before the centre of the frame it is named by.
        begins, ends = place_words(level, pauses, written + self.spike_lead / period + 0.5, least, period)
        return first + (begins - 0.5) * period, first + (ends - 0.5) * period


@dataclass(frozen=True)
class _Spikes:
    """In which output frames each of N characters is written, and how probably."""

    begins: np.ndarray  # (N,) int
    ends: np.ndarray  # (N,) int, exclusive
    scores: np.ndarray  # (N,) mean log probability
    sums: np.ndarray  # (L + 1,) log probability of the path up to each frame

    @classmethod
    def of(cls, path: np.ndarray, log_probs: np.ndarray, targets: np.ndarray) -> "_Spikes":
        scores = log_probs[np.arange(len(path)), state_labels(targets)[path]]
        sums = np.concatenate([[0.0], np.cumsum(scores, dtype=np.float64)])
        states = 2 * np.arange(len(targets)) + 1
        begins, ends = np.searchsorted(path, states, "left"), np.searchsorted(path, states, "right")
        return cls(begins, ends, (sums[ends] - sums[begins]) / (ends - begins), sums)

    @property
    def total(self) -> float:
        return float(self.sums[-1])

    def score(self, first: int, after: int) -> float:
        """Of a word, what is between its characters included: the log probability per character."""
        return float(self.sums[self.ends[after - 1]] - self.sums[self.begins[first]]) / int(after - first)


def character_edges(centres: np.ndarray, start: float, end: float) -> np.ndarray:
    """Share a word's time among its characters: they meet half-way between their spikes.

    A spike outside the word says nothing; such characters divide what lies between their neighbours.

    centres (N,) seconds, rising -> edges (N + 1,) seconds, rising from start to end.
    """
    count = len(centres)
    inside = np.flatnonzero((centres > start) & (centres < end))
    known = np.concatenate([[-0.5], inside, [count - 0.5]])
    middles = np.interp(np.arange(count), known, np.concatenate([[start], centres[inside], [end]]))
    return np.concatenate([[start], (middles[1:] + middles[:-1]) / 2, [end]])


def check_manifest(path: str, recognizer: Recognizer) -> tuple[UtteranceTable, list[str]]:
    """The utterances that can be aligned, as far as transcripts and recordings' headers tell, and where the others are.

    What is wrong with those is told on standard error. Raises: OSError; ValueError naming the manifest if none is left.
    """
    utterances = read_manifest(path)
    found = _check(utterances, recognizer)
    if not found.good:
        apply_policy(found, "fail", path)
    bad = dict.fromkeys(problem.where for problem in found.problems)
    audio = {utterance.where: utterance.audio for utterance in utterances if utterance.where in bad} if bad else {}
    for problem in found.problems:
        named = problem.detail if audio[problem.where] in problem.detail else f"{audio[problem.where]}: {problem.detail}"
        print(f"left out: {problem.where}: {problem.kind}: {named}", file=sys.stderr)
    return found.good, list(bad)


def check_recording(audio: str, text: str | None, text_path: str | None, recognizer: Recognizer) -> UtteranceTable:
    """One recording with its transcript, given or in a file. Raises: OSError or ValueError naming it if it cannot be used."""
    found = _check([Utterance(audio, text=text, text_path=text_path)], recognizer)
    for problem in found.problems:
        where = "" if audio in problem.detail else f"{audio}: "
        raise ValueError(f"{where}{problem.detail} ({problem.kind}{problem.hint and '; ' + problem.hint})")
    load_audio(audio, recognizer.audio.sample_rate)  # which tells more than the header
    return found.good


def _check(utterances: UtteranceTable | list[Utterance], recognizer: Recognizer) -> CheckResult:
    frames = partial(output_frames, paddings=recognizer.model.conv.paddings)
    return check_utterances(utterances, recognizer.labels, recognizer.audio, frames)


def align_utterances(
    utterances: UtteranceTable,
    recognizer: Recognizer,
    aligner: Aligner,
    limit: BatchLimit,
    num_workers: int,
    left_out: list[str],
) -> Iterator[tuple[Utterance, Alignment]]:
    """Align checked utterances; they come in their own order, as soon as those before them are done.

    One that cannot be aligned after all is told on standard error and joins the list of those `left_out`.
    """
    batches = [[SampleKey(0, int(index)) for index in batch] for batch in _batches(utterances.durations, limit)]
    loader = BatchLoader(SpectrogramDataset(utterances, recognizer.audio), batches, num_workers, "skip")
    waiting, turn, heard = {}, 0, 0.0
    began, total = time.monotonic(), round(float(utterances.durations.sum()), 1)
    with progress_bar(total=total, desc="aligning", unit=" s of audio") as bar:
        for keys, batch in zip(batches, loader, strict=True):
            waiting |= {key.index: None for key in keys}
            if len(batch.indices):
                log_probs, lens = acoustic_output(recognizer.model, batch, recognizer.runtime)
            for row, index in enumerate(batch.indices.tolist()):
                scores, spect = log_probs[row, : lens[row]], batch.spects[row, 0, :, : batch.spect_lens[row]]
                waiting[index] = _aligned(utterances[index], scores.numpy(), spect.numpy(), recognizer.audio, aligner)
            heard += sum(utterances.durations[key.index] for key in keys)
            bar.set_postfix_str(f"real-time factor {(time.monotonic() - began) / heard:.3f}", refresh=False)
            bar.update(round(heard, 1) - bar.n)
            while turn in waiting:
                utterance, alignment = utterances[turn], waiting.pop(turn)
                if alignment is None:
                    left_out.append(utterance.where)
                else:
                    yield utterance, alignment
                turn += 1


def _aligned(
    utterance: Utterance, log_probs: np.ndarray, spect: np.ndarray, audio: AudioConfig, aligner: Aligner
) -> Alignment | None:
    """The utterance's alignment; None if it has none, which is told on standard error."""
    try:
        if audio.streaming_norm:  # levels at different times cannot be compared there
            wave = load_audio(utterance.audio, audio.sample_rate, *utterance.segment)
            spect = spectrogram(wave, replace(audio, streaming_norm=False)).numpy()
        return aligner.align(log_probs, spect, utterance.text, utterance.duration, utterance.offset or 0.0)
    except ValueError as error:
        where = f"{utterance.where}: " if utterance.manifest else ""
        print(f"left out: {where}{utterance.audio}: {error}", file=sys.stderr)
        return None


def _batches(durations: np.ndarray, limit: BatchLimit) -> list[np.ndarray]:
    """Batches of like length, near the order of the utterances."""
    together = SORTED_TOGETHER * (limit.utterances or math.ceil(limit.seconds / durations.mean()))
    batches = []
    for begin in range(0, len(durations), together):
        order = begin + np.argsort(durations[begin : begin + together], kind="stable")
        for batch in limit.cut(order, durations):
            batches += BatchLimit(seconds=MOST_SECONDS).cut(batch, durations) if limit.utterances else [batch]
    return batches
