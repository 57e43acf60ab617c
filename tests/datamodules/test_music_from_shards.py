"""The data module on shards, as a training meets it: folders and servers, ranks, failures, and mistakes."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "shards"))
from local_servers import s3_bucket, served
from manifests import manifest_of
from shard_music import GENRES, SIDES, assert_same, config_of, first, on_rank, shards_of, windows_of

from datamodules.audio.files import read_audio
from datamodules.corpora.manifest import write_manifest
from datamodules.corpora.segments import SegmentsError, write_segments
from datamodules.corpora.time_ranges import evenly_spread
from datamodules.preparing.jobs import Settings
from datamodules.preparing.prepare import prepare
from datamodules.shards.reader import ShardReader
from datamodules.stereo_music import DataConfig, StereoMusicDataModule
from spectrostream.errors import UserError

pytestmark = pytest.mark.processes


@pytest.fixture
def shards_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the shard of each part that is read, in the order of reading."""
    read = ShardReader.read
    seen: list[int] = []

    def noted(self: ShardReader, track_index: int, start_seconds: float, duration_seconds: float) -> Tensor:
        seen.append(int(self.shard_of_track[track_index]))
        return read(self, track_index, start_seconds, duration_seconds)

    monkeypatch.setattr(ShardReader, "read", noted)
    return seen


@pytest.mark.slow
def test_workers_over_a_network_change_no_crop_and_share_their_downloads(cut_shards: Path, cache: Path) -> None:
    expected = first(StereoMusicDataModule(config_of(cut_shards)), 16)
    assert expected[0].shape == (2, 2, 14400)
    with served(cut_shards) as server:
        data = StereoMusicDataModule(config_of(server.url, cache, num_workers=2))
        assert_same(first(data, 16), expected)
    assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_no_shard_in_an_epoch_and_resume_at_any_step(
    cut_shards: Path, shards_read: list[int], world_size: int
) -> None:
    config = config_of(cut_shards)
    visited = []
    for rank in range(world_size):
        data = on_rank(config, rank, world_size)
        crops = windows_of(data.train_dataset())
        steps = crops.crops_per_round // config.batch_size
        shards_read.clear()
        whole = first(data, steps)
        # In the order of their first use; a rank may come to a shard in two epochs of a round.
        order = [shard for shard, _ in itertools.groupby(shards_read)]
        assert order == [shard for hand in crops.hands(5, 0, rank) for (shard,) in hand]
        ends = np.cumsum([len(hand) for hand in crops.hands(5, 0, rank)])[:-1]
        visited.append([part.tolist() for part in np.split(np.array(order), ends)])
        for step in (1, steps // 2, steps - 1):
            assert_same(first(on_rank(config, rank, world_size, step), steps - step), whole[step:])
    everything = sorted(set().union(*visited[0]))
    assert len(everything) == 4
    for hands in zip(*visited, strict=True):
        assert sorted(itertools.chain(*hands)) == everything


def everything_heard(data: StereoMusicDataModule) -> list[Tensor]:
    """Batches, validation and segments."""
    return [*first(data, 30), *data.val_dataloader(), *(segment.audio for segment in data.held_out_segments())]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the S3 server's own packages
def test_a_folder_http_and_s3_are_one_corpus(cut_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = StereoMusicDataModule(config_of(cut_shards))
    expected = everything_heard(local)
    with served(cut_shards) as server:
        over_http = StereoMusicDataModule(config_of(server.url, tmp_path / "http"))
        assert_same(everything_heard(over_http), expected)
        assert over_http.describe() == local.describe().replace(str(cut_shards), server.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with s3_bucket(cut_shards) as endpoint:
        over_s3 = StereoMusicDataModule(config_of("s3://music/shards", tmp_path / "s3", s3_endpoint=endpoint))
        assert_same(everything_heard(over_s3), expected)
        with pytest.raises(UserError, match=r"data\.shards='s3://none/shards'.*it is not there.*type data\.shards="):
            StereoMusicDataModule(config_of("s3://none/shards", tmp_path / "s3", s3_endpoint=endpoint)).setup()
    assert over_http.fingerprint == over_s3.fingerprint == local.fingerprint


def test_the_same_music_in_other_shards_is_another_corpus(cuts: Path, cut_shards: Path, tmp_path: Path) -> None:
    """Its crops come in another order, so no run may go on with it unasked."""
    there = StereoMusicDataModule(config_of(cut_shards))
    larger = StereoMusicDataModule(config_of(shards_of(cuts, tmp_path / "larger", shard_bytes=3_000_000)))
    moved = StereoMusicDataModule(config_of(shutil.copytree(cut_shards, tmp_path / "moved")))
    assert larger.corpus.fingerprint() == there.corpus.fingerprint()
    assert larger.fingerprint != there.fingerprint == moved.fingerprint


def drawn_genres(data: StereoMusicDataModule) -> list[str]:
    crops = windows_of(data.train_dataset())
    genres = data.corpus.table["genre"].to_numpy()
    rounds = range(20 * crops.crops_per_round)
    return [genres[crops.crop_for(5, *divmod(index, 2)).track_index] for index in rounds]


def test_keep_and_weights_choose_among_the_tracks(cut_shards: Path) -> None:
    kept = StereoMusicDataModule(config_of(cut_shards, keep="genre == 'loud'"))
    assert kept.describe().startswith(f"{cut_shards}: 6 tracks, 0.2 train minutes")
    assert set(drawn_genres(kept)) == {"loud"}
    assert [len(kept.split.validation), len(kept.split.test)] == [1, 1]
    never = StereoMusicDataModule(config_of(cut_shards, weights=("0 where genre == 'loud'",)))
    assert len(never.corpus.tracks) == 12
    assert set(drawn_genres(never)) == {"soft"}
    thrice = drawn_genres(StereoMusicDataModule(config_of(cut_shards, weights=("3 where genre == 'loud'",))))
    assert thrice.count("loud") / len(thrice) == pytest.approx(0.75, abs=0.03)
    balanced = drawn_genres(StereoMusicDataModule(config_of(cut_shards, balance="genre")))
    assert balanced.count("loud") / len(balanced) == pytest.approx(0.5, abs=0.03)


def test_the_split_is_the_corpus_own_unless_another_is_typed(cut_shards: Path) -> None:
    official = StereoMusicDataModule(config_of(cut_shards))
    sides = official.corpus.table["split"].to_numpy()
    for side, spans in (("train", official.split.train), ("test", official.split.test)):
        assert set(sides[spans.tracks]) == {side}
    ends = StereoMusicDataModule(config_of(cut_shards, split="end", held_out_seconds=0.7, gap_seconds=0.1))
    assert len(ends.split.test) == 12
    assert [(span.start_seconds, span.end_seconds) for span in ends.split.test] == [pytest.approx((2.3, 3.0))] * 12
    assert ends.split.train.ends == pytest.approx([2.2] * 12)
    tracks = StereoMusicDataModule(config_of(cut_shards, split="track", held_out_fraction=0.5))
    train, test = (set(spans.tracks) for spans in (tracks.split.train, tracks.split.test))
    assert train
    assert test
    assert not train & test


def original_of(cuts: Path, track: str, start: float, seconds: float) -> Tensor:
    return read_audio(cuts / Path(track).name, start_seconds=start, duration_seconds=seconds)


def test_segments_and_validation_are_the_prepared_music(cuts: Path, cut_shards: Path) -> None:
    data = StereoMusicDataModule(config_of(cut_shards))
    segments = data.held_out_segments()
    assert [segment.track for segment in segments] == ["b10.wav", "b11.wav"]
    for segment in segments:
        original = original_of(cuts, segment.track, segment.start_seconds, 2.0)
        torch.testing.assert_close(segment.audio, original, atol=2e-4, rtol=0)
    crops = torch.cat(list(data.val_dataloader()))
    assert crops.shape == (20, 2, 14400)
    for number, track in ((0, "b08.wav"), (9, "b08.wav"), (10, "b09.wav")):
        original = original_of(cuts, track, 0.3 * (number % 10), 0.3)
        torch.testing.assert_close(crops[number], original, atol=2e-4, rtol=0)


def test_a_table_of_segments_is_heard_from_the_shards(cuts: Path, cut_shards: Path, tmp_path: Path) -> None:
    chosen = StereoMusicDataModule(config_of(cut_shards, evaluation_segment_seconds=0.5))
    table = tmp_path / "segments.csv"
    write_segments(table, chosen.corpus, chosen.evaluation_ranges(5))
    data = StereoMusicDataModule(config_of(cut_shards, evaluation_segments=str(table)))
    segments = data.held_out_segments()
    assert len(segments) == 5
    for limit in range(1, 7):
        names = [one.name for one in data.held_out_segments(limit)]
        assert names == [segments[place].name for place in evenly_spread(5, limit)]
        assert len(names) == min(limit, 5)
    for segment in segments:
        original = original_of(cuts, segment.track, segment.start_seconds, 0.5)
        torch.testing.assert_close(segment.audio, original, atol=2e-4, rtol=0)
    with pytest.raises(SegmentsError, match="is trained on"):
        StereoMusicDataModule(replace(data.config, split="end", held_out_fraction=0.1)).held_out_segments(1)


def test_segments_across_the_pieces_of_tracks_are_the_original_music(cuts: Path, tmp_path: Path) -> None:
    """The table is made of the manifest, the training reads the shards: what README says to type."""
    manifest, table = tmp_path / "m.parquet", tmp_path / "segments.csv"
    original = manifest_of(cuts, sorted(cuts.iterdir()), split=SIDES, genre=GENRES)
    write_manifest(original, manifest)
    chosen = StereoMusicDataModule(DataConfig(manifests=(str(manifest),), evaluation_segment_seconds=1.0))
    write_segments(table, chosen.corpus, chosen.evaluation_ranges())
    expected = StereoMusicDataModule(replace(chosen.config, evaluation_segments=str(table))).held_out_segments()
    prepare(original, tmp_path / "shards", Settings("float32", as_shards=True, piece_seconds=0.7))
    data = StereoMusicDataModule(config_of(tmp_path / "shards", evaluation_segments=str(table)))
    assert len(data.corpus.tracks) == 5 * 12
    assert [len(parts) for parts in data.segment_places()] == [2, 3, 2] * 2
    segments = data.held_out_segments()
    assert_same([one.audio for one in segments], [one.audio for one in expected])
    # By these names systems and runs are compared, and tracks, not pieces of them, are what is counted.
    assert [(one.track, one.name) for one in segments] == [(one.track, one.name) for one in expected]
    assert len({one.name for one in segments}) == 6
    assert len({one.track for one in segments}) == 2


def test_without_windows_crops_come_from_all_shards_at_once(cut_shards: Path, shards_read: list[int]) -> None:
    first(StereoMusicDataModule(config_of(cut_shards, window_shards=0)), 16)
    assert len(set(shards_read)) == 4
    assert len([shard for shard, _ in itertools.groupby(shards_read)]) > 12, "in no order"
    resumed = first(on_rank(config_of(cut_shards, window_shards=0), 1, 2, step=3), 2)
    assert_same(first(on_rank(config_of(cut_shards, window_shards=0), 1, 2), 5)[3:], resumed)
