"""What was said in a recording, and when: the result that every format is written from."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from asr.frame_times import FrameTimes
from decoder import SPACE, Hypothesis


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


@dataclass(frozen=True)
class Segment:
    """What was said between two pauses, best reading first, in output frames of the recording."""

    start: float  # seconds
    end: float
    hypotheses: Sequence[Hypothesis]


@dataclass(frozen=True)
class Transcript:
    """All that was said in a recording, in its order."""

    segments: Sequence[Segment]
    duration: float  # seconds
    times: FrameTimes
    spaced: bool  # whether labels have a space, which then is between segments

    @property
    def text(self) -> str:
        return self.readings(1)[0].text

    def readings(self, count: int) -> list[Hypothesis]:
        """Up to `count` readings of the whole, best first: those of its segments, put together by the sums of their scores."""
        ways = [(0.0, None)]  # score, and the way there: (way before, hypothesis)
        for segment in self.segments:
            further = ((score + h.score, (way, h)) for score, way in ways for h in segment.hypotheses[:count])
            ways = heapq.nlargest(count, further, key=lambda scored: scored[0])
        return [self._joined(way) for _, way in ways]

    def words(self, reading: Hypothesis) -> list[TimedWord]:
        """A reading's words in seconds. A frame lasts from half a period before its centre to half a period after it."""
        first, period = self.times.first - self.times.period / 2, self.times.period

        def seconds(frame: int) -> float:
            return min(max(0.0, first + frame * period), self.duration)

        return [TimedWord(word.text, seconds(word.start), seconds(word.end), word.confidence) for word in reading.words]

    def spoken(self) -> list[Spoken]:
        """The best reading, segment by segment, of those in which something was said."""
        spoken = []
        for segment in self.segments:
            best = segment.hypotheses[0]
            if best.words:
                spoken.append(Spoken(best.text.strip(SPACE) if self.spaced else best.text, self.words(best)))
        return spoken

    def _joined(self, way: tuple | None) -> Hypothesis:
        parts = []
        while way is not None:
            way, part = way
            if part.text.strip(SPACE) or len(self.segments) == 1:
                parts.append(part)
        parts.reverse()
        if len(parts) == 1:
            return parts[0]
        texts, offsets, words, scores = [], [], [], [(0.0, 0.0, 0.0)]
        for part in parts:
            text = part.text.strip(SPACE) if self.spaced else part.text
            left = part.text.find(text)
            if texts and self.spaced:
                offsets.append(words[-1].end)  # the space that parts them
            texts.append(text)
            offsets += part.offsets[left : left + len(text)]
            words += part.words
            scores.append((part.score, part.acoustic_score, part.lm_score))
        joint = SPACE if self.spaced else ""
        return Hypothesis(joint.join(texts), tuple(offsets), *(sum(kind) for kind in zip(*scores, strict=True)), tuple(words))


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
