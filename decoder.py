"""Log probabilities to text: the best label of each frame, or a beam search with a language model.

L output frames, C labels, B utterances. Label 0 is the CTC blank. Times are output frames; how long one is, is the caller's
business. What is compiled of the beam search is in decoding/.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from config import DecoderConfig

BLANK = 0
SPACE = " "
MOST_OFF_ONE = 0.05  # by which a frame's probabilities may miss 1: bfloat16 rounds the logarithms of 5000 labels to that


@dataclass(frozen=True)
class Word:
    """A word, or where labels have no space, a character."""

    text: str
    start: int  # its first frame
    end: int  # the frame after its last
    confidence: float  # 0 to 1: see Spelled


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance. Scores are natural logarithms."""

    text: str
    offsets: tuple[int, ...]  # the output frame at which each character of the text starts
    score: float  # acoustic_score + alpha * lm_score + beta * words - penalties + what hot words add
    acoustic_score: float  # ln p of the text by the network (greedy: of the one path behind it)
    lm_score: float  # ln p of the text by the language model, unweighted; 0 without one
    words: tuple[Word, ...]


class DecodeError(ValueError):
    """Some utterances of a batch could not be decoded; the others were.

    failures: the error of each row that failed; hypotheses: as decode would have returned them, None for these rows.
    """

    def __init__(self, failures: dict[int, ValueError], hypotheses: list[list[Hypothesis] | None]):
        told = "; ".join(f"row {row}: {error}" for row, error in failures.items())
        super().__init__(f"{len(failures)} of {len(hypotheses)} utterances could not be decoded: {told}")
        self.failures, self.hypotheses = failures, hypotheses


@dataclass(frozen=True)
class Spelled:
    """A text, and what is known of each of its N characters.

    A word's confidence is the geometric mean of its characters' posteriors, each taken in the frame where it is highest, times
    the share of this word in all readings of the beam with the same text before it (greedy decoding: 1).
    """

    text: Sequence[str]
    start: Sequence[int]  # its first frame
    end: Sequence[int]  # the frame after its last
    peak: Sequence[float]  # its highest posterior in them
    before: Sequence[float]  # weight of all readings that begin like this one, until before the character
    through: Sequence[float]  # of those that go on with it, and at a word's last character, end the word there

    def words(self, spaced: bool) -> tuple[Word, ...]:
        """Between spaces, or where labels have none, each character."""
        if not spaced:
            return tuple(self._word(i, i + 1) for i in range(len(self.text)))
        gaps = [-1, *(i for i, character in enumerate(self.text) if character == SPACE), len(self.text)]
        return tuple(self._word(left + 1, right) for left, right in pairwise(gaps) if right > left + 1)

    def _word(self, first: int, end: int) -> Word:
        acoustic = math.prod(self.peak[first:end]) ** (1 / (end - first))
        share = self.through[end - 1] / self.before[first] if self.before[first] else 0.0
        return Word("".join(self.text[first:end]), self.start[first], self.end[end - 1], min(1.0, acoustic * share))


class GreedyDecoder:
    """The best label of each frame, repeats merged, blanks dropped (Graves et al. 2006, section 3.2)."""

    model = None  # it has no use for a language model

    def __init__(self, symbols: Sequence[str]):
        self.symbols = tuple(symbols)

    def decode(self, log_probs: Tensor, lens: Tensor) -> list[list[Hypothesis]]:
        """Best first, one list for each utterance; greedy knows one hypothesis.

        log_probs (B, L, C) of log-softmaxed logits, lens (B,) frames that count.
        """
        return [decode_at_once(self, utterance) for utterance in utterances(log_probs, lens, len(self.symbols))]

    def start(self) -> "GreedyStream":
        """Decode frames as they come."""
        return GreedyStream(self.symbols)


class GreedyStream:
    """Greedy decoding of frames as they come: in whatever pieces, the result is that of all at once."""

    def __init__(self, symbols: Sequence[str]):
        self.symbols = symbols
        self.characters: list[list] = []  # label, first frame, frame after the last, ln of the highest posterior
        self.score, self.frames, self.last = 0.0, 0, BLANK

    def feed(self, log_probs: Tensor | np.ndarray) -> None:
        """Go on with frames (L, C)."""
        log_probs = as_float32(log_probs)
        best = log_probs.argmax(-1)
        for label, ln_p in zip(best.tolist(), log_probs.max(-1).tolist(), strict=True):
            if label != BLANK and label != self.last:  # labels are compared as indices
                self.characters.append([label, self.frames, self.frames + 1, ln_p])
            elif label != BLANK:
                self.characters[-1][2:] = self.frames + 1, max(self.characters[-1][3], ln_p)
            self.score, self.frames, self.last = self.score + ln_p, self.frames + 1, label

    def partial(self) -> Hypothesis:
        """What was said so far."""
        labels, start, end, ln_p = zip(*self.characters, strict=True) if self.characters else [()] * 4
        sure = [1.0] * len(labels)  # there is one reading
        spelled = Spelled([self.symbols[label] for label in labels], start, end, [math.exp(x) for x in ln_p], sure, sure)
        words = spelled.words(SPACE in self.symbols)
        return Hypothesis("".join(spelled.text), start, self.score, self.score, 0.0, words)

    def finish(self) -> list[Hypothesis]:
        """The one reading of all frames so far."""
        return [self.partial()]


class BeamDecoder:
    """Prefix beam search (decoding/search.py), with a language model and hot words where there are any.

    Texts are written as transcripts are: single spaces, none at either end.
    """

    def __init__(self, symbols: Sequence[str], config: DecoderConfig, model: object | None = None):
        """`model`: what decoding.language_model.load_language_model returns.

        Raises: ValueError if the model's words, or hot words, cannot be written in these symbols.
        """
        from decoding.hotwords import read_hot_words  # numba takes half a second to import
        from decoding.setup import build_setup, build_vocabulary

        self.symbols, self.config = tuple(symbols), config
        hot_words = read_hot_words(config.hotwords) if config.hotwords is not None else {}
        self._vocabulary = build_vocabulary(self.symbols, model, hot_words)
        self._setup = build_setup(self._vocabulary, config)

    @property
    def model(self) -> object | None:
        return self._vocabulary.model

    def with_weights(self, **changes: object) -> "BeamDecoder":
        """A decoder of other weights that shares the model with this one, as tuning needs them by the hundred.

        `changes`: any fields of DecoderConfig but decoder, lm_path and hotwords.
        """
        from decoding.setup import build_setup

        other = copy.copy(self)
        other.config = replace(self.config, **changes)
        other._setup = build_setup(self._vocabulary, other.config)
        return other

    def with_hot_words(self, weights: Mapping[str, float]) -> "BeamDecoder":
        """A decoder of other hot words that shares the model with this one. Raises: ValueError if labels cannot spell them."""
        from decoding.hotwords import build_hot_words
        from decoding.setup import build_setup

        other = copy.copy(self)
        other._vocabulary = replace(self._vocabulary, hot=build_hot_words(weights, self.symbols))
        other._setup = build_setup(other._vocabulary, self.config)
        return other

    def decode(self, log_probs: Tensor, lens: Tensor) -> list[list[Hypothesis]]:
        """Best first, up to `top_paths` for each utterance; `lm_workers` threads decode one each.

        log_probs (B, L, C) of log-softmaxed logits, lens (B,) frames that count.
        Raises: ValueError if the shapes do not fit; DecodeError, which has the others' hypotheses, if some utterances are not
            probabilities.
        """
        rows = utterances(log_probs, lens, len(self.symbols))
        if self.config.lm_workers == 1:
            outcomes = [self._outcome(row) for row in rows]
        else:
            with ThreadPoolExecutor(self.config.lm_workers) as threads:
                outcomes = list(threads.map(self._outcome, rows))
        failures = {row: outcome for row, outcome in enumerate(outcomes) if isinstance(outcome, ValueError)}
        if failures:
            raise DecodeError(failures, [None if row in failures else outcome for row, outcome in enumerate(outcomes)])
        return outcomes

    def _outcome(self, log_probs: np.ndarray) -> list[Hypothesis] | ValueError:
        """What comes of an utterance, be it an error, so that the others are not lost."""
        try:
            return decode_at_once(self, log_probs)
        except ValueError as error:
            return error

    def start(self) -> "BeamStream":
        """Decode frames as they come."""
        return BeamStream(self)


class BeamStream:
    """Beam search over frames as they come: in whatever pieces, the result is that of all at once.

    Beside a beam, memory is needed for the characters of the leading text alone.
    """

    def __init__(self, decoder: BeamDecoder):
        from decoding.beam import BeamSearch

        self.decoder = decoder
        self._search = BeamSearch(decoder._setup)

    def feed(self, log_probs: Tensor | np.ndarray) -> None:
        """Go on with frames (L, C). Raises: ValueError, and takes none of them, if they are not ln of probabilities."""
        frames = as_float32(log_probs)
        if frames.ndim != 2 or frames.shape[1] != len(self.decoder.symbols):
            raise ValueError(f"frames of shape {frames.shape}: expected (frames, {len(self.decoder.symbols)} labels)")
        check_probabilities(frames, self._search.frames)
        self._search.feed(frames)

    def partial(self) -> Hypothesis:
        """What leads now; its last word may be unfinished, and is scored as such."""
        return self._hypothesis(self._search.leading())

    def finish(self) -> list[Hypothesis]:
        """The readings of all frames so far, best first, as if nothing followed."""
        return [self._hypothesis(reading) for reading in self._search.texts(self.decoder.config.top_paths)]

    def _hypothesis(self, reading: object) -> Hypothesis:
        found = {name: reading.characters[name].tolist() for name in reading.characters.dtype.names}
        spelled = Spelled([self.decoder.symbols[label] for label in found.pop("label")], **found)
        return Hypothesis(
            "".join(spelled.text),
            tuple(spelled.start),
            reading.score,
            reading.acoustic,
            reading.lm,
            spelled.words(SPACE in self.decoder.symbols),
        )


def decode_at_once(decoder: GreedyDecoder | BeamDecoder, log_probs: np.ndarray) -> list[Hypothesis]:
    """Decode all frames (L, C) of an utterance, the way that streams go."""
    stream = decoder.start()
    stream.feed(log_probs)
    return stream.finish()


def utterances(log_probs: Tensor, lens: Tensor, num_labels: int) -> list[np.ndarray]:
    """The frames that count of each utterance, (L, C) float32. Raises: ValueError if the shapes do not fit."""
    if log_probs.ndim != 3 or log_probs.shape[2] != num_labels or lens.shape != log_probs.shape[:1]:
        raise ValueError(
            f"log probabilities {tuple(log_probs.shape)} and lengths {tuple(lens.shape)}: expected (utterances, frames, "
            f"{num_labels} labels) and (utterances,)"
        )
    outside = [n for n in lens.tolist() if not 0 <= n <= log_probs.shape[1]]
    if outside:
        raise ValueError(f"length {outside[0]}: expected 0 to {log_probs.shape[1]}, the frames there are")
    frames = as_float32(log_probs)
    return [row[:n] for row, n in zip(frames, lens.tolist(), strict=True)]


def as_float32(log_probs: Tensor | np.ndarray) -> np.ndarray:
    """An array that is only read, so that the search is compiled once for arrays of any origin."""
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.detach().float().cpu().numpy()
    frames = np.ascontiguousarray(log_probs, np.float32).view()
    frames.flags.writeable = False
    return frames


def check_probabilities(frames: np.ndarray, first: int) -> None:
    """Refuse what is no log-softmax output (L, C), of which a search would make nonsense without a sign of it."""
    totals = np.exp(frames).sum(-1)
    wrong = np.flatnonzero(~(np.abs(totals - 1) <= MOST_OFF_ONE))  # which NaN is, too
    if len(wrong):
        raise ValueError(
            f"frame {first + wrong[0]}: its probabilities add up to {totals[wrong[0]]:g}: expected 1, as log_softmax makes it"
        )


def build_decoder(config: DecoderConfig, symbols: Sequence[str]) -> GreedyDecoder | BeamDecoder:
    """The decoder of the settings. Raises: ValueError or OSError naming a language model or hot words that do not serve."""
    if config.decoder == "greedy":
        return GreedyDecoder(symbols)
    from decoding.language_model import load_language_model

    return BeamDecoder(symbols, config, load_language_model(config.lm_path) if config.lm_path else None)
