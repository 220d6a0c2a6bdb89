"""Masks cover what they say, the warp moves the frame it says, and no part's draws depend on another's."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from config import AugmentConfig
from data.spec_augment import spec_augment, warp_time

BINS, FRAMES = 40, 200
POLICY = AugmentConfig(spec_augment=True, time_warp=0, freq_mask_width=6, time_mask_width=9)


def augmented(seed: int, spect: Tensor | None = None, **policy: object) -> Tensor:
    spect = torch.ones(BINS, FRAMES) if spect is None else spect.clone()
    return spec_augment(spect, dataclasses.replace(POLICY, **policy), np.random.default_rng(seed))


def ridge(at: int, frames: int = FRAMES) -> Tensor:
    """A spectrogram that is loud in one frame alone."""
    spect = torch.zeros(BINS, frames)
    spect[:, at] = 1
    return spect


def test_the_defaults_are_librispeech_double():
    policy = AugmentConfig()
    assert (policy.time_warp, policy.freq_mask_width, policy.num_freq_masks) == (80, 27, 2), "W, F, m_F"
    assert (policy.time_mask_width, policy.time_mask_share, policy.num_time_masks) == (100, 1.0, 2), "T, p, m_T"
    assert not policy.spec_augment


def test_one_mask_of_each_kind_takes_every_width_and_every_place():
    bands, spans = set(), set()
    for seed in range(2000):
        silent = augmented(seed, num_freq_masks=1, num_time_masks=1).eq(0)
        rows, columns = silent.all(1), silent.all(0)
        assert silent.equal(rows[:, None] | columns[None]), "nothing but whole bins and whole frames"
        for found, masked in ((bands, rows), (spans, columns)):
            places = masked.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[0] + len(places))) if places else True, "in one piece"
            found.add((len(places), places[0] if places else 0))
    assert {width for width, _ in bands} == set(range(7)) and {width for width, _ in spans} == set(range(10))
    assert {start for width, start in bands if width == 6} == set(range(BINS - 5))
    starts = {start for width, start in spans if width}
    assert min(starts) == 0 and max(starts) > FRAMES - 10 and len(starts) > 0.9 * FRAMES


@pytest.mark.parametrize("masks", [0, 1, 2, 5])
def test_there_are_as_many_masks_as_asked_for(masks):
    most = max(int(augmented(seed, num_freq_masks=masks, num_time_masks=0).eq(0).all(1).sum()) for seed in range(300))
    assert most == 0 if masks == 0 else 5 * masks - 4 <= most <= 6 * masks
    assert all(augmented(seed, num_freq_masks=0, num_time_masks=0).eq(1).all() for seed in range(5))


def test_time_masks_leave_a_share_of_a_short_utterance():
    widths = [
        int(augmented(s, num_freq_masks=0, num_time_masks=1, time_mask_width=100, time_mask_share=0.2).eq(0).all(0).sum())
        for s in range(300)
    ]
    assert max(widths) == 40


def test_a_mask_wider_than_the_spectrogram_may_hide_all_of_it():
    silent = [augmented(seed, torch.ones(8, 5), num_freq_masks=1, freq_mask_width=50).eq(0).all() for seed in range(50)]
    assert any(silent) and not all(silent)


def test_the_warp_moves_the_frame_it_says_and_keeps_both_ends():
    rising = np.tile(np.arange(FRAMES, dtype=np.float32)[:, None], (1, BINS))
    warped = warp_time(rising, 60, 30)
    assert warped.shape == rising.shape and warped.dtype == np.float32
    assert warped[90, 0] == 60 and warped[0, 0] == 0 and warped[-1, 0] == FRAMES - 1
    np.testing.assert_allclose(warped[:91, 7], np.arange(91) * 60 / 90, atol=1e-4)
    np.testing.assert_allclose(warped[90:, 7], 60 + np.arange(FRAMES - 90) * 139 / 109, atol=1e-4)
    assert np.array_equal(warp_time(rising, 60, 0), rising)


def test_the_warp_point_is_drawn_by_position_and_not_by_loudness():
    """Where a spectrogram is loud changes nothing: all of them are warped alike by the same generator."""
    ramp = torch.arange(FRAMES).float().expand(BINS, FRAMES)
    plain = {"num_freq_masks": 0, "num_time_masks": 0, "time_warp": 20}
    for seed in range(20):
        came_from = augmented(seed, ramp, **plain)[0]
        for loud in (30, 150):
            expected = np.interp(came_from, np.arange(FRAMES), ridge(loud)[0])
            np.testing.assert_allclose(augmented(seed, ridge(loud), **plain)[0], expected, atol=1e-3)


def test_the_warp_stays_within_w():
    ramp = torch.arange(FRAMES).float().expand(BINS, FRAMES)
    moved = [
        augmented(seed, ramp, num_freq_masks=0, num_time_masks=0, time_warp=20)[0] - torch.arange(FRAMES) for seed in range(300)
    ]
    farthest = torch.stack(moved).abs().amax(1)
    assert 19 < farthest.max() < 20.01 and farthest.min() < 1
    assert {bool(m.sum() > 0) for m in moved} == {True, False}, "to either side"


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9, 40, 160, 161])
def test_short_utterances_are_warped_by_a_quarter_at_most(frames):
    ramp = torch.arange(frames).float().expand(BINS, frames)
    for seed in range(50):
        warped = augmented(seed, ramp, num_freq_masks=0, num_time_masks=0, time_warp=80)[0]
        assert warped.diff().min() >= 0 if frames > 1 else True
        assert (warped - torch.arange(frames)).abs().max() <= max(0, (frames - 1) // 4) + 1e-3


def test_no_part_changes_the_draws_of_another():
    spect = torch.rand(BINS, FRAMES) + 1
    for seed in range(20):
        bands = augmented(seed, spect).eq(0).all(1)
        assert bands.equal(augmented(seed, spect, time_warp=80, num_time_masks=9).eq(0).all(1))
        spans = augmented(seed, spect).eq(0).all(0)
        assert spans.equal(augmented(seed, spect, time_warp=80, num_freq_masks=0).eq(0).all(0))


def test_it_is_off_unless_asked_for():
    spect = torch.rand(BINS, FRAMES)
    assert spec_augment(spect, AugmentConfig(), np.random.default_rng(0)) is spect
