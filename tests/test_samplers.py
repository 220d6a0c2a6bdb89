"""The order of the data: the same for the same seed, shared out without loss, and taken up where it was left."""

from dataclasses import replace

import numpy as np
import pytest

from data.samplers import LengthBatchSampler, Position

DURATIONS = np.random.default_rng(1).uniform(1, 15, 103)


def indices(sampler, epoch):
    sampler.go_to(Position(epoch))
    return [[key.index for key in batch] for batch in sampler]


def test_first_epoch_runs_from_short_to_long_and_later_ones_shuffle():
    durations = np.random.default_rng(1).uniform(1, 15, 103)
    sampler = LengthBatchSampler(durations, 10, seed=7)
    first, second, third = (indices(sampler, epoch) for epoch in range(3))
    assert [i for batch in first for i in batch] == list(np.argsort(durations))
    for batches in (first, second, third):
        assert sorted(i for batch in batches for i in batch) == list(range(103))
        assert len(batches) == len(sampler) == 11
    assert second != third and second != first
    assert indices(sampler, 1) == second, "an epoch's order does not depend on those before it"
    padded = sum(len(batch) * durations[batch].max() for batch in second)
    assert padded < 1.15 * durations.sum(), "batches hold utterances of like length"


def test_shuffling_can_be_turned_off_or_start_at_once():
    durations = np.random.default_rng(1).uniform(1, 15, 40)
    still = LengthBatchSampler(durations, 4, shuffle=False)
    assert indices(still, 0) == indices(still, 5)
    at_once = LengthBatchSampler(durations, 4, sorta_grad=False, seed=2)
    assert indices(at_once, 0) != indices(still, 0)


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch_and_miss_nothing(epoch, world_size):
    shares = [
        indices(LengthBatchSampler(DURATIONS, 6, seed=7, rank=rank, world_size=world_size), epoch) for rank in range(world_size)
    ]
    whole = indices(LengthBatchSampler(DURATIONS, 6 * world_size, seed=7), epoch)
    assert len({len(share) for share in shares}) == 1
    for together, *parts in zip(whole, *shares, strict=True):
        assert sorted(together) == sorted(index for part in parts for index in part)
        longest = [max(DURATIONS[part]) for part in parts if part]
        assert max(longest) < 1.3 * min(longest), "they finish together"


def test_a_share_may_be_empty_and_is_still_a_batch():
    shares = [indices(LengthBatchSampler(DURATIONS[:7], 1, shuffle=False, rank=rank, world_size=3), 0) for rank in range(3)]
    assert [[len(batch) for batch in share] for share in shares] == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]


def after(sampler, position, batches):
    """The position after so many batches from another."""
    position = sampler.go_to(position)
    return replace(position, done=position.done + sum(len(batch) for batch in sampler.batches[:batches]))


@pytest.mark.parametrize("done", [0, 1, 4, 10, 11])
@pytest.mark.parametrize("epoch", [0, 2])
def test_an_epoch_is_taken_up_where_it_was_left(epoch, done):
    sampler = LengthBatchSampler(DURATIONS, 10, seed=7)
    whole = indices(sampler, epoch)
    left = after(sampler, Position(epoch), done)
    fresh = LengthBatchSampler(DURATIONS, 10, seed=7)
    fresh.go_to(left)
    assert [[key.index for key in batch] for batch in fresh] == whole[done:]
    assert all(key.epoch == epoch for batch in fresh for key in batch)


@pytest.mark.parametrize("sizes", [(10, 4), (10, 20), (7, 3, 7), (7, 3, 3), (4, 10, 4, 1)])
def test_other_batch_sizes_go_on_at_the_same_utterance(sizes):
    order = [index for batch in indices(LengthBatchSampler(DURATIONS, sizes[0], seed=7), 2) for index in batch]
    position, seen = Position(2), []
    for size in sizes:  # two batches of each
        sampler = LengthBatchSampler(DURATIONS, size, seed=7)
        position = after(sampler, position, 2)
        seen += np.concatenate(sampler.batches[:2]).tolist()
    sampler.go_to(position)
    assert len(sampler.batches[0]) == sizes[-1]
    assert seen + np.concatenate(sampler.batches).tolist() == order
