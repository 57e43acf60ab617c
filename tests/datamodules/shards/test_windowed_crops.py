"""The order of crops through shards: every shard once an epoch, every second equally likely, no state anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader

from datamodules.corpora.corpus import Corpus
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.crop_dataset import CropDataset
from datamodules.crops import RandomCrops
from datamodules.shards.reader import ShardReader
from datamodules.shards.store import ShardStore
from datamodules.shards.windows import Window, WindowedCrops
from datamodules.workers.resilient_loader import StepSampler

pytestmark = pytest.mark.processes

RATE = 100  # few samples to start at, so that each can be counted


def music(shards: int, tracks: int, seed: int = 0) -> tuple[TimeRanges, np.ndarray]:
    """Tracks of 1 to 9 s, at random in the shards; every shard has one."""
    random = np.random.default_rng(seed)
    shard_of_track = np.concatenate([np.arange(shards), random.integers(0, shards, tracks - shards)])
    seconds = np.round(random.uniform(1, 9, tracks), 2)
    return TimeRanges(np.arange(tracks), np.zeros(tracks), seconds), shard_of_track


def crops_of(shards: int = 12, tracks: int = 60, **options: object) -> WindowedCrops:
    ranges, shard_of_track = music(shards, tracks)
    arguments = {"batch_size": 4, "window_shards": 3} | options
    return WindowedCrops(RandomCrops(ranges, 0.5, RATE), shard_of_track, **arguments)  # type: ignore[arg-type]


def windows(crops: WindowedCrops, seed: int, epoch: int, rank: int) -> list[Window]:
    number, within = divmod(epoch, crops._world_size)
    return crops.hands(seed, number, rank)[within]


def window_at(crops: WindowedCrops, seed: int, step: int, slot: int) -> Window:
    planned, place = crops._place(seed, step, slot)
    return planned[place]


@settings(max_examples=60)
@given(
    shards=st.integers(1, 40),
    world_size=st.integers(1, 9),
    window=st.integers(1, 8),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
)
def test_an_epoch_has_every_shard_once_and_no_shard_twice(
    shards: int, world_size: int, window: int, seed: int, epoch: int
) -> None:
    crops = crops_of(shards, 60, world_size=world_size, window_shards=window)
    visited = [shard for rank in range(world_size) for w in windows(crops, seed, epoch, rank) for shard in w]
    assert sorted(visited) == list(range(shards))
    lengths = [len(w) for rank in range(world_size) for w in windows(crops, seed, epoch, rank)]
    assert 1 <= min(lengths) <= max(lengths) <= window
    hands = [sum(map(len, windows(crops, seed, epoch, rank))) for rank in range(world_size)]
    assert max(hands) - min(hands) <= 1


def test_epochs_and_seeds_differ() -> None:
    crops = crops_of(world_size=2)
    orders = {(seed, epoch): tuple(windows(crops, seed, epoch, 0)) for seed in range(4) for epoch in range(8)}
    assert len(set(orders.values())) == len(orders)


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_visit_the_windows_one_after_the_other(world_size: int) -> None:
    crops = crops_of(world_size=world_size)
    for rank in range(world_size):
        planned = [window for epoch in range(world_size) for window in windows(crops, 7, epoch, rank)]
        steps = -(-crops.crops_per_round // 4)
        drawn = [window_at(crops, 7, step, rank * 4 + slot) for step in range(steps) for slot in range(4)]
        drawn = drawn[: crops.crops_per_round]
        changes = [window for window, before in zip(drawn, [None, *drawn], strict=False) if window != before]
        assert changes == planned


@pytest.mark.parametrize("passes", [0.5, 1.0, 3.0])
def test_a_window_lasts_as_long_as_its_music(passes: float) -> None:
    crops = crops_of(passes=passes)
    ranges, shard_of_track = music(12, 60)
    starts = (np.round(ranges.ends * RATE) - 50 + 1) * (1 / 50) * passes
    drawn = [window_at(crops, 1, step, slot) for step in range(crops.crops_per_round // 4) for slot in range(4)]
    for window in set(drawn):
        expected = starts[np.isin(shard_of_track, window)].sum()
        assert abs(drawn.count(window) - expected) <= 5, "one crop at each end, and the round's last crops"


def drawn_starts(crops: WindowedCrops, seeds: range, batch_size: int, ranks: int = 1) -> Iterator[tuple[int, int]]:
    """Track and first sample of all crops of the first round of each seed."""
    for seed in seeds:
        for rank in range(ranks):
            for index in range(crops.crops_per_round):
                step, slot = divmod(index, batch_size)
                crop = crops.crop_for(seed, step, rank * batch_size + slot)
                yield crop.track_index, round(crop.start_seconds * RATE)


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_sample_is_equally_likely_to_be_a_start(world_size: int) -> None:
    ranges, shard_of_track = music(5, 9, seed=3)
    crops = WindowedCrops(
        RandomCrops(ranges, 0.5, RATE), shard_of_track, batch_size=3, world_size=world_size, window_shards=2
    )
    starts = np.round(ranges.ends * RATE).astype(int) - 50 + 1
    offsets = np.cumsum(starts) - starts
    counts = np.zeros(starts.sum())
    for track, start in drawn_starts(crops, range(400 // world_size), 3, world_size):
        assert 0 <= start < starts[track]
        counts[offsets[track] + start] += 1
    assert counts.mean() > 8
    # By tracks, and by stretches of about 15 samples whose borders lie anywhere in the tracks.
    stretches = np.add.reduceat(counts, np.arange(0, len(counts), 15))
    widths = np.add.reduceat(np.ones_like(counts), np.arange(0, len(counts), 15))
    assert stats.chisquare(stretches, widths * counts.mean()).pvalue > 0.001
    tracks = np.add.reduceat(counts, offsets)
    # Windows get their share exactly, so tracks are more even than chance, never less.
    assert stats.chisquare(tracks, starts * counts.mean()).pvalue > 0.01


def test_a_biased_draw_would_be_noticed() -> None:
    """The same test on draws that begin a tenth of the time in the first half of the first track."""
    random = np.random.default_rng(0)
    counts = np.bincount(random.integers(0, 2000, 20000), minlength=2000).astype(float)
    counts[:100] += np.bincount(random.integers(0, 100, 400), minlength=100)
    stretches = np.add.reduceat(counts, np.arange(0, 2000, 15))
    widths = np.add.reduceat(np.ones(2000), np.arange(0, 2000, 15))
    assert stats.chisquare(stretches, widths * counts.mean()).pvalue < 0.001


def test_weights_are_heard_in_proportion() -> None:
    ranges, shard_of_track = music(6, 30)
    weights = np.where(np.arange(30) % 3 == 0, 3.0, np.where(np.arange(30) % 3 == 1, 1.0, 0.0))
    crops = WindowedCrops(RandomCrops(ranges, 0.5, RATE, weights), shard_of_track, batch_size=4, window_shards=2)
    counts = np.zeros(30)
    for track, _ in drawn_starts(crops, range(40), 4):
        counts[track] += 1
    starts = np.round(ranges.ends * RATE) - 49
    expected = starts * weights / (starts * weights).sum() * counts.sum()
    assert counts[weights == 0].sum() == 0
    heard = weights > 0
    assert stats.chisquare(counts[heard], expected[heard]).pvalue > 0.01


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**7), slot=st.integers(0, 11), attempt=st.integers(0, 9))
def test_a_crop_depends_on_its_key_alone(seed: int, step: int, slot: int, attempt: int) -> None:
    fresh, used = crops_of(world_size=3), crops_of(world_size=3)
    for other in range(5):
        used.crop_for(seed ^ other, step + other, (slot + other) % 12)
    assert fresh.crop_for(seed, step, slot, attempt=attempt) == used.crop_for(seed, step, slot, attempt=attempt)


@settings(max_examples=40)
@given(step=st.integers(0, 10**5), lost=st.sets(st.integers(0, 59), max_size=59))
def test_what_is_left_out_is_left_out(step: int, lost: set[int]) -> None:
    crops = crops_of()
    assume(crops.track_indices - lost)
    crop = crops.crop_for(5, step, 1, without=lost)
    assert crop.track_index not in lost
    window_tracks = set(np.flatnonzero(np.isin(music(12, 60)[1], window_at(crops, 5, step, 1))))
    if (window_tracks & crops.track_indices) - lost:
        assert crop.track_index in window_tracks


def test_nothing_left_is_an_error() -> None:
    crops = crops_of()
    with pytest.raises(ValueError, match="all 60 training tracks"):
        crops.crop_for(0, 0, 0, without=crops.track_indices)


def test_shards_without_training_music_are_not_visited() -> None:
    ranges, shard_of_track = music(10, 40)
    kept = shard_of_track[ranges.tracks] % 2 == 0
    crops = WindowedCrops(RandomCrops(ranges.at(kept), 0.5, RATE), shard_of_track, batch_size=2)
    assert {shard for window in windows(crops, 0, 0, 0) for shard in window} == {0, 2, 4, 6, 8}


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"world_size": 0}, {"window_shards": 0}, {"passes": 0.0}])
def test_impossible_numbers(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        crops_of(**options)


def test_the_window_after_this_one_is_announced_once() -> None:
    told: list[tuple[int, ...]] = []
    crops = crops_of(announce=lambda window: told.append(tuple(window)))
    planned = windows(crops, 3, 0, 0)
    for step in range(crops.crops_per_round // 4):
        crops.crop_for(3, step, 0)
    assert told == [*planned[1:], planned[0]]


def dataset_of(folder: Path, seed: int) -> CropDataset:
    store = ShardStore(folder)
    reader = ShardReader(Corpus(str(folder), store.read_index()), store)
    durations = reader.corpus.durations
    ranges = TimeRanges(np.arange(len(durations)), np.zeros(len(durations)), durations)
    crops = WindowedCrops(
        RandomCrops(ranges, 0.5, 48000, gain_db_range=(-6.0, 0.0), swap_channels_probability=0.5),
        reader.shard_of_track,
        batch_size=4,
        window_shards=2,
        announce=reader.prefetch,
    )
    return CropDataset(reader, crops, crop_seconds=0.5, seed=seed)  # type: ignore[arg-type]


def batches(folder: Path, start: int, count: int, workers: int) -> list[torch.Tensor]:
    sampler = StepSampler(4, start_batch=start)
    loader = DataLoader(
        dataset_of(folder, 11),
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.slow
def test_workers_and_where_a_run_is_resumed_make_no_difference(shard_folder: Path) -> None:
    whole = batches(shard_folder, 0, 20, workers=0)
    for start, workers in ((0, 2), (7, 0), (13, 1)):
        resumed = batches(shard_folder, start, 20 - start, workers)
        assert all(torch.equal(one, other) for one, other in zip(whole[start:], resumed, strict=True))
    assert len({batch.sum().item() for batch in whole}) == 20


def test_training_goes_on_without_a_shard_that_is_lost(shard_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shard_folder, tmp_path / "copy")
    dataset = dataset_of(folder, 11)
    lost = dataset._reader.shards[2].name  # type: ignore[attr-defined]
    (folder / lost).unlink()
    whole, partial = dataset_of(shard_folder, 11), dataset_of(folder, 11)
    keys = [(step, slot) for step in range(20) for slot in range(4)]
    equal = [torch.equal(whole[key], partial[key]) for key in keys]
    assert partial.failures, "the lost shard was drawn from"
    tracks = partial._reader.corpus.table.set_index("track")
    assert {tracks.loc[name, "shard"] for name in partial.failures} == {lost}
    drawn = [partial._crops.crop_for(11, *key).track_index for key in keys]
    assert [not same for same in equal] == list(partial._reader.corpus.table["shard"].iloc[drawn] == lost)
