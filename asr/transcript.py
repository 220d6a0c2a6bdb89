"""What was said in a recording, and when: the result that every format is written from."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from asr.frame_times import FrameTimes
from decoder import SPACE, Hypothesis

# A word goes on for so many seconds after its last spike, but for no more than this share of the time to the next word: AN4's
# held-out speakers end their words 0.05 s from there (median; align.py's times being right), and 0.17 s from the spike.
AFTER_SPIKE, SHARE_OF_GAP = 0.3, 0.6


@dataclass(frozen=True)
class TimedWord:
    """A word, or where labels have no space, a character."""

    text: str
    start: float  # seconds into the recording
    end: float
    confidence: float  # 0 to 1


@dataclass(frozen=True)
class Spoken:
    """What was said between two pauses, from its first word to its last."""

    text: str
    words: Sequence[TimedWord]

    @property
    def start(self) -> float:
        return self.words[0].start

    @property
    def end(self) -> float:
        return self.words[-1].end

    @property
    def confidence(self) -> float:
        """The mean of the words'."""
        return sum(word.confidence for word in self.words) / len(self.words)

    @property
    def ln_confidence(self) -> float:
        """The mean of their logarithms."""
        return sum(math.log(max(word.confidence, 1e-10)) for word in self.words) / len(self.words)


@dataclass(frozen=True)
class Transcript:
    """All that was said in a recording, in its order."""

    segments: Sequence[Sequence[Hypothesis]]  # between two pauses each, best reading first, in output frames of the recording
    duration: float  # seconds
    times: FrameTimes
    spaced: bool  # whether labels have a space, which then is between segments

    @property
    def text(self) -> str:
        return self.readings(1)[0].text

    def readings(self, count: int) -> list[Hypothesis]:
        """Up to `count` different readings of the whole, best first: of its segments, put together by the sums of scores."""
        ways = {0: (0.0, None)}  # by the text's hash: score, and the way there: (way before, hypothesis)
        for segment in self.segments:
            further = {}
            for before, (score, way) in ways.items():
                for hypothesis in segment[:count]:
                    said = hypothesis.text.strip(SPACE)
                    text = hash((before, said)) if said else before  # of 64 bits: no two of some hundred are alike
                    if text not in further or further[text][0] < score + hypothesis.score:
                        further[text] = score + hypothesis.score, (way, hypothesis)
            ways = dict(heapq.nlargest(count, further.items(), key=lambda item: item[1][0]))
        return [self._joined(way) for _, way in ways.values()]

    def words(self, reading: Hypothesis) -> list[TimedWord]:
        """A reading's words in seconds."""
        return timed_words(reading, self.times, self.duration)

    def spoken(self) -> list[Spoken]:
        """The best reading, segment by segment, of those in which something was said."""
        words, spoken = iter(self.words(self.readings(1)[0])), []
        for segment in self.segments:
            best = segment[0]
            if best.words:
                text = best.text.strip(SPACE) if self.spaced else best.text
                spoken.append(Spoken(text, list(islice(words, len(best.words)))))
        return spoken

    def _joined(self, way: tuple | None) -> Hypothesis:
        parts = []
        while way is not None:
            way, part = way
            parts.append(part)
        parts.reverse()
        if len(parts) == 1:  # a recording that was heard whole: as the decoder gave it
            return parts[0]
        texts, offsets, words, scores = [], [], [], [(0.0, 0.0, 0.0)]
        for part in parts:
            scores.append((part.score, part.acoustic_score, part.lm_score))
            text = part.text.strip(SPACE) if self.spaced else part.text
            if not text:
                continue
            left = part.text.find(text)
            if texts and self.spaced:
                offsets.append(words[-1].end)  # the space that parts them
            texts.append(text)
            offsets += part.offsets[left : left + len(text)]
            words += part.words
        joint = SPACE if self.spaced else ""
        return Hypothesis(joint.join(texts), tuple(offsets), *(sum(kind) for kind in zip(*scores, strict=True)), tuple(words))


def timed_words(hypothesis: Hypothesis, times: FrameTimes, until: float) -> list[TimedWord]:
    """A hypothesis's words in seconds, none of which goes on beyond `until`.

    A word begins with its first spike; its last one comes before it ends, and how it ends is guessed.
    """
    starts = [times.begin(word.start) for word in hypothesis.words]
    words = []
    for word, start, following in zip(hypothesis.words, starts, [*starts, until][1:], strict=True):
        spike = times.begin(word.end)
        end = spike + max(0.0, min(AFTER_SPIKE, SHARE_OF_GAP * (following - spike)))
        end = max(start, min(end, following))  # in a piece's last frame, which the next one begins with, two may be at once
        start, end = (min(max(0.0, seconds), until) for seconds in (start, end))
        words.append(TimedWord(word.text, start, end, word.confidence))
    return words


def shifted(hypothesis: Hypothesis, frames: int) -> Hypothesis:
    """A hypothesis whose frames are counted from `frames` earlier."""
    if not frames:
        return hypothesis
    offsets = tuple(offset + frames for offset in hypothesis.offsets)
    words = tuple(replace(word, start=word.start + frames, end=word.end + frames) for word in hypothesis.words)
    return replace(hypothesis, offsets=offsets, words=words)


def word_json(word: TimedWord) -> dict:
    return {
        "word": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 4),
    }
