"""Utterances to padded batches.

F frequency bins, T frames, B utterances, N target labels of one utterance, M of a whole batch.
"""

import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import AudioConfig, AugmentConfig
from data.audio import load_audio
from data.augment import augment
from data.features import spectrogram
from data.labels import Labels
from data.manifest import Utterance
from data.spec_augment import spec_augment


class SampleKey(NamedTuple):
    """Which utterance, and in which epoch it is asked for: all that its augmentation depends on, besides the seed."""

    epoch: int
    index: int


class Sample(NamedTuple):
    spect: Tensor  # (F, T)
    target: Tensor  # (N,) int64
    index: int  # of the utterance


@dataclass(frozen=True)
class Batch:
    """Zero-padded spectrograms and their targets, one after the other."""

    spects: Tensor  # (B, 1, F, T) float32
    spect_lens: Tensor  # (B,) int64 frames
    targets: Tensor  # (M,) int64
    target_lens: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, which utterances these are

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


class SpectrogramDataset(torch.utils.data.Dataset):
    """Spectrogram and target of each utterance, asked for by SampleKey (or index, which is epoch 0).

    Without `labels` targets are empty: enough to evaluate, where references may hold what the labels do not.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        audio: AudioConfig,
        labels: Labels | None = None,
        augmentation: AugmentConfig | None = None,
        seed: int = 0,
    ):
        self.utterances, self.audio, self.labels = utterances, audio, labels
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        utterance = self.utterances[index]
        wave = load_audio(utterance.audio, self.audio.sample_rate, *utterance.segment)
        if self.augmentation is None:
            spect = spectrogram(wave, self.audio)
        else:
            rng = np.random.default_rng((self.seed, epoch, index))
            spect = spectrogram(augment(wave, self.augmentation, rng), self.audio)
            spect = spec_augment(spect, self.augmentation, rng)
        target = self.labels.encode(utterance.text) if self.labels else np.empty(0, np.int64)
        return Sample(spect, torch.from_numpy(target), index)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad to the longest of the batch, with the zeros that the network masks."""
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
    )


def make_loader(
    dataset: SpectrogramDataset, batches: torch.utils.data.Sampler, num_workers: int
) -> torch.utils.data.DataLoader:
    """Batches in the sampler's order, made by `num_workers` processes that live as long as the loader; 0: by this one."""
    with warnings.catch_warnings():
        # More workers than cores is the user's choice to make.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return torch.utils.data.DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_leave_interrupts_to_the_parent,
        )


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the parent stops its workers, which need not say so themselves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
