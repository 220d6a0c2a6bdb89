"""The order of the data: the same for the same seed, shared out without loss, and taken up where it was left."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from data.samplers import BatchLimit, LengthBatchSampler, Position

DURATIONS = np.random.default_rng(1).uniform(1, 15, 103)


def indices(sampler, epoch):
    sampler.go_to(Position(epoch))
    return [[key.index for key in batch] for batch in sampler]


def test_first_epoch_runs_from_short_to_long_and_later_ones_shuffle():
    durations = np.random.default_rng(1).uniform(1, 15, 103)
    sampler = LengthBatchSampler(durations, BatchLimit(10), seed=7)
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
    still = LengthBatchSampler(durations, BatchLimit(4), shuffle=False)
    assert indices(still, 0) == indices(still, 5)
    at_once = LengthBatchSampler(durations, BatchLimit(4), sorta_grad=False, seed=2)
    assert indices(at_once, 0) != indices(still, 0)


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch_and_miss_nothing(epoch, world_size):
    shares = [
        indices(LengthBatchSampler(DURATIONS, BatchLimit(6), seed=7, rank=rank, world_size=world_size), epoch)
        for rank in range(world_size)
    ]
    whole = indices(LengthBatchSampler(DURATIONS, BatchLimit(6 * world_size), seed=7), epoch)
    assert len({len(share) for share in shares}) == 1
    for together, *parts in zip(whole, *shares, strict=True):
        assert sorted(together) == sorted(index for part in parts for index in part)
        longest = [max(DURATIONS[part]) for part in parts if part]
        assert max(longest) < 1.3 * min(longest), "they finish together"


def test_a_share_may_be_empty_and_is_still_a_batch():
    shares = [
        indices(LengthBatchSampler(DURATIONS[:7], BatchLimit(1), shuffle=False, rank=rank, world_size=3), 0)
        for rank in range(3)
    ]
    assert [[len(batch) for batch in share] for share in shares] == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]


def after(sampler, position, batches):
    """The position after so many batches from another."""
    position = sampler.go_to(position)
    return replace(position, done=position.done + sum(len(batch) for batch in sampler.batches[:batches]))


@pytest.mark.parametrize("done", [0, 1, 4, 10, 11])
@pytest.mark.parametrize("epoch", [0, 2])
def test_an_epoch_is_taken_up_where_it_was_left(epoch, done):
    sampler = LengthBatchSampler(DURATIONS, BatchLimit(10), seed=7)
    whole = indices(sampler, epoch)
    left = after(sampler, Position(epoch), done)
    fresh = LengthBatchSampler(DURATIONS, BatchLimit(10), seed=7)
    fresh.go_to(left)
    assert [[key.index for key in batch] for batch in fresh] == whole[done:]
    assert all(key.epoch == epoch for batch in fresh for key in batch)


@pytest.mark.parametrize("sizes", [(10, 4), (10, 20), (7, 3, 7), (7, 3, 3), (4, 10, 4, 1)])
def test_other_batch_sizes_go_on_at_the_same_utterance(sizes):
    order = [index for batch in indices(LengthBatchSampler(DURATIONS, BatchLimit(sizes[0]), seed=7), 2) for index in batch]
    position, seen = Position(2), []
    for size in sizes:  # two batches of each
        sampler = LengthBatchSampler(DURATIONS, BatchLimit(size), seed=7)
        position = after(sampler, position, 2)
        seen += np.concatenate(sampler.batches[:2]).tolist()
    sampler.go_to(position)
    assert len(sampler.batches[0]) == sizes[-1]
    assert seen + np.concatenate(sampler.batches).tolist() == order


# by seconds

BY_SECONDS = BatchLimit(seconds=60.0)


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_by_seconds_hold_as_many_as_fit(epoch, world_size):
    shares = [
        indices(LengthBatchSampler(DURATIONS, BY_SECONDS, seed=7, rank=rank, world_size=world_size), epoch)
        for rank in range(world_size)
    ]
    whole = indices(LengthBatchSampler(DURATIONS, BY_SECONDS.times(world_size), seed=7), epoch)
    assert sorted(index for batch in whole for index in batch) == list(range(103))
    for together, *parts in zip(whole, *shares, strict=True):
        assert sorted(together) == sorted(index for part in parts for index in part)
        assert len(together) * DURATIONS[together].max() <= 60 * world_size
    begins = np.cumsum([0] + [len(batch) for batch in whole])
    order = np.concatenate(whole)
    if epoch == 0:  # in later ones the next batch is another one's neighbour
        for begin, batch in zip(begins, whole[:-1], strict=False):
            assert (len(batch) + 1) * DURATIONS[order[begin : begin + len(batch) + 1]].max() > 60 * world_size


def test_an_utterance_longer_than_the_limit_is_a_batch_of_its_own():
    sampler = LengthBatchSampler([1.0, 2.0, 70.0, 80.0], BY_SECONDS, shuffle=False)
    assert indices(sampler, 0) == [[0, 1], [2], [3]]


def test_batches_by_seconds_are_formed_anew_and_shuffled_each_epoch():
    sampler = LengthBatchSampler(DURATIONS, BY_SECONDS, seed=7)
    second, third = indices(sampler, 1), indices(sampler, 2)
    assert {frozenset(batch) for batch in second} != {frozenset(batch) for batch in third}, "within the buckets"
    assert [np.mean(DURATIONS[batch]) for batch in second] != sorted(np.mean(DURATIONS[batch]) for batch in second), (
        "across them"
    )


def test_padding_is_what_the_longest_of_a_batch_adds():
    assert LengthBatchSampler([1.0, 3.0, 4.0, 4.0], BatchLimit(2), shuffle=False).padding == pytest.approx(2 / 14)


@pytest.mark.parametrize(
    "limits", [(BatchLimit(10), BY_SECONDS), (BY_SECONDS, BatchLimit(4)), (BY_SECONDS, BatchLimit(seconds=30.0))]
)
def test_another_kind_of_limit_goes_on_at_the_same_utterance(limits):
    order = [index for batch in indices(LengthBatchSampler(DURATIONS, limits[0], seed=7), 2) for index in batch]
    first = LengthBatchSampler(DURATIONS, limits[0], seed=7)
    left = after(first, Position(2), 2)
    seen = np.concatenate(first.batches[:2]).tolist()
    second = LengthBatchSampler(DURATIONS, limits[1], seed=7)
    kept = Position.read(asdict(second.go_to(Position.read(asdict(left)))))
    assert kept == second.position
    assert seen + np.concatenate(second.batches).tolist() == order


@pytest.mark.parametrize(
    "change", [{"done": -1}, {"epoch": 1.5}, {"formed": {"utterances": 0, "seconds": 0}}, {"formed": 3}, {"more": 1}]
)
def test_a_position_that_is_none_is_refused(change):
    with pytest.raises((TypeError, ValueError, KeyError)):
        Position.read(asdict(Position()) | change)
