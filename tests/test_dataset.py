"""From utterances to batches: what pads, what shuffles, what augments, and that workers change none of it."""

import dataclasses
import os
import signal
import threading

import numpy as np
import pytest
import soundfile
import torch

from config import AudioConfig, AugmentConfig
from data.dataset import BadSample, BatchLoader, Sample, SpectrogramDataset, _interrupts_held, collate
from data.labels import Labels, frames_needed
from data.samplers import BatchLimit, LengthBatchSampler, Position, SampleKey
from data.utterances import Utterance
from model import output_frames

LABELS = Labels(["_", "A", "B", " "])
AUGMENT = AugmentConfig(speed_perturb=0.2, spec_augment=True, freq_mask_width=10, time_mask_width=10)


@pytest.fixture
def utterances(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for i, seconds in enumerate((0.5, 0.3, 0.9, 0.4, 0.7)):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, int(16000 * seconds)).astype(np.float32), 16000)
        made.append(Utterance(str(path), "AB BA", duration=seconds, manifest="m.csv", line=i + 1))
    return made


def augmented(utterances, seed=3):
    return SpectrogramDataset(utterances, AudioConfig(), LABELS, AUGMENT, seed, output_frames)


def test_collate_pads_with_zeros_and_joins_targets():
    samples = [Sample(torch.ones(3, n), torch.arange(1, n), n) for n in (2, 4)]
    batch = collate(samples)
    assert batch.spects.shape == (2, 1, 3, 4)
    assert batch.spects[0, 0, :, 2:].eq(0).all() and batch.spects[1].eq(1).all()
    assert batch.spect_lens.tolist() == [2, 4] and batch.target_lens.tolist() == [1, 3]
    assert batch.targets.tolist() == [1, 1, 2, 3] and batch.indices.tolist() == [2, 4]
    assert all(lens.dtype == torch.int64 for lens in (batch.spect_lens, batch.target_lens))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_no_sample(utterances, workers):
    order = LengthBatchSampler([u.duration for u in utterances], BatchLimit(2), seed=5)
    order.go_to(Position(epoch=1))
    alone = [collate([augmented(utterances)[key] for key in keys]) for keys in order]
    loaded = list(BatchLoader(augmented(utterances), order, workers))
    assert len(loaded) == len(alone) == 3
    for a, b in zip(alone, loaded, strict=True):
        assert torch.equal(a.spects, b.spects) and torch.equal(a.targets, b.targets)


def test_augmentation_follows_from_seed_epoch_and_utterance(utterances):
    def spect(seed, epoch, index):
        return augmented(utterances, seed)[SampleKey(epoch, index)].spect

    assert torch.equal(spect(3, 1, 0), spect(3, 1, 0))
    for other in ((4, 1, 0), (3, 2, 0), (3, 1, 1)):
        assert not torch.equal(spect(3, 1, 0)[:, :20], spect(*other)[:, :20])


def test_without_augmentation_every_epoch_is_the_same(utterances):
    dataset = SpectrogramDataset(utterances, AudioConfig(), LABELS)
    assert torch.equal(dataset[SampleKey(1, 2)].spect, dataset[SampleKey(7, 2)].spect)
    assert dataset[2].target.tolist() == [1, 2, 3, 2, 1]


def test_speed_never_makes_an_utterance_impossible_to_align(utterances):
    frames = output_frames(1 + 8000 // 160)
    text = "AB" * (frames // 2)
    assert frames_needed(text) >= frames - 1
    dataset = augmented([dataclasses.replace(utterances[0], text=text)])
    for epoch in range(20):
        spect = dataset[SampleKey(epoch, 0)].spect
        assert output_frames(spect.shape[1]) >= frames_needed(text)


def test_a_recording_broken_inside_stops_the_run_or_is_left_out_aloud(utterances, tmp_path, capsys):
    path = tmp_path / "broken.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 40000), 16000)
    path.write_bytes(path.read_bytes()[:30000])
    utterances.append(Utterance(str(path), "AB", duration=2.5, manifest="m.csv", line=6))
    dataset = SpectrogramDataset(utterances, AudioConfig(), LABELS)
    assert isinstance(dataset[5], BadSample)
    order = LengthBatchSampler([u.duration for u in utterances], BatchLimit(1))
    with pytest.raises(ValueError, match=r"^m\.csv:6: .*broken\.flac.*--on-bad-data skip"):
        list(BatchLoader(dataset, order, 1))
    left = list(BatchLoader(dataset, order, 0, on_bad_data="skip"))
    assert sorted(i for batch in left for i in batch.indices.tolist()) == [0, 1, 2, 3, 4]
    assert "m.csv:6" in capsys.readouterr().err


def test_ctrl_c_waits_until_processes_are_started_whichever_thread_takes_it():
    taker = threading.Thread(target=threading.Event().wait, daemon=True)  # not blocked: the kernel may choose it
    taker.start()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    finished = False
    try:
        with pytest.raises(KeyboardInterrupt), _interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(10**6))
            finished = True
        assert finished
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
