"""A corpus's recordings and transcripts brought to the one form that training reads, on all cores."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr

from data.audio import audio_duration, load_audio
from data.command_line import progress_bar
from data.files import whole_file
from data.transcripts import changed_beyond_case, spoken_text, written_signs

FORMATS = ("wav", "flac")
HEADERLESS_RATE = 16000  # Hz
# Endings of what may stay as it is; mp3 may not, because decoding it in every epoch costs more than the room it saves.
KEPT = (".wav", ".flac", ".sph", ".ogg", ".oga", ".opus")
KEPT_FORMATS = {"wav": ("WAV", "WAVEX"), "flac": ("FLAC",)}
CHUNK = 16  # utterances handed to a process at a time
CHUNKS_AHEAD = 4  # for each process


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance as a corpus has it."""

    part: str  # train, val, test or the like: what it belongs to
    name: str  # unique in its part; its files are called so
    audio: str
    text: str  # as it was found
    said: str | None = None  # the text without the corpus's own markup, where that is something else
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: that of the file
    headerless: bool = False  # 16-bit samples, most significant byte first, at 16 kHz, and nothing else
    drop: str = ""  # why the corpus itself says that this cannot be used


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes, and in which form."""

    target_dir: Path
    sample_rate: int
    format: str | None  # None: what is right already stays, the rest becomes wav
    keep_case: bool
    keep_signs: bool

    def stem(self, spoken: Spoken, kind: str) -> str:
        return os.path.join(self.target_dir, spoken.part, kind, spoken.name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an utterance: `audio` is None if it was dropped or its recording is broken."""

    spoken: Spoken
    audio: str | None = None
    text_path: str | None = None
    duration: float = 0.0  # seconds
    text: str = ""
    changed: bool = False  # beyond case
    dropped: str = ""
    broken: str = ""


def convert_all(spoken: Sequence[Spoken], plan: Plan, workers: int) -> list[Outcome]:
    """Write recordings and transcripts of all utterances, those that are there already excepted.

    Returns: what became of each, in their order.
    Raises: OSError if they cannot be written; RuntimeError if a process dies.
    """
    for kind in ("wav", "txt"):
        for part in {utterance.part for utterance in spoken}:
            folder = plan.target_dir / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(".*.tmp"):  # of a run that was killed: only one at a time makes a corpus
                left_over.unlink(missing_ok=True)
    chunks = [spoken[start : start + CHUNK] for start in range(0, len(spoken), CHUNK)]
    outcomes = []
    with progress_bar(desc="converting", total=len(spoken), unit="utt") as progress:
        for done in _in_processes(partial(_convert_chunk, plan), chunks, min(workers, len(chunks))):
            outcomes += done
            progress.update(len(done))
    return outcomes


def _in_processes(work: Callable[[list], list], chunks: Sequence[list], workers: int) -> Iterator[list]:
    """Results in the chunks' order, from processes that see no Ctrl-C and die with this one."""
    if workers <= 1:
        yield from map(work, chunks)
        return
    # Spawned, not forked: tqdm and numpy have threads, which a fork would lose in whatever they were doing.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)
    running: deque[Future] = deque()
    try:
        for chunk in chunks:
            with _interrupts_held_back():  # a process started here inherits that
                running.append(executor.submit(work, chunk))
            if len(running) >= workers * CHUNKS_AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError("a converting process was killed, perhaps for lack of memory: lower --num-workers") from None
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent() -> None:
    """End with the process that hands out the work, however it ends; nobody else would tell."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _convert_chunk(plan: Plan, chunk: Sequence[Spoken]) -> list[Outcome]:
    return [convert(spoken, plan) for spoken in chunk]


def convert(spoken: Spoken, plan: Plan) -> Outcome:
    """Write one utterance's recording and transcript. Raises: OSError if they cannot be written."""
    if spoken.drop:
        return Outcome(spoken, dropped=spoken.drop)
    said = spoken.text if spoken.said is None else spoken.said
    signs = written_signs(said)
    if signs and not plan.keep_signs:
        return Outcome(spoken, dropped=f"{spoken.name}: digits or signs, which have no one reading: {signs}")
    text = spoken_text(said, plan.keep_case, plan.keep_signs)
    if not text:
        return Outcome(spoken, dropped=f"{spoken.name}: no words in {said!r}")
    recording = _Recording(spoken, plan)
    try:
        wave = recording.checked_wave()
    except (ValueError, OSError) as fault:
        return Outcome(spoken, broken=_reason(fault))
    duration = recording.write(wave)
    text_path = plan.stem(spoken, "txt") + ".txt"
    _write_text(text_path, text)
    changed = changed_beyond_case(spoken.text, text)
    return Outcome(spoken, recording.target, text_path, duration, text, changed)


def _reason(fault: Exception) -> str:
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename}: {fault.strerror}"
    return str(fault)


def _write_text(path: str, text: str) -> None:
    content = f"{text}\n".encode()
    try:
        with open(path, "rb") as file:
            if file.read() == content:
                return
    except FileNotFoundError:
        pass
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


class _Recording:
    """One utterance's way from the corpus's file to its own."""

    def __init__(self, spoken: Spoken, plan: Plan) -> None:
        self._spoken, self._plan = spoken, plan
        ending = self._kept_ending()
        self._stays = bool(ending)
        self.target = plan.stem(spoken, "wav") + (ending or f".{plan.format or FORMATS[0]}")

    def _kept_ending(self) -> str:
        """The ending of a recording that is right as it is, "" if it has to be converted."""
        spoken = self._spoken
        ending = Path(spoken.audio).suffix.lower()
        if spoken.headerless or spoken.start or spoken.end is not None or ending not in KEPT:
            return ""
        try:
            info = soundfile.info(spoken.audio)
        except soundfile.LibsndfileError:
            return ""  # reading it tells why
        formats = KEPT_FORMATS.get(self._plan.format, (info.format,))
        is_right = (info.samplerate, info.channels) == (self._plan.sample_rate, 1) and info.format in formats
        return ending if is_right else ""

    def checked_wave(self) -> np.ndarray | None:
        """Read the recording to its end, whether it has to be converted or not: only so a broken one shows.

        Returns: (S,) float32; None if it was written before.
        Raises: ValueError, OSError with what is wrong with it.
        """
        if os.path.exists(self.target):
            return None
        spoken, rate = self._spoken, self._plan.sample_rate
        if spoken.headerless:
            return _headerless_wave(spoken.audio, rate)
        duration = None if spoken.end is None else spoken.end - spoken.start
        return load_audio(spoken.audio, rate, spoken.start, duration)

    def write(self, wave: np.ndarray | None) -> float:
        """Write what `checked_wave` read. Returns: seconds. Raises: OSError."""
        if wave is None:
            return audio_duration(self.target)
        with whole_file(self.target) as temporary:
            if self._stays:
                _link(self._spoken.audio, temporary)
            else:
                samples = np.rint(np.clip(wave * 32768, -32768, 32767)).astype(np.int16)
                ending = self._plan.format or FORMATS[0]
                soundfile.write(temporary, samples, self._plan.sample_rate, format=ending.upper(), subtype="PCM_16")
        return len(wave) / self._plan.sample_rate


def _link(source: str, target: Path) -> None:
    """A second name for a file, or a copy where the system gives none."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _headerless_wave(path: str, sample_rate: int) -> np.ndarray:
    with open(path, "rb") as file:
        content = file.read()
    if not content or len(content) % 2:
        raise ValueError(f"{path}: {len(content)} bytes: expected 16-bit samples; fetch it again")
    wave = np.frombuffer(content, dtype=">i2").astype(np.float32) / 32768
    if sample_rate != HEADERLESS_RATE:
        wave = soxr.resample(wave, HEADERLESS_RATE, sample_rate, quality="HQ")
    return wave
