"""Requests that wait together are heard as one batch: the queue between the server's many clients and its one network.

A recording is a job. Its pieces are read by a few threads, a few pieces ahead and no more, so that hours of audio take the
memory of a minute. One thread runs the network; it takes the next piece of each waiting job in turn, so that a long recording
gets its share and no more. Others decode.
"""

import math
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from torch import Tensor

from asr.quantization import release_memory
from asr.recognizer import Recognizer
from asr.transcript import Transcript
from config import ServerConfig
from data.pieces import Piece
from decoder import BeamDecoder, GreedyDecoder
from serving.metrics import Metrics

READERS = 4  # threads: what PyAV reads is decoded to its end before its first piece, for seconds, and must not hold up others
AHEAD = 4  # pieces of a job that are read before the network is ready for them
UNFINISHED = 16  # and that are read and not decoded: a slow decoder, too, makes a job wait rather than memory grow
BATCH_SECONDS = 40.0  # heard at once at most, padding included, so that nobody waits long for a batch that has begun
IDLE_SECONDS = 0.5  # without work, after which the system gets back the memory that the last of it took
MOST_PADDING = 0.5  # share of a piece, beside a longer one


class Stopping(Exception):
    """Nothing more is taken."""


class Fault(Exception):
    """The network or the decoder failed, which is no fault of the recording; what it was is the cause."""


class _Waiting(NamedTuple):
    piece: Piece
    spect: Tensor  # (F, T)
    since: float  # when it was read, by the monotonic clock

    @property
    def frames(self) -> int:
        return self.spect.shape[1]


class Job:
    """A recording under way."""

    def __init__(self, pieces: Iterator[tuple[Piece, Tensor]], reader: object):
        self.result: Future[Transcript] = Future()
        self.pieces, self.reader = pieces, reader
        self.waiting: deque[_Waiting] = deque()  # read, not heard
        self.heard: deque[tuple[Piece, np.ndarray]] = deque()  # not decoded
        self.unfinished = 0  # pieces that are read and not decoded
        self.reading, self.read_all = False, False  # whether a reader has it, or will; whether there is no more to read
        self.decoding = False  # whether a decoder's thread has it, or will

    def end(self, result: Transcript | None = None, error: BaseException | None = None) -> None:
        """The first end counts."""
        try:
            if error is not None:
                self.result.set_exception(error)
            else:
                self.result.set_result(result)
        except Exception:  # it has ended before: concurrent.futures says so by an error of its own
            if not self.result.done():
                raise


class Batcher:
    """Transcribes recordings of many clients by one network."""

    def __init__(self, recognizer: Recognizer, config: ServerConfig, metrics: Metrics):
        self._recognizer, self._metrics = recognizer, metrics
        self._most, self._patience = config.max_batch_size, config.max_wait_ms / 1000  # pieces, seconds
        self._jobs: deque[Job] = deque()  # whose turn it is comes first
        self._changed = threading.Condition()
        self._closed = False
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reading")
        self._decoders = ThreadPoolExecutor(max(2, recognizer.config.lm_workers), thread_name_prefix="decoding")
        self._network = threading.Thread(target=self._run, name="network", daemon=True)
        self._network.start()

    def submit(self, pieces: Iterator[tuple[Piece, Tensor]], decoder: GreedyDecoder | BeamDecoder) -> Job:
        """Begin a recording, whose pieces are read by and by.

        Returns: a job whose `result` is the transcript, the ValueError that says what is wrong with the recording, an OSError
            if there is no room for it, or a Fault. To cancel the result is to cancel the job.
        Raises: Stopping.
        """
        job = Job(pieces, self._recognizer.reader(decoder))
        with self._changed:
            if self._closed:
                raise Stopping
            self._jobs.append(job)
            self._read_on(job)
        known = weakref.ref(job)  # a job that knew itself would be there, with its open file, until the garbage is collected
        job.result.add_done_callback(lambda _: self._forget(known()))
        return job

    @property
    def alive(self) -> bool:
        """Whether somebody will hear what is submitted."""
        return self._network.is_alive()

    def close(self) -> None:
        """Finish what was begun, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._network.join()
        self._readers.shutdown()
        self._decoders.shutdown()

    def _forget(self, job: Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
            job.waiting.clear()
            self._changed.notify_all()

    def _read(self, job: Job) -> None:
        """Read a job's next piece. Long recordings take their turn between others for each."""
        if job.result.done():
            return
        try:
            piece, spect = next(job.pieces)
        except StopIteration:
            with self._changed:
                job.read_all, job.reading = True, False
                self._changed.notify_all()
            self._end_if_finished(job)
            return
        except Exception as error:  # the request's handler knows which are the client's
            job.end(error=error)
            return
        with self._changed:
            if job.result.done():
                return
            job.unfinished += 1
            job.waiting.append(_Waiting(piece, spect, time.monotonic()))
            job.reading = False
            self._read_on(job)
            self._changed.notify_all()

    def _read_on(self, job: Job) -> None:
        """Have a job's next piece read, unless it has enough that waits for the network or the decoder. With the lock held."""
        ended = job.read_all or job.result.done()
        if not job.reading and not ended and len(job.waiting) < AHEAD and job.unfinished < UNFINISHED:
            job.reading = True
            self._readers.submit(self._read, job)

    def _run(self) -> None:
        """The network's thread."""
        while True:
            with self._changed:
                wanted = self._changed.wait_for(self._is_wanted, timeout=IDLE_SECONDS)
            if not wanted:
                release_memory()
            with self._changed:
                self._changed.wait_for(self._is_wanted)
                if not self._any_waiting():
                    return
                patience = min(job.waiting[0].since for job in self._jobs if job.waiting) + self._patience - time.monotonic()
                self._changed.wait_for(self._enough, timeout=max(0.0, patience))
                batch = self._choose()
            if batch:
                self._hear(batch)
            del batch  # or it is kept until the next

    def _is_wanted(self) -> bool:
        return self._any_waiting() or (self._closed and not self._jobs)

    def _any_waiting(self) -> bool:
        return any(job.waiting for job in self._jobs)

    def _enough(self) -> bool:
        """Whether there is a whole batch, or nobody whose next piece is on its way."""
        return sum(len(job.waiting) for job in self._jobs) >= self._most or all(
            job.waiting or not job.reading for job in self._jobs
        )

    def _choose(self) -> list[tuple[Job, _Waiting]]:
        """Take a batch: the first piece of the job whose turn it is, and of the others what is of like length.

        A job's pieces are taken in their order, and its second only after the first ones of all others. Jobs that gave some go
        to the end of the line.
        """
        first = next((job for job in self._jobs if job.waiting), None)
        if first is None:  # it was cancelled
            return []
        target = first.waiting[0].frames
        pieces = [(turn, job, waiting) for job in self._jobs for turn, waiting in enumerate(job.waiting)]
        pieces.sort(key=lambda piece: (piece[0], piece[1] is not first, abs(piece[2].frames - target)))
        chosen: list[tuple[Job, _Waiting]] = []
        taken: Counter[Job] = Counter()
        for turn, job, waiting in pieces:
            if taken[job] == turn and self._fits(chosen, waiting):
                chosen.append((job, waiting))
                taken[job] += 1
        for job, _ in chosen:
            job.waiting.popleft()
        self._jobs = deque(sorted(self._jobs, key=lambda job: taken[job] > 0))
        for job in taken:
            self._read_on(job)
        return chosen

    def _fits(self, chosen: list[tuple[Job, _Waiting]], waiting: _Waiting) -> bool:
        lengths = [other.frames for _, other in chosen] + [waiting.frames]
        seconds = max(lengths) * len(lengths) * self._recognizer.audio.window_stride
        alike = seconds <= BATCH_SECONDS and min(lengths) >= (1 - MOST_PADDING) * max(lengths)
        return not chosen or (len(chosen) < self._most and alike)

    def _hear(self, batch: list[tuple[Job, _Waiting]]) -> None:
        began = time.monotonic()
        try:
            outputs = self._recognizer.hear([(waiting.piece, waiting.spect) for _, waiting in batch])
        except Exception as error:  # whatever it is, the others are to be heard
            self._part(batch, error)
            return
        self._metrics.batch_size.observe(len(batch))
        self._metrics.audio_seconds.inc(math.fsum(waiting.piece.seconds for _, waiting in batch))
        for (job, waiting), log_probs in zip(batch, outputs, strict=True):
            self._metrics.queue_seconds.observe(began - waiting.since)
            with self._changed:
                job.heard.append((waiting.piece, log_probs))
                self._decode_on(job)

    def _part(self, batch: list[tuple[Job, _Waiting]], error: Exception) -> None:
        """Hear what failed together one by one, so that who spoils it, or makes it too large for a GPU, ends alone."""
        if len(batch) == 1:
            batch[0][0].end(error=_fault("the network", error))
            return
        for pair in batch:
            self._hear([pair])

    def _decode_on(self, job: Job) -> None:
        """Have a job's next piece decoded, one after another, and in turns with other jobs. With the lock held."""
        if job.heard and not job.decoding and not job.result.done():
            job.decoding = True
            self._decoders.submit(self._decode, job)

    def _decode(self, job: Job) -> None:
        if job.result.done():
            return
        piece, log_probs = job.heard.popleft()
        try:
            job.reader.add(piece, log_probs)
        except Exception as error:
            job.end(error=_fault("the decoder", error))
            return
        with self._changed:
            job.unfinished -= 1
            job.decoding = False
            self._decode_on(job)
            self._read_on(job)
        self._end_if_finished(job)

    @staticmethod
    def _end_if_finished(job: Job) -> None:
        if job.read_all and not job.unfinished:
            job.end(job.reader.transcript())


def _fault(where: str, error: Exception) -> Fault:
    fault = Fault(f"{where} failed: {error}")
    fault.__cause__ = error
    return fault
