"""Utterances to padded batches.

F frequency bins, T frames, B utterances, N target labels of one utterance, M of a whole batch.
"""

import contextlib
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import AudioConfig, AugmentConfig
from data.audio import load_audio
from data.augment import Augmentation
from data.features import spectrogram
from data.labels import Labels, frames_needed
from data.lengths import frame_count
from data.processes import die_with_parent, leave_group
from data.samplers import LengthBatchSampler, SampleKey
from data.spec_augment import spec_augment
from data.utterances import Utterance


class Sample(NamedTuple):
    spect: Tensor  # (F, T)
    target: Tensor  # (N,) int64
    index: int  # of the utterance


class BadSample(NamedTuple):
    """An utterance that passed the check of its header and turned out broken when it was read."""

    message: str


@dataclass(frozen=True)
class Batch:
    """Zero-padded spectrograms and their targets, one after the other."""

    spects: Tensor  # (B, 1, F, T) float32
    spect_lens: Tensor  # (B,) int64 frames
    targets: Tensor  # (M,) int64
    target_lens: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, which utterances these are
    problems: tuple[str, ...] = ()  # what was wrong with utterances that should have been here as well

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "problems"}
        return replace(self, **moved)


class SpectrogramDataset(torch.utils.data.Dataset):
    """Spectrogram and target of each utterance, asked for by SampleKey (or index, which is epoch 0).

    Without `labels` targets are empty: enough to evaluate, where references may hold what the labels do not.
    `output_frames` is the model's length formula, by which an augmented utterance is known to be still long enough for its
    transcript.

    Raises: UsageError if a folder of noises or rooms is missing or empty.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        audio: AudioConfig,
        labels: Labels | None = None,
        augmentation: AugmentConfig | None = None,
        seed: int = 0,
        output_frames: Callable[[int], int] | None = None,
    ):
        self.utterances, self.audio, self.labels = utterances, audio, labels
        self.seed, self.output_frames, self.augmentation = seed, output_frames, augmentation
        nothing = augmentation is None or augmentation == AugmentConfig()
        self.augment = None if nothing else Augmentation(augmentation, audio.sample_rate)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: SampleKey | int) -> Sample | BadSample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        utterance = self.utterances[index]
        try:
            wave = load_audio(utterance.audio, self.audio.sample_rate, *utterance.segment)
            spect = self._spectrogram(wave, utterance, epoch, index)
        except (ValueError, OSError) as error:
            return BadSample(f"{utterance.where}: {error}")
        target = self.labels.encode(utterance.text) if self.labels else np.empty(0, np.int64)
        return Sample(spect, torch.from_numpy(target), index)

    def _spectrogram(self, wave: np.ndarray, utterance: Utterance, epoch: int, index: int) -> Tensor:
        if self.augment is None:
            return spectrogram(wave, self.audio)
        rng = np.random.default_rng((self.seed, epoch, index))
        augmented = self.augment(wave, rng)
        frames = self.output_frames(frame_count(len(augmented), self.audio))
        if frames < frames_needed(utterance.text):  # played so fast that CTC could no longer align it
            augmented = wave
        return spec_augment(spectrogram(augmented, self.audio), self.augmentation, rng)


def collate(samples: Sequence[Sample | BadSample]) -> Batch:
    """Pad to the longest of the batch, with the zeros that the network masks."""
    problems = tuple(sample.message for sample in samples if isinstance(sample, BadSample))
    samples = [sample for sample in samples if isinstance(sample, Sample)]
    if not samples:
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(torch.empty(0, 1, 0, 0), nothing, nothing, nothing, nothing, problems)
    lens = [sample.spect.shape[1] for sample in samples]
    spects = torch.zeros(len(samples), 1, samples[0].spect.shape[0], max(lens))
    for row, sample in zip(spects, samples, strict=True):
        row[0, :, : sample.spect.shape[1]] = sample.spect
    return Batch(
        spects,
        torch.tensor(lens),
        torch.cat([sample.target for sample in samples]),
        torch.tensor([len(sample.target) for sample in samples]),
        torch.tensor([sample.index for sample in samples]),
        problems,
    )


class BadData(ValueError):
    """An utterance that cannot be read after all; what was computed before it is sound."""


class BatchLoader:
    """Batches in the sampler's order, made by `num_workers` processes that live as long as the loader; 0: by this one.

    An utterance that cannot be read after all stops the iteration with BadData naming it, or with `on_bad_data="skip"` is
    left out and told on standard error. A batch may be empty: of such utterances alone, or a process's share at an epoch's end.
    """

    def __init__(self, dataset: SpectrogramDataset, sampler: LengthBatchSampler, num_workers: int, on_bad_data: str = "fail"):
        self.dataset, self.on_bad_data = dataset, on_bad_data
        with _without_advice():
            self._batches = torch.utils.data.DataLoader(
                dataset,
                batch_sampler=sampler,
                collate_fn=collate,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
                worker_init_fn=_settle,
                generator=torch.Generator(),  # else each pass would draw from the one that dropout draws from
            )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        with _interrupts_held(), _without_advice():
            batches = iter(self._batches)
        for batch in batches:
            if batch.problems and self.on_bad_data == "fail":
                raise BadData(f"{batch.problems[0]}; fix it, or pass --on-bad-data skip to leave it out")
            for problem in batch.problems:
                print(f"left out: {problem}", file=sys.stderr)
            yield batch


def _settle(_: int) -> None:
    """The first thing that a worker does."""
    leave_group()
    die_with_parent(multiprocessing.parent_process().pid)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C waiting while processes are started, which half-started could not be ended in order.

    They inherit it blocked, with all that ends a run, until they have left the parent's process group: it is for the parent to
    stop them, which may have a step to finish first. Blocking alone holds nothing in the parent, where another thread may take
    the signal, so that its handler waits as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, caught = signal.getsignal(signal.SIGINT), []
    if callable(handler):
        signal.signal(signal.SIGINT, lambda *_: caught.append(True))
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        signal.signal(signal.SIGINT, handler)
    if caught:
        handler(signal.SIGINT, None)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Leave it to the user whether to have more workers than cores: torch would warn of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield
