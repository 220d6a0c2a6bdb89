"""Text while somebody speaks: partial as it firms up, final at each pause. What transcribe.py --stream and the server run.

Waves of any size become blocks of 10 spectrogram frames, 100 ms with the usual stride, and these go through the network and the
decoder one by one. So how a recording is cut changes nothing, to the bit, and a file that is fed at once gives the same finals.
After a pause the network starts anew, and hears a second time what came meanwhile.

A label comes out when the lookahead has seen its last frame: asr.network_stream.frames_ahead(config) spectrogram frames after
it was said, 530 ms with the default network, to which half a window and the rest of a block, 10 to 110 ms, are added.

L output frames, C labels. Frames, of hypotheses too, are counted from the beginning of the stream.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from torch import Tensor

from asr.network_stream import NetworkStream, frames_ahead
from asr.recognizer import Recognizer
from asr.transcript import Spoken, timed_words, word_json
from data.feature_stream import BLOCK_FRAMES, SpectrogramStream
from decoder import BLANK, SPACE, Hypothesis, as_float32
from model import TIME_STRIDE

BLOCK_OUTPUT = BLOCK_FRAMES // TIME_STRIDE  # output frames of a block
PAUSE_SECONDS = 0.6  # without a label, after which a text is final
LONGEST_SECONDS = 30.0  # of a text; who does not pause so long is cut between two words
# The network starts anew so many seconds before the end of a pause (half a shorter one), because it was trained on utterances:
# 60 of AN4 in a row, WER 9.2 to 10.3; with its state carried on, 18.7 to 20.5; one by one, 7.3 (a model in mid-training).
FRESH_SECONDS = 0.3
CATCH_UP = 2  # blocks that the network hears for each that comes, while it hears for a second time what follows a pause


@dataclass(frozen=True)
class Partial:
    """What may have been said since the last final text; the next event replaces it."""

    text: str
    start: float  # seconds from the beginning of the stream to its first character


@dataclass(frozen=True)
class Final(Spoken):
    """What was said between two pauses, in seconds of the stream; it changes no more."""

    hypotheses: Sequence[Hypothesis]  # best reading first, without spaces at either end, in frames of the stream


class LiveTranscriber:
    """One stream of speech on its way to text. Memory does not grow with it."""

    def __init__(
        self, recognizer: Recognizer, pause: float = PAUSE_SECONDS, longest: float = LONGEST_SECONDS, partials: bool = True
    ):
        """pause, longest: seconds; `partials` False saves the time to read them from the decoder.

        Raises: ValueError naming the model if it cannot follow a stream.
        """
        self._recognizer = recognizer
        self._network = self._fresh_network()
        self._spectrogram = SpectrogramStream(recognizer.audio)
        period = recognizer.times.period
        self._pause = max(1, round(pause / period))
        self._longest = max(1, round(longest / period))
        self._fresh = min(round(FRESH_SECONDS / period), self._pause // 2)
        self._partials, self._decoder = partials, recognizer.decoder
        symbols = recognizer.labels.symbols
        self._silent = [BLANK, *(label for label, symbol in enumerate(symbols) if symbol == SPACE)]
        self._to_hear: deque[Tensor] = deque()  # blocks
        # What the network has heard and may have to hear again: what it is ahead of the text, and a little silence before.
        ahead = frames_ahead(recognizer.model.config) + TIME_STRIDE * self._fresh
        self._heard: deque[Tensor] = deque(maxlen=ahead // BLOCK_FRAMES + 3)
        self._blocks = 0  # heard, of the stream
        self._start_anew = False
        self._begin(0)

    def feed(self, wave: np.ndarray) -> list[Partial | Final]:
        """Go on with samples (S,) float32 at the model's rate. Returns: what came of them."""
        events = []
        for block in self._spectrogram.feed(wave):
            self._to_hear.append(block)
            for _ in range(min(CATCH_UP, len(self._to_hear))):
                events += self._hear()
        return events

    def finish(self) -> list[Final]:
        """What the end of the stream makes final.

        Raises: ValueError if all in all there was less than half a window of sound.
        """
        self._to_hear.append(self._spectrogram.finish())
        events = []
        while self._to_hear:
            events += self._hear(ending=True)
        return [event for event in events if isinstance(event, Final)] + self._final()

    def _fresh_network(self) -> NetworkStream:
        try:
            return NetworkStream(self._recognizer.model, self._recognizer.runtime)
        except ValueError as error:
            raise ValueError(f"{self._recognizer.name}: {error}") from None

    def _hear(self, ending: bool = False) -> list[Partial | Final]:
        """Take the next block through network and decoder."""
        block = self._to_hear.popleft()
        self._heard.append(block)
        self._blocks += 1
        events = self._read(self._network.feed(block, last=ending and not self._to_hear))
        if self._start_anew:
            self._start_anew = False
            first = (self._first - self._fresh) // BLOCK_OUTPUT
            again = self._blocks - first
            self._to_hear.extendleft(self._heard.pop() for _ in range(again))
            self._blocks, self._network = first, self._fresh_network()
            self._begin(first * BLOCK_OUTPUT)
        return events

    def _begin(self, frame: int) -> None:
        """Start a text at a frame of the stream."""
        self._first, self._frames = frame, 0  # where it starts, how many there are of it
        self._kept: list[np.ndarray] = []  # these frames, (L, C), should they have to be parted elsewhere
        self._quiet = 0  # how many frames have had no label but blank and space
        self._shown = ""
        self._stream = self._decoder.start()

    def _read(self, log_probs: Tensor | np.ndarray) -> list[Partial | Final]:
        """Decode frames (L, C)."""
        frames, events, begin = as_float32(log_probs), [], 0
        for end, quiet in enumerate(np.isin(frames.argmax(-1), self._silent).tolist(), start=1):
            self._quiet = self._quiet + 1 if quiet else 0
            paused, too_long = self._quiet == self._pause, self._frames + end - begin == self._longest
            if paused or too_long:
                self._take(frames[begin:end])
                events += self._final() if paused else self._part()
                begin = end
                self._start_anew |= paused and any(isinstance(event, Final) for event in events)
                if self._start_anew:  # what follows will be heard again
                    return events
        self._take(frames[begin:])
        return events + self._partial()

    def _take(self, frames: np.ndarray) -> None:
        self._stream.feed(frames)
        self._kept.append(frames)
        self._frames += len(frames)

    def _partial(self) -> list[Partial]:
        if not self._partials:
            return []
        hypothesis = self._placed(self._stream.partial())
        if hypothesis.text == self._shown:
            return []
        self._shown = hypothesis.text
        start = hypothesis.offsets[0] if hypothesis.text else self._first
        return [Partial(hypothesis.text, max(0.0, self._recognizer.times.begin(start)))]

    def _final(self) -> list[Final]:
        """End the text here, if there is any, and start another."""
        hypotheses = tuple(self._placed(hypothesis) for hypothesis in self._stream.finish())
        self._begin(self._first + self._frames)
        if not hypotheses[0].text:
            return []
        times = self._recognizer.times
        return [Final(hypotheses[0].text, timed_words(hypotheses[0], times, times.begin(self._first)), hypotheses)]

    def _part(self) -> list[Partial | Final]:
        """End the text where it hurts least, and start another with what follows there."""
        frames, first = np.concatenate(self._kept), self._first
        place = _best_place(frames.argmax(-1).tolist(), self._silent)
        self._begin(first)
        self._take(frames[:place])
        return self._final() + self._read(frames[place:])

    def _placed(self, hypothesis: Hypothesis) -> Hypothesis:
        """Without spaces at its ends, and in frames of the stream."""
        text = hypothesis.text.strip(SPACE)
        left = hypothesis.text.find(text)
        return replace(
            hypothesis,
            text=text,
            offsets=tuple(self._first + frame for frame in hypothesis.offsets[left : left + len(text)]),
            words=tuple(replace(w, start=self._first + w.start, end=self._first + w.end) for w in hypothesis.words),
        )


def event_json(event: Partial | Spoken) -> dict:
    """An event as transcribe.py and the server send it; times in seconds."""
    if isinstance(event, Partial):
        return {"partial": event.text, "start": round(event.start, 3)}
    words = [word_json(word) for word in event.words]
    return {"final": event.text, "start": words[0]["start"], "end": words[-1]["end"], "words": words}


def follows_streams(recognizer: Recognizer) -> bool:
    """Whether a model was made to be heard live: normalised as speech comes, and hearing one way."""
    return recognizer.audio.streaming_norm and not recognizer.model.config.bidirectional


def _best_place(labels: list[int], silent: list[int]) -> int:
    """Before which frame to part a text: in its second half, amid the longest silence, one with a space if there is any."""
    frame = len(labels) // 2
    best = (False, 0, len(labels))
    for quiet, run in groupby(labels[frame:], silent.__contains__):
        run = list(run)
        if quiet:
            best = max(best, (any(label != BLANK for label in run), len(run), frame + (len(run) + 1) // 2))
        frame += len(run)
    return best[-1]
