from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.time_ranges import TimeRange, TimeRanges
from datamodules.crops import Crop, CropKey, RandomCrops, range_mass
from datamodules.workers.resilient_loader import StepSampler

RANGES = (TimeRange(0, 0.0, 4.0), TimeRange(2, 10.0, 12.0), TimeRange(5, 0.0, 1.0), TimeRange(7, 3.5, 4.78))


def draws(**options: float) -> RandomCrops:
    return RandomCrops(TimeRanges.of(RANGES), crop_seconds=1.28, sample_rate=48000, **options)


def batches(sampler: StepSampler, count: int) -> list[list[CropKey]]:
    return list(itertools.islice(sampler, count))


@given(st.integers(0, 2**40), st.integers(0, 10**7), st.integers(0, 10**5), st.integers(0, 20))
def test_crops_are_within_their_range(seed: int, step: int, slot: int, attempt: int) -> None:
    crop = draws().crop_for(seed, step, slot, attempt=attempt)
    around = next(one for one in RANGES if one.track_index == crop.track_index)
    assert around.start_seconds <= crop.start_seconds
    assert crop.start_seconds + 1.28 <= around.end_seconds + 1e-9
    assert crop == draws().crop_for(seed, step, slot, attempt=attempt)


@given(
    st.lists(st.tuples(st.integers(0, 2**32), st.floats(0, 1e9)), min_size=1, max_size=50).filter(
        lambda ranges: sum(starts * weight for starts, weight in ranges) > 1e-9
    )
)
def test_masses_are_in_proportion_and_can_be_summed(ranges: list[tuple[int, float]]) -> None:
    starts, weights = (np.array(column) for column in zip(*ranges, strict=True))
    mass = range_mass(starts, weights)
    total = sum(mass.tolist())
    assert 2**58 < total < 2**62
    expected = starts * weights / (starts * weights).sum()
    np.testing.assert_allclose(mass / total, expected, rtol=1e-9, atol=1e-17)


def test_a_short_track_beside_a_large_corpus_takes_its_share_and_no_more() -> None:
    """As `data.balance` does it: one possible crop on one side, 200,000 long tracks on the other."""
    starts = np.array([1] + [10**7] * 200_000)
    mass = range_mass(starts, np.array([1.0] + [1 / 2e12] * 200_000))
    assert (mass > 0).all()
    assert mass[0] / mass.sum() == pytest.approx(0.5, abs=1e-6)


def test_a_crop_stays_what_it_is_from_version_to_version() -> None:
    assert draws().crop_for(1, 2, 3) == Crop(track_index=0, start_seconds=59424 / 48000)


def test_starts_are_uniform_in_time() -> None:
    crops = [draws().crop_for(0, step, slot) for step in range(500) for slot in range(8)]
    share = np.mean([crop.track_index == 0 for crop in crops])
    # 2.72 s of starts in track 0, 0.72 s in track 2, one single sample in track 7, none in track 5, which is too short.
    assert share == pytest.approx(2.72 / 3.44, abs=0.03)
    assert {crop.track_index for crop in crops} <= {0, 2, 7}
    starts = np.array([crop.start_seconds for crop in crops if crop.track_index == 0])
    histogram = np.histogram(starts, bins=8, range=(0, 2.72))[0] / len(starts)
    np.testing.assert_allclose(histogram, 1 / 8, atol=0.03)


def test_seed_step_slot_and_attempt_all_matter() -> None:
    crops = {draws().crop_for(*key[:3], attempt=key[3]) for key in itertools.product(range(3), repeat=4)}
    assert len(crops) == 81


def test_tracks_can_be_left_out() -> None:
    assert draws().track_indices == {0, 2, 7}
    assert {draws().crop_for(0, step, 0, without={0, 7}).track_index for step in range(50)} == {2}


def test_gain_and_channel_swap_are_drawn_only_when_asked() -> None:
    plain = [draws().crop_for(0, step, 0) for step in range(400)]
    assert {(crop.gain_db, crop.swap_channels) for crop in plain} == {(0.0, False)}
    options = {"gain_db_range": (-6.0, 2.0), "swap_channels_probability": 0.25}
    varied = [draws(**options).crop_for(0, step, 0) for step in range(400)]
    assert [(c.track_index, c.start_seconds) for c in varied] == [(c.track_index, c.start_seconds) for c in plain]
    gains = np.array([crop.gain_db for crop in varied])
    assert gains.min() >= -6
    assert gains.max() <= 2
    assert gains.mean() == pytest.approx(-2, abs=0.4)
    assert np.mean([crop.swap_channels for crop in varied]) == pytest.approx(0.25, abs=0.07)


def test_no_range_that_holds_a_crop_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"none of 4 training ranges.*data\.crop_seconds"):
        RandomCrops(TimeRanges.of(RANGES), crop_seconds=5.0, sample_rate=48000)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_ranks_share_one_global_batch(batch_size: int, world_size: int, start: int) -> None:
    alone = batches(StepSampler(batch_size * world_size, start_batch=start), 4)
    ranks = [
        batches(StepSampler(batch_size, rank=rank, world_size=world_size, start_batch=start), 4)
        for rank in range(world_size)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        joined = [key for part in parts for key in part]
        assert joined == whole
        assert len(set(joined)) == len(joined)


@given(st.integers(0, 30))
def test_a_resumed_sampler_goes_on_with_the_same_sequence(k: int) -> None:
    whole = batches(StepSampler(3, rank=1, world_size=2), k + 5)
    assert batches(StepSampler(3, rank=1, world_size=2, start_batch=k), 5) == whole[k:]


def test_each_iteration_begins_where_it_is_set() -> None:
    sampler = StepSampler(1)
    assert batches(sampler, 1) == [[(0, 0)]]
    sampler.start_batch = 7
    assert batches(sampler, 1) == [[(7, 0)]]


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(0, 0, 1), (1, 1, 1), (1, -1, 2)])
def test_impossible_ranks_are_refused(batch_size: int, rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="needed are"):
        StepSampler(batch_size, rank=rank, world_size=world_size)
