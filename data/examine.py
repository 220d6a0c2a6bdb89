"""Listen to every utterance of a data set, on all cores: what headers do not tell.

S samples at the recording's own rate, channels averaged.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait

import numpy as np

from config import AudioConfig
from data.audio import load_audio, rate_and_channels
from data.checks import UNREADABLE_AUDIO, Problem, check_utterance, problems_of
from data.command_line import progress_bar
from data.labels import Labels
from data.processes import cores
from data.utterances import Utterance

SILENT = "silent audio"
QUIET = "nearly silent audio"
CLIPPED = "clipped audio"
CUT_OUT = "audio that begins or ends in digital silence"
OTHER_RATE = "audio at another sample rate"
NARROW_BAND = "audio without sound above 4 kHz"

SILENT_PEAK = 1.5 / 32768  # of full scale: what does not rise above one step of 16 bits
QUIET_PEAK = 0.003  # -50 dB
CLIP_PEAK = 0.98  # what is cut lower than this was made quieter afterwards; it is not looked for
CLIP_SHARE = 0.001  # of all samples, standing side by side at the peak
LOUD_PEAK = 1.5  # decoders and resamplers overshoot by less
DEAD_SECONDS = 0.5  # of samples that are exactly zero, at an end
BAND_HZ, BAND_SHARE = 4200, 1e-6  # energy above, of all: speech through a wide band has a thousand times as much
BAND_BLOCK, BAND_BLOCKS = 1024, 48  # samples, and how many blocks of them are listened to at most
BAND_WINDOW = np.hanning(BAND_BLOCK).astype(np.float32)  # else the edges of a block would sound at all frequencies

CHUNK = 16  # utterances that a process is given at once


@dataclass(slots=True)
class Examined:
    """One utterance after its recording was decoded."""

    utterance: Utterance  # with text and duration where they could be read
    problems: list[Problem]
    rate: int = 0  # Hz; 0: not readable
    digest: bytes = b""  # of the decoded samples; empty: not readable, or silent

    @property
    def kinds(self) -> set[str]:
        return {problem.kind for problem in self.problems}


def examine_all(utterances: Sequence[Utterance], labels: Labels, audio: AudioConfig, jobs: int = 0) -> Iterator[Examined]:
    """Each utterance's `examine`, in their order, by `jobs` processes; 0: one per core.

    Raises: RuntimeError if a process dies, as it does when the machine runs out of memory.
    """
    work = partial(_examine_chunk, labels=labels, audio=audio)
    chunks = [utterances[i : i + CHUNK] for i in range(0, len(utterances), CHUNK)]
    jobs = min(jobs or cores(), len(chunks))
    if jobs <= 1:
        yield from _shown(map(work, chunks), len(utterances))
        return
    # Forked, a process has all modules at once; macOS libraries do not survive it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(jobs, context, _serve_the_parent) as pool:
        try:
            yield from _shown(pool.map(work, chunks), len(utterances))
        except BrokenProcessPool:
            raise RuntimeError(f"one of {jobs} processes died; if memory was short, try --jobs {max(1, jobs // 2)}") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def examine(utterance: Utterance, labels: Labels, audio: AudioConfig) -> Examined:
    """Check one utterance (`check_utterance`, all but the model's frames), decode it, and judge what is heard."""
    utterance, problems = check_utterance(utterance, labels, audio, None)
    if utterance.duration is None or problems_of(problems, UNREADABLE_AUDIO):
        return Examined(utterance, problems)
    try:
        rate, channels = rate_and_channels(utterance.audio)
        wave = load_audio(utterance.audio, rate, *utterance.segment)
    except (OSError, ValueError) as error:
        return Examined(replace(utterance, duration=None), [*problems, Problem(UNREADABLE_AUDIO, utterance.where, str(error))])
    judged = judge(wave, rate, channels, audio)
    heard = [Problem(kind, utterance.where, f"{utterance.audio}: {detail}") for kind, detail in judged]
    silent = bool(problems_of(heard, SILENT))
    digest = b"" if silent else hashlib.blake2b(wave, digest_size=16, key=b"%d" % rate).digest()
    return Examined(utterance, problems + heard, rate, digest)


def judge(wave: np.ndarray, rate: int, channels: int, audio: AudioConfig) -> Iterator[tuple[str, str]]:
    """(kind, detail) of all that is wrong with a wave (S,) float32 at `rate` Hz."""
    if rate != audio.sample_rate:
        lacks = f" and has nothing above {rate // 2} Hz" if rate < audio.sample_rate else ""
        yield OTHER_RATE, f"{rate} Hz, is resampled to {audio.sample_rate} Hz whenever it is read{lacks}"
    low, high = float(wave.min()), float(wave.max())
    if high - low <= 2 * SILENT_PEAK:
        yield SILENT, "nothing is heard" + (f"; do its {channels} channels cancel each other out?" if channels > 1 else "")
        return
    peak = max(high, -low)
    if (high - low) / 2 < QUIET_PEAK:
        yield QUIET, f"peaks at {20 * np.log10(peak):.0f} dB of full scale"
        return
    clipped = _clipped_share(wave, low, high)
    if clipped >= CLIP_SHARE:
        yield CLIPPED, f"{100 * clipped:.1f} % of its samples are cut off at full scale"
    elif peak > LOUD_PEAK:
        yield CLIPPED, f"peaks at {peak:.1f} of full scale: whatever writes it as integers clips it"
    before, after = _dead_ends(wave, rate)
    if before > DEAD_SECONDS or after > DEAD_SECONDS:
        yield CUT_OUT, f"{before:.1f} s at its beginning, {after:.1f} s at its end"
    if rate > 2 * BAND_HZ and audio.sample_rate > 2 * BAND_HZ and _high_share(wave, rate) < BAND_SHARE:
        yield NARROW_BAND, f"at {rate} Hz: a telephone's, or its header names the wrong rate"


def _shown(chunks: Iterable[list[Examined]], total: int) -> Iterator[Examined]:
    """Called when the processes are there: the progress bar has a thread, and none may be there when a process forks."""
    with progress_bar(desc="listening", total=total, unit="utt") as bar:
        for chunk in chunks:
            yield from chunk
            bar.update(len(chunk))


def _examine_chunk(utterances: Sequence[Utterance], labels: Labels, audio: AudioConfig) -> list[Examined]:
    return [examine(utterance, labels, audio) for utterance in utterances]


def _clipped_share(wave: np.ndarray, low: float, high: float) -> float:
    """The share of samples beside one that is as high or low, at full scale: a wave that was cut off has plateaus."""
    beside = 0
    for extreme, top in ((high, wave >= high), (low, wave <= low)):
        if abs(extreme) >= CLIP_PEAK:
            beside += np.count_nonzero(top[1:] & top[:-1])
    return beside / len(wave)


def _dead_ends(wave: np.ndarray, rate: int) -> tuple[float, float]:
    """Seconds of exact zeros before and after the sound."""
    sounding = wave != 0
    return int(sounding.argmax()) / rate, int(sounding[::-1].argmax()) / rate


def _high_share(wave: np.ndarray, rate: int) -> float:
    """Energy above BAND_HZ over all energy, in blocks from all over the wave."""
    blocks = len(wave) // BAND_BLOCK
    if not blocks:
        return 1.0  # too short to tell
    wave_BN = wave[: blocks * BAND_BLOCK].reshape(blocks, BAND_BLOCK)[:: -(-blocks // BAND_BLOCKS)]
    energy = (np.abs(np.fft.rfft(wave_BN * BAND_WINDOW)) ** 2).sum(0)
    return float(energy[round(BAND_HZ * BAND_BLOCK / rate) :].sum() / max(energy[1:].sum(), 1e-30))


def _serve_the_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone, whatever killed it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
