"""The queue between many clients and one network: nothing is crossed or lost, and nobody waits for another's long recording."""

import gc
import random
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from beep_network import RATE, save_beep_network, sentence, sound
from served import recognizer, until

from asr.recognizer import Recognizer
from config import ServerConfig
from serving.batching import AHEAD, UNFINISHED, Batcher, Fault, Job, Stopping
from serving.metrics import Metrics

SECONDS = 60  # that anything here may take
SAID = "CAB AB ABC"


@pytest.fixture(scope="module")
def ear(tmp_path_factory) -> Recognizer:
    return recognizer(save_beep_network(tmp_path_factory.mktemp("ear") / "beeps.pth"))


class Network:
    """A recognizer's network, which can be held, and breaks where it is told to; it writes down what it hears."""

    def __init__(self, ear: Recognizer):
        self.open, self.heard, self.breaks = threading.Event(), [], lambda piece: False
        self.open.set()
        self.begun = 0  # batches that it was given
        self._hear, self._let = ear.hear, threading.Semaphore(0)

    def let_one(self) -> None:
        """Have the batch that is held heard, and hold the next."""
        before = self.begun
        self._let.release()
        until(lambda: self.begun > before)

    def __call__(self, pieces):
        self.begun += 1
        while not self.open.wait(0.001) and not self._let.acquire(blocking=False):
            pass
        self.heard.append([piece.seconds for piece, _ in pieces])
        if any(self.breaks(piece) for piece, _ in pieces):
            raise RuntimeError("out of order")
        return self._hear(pieces)


@pytest.fixture
def network(ear, monkeypatch) -> Network:
    network = Network(ear)
    monkeypatch.setattr(ear, "hear", network)
    return network


@pytest.fixture
def queue(ear, network):
    """Makes queues, and closes them."""
    made = []

    def make(**limits) -> Batcher:
        made.append(Batcher(ear, ServerConfig(**limits), Metrics()))
        return made[-1]

    yield make
    network.open.set()
    for batcher in made:
        closing = threading.Thread(target=batcher.close)
        closing.start()
        closing.join(SECONDS)
        assert not closing.is_alive() and not batcher._jobs


def submit(batcher: Batcher, ear: Recognizer, wave: np.ndarray) -> Job:
    return batcher.submit(ear.pieces_of([wave]), ear.decoder)


def text(job: Job) -> str:
    return job.result.result(SECONDS).text


def long_speech(times: int) -> np.ndarray:
    """SAID as often, 5.6 s each time."""
    return np.tile(sound(f"{SAID} ..")[0], times)


def times(job: Job) -> int:
    found = text(job)
    assert found == " ".join([SAID] * (len(found.split()) // 3))
    return len(found.split()) // 3


def test_everybody_gets_the_own_text(ear, network, queue):
    batcher, rng = queue(), np.random.default_rng(1)
    spoken = [sentence(rng, 1 + i % 4) for i in range(48)]
    network.open.clear()
    with ThreadPoolExecutor(16) as clients:
        jobs = list(clients.map(lambda i: submit(batcher, ear, sound(spoken[i], i)[0]), range(48)))
        until(lambda: all(job.waiting or not job.reading for job in jobs))
        network.open.set()
        assert [text(job) for job in jobs] == spoken
    sizes = [len(batch) for batch in network.heard]
    assert max(sizes) > 4 and max(sizes) <= 16 and sum(sizes) == 48
    for batch in network.heard:
        assert min(batch) >= 0.45 * max(batch) and len(batch) * max(batch) <= 41


def test_batches_give_what_one_by_one_gives(ear, queue):
    waves = [sound(sentence(np.random.default_rng(i), 3), i)[0] for i in range(12)] + [long_speech(8)]
    alone, together = queue(max_batch_size=1), queue(max_batch_size=16, max_wait_ms=50.0)
    expected = [text(submit(alone, ear, wave)) for wave in waves]
    jobs = [submit(together, ear, wave) for wave in waves]
    assert [text(job) for job in jobs] == expected
    for wave, found in zip(waves, expected, strict=True):
        reader = ear.reader()
        for piece, spect in ear.pieces_of([wave]):
            reader.add(piece, ear.hear([(piece, spect)])[0])
        assert reader.transcript().text == found


def test_a_long_recording_does_not_hold_up_short_ones(ear, network, queue):
    batcher = queue()
    network.open.clear()
    long = submit(batcher, ear, long_speech(320))  # half an hour
    until(lambda: network.begun)
    for i in range(5):
        until(lambda: len(long.waiting) >= AHEAD - 1)
        short, before = submit(batcher, ear, sound("AB", i)[0]), len(network.heard)
        until(lambda short=short: short.waiting)
        while short.waiting:
            network.let_one()
        network.let_one()  # which it is in
        assert text(short) == "AB"
        assert len(network.heard) - before <= 3  # of 80: the batch that had begun, the long one's next, and its own
    assert not long.result.done()
    assert max(map(sum, network.heard)) <= 41  # so much has to be waited for at most
    long.result.cancel()


def test_long_recordings_take_turns(ear, network, queue):
    batcher, names, order = queue(max_batch_size=1), {}, []
    network.open.clear()
    network.breaks = lambda piece: order.append(names[id(piece)])

    def pieces(name: str, count: int):
        for piece, spect in ear.pieces_of([long_speech(count)]):
            names[id(piece)] = name
            yield piece, spect

    jobs = [batcher.submit(pieces("a", 20), ear.decoder), batcher.submit(pieces("b", 21), ear.decoder)]
    until(lambda: all(len(job.waiting) >= AHEAD - 1 for job in jobs))
    network.open.set()
    assert [times(job) for job in jobs] == [20, 21]
    assert sum(a != b for a, b in pairwise(order)) >= len(order) - 4, order


def test_no_more_is_read_than_is_needed(ear, network, queue):
    batcher, read = queue(), []
    network.open.clear()

    def pieces():
        for piece in ear.pieces_of([long_speech(60)]):
            read.append(piece)
            yield piece

    job = batcher.submit(pieces(), ear.decoder)
    until(lambda: not job.reading)
    time.sleep(0.1)
    assert len(read) <= 2 * AHEAD
    network.open.set()
    assert times(job) == 60


def test_a_slow_decoder_is_waited_for(ear, queue):
    read, go_on = [], threading.Event()

    class Slow:
        def start(self):
            go_on.wait(SECONDS)
            return ear.decoder.start()

        def __getattr__(self, name: str):
            go_on.wait(SECONDS)
            return getattr(ear.decoder, name)

    def pieces():
        for piece in ear.pieces_of([long_speech(80)]):
            read.append(piece)
            yield piece

    batcher = queue()
    job = batcher.submit(pieces(), Slow())
    until(lambda: job.unfinished == UNFINISHED and not job.reading)
    assert text(submit(batcher, ear, sound("AB")[0])) == "AB"
    assert len(read) == UNFINISHED
    go_on.set()
    assert times(job) == 80


def test_who_has_gone_is_decoded_no_more(ear, queue):
    started, go_on = [], threading.Event()

    class Slow:
        def start(self):
            started.append(1)
            go_on.wait(SECONDS)
            return ear.decoder.start()

        def __getattr__(self, name: str):
            return getattr(ear.decoder, name)

    batcher = queue()
    jobs = [batcher.submit(ear.pieces_of([sound("AB", i)[0]]), Slow()) for i in range(8)]
    until(lambda: len(started) == 2 and all(job.decoding for job in jobs))
    for job in jobs:
        job.result.cancel()
    go_on.set()
    assert text(submit(batcher, ear, sound("CAB")[0])) == "CAB"
    assert len(started) == 2


def test_who_goes_away_leaves_no_open_file(ear, network, queue):
    """At once, not when the garbage is collected."""
    closed = threading.Event()

    def pieces():
        try:
            yield from ear.pieces_of([long_speech(60)])
        finally:
            closed.set()

    batcher = queue()
    network.open.clear()
    gc.collect()
    gc.disable()
    try:
        jobs = [batcher.submit(pieces(), ear.decoder)]
        until(lambda: network.begun and not jobs[0].reading)
        jobs.pop().result.cancel()
        network.open.set()
        assert closed.wait(SECONDS)
    finally:
        gc.enable()


def test_a_recording_that_breaks_in_its_middle_ends_alone(ear, queue):
    batcher = queue()

    def broken():
        for number, piece in enumerate(ear.pieces_of([long_speech(20)])):
            if number == 3:
                raise ValueError("truncated")
            yield piece

    jobs = [batcher.submit(broken(), ear.decoder), *(submit(batcher, ear, sound("CAB", i)[0]) for i in range(3))]
    with pytest.raises(ValueError, match="truncated"):
        jobs[0].result.result(SECONDS)
    assert [text(job) for job in jobs[1:]] == ["CAB"] * 3


def test_who_breaks_the_network_ends_alone(ear, network, queue):
    batcher = queue()
    network.open.clear()
    waves = [sound(said, i)[0] for i, said in enumerate(["AB", "CAB", "CA", "BC"])]
    network.breaks = lambda piece: piece.seconds == len(waves[1]) / RATE
    jobs = [submit(batcher, ear, wave) for wave in waves]
    until(lambda: all(job.waiting or not job.reading for job in jobs))
    network.open.set()
    with pytest.raises(Fault, match="out of order"):
        jobs[1].result.result(SECONDS)
    assert [text(jobs[i]) for i in (0, 2, 3)] == ["AB", "CA", "BC"]
    network.breaks = lambda piece: True
    with pytest.raises(Fault):
        submit(batcher, ear, waves[0]).result.result(SECONDS)
    network.breaks = lambda piece: False
    assert text(submit(batcher, ear, waves[0])) == "AB"


def test_a_decoder_that_breaks_is_a_fault_of_one(ear, queue):
    class Broken:
        def start(self):
            raise ValueError("no beam")

    batcher = queue()
    job = batcher.submit(ear.pieces_of([sound("AB")[0]]), Broken())
    with pytest.raises(Fault, match="no beam"):
        job.result.result(SECONDS)
    assert text(submit(batcher, ear, sound("AB")[0])) == "AB"


def test_who_goes_away_at_any_time_leaves_the_others_alone(ear, queue):
    """Each of many clients cancels at another moment, or not at all."""
    batcher, rng = queue(max_wait_ms=2.0), random.Random(2)
    short, long = sound("CAB")[0], long_speech(12)

    def client(number: int) -> bool:
        job = submit(batcher, ear, long if number % 5 == 0 else short)
        if number % 3:
            time.sleep(rng.random() * 0.05)
            job.result.cancel()
        try:
            return "CAB" in text(job)
        except CancelledError:
            return True

    with ThreadPoolExecutor(12) as clients:
        assert all(clients.map(client, range(60)))
    until(lambda: not batcher._jobs)
    assert text(submit(batcher, ear, short)) == "CAB"


def test_many_small_pieces_are_never_read_twice_at_once(ear, queue):
    """A job's next piece is asked for by its reader and by the network's thread, of whom only one may."""
    batcher = queue(max_wait_ms=0.0, max_batch_size=1)
    (item,) = ear.pieces_of([sound("A")[0]])

    def pieces():
        for _ in range(80):
            yield item

    jobs = [batcher.submit(pieces(), ear.decoder) for _ in range(3)]
    assert [len(job.result.result(SECONDS).segments) for job in jobs] == [80] * 3


def test_closing_finishes_what_was_begun(ear, network):
    batcher = Batcher(ear, ServerConfig(), Metrics())
    network.open.clear()
    jobs = [submit(batcher, ear, wave) for wave in (sound("AB")[0], long_speech(16), sound("C")[0])]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(lambda: batcher._closed)
    with pytest.raises(Stopping):
        submit(batcher, ear, sound("C")[0])
    network.open.set()
    closing.join(SECONDS)
    assert not closing.is_alive() and not batcher.alive
    assert (text(jobs[0]), text(jobs[2])) == ("AB", "C") and times(jobs[1]) == 16


def test_nothing_of_a_job_is_kept(ear, queue):
    batcher = queue()
    job = submit(batcher, ear, sound("AB")[0])
    assert text(job) == "AB"
    gone = weakref.ref(job)
    del job
    until(lambda: (gc.collect(), gone() is None)[1])
