"""What shards are called, and which of them one more track changes."""

from __future__ import annotations

import re

import pandas
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.layouts.contract import SPLITS
from datamodules.manifest import typed
from datamodules.preparing.jobs import Job, Settings
from datamodules.preparing.plan import jobs_of, prepared_names, shard_word

SHARDS = Settings("pcm16", as_shards=True, shard_bytes=5_000_000)

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


@given(count=st.integers(4, 60))
@settings(max_examples=30)
def test_one_more_track_changes_the_shards_that_come_after_it(count: int) -> None:
    before, after = jobs(count), jobs(count + 1)
    (place,) = [
        number for number, job in enumerate(after) if any(track.name.endswith(f"/{count}.wav") for track in job.tracks)
    ]
    same = [old.identity() == new.identity() for old, new in zip(before, after, strict=False)]
    # Where it begins a shard, the shard before it is as it was.
    assert all(same[:place])
    assert not any(same[place:])
