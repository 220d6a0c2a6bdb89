"""Sound that goes on, cut into utterances at its pauses, for networks that must hear an utterance to its end."""

import numpy as np

from data.pieces import FLOOR, STEP, find_cut

LEAD = 0.3  # seconds before speech, and after it, that belong to an utterance
ONSET = 0.05  # seconds of sound that are no click
ABOVE_NOISE = 10.0  # dB over the quietest of late, for sound to be speech
NOISE_MEMORY = 5.0  # seconds that the quietest is looked for in
SILENCE = -60.0  # dB below full scale, under which nothing is speech
LONGEST = 25.0  # seconds; longer speech is cut where it is quietest


class UtteranceCutter:
    """Tells speech from what is between it by its level, which is compared with the quietest of the last seconds."""

    def __init__(self, rate: int, grid: int, pause: float = 0.6):
        """rate: Hz. grid: samples, as for cut_pieces. pause: seconds without speech that end an utterance."""
        self._rate, self._grid, self._step = rate, grid, round(STEP * rate)
        self._pause = round(pause / STEP)
        self._held = np.empty(0, np.float32)  # since the utterance's beginning, or the last LEAD seconds
        self._first = 0  # sample of the stream that `held` begins with
        self._looked = 0  # samples of `held` whose level is known
        self._levels = [SILENCE]  # of the last seconds; as if it had been quiet before, or who speaks at once is not heard
        self._loud = self._quiet = 0  # steps of sound, and of none since
        self._speaking = False

    def feed(self, wave: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Go on with samples (S,). Returns: utterances that are complete: where each begins, in seconds, and its samples."""
        self._held, found = np.concatenate([self._held, wave]), []
        while self._looked + self._step <= len(self._held):
            step = self._held[self._looked : self._looked + self._step]
            self._looked += self._step
            self._look(20 * float(np.log10(np.sqrt(np.mean(np.square(step))) + FLOOR)))
            if self._speaking and self._quiet >= self._pause:
                found.append(self._cut(self._looked - self._samples(self._quiet * STEP - LEAD)))
                self._speaking, self._loud = False, 0
            elif self._speaking and self._looked >= LONGEST * self._rate:
                found.append(self._cut(find_cut(self._held[: self._looked], self._rate, self._grid)[0]))
            elif not self._speaking and not self._loud:
                self._drop(self._looked - self._samples(LEAD))
        return found

    def finish(self) -> list[tuple[float, np.ndarray]]:
        """What is left, if there was speech in it."""
        return [self._cut(len(self._held))] if self._speaking else []

    def _look(self, level: float) -> None:
        self._levels = [*self._levels[-round(NOISE_MEMORY / STEP) :], level]
        speech = level > max(min(self._levels) + ABOVE_NOISE, SILENCE)
        self._loud = self._loud + 1 if speech else (self._loud if self._speaking else 0)
        self._quiet = 0 if speech else self._quiet + 1
        self._speaking = self._speaking or self._loud * STEP >= ONSET

    def _cut(self, end: int) -> tuple[float, np.ndarray]:
        utterance = self._first / self._rate, self._held[:end]
        self._drop(end)
        return utterance

    def _drop(self, samples: int) -> None:
        if samples > 0:
            self._held = self._held[samples:]
            self._first += samples
            self._looked = max(0, self._looked - samples)

    def _samples(self, seconds: float) -> int:
        return max(0, round(seconds * self._rate))
