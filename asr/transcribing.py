"""Many recordings to transcripts: reading, the network and decoding work at the same time.

One thread reads recordings and makes spectrograms of their pieces. The main one gathers pieces, sorts them by length, and has
the network hear them in batches. Others decode, each recording by one of them. Results come in the recordings' order.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from torch import Tensor

from asr.recognizer import Reader, Recognizer
from asr.transcript import Transcript
from data.audio import source_name
from data.command_line import message
from data.pieces import Piece
from data.recordings import Recording
from data.samplers import BatchLimit

GATHERED = 6  # batches' worth of pieces, among which batches are formed by length
AHEAD = 64  # pieces, at most, that are read before the network is ready for them
BEHIND = 64  # pieces of a recording, at most, that wait for its decoder
PATIENCE = 1.0  # seconds; a thread that waits longer, as for a pipe, is left behind


class Outcome(NamedTuple):
    """What came of a recording: a transcript, or why there is none."""

    recording: Recording
    transcript: Transcript | None
    error: str = ""


class _Read(NamedTuple):
    """A piece of recording `index`; without a piece, its end, or what ended it."""

    index: int
    piece: Piece | None = None
    spect: Tensor | None = None
    error: BaseException | None = None


def transcribe_recordings(
    recognizer: Recognizer, recordings: Sequence[Recording], limit: BatchLimit, heard: Callable[[float], None]
) -> Iterator[Outcome]:
    """Transcribe recordings of any number and length, in memory that does not grow with either.

    heard: is told the seconds of audio of each batch, when the network has heard it.
    Raises: what is no fault of a recording; what is, becomes its outcome.
    """
    with ExitStack() as stack:
        reading = stack.enter_context(_Reading(recognizer, recordings))
        count = recognizer.config.lm_workers
        decoders = [ThreadPoolExecutor(1) for _ in range(count)]
        for decoder in decoders:
            stack.callback(decoder.shutdown, cancel_futures=True)
        works, turn = {}, 0
        for gathered in reading.gathered(limit):
            for read in gathered:
                if read.index not in works:
                    works[read.index] = _Work(recognizer.reader(), decoders[read.index % count])
                works[read.index].expect(read)
            pieces = [read for read in gathered if read.piece is not None]
            seconds = np.array([read.piece.seconds for read in pieces])
            for batch in limit.cut(np.argsort(seconds, kind="stable"), seconds):
                chosen = [pieces[i] for i in batch]
                for read, log_probs in zip(chosen, recognizer.hear([(r.piece, r.spect) for r in chosen]), strict=True):
                    works[read.index].arrived(read.piece, log_probs)
                heard(float(seconds[batch].sum()))
            while turn in works and works[turn].result is not None:
                yield works.pop(turn).outcome(recordings[turn])
                turn += 1


class _Work:
    """A recording under way: its pieces are heard in any order, and decoded in their own."""

    def __init__(self, reader: Reader, decoder: ThreadPoolExecutor):
        self._reader, self._decoder = reader, decoder
        self._order: list[Piece] = []  # that are expected, and not decoded yet
        self._heard: dict[Piece, np.ndarray] = {}
        self._tasks: list[Future] = []
        self._complete = False
        self.result: Future | None = None  # once all of it is read, heard and on its way to be decoded
        self.error: BaseException | None = None

    def expect(self, read: _Read) -> None:
        if read.piece is not None:
            self._order.append(read.piece)
        else:
            self._complete, self.error = True, read.error
            self._decode()

    def arrived(self, piece: Piece, log_probs: np.ndarray) -> None:
        self._heard[piece] = log_probs
        self._decode()

    def _decode(self) -> None:
        while self._order and self._order[0] in self._heard:
            piece = self._order.pop(0)
            self._tasks.append(self._decoder.submit(self._reader.add, piece, self._heard.pop(piece)))
            if len(self._tasks) > BEHIND:
                wait(self._tasks[-BEHIND - 1 : -BEHIND])
        if self._complete and not self._order:
            self.result = self._decoder.submit(self._reader.transcript)

    def outcome(self, recording: Recording) -> Outcome:
        """Wait for the decoder."""
        transcript = self.result.result()
        error = self.error or next((task.exception() for task in self._tasks if task.exception()), None)
        if error is None:
            return Outcome(recording, transcript)
        if not isinstance(error, (ValueError, OSError)):
            raise error
        return Outcome(recording, None, _told(error, recording))


def _told(error: Exception, recording: Recording) -> str:
    text = message(error)
    if isinstance(recording.source, str) and recording.source in text:
        return text
    return f"{recording.shown}: {text.removeprefix(source_name(recording.source) + ': ')}"


class _Reading:
    """A thread that reads recordings, so that neither the disk nor the spectrograms keep the network waiting."""

    def __init__(self, recognizer: Recognizer, recordings: Sequence[Recording]):
        self._recognizer, self._recordings = recognizer, recordings
        self._queue: queue.Queue[_Read | None] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "_Reading":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        until = time.monotonic() + PATIENCE
        while self._thread.is_alive() and time.monotonic() < until:  # it may be waiting for room
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                self._thread.join(0.05)

    def gathered(self, limit: BatchLimit) -> Iterator[list[_Read]]:
        """What was read, in its order, by as much as is worth sorting."""
        reads, pieces, seconds = [], 0, 0.0
        while (read := self._queue.get()) is not None:
            reads.append(read)
            if read.piece is not None:
                pieces, seconds = pieces + 1, seconds + read.piece.seconds
            enough = pieces >= GATHERED * limit.utterances if limit.utterances else seconds >= GATHERED * limit.seconds
            if enough:
                yield reads
                reads, pieces, seconds = [], 0, 0.0
        if reads:
            yield reads

    def _read(self) -> None:
        for index, recording in enumerate(self._recordings):
            error = None
            try:
                for piece, spect in self._recognizer.pieces(recording.source, recording.offset, recording.duration):
                    self._queue.put(_Read(index, piece, spect))
                    if self._stopped.is_set():
                        return
            except Exception as fault:  # whether it is the recording's, the main thread will say
                error = fault
            self._queue.put(_Read(index, error=error))
            if self._stopped.is_set():
                return
        self._queue.put(None)
