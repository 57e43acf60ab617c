"""What shards are called, how full they are, and which of them one more track changes."""

from __future__ import annotations

import re

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.corpora.manifest import SPLITS, typed
from datamodules.corpora.splits import hash_places
from datamodules.preparing.jobs import Job, Settings
from datamodules.preparing.plan import jobs_of, prepared_names, shard_word

SHARDS = Settings("pcm16", as_shards=True, shard_bytes=5_000_000)
LARGE_SHARDS = Settings("pcm16", as_shards=True, shard_bytes=250_000_000)

any_text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=300)


@given(words=st.lists(any_text, min_size=2, max_size=6, unique=True))
def test_shards_of_any_split_have_short_ascii_names_of_their_own(words: list[str]) -> None:
    named = [shard_word(word) for word in words]
    assert len(set(map(str.lower, named))) == len(words)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", word) for word in named)


def test_the_usual_splits_keep_their_names() -> None:
    assert [shard_word(word) for word in (*SPLITS, "")] == [*SPLITS, "all"]
    similar = ["größe", "grosse", "gr__e", "gr e", "all", "Train", "x" * 500, "x" * 501]
    assert len({shard_word(word) for word in (*SPLITS, "", *similar)}) == len(similar) + 4


def test_a_long_corpus_name_fits_on_a_disk() -> None:
    table = tracks(2).assign(corpus=["k" * 500, "k" * 500 + "l"])
    names = prepared_names(table, Settings("flac24", as_shards=False))
    assert names.is_unique
    assert max(len(part) for name in names for part in name.split("/")) <= 255


def tracks(count: int) -> pandas.DataFrame:
    numbers = {"sample_rate": 48000, "channels": 2, "frames": 480_000}
    names = [f"{number}.wav" for number in range(count)]
    return typed(pandas.DataFrame({"corpus": "folder", "root": "/m", "name": names, "split": "train"} | numbers))


def jobs(count: int) -> list[Job]:
    return jobs_of(tracks(count), prepared_names(tracks(count), SHARDS), SHARDS)


@pytest.mark.slow
@given(count=st.integers(4, 60))
@settings(max_examples=30)
def test_one_more_track_changes_its_own_shard_alone(count: int) -> None:
    before, after = jobs(count), jobs(count + 1)
    was_there = {job.identity() for job in before}
    remade = [job for job in after if job.identity() not in was_there]
    names = {track.name for job in remade for track in job.tracks}
    assert f"folder/{count}.wav" in names
    # All others in it were together before: it is one shard, or one that is halved because it became too large.
    together = [{track.name for track in job.tracks} for job in before if names & {track.name for track in job.tracks}]
    assert len(together) <= 1
    assert names == set().union(*together) | {f"folder/{count}.wav"}


@given(count=st.integers(1, 60))
@settings(max_examples=30)
def test_every_track_is_in_one_shard_with_a_name_of_its_own(count: int) -> None:
    planned = jobs(count)
    assert sorted(track.name for job in planned for track in job.tracks) == sorted(
        f"folder/{number}.wav" for number in range(count)
    )
    assert len({job.name for job in planned}) == len(planned)
    assert [job.name for job in planned] == sorted(job.name for job in planned)
    assert all(re.fullmatch(r"train-[0-9a-f]{8}", job.name) for job in planned)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.25, 0.5])
def test_what_is_held_out_shares_few_shards_with_what_is_trained_on(fraction: float) -> None:
    table = tracks(4000)
    planned = jobs_of(table, prepared_names(table, LARGE_SHARDS), LARGE_SHARDS)
    held_out = hash_places(table) < fraction
    names = set(prepared_names(table, LARGE_SHARDS)[held_out])
    shards = [{track.name in names for track in job.tracks} for job in planned]
    assert abs(held_out.mean() - fraction) < 0.03
    # The border between the two goes through one of 64 parts.
    assert len(shards) > 30
    assert sum(kinds == {False, True} for kinds in shards) <= 2


def test_shards_are_as_large_as_asked_where_tracks_are_small() -> None:
    planned = jobs(2000)
    sizes = [sum(track.expected_bytes(SHARDS) for track in job.tracks) for job in planned]
    large = jobs_of(tracks(2000), prepared_names(tracks(2000), SHARDS), LARGE_SHARDS)
    fill = [sum(track.expected_bytes(LARGE_SHARDS) for track in job.tracks) / LARGE_SHARDS.shard_bytes for job in large]
    assert max(sizes) <= SHARDS.shard_bytes
    assert 0.4 < min(fill) <= max(fill) <= 1


def test_a_track_that_is_larger_than_a_shard_is_alone() -> None:
    table = tracks(20)
    table.loc[7, "frames"] = 48_000_000
    planned = jobs_of(table, prepared_names(table, SHARDS), SHARDS)
    (large,) = [job for job in planned if any(track.name == "folder/7.wav" for track in job.tracks)]
    assert len(large.tracks) == 1
