"""The data module on shards, as a training meets it: folders and servers, ranks, failures, and mistakes."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from manifests import manifest_of
from music_files import write_raw
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "shards"))
from local_servers import Handler, s3_bucket, served, unavailable

from datamodules.audio_files import read_audio
from datamodules.crop_dataset import CropDataset, NothingReadableError
from datamodules.folder_corpus import demo_corpus_root
from datamodules.preparing.jobs import Settings
from datamodules.preparing.prepare import prepare
from datamodules.segments import SegmentsError, write_segments
from datamodules.shards.index import INDEX_NAME
from datamodules.shards.reader import ShardReader
from datamodules.shards.windows import WindowedCrops
from datamodules.stereo_music import DataConfig, StereoMusicDataModule
from spectrostream.errors import UserError

SECONDS = 3.0
SIDES = ("train",) * 8 + ("validation",) * 2 + ("test",) * 2
GENRES = ("loud", "soft") * 6
TARS = tuple(f"train-{place}0000000.tar" for place in "048c")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve cuts of three seconds: two of each excerpt of the demo corpus, 44.1 and 48 kHz."""
    folder = tmp_path_factory.mktemp("cuts")
    excerpts = sorted(path for path in demo_corpus_root().iterdir() if path.suffix in (".flac", ".ogg"))
    for number, (turn, path) in enumerate(itertools.product(range(2), excerpts)):
        rate = soundfile.info(path).samplerate
        frames, _ = soundfile.read(path, round(SECONDS * rate), start=(3 + 8 * turn) * rate)
        write_raw(folder / f"piece-{number:02d}.wav", 0.8 * frames / np.abs(frames).max(), rate, subtype="PCM_16")
    return folder


def shards_of(originals: Path, out: Path, shard_bytes: int = 1_300_000) -> Path:
    table = manifest_of(originals, sorted(originals.iterdir()), split=SIDES, genre=GENRES)
    prepare(table, out, Settings("pcm16", as_shards=True, shard_bytes=shard_bytes))
    return out


@pytest.fixture(scope="module")
def folder(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of two cuts, about a megabyte each: four to train on, one to validate, one to test."""
    out = shards_of(originals, tmp_path_factory.mktemp("shards"))
    assert {path.name for path in out.glob("*.tar")} == {"test-00000000.tar", *TARS, "validation-00000000.tar"}
    return out


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def config_of(shards: object, cache: Path | None = None, **options: object) -> DataConfig:
    settings = {"crop_seconds": 0.3, "batch_size": 2, "seed": 5, "window_shards": 1, "evaluation_segment_seconds": 2.0}
    settings |= {"shard_cache": None if cache is None else str(cache), "read_timeout_seconds": 5.0}
    return DataConfig(shards=str(shards), **(settings | options))  # type: ignore[arg-type]


def first(data: StereoMusicDataModule, count: int) -> list[Tensor]:
    return list(itertools.islice(data.train_dataloader(), count))


def on_rank(config: DataConfig, rank: int, world_size: int, step: int = 0) -> StereoMusicDataModule:
    data = StereoMusicDataModule(config)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, global_step=step)  # type: ignore[assignment]
    return data


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def windows_of(dataset: CropDataset) -> WindowedCrops:
    crops = dataset._crops
    assert isinstance(crops, WindowedCrops)
    return crops


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
def test_workers_over_a_network_change_no_crop_and_share_their_downloads(folder: Path, cache: Path) -> None:
    expected = first(StereoMusicDataModule(config_of(folder)), 16)
    assert expected[0].shape == (2, 2, 14400)
    with served(folder) as server:
        data = StereoMusicDataModule(config_of(server.url, cache, num_workers=2))
        assert_same(first(data, 16), expected)
    assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_no_shard_in_an_epoch_and_resume_at_any_step(
    folder: Path, shards_read: list[int], world_size: int
) -> None:
    config = config_of(folder)
    visited = []
    for rank in range(world_size):
        data = on_rank(config, rank, world_size)
        crops = windows_of(data.train_dataset())
        steps = crops.crops_per_round // config.batch_size
        shards_read.clear()
        whole = first(data, steps)
        # In the order of their first use; a rank may come to a shard in two epochs of a round.
        order = [shard for shard, _ in itertools.groupby(shards_read)]
        assert order == [shard for epoch in range(world_size) for (shard,) in crops.windows(5, epoch, rank)]
        ends = np.cumsum([len(crops.windows(5, epoch, rank)) for epoch in range(world_size)])[:-1]
        visited.append([part.tolist() for part in np.split(np.array(order), ends)])
        for step in (1, steps // 2, steps - 1):
            assert_same(first(on_rank(config, rank, world_size, step), steps - step), whole[step:])
    everything = sorted(set().union(*visited[0]))
    assert len(everything) == 4
    for hands in zip(*visited, strict=True):
        assert sorted(itertools.chain(*hands)) == everything


def everything_heard(data: StereoMusicDataModule) -> list[Tensor]:
    """Batches, validation and excerpts."""
    return [*first(data, 30), *data.val_dataloader(), *(excerpt.audio for excerpt in data.held_out_excerpts())]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the S3 server's own packages
def test_a_folder_http_and_s3_are_one_corpus(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = StereoMusicDataModule(config_of(folder))
    expected = everything_heard(local)
    with served(folder) as server:
        over_http = StereoMusicDataModule(config_of(server.url, tmp_path / "http"))
        assert_same(everything_heard(over_http), expected)
        assert over_http.describe() == local.describe().replace(str(folder), server.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with s3_bucket(folder) as endpoint:
        over_s3 = StereoMusicDataModule(config_of("s3://music/shards", tmp_path / "s3", s3_endpoint=endpoint))
        assert_same(everything_heard(over_s3), expected)
        with pytest.raises(UserError, match=r"data\.shards='s3://none/shards'.*it is not there.*type data\.shards="):
            StereoMusicDataModule(config_of("s3://none/shards", tmp_path / "s3", s3_endpoint=endpoint)).setup()
    assert over_http.fingerprint == over_s3.fingerprint == local.fingerprint


def test_the_same_music_in_other_shards_is_another_corpus(originals: Path, folder: Path, tmp_path: Path) -> None:
    """Its crops come in another order, so no run may go on with it unasked."""
    there = StereoMusicDataModule(config_of(folder))
    larger = StereoMusicDataModule(config_of(shards_of(originals, tmp_path / "larger", shard_bytes=3_000_000)))
    moved = StereoMusicDataModule(config_of(shutil.copytree(folder, tmp_path / "moved")))
    assert larger.corpus.fingerprint() == there.corpus.fingerprint()
    assert larger.fingerprint != there.fingerprint == moved.fingerprint


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is asked again at once."""
    monkeypatch.setattr("datamodules.shards.transfer._LONGEST_PAUSE_SECONDS", 0.001)


def cached(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob("*.tar")}


def refuses(handler: Handler, content: bytes, asked: int) -> None:
    handler.refuse(503)


def hangs_up(handler: Handler, content: bytes, asked: int) -> None:
    handler.close_connection = True


@pytest.mark.usefixtures("hurried")
def test_training_goes_on_with_what_is_cached_when_the_server_goes_away(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is fetched ahead would depend on which is faster.
    monkeypatch.setattr(ShardReader, "prefetch", lambda *_: None)
    config = config_of(folder)
    whole = StereoMusicDataModule(config).train_dataset()
    keys = [(step, slot) for step in range(2 * windows_of(whole).crops_per_round // 2) for slot in range(2)]
    with served(folder) as server:
        data = StereoMusicDataModule(config_of(server.url, cache))
        data.failure_list = cache.parent / "unreadable.txt"
        dataset = data.train_dataset()
        before = list(itertools.takewhile(lambda key: len(cached(cache)) < 2 and dataset[key] is not None, keys))
        # Connections that are still open end with the server.
        server.faults |= dict.fromkeys(TARS, hangs_up)
    assert 0 < len(before) < len(keys) / 2
    table = data.corpus.table
    there = table["shard_sha256"].isin(cached(cache)).to_numpy()
    lost = set(table["shard"][~there & (table["split"] == "train")])
    assert len(lost) == 2
    drawn = [windows_of(whole).crop_for(5, *key).track_index for key in keys]
    equal = [torch.equal(dataset[key], whole[key]) for key in keys]
    assert equal == there[drawn].tolist()

    assert sum(dataset.failures.values()) >= equal.count(False) > 0
    assert set(table.set_index("track").loc[list(dataset.failures), "shard"]) == lost
    # A line for each shard, not for each of its tracks.
    lines = data.failure_list.read_text().splitlines()
    assert sorted(re.findall(r"the shard '([\w.-]+)'", "\n".join(lines))) == sorted(lost)
    assert len(lines) == len(lost)
    # A server that does not answer is another thing than a file that is gone: that may be over in a second.
    assert all("Cannot connect to host" in line for line in lines)


@pytest.mark.usefixtures("hurried")
def test_a_server_that_is_away_for_a_moment_is_asked_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: self.refuse(503))
    with served(folder, dict.fromkeys(TARS, unavailable(2))) as server:
        data = StereoMusicDataModule(config_of(server.url, cache))
        assert_same(first(data, 40), first(StereoMusicDataModule(config_of(folder)), 40))
        assert not data.train_dataset().failures
        assert [server.asked[name] for name in TARS] == [3] * 4


@pytest.mark.usefixtures("hurried")
def test_only_when_nothing_can_be_read_it_ends_and_a_new_run_tries_again(folder: Path, cache: Path) -> None:
    with served(folder) as server:
        server.faults |= dict.fromkeys(TARS[1:], refuses)
        data = StereoMusicDataModule(config_of(server.url, cache))
        assert len(first(data, 40)) == 40, "one shard is enough"
        assert [server.asked[name] for name in TARS] == [1, 4, 4, 4], "three retries, and then no more for a while"
        server.faults |= dict.fromkeys(TARS, refuses)
        empty = StereoMusicDataModule(config_of(server.url, cache / "of another machine"))
        empty.failure_list = cache / "unreadable.txt"
        with pytest.raises(NothingReadableError, match=r"None of the 8 training tracks can be read; the last: .* 503"):
            first(empty, 1)
        assert len(empty.failure_list.read_text().splitlines()) == 4
        # The server is repaired, and the same command typed again.
        server.faults.clear()
        again = StereoMusicDataModule(config_of(server.url, cache / "of another machine"))
        assert_same(first(again, 40), first(StereoMusicDataModule(config_of(folder)), 40))


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_a_worker_says_in_words_that_nothing_can_be_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = StereoMusicDataModule(config_of(copy, num_workers=1))
    data.setup()
    for shard in copy.glob("*.tar"):
        shard.unlink()
    with pytest.raises(NothingReadableError) as caught:
        first(data, 1)
    assert re.fullmatch(r"None of the 8 training tracks can be read; the last: the shard .*", str(caught.value))


def test_validation_goes_on_with_what_is_there(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = StereoMusicDataModule(config_of(copy, split="track", held_out_fraction=0.85))
    data.failure_list = tmp_path / "unreadable.txt"
    pieces = torch.cat(list(data.val_dataloader()))
    shard_of_track = data.corpus.table["shard"].to_numpy()
    places = [shard_of_track[span.track_index] for span in data.split.validation]
    gone = min(set(places) & {shard_of_track[span.track_index] for span in data.split.test})
    assert len(set(places)) > 1
    (copy / gone).unlink()
    again = StereoMusicDataModule(data.config)
    again.failure_list = data.failure_list
    left = torch.cat(list(again.val_dataloader()))
    assert left.shape == pieces.shape
    assert 0 < sum(torch.equal(one, other) for one, other in zip(pieces, left, strict=True)) < len(pieces)
    lines = data.failure_list.read_text().splitlines()
    assert len(lines) == 1
    assert f"the shard '{gone}'" in lines[0]
    # What is evaluated is never replaced.
    with pytest.raises(UserError, match=f"the shard '{gone}'"):
        again.held_out_excerpts()


def drawn_genres(data: StereoMusicDataModule) -> list[str]:
    crops = windows_of(data.train_dataset())
    genres = data.corpus.table["genre"].to_numpy()
    rounds = range(20 * crops.crops_per_round)
    return [genres[crops.crop_for(5, *divmod(index, 2)).track_index] for index in rounds]


def test_keep_and_weights_choose_among_the_tracks(folder: Path) -> None:
    kept = StereoMusicDataModule(config_of(folder, keep="genre == 'loud'"))
    assert kept.describe().startswith(f"{folder}: 6 tracks, 0.2 train minutes")
    assert set(drawn_genres(kept)) == {"loud"}
    assert [len(kept.split.validation), len(kept.split.test)] == [1, 1]
    never = StereoMusicDataModule(config_of(folder, weights=("0 where genre == 'loud'",)))
    assert len(never.corpus.tracks) == 12
    assert set(drawn_genres(never)) == {"soft"}
    thrice = drawn_genres(StereoMusicDataModule(config_of(folder, weights=("3 where genre == 'loud'",))))
    assert thrice.count("loud") / len(thrice) == pytest.approx(0.75, abs=0.03)
    balanced = drawn_genres(StereoMusicDataModule(config_of(folder, balance="genre")))
    assert balanced.count("loud") / len(balanced) == pytest.approx(0.5, abs=0.03)


def test_the_split_is_the_corpus_own_unless_another_is_typed(folder: Path) -> None:
    official = StereoMusicDataModule(config_of(folder))
    sides = official.corpus.table["split"].to_numpy()
    for side, spans in (("train", official.split.train), ("test", official.split.test)):
        assert set(sides[spans.tracks]) == {side}
    ends = StereoMusicDataModule(config_of(folder, split="end", held_out_seconds=0.7, gap_seconds=0.1))
    assert len(ends.split.test) == 12
    assert [(span.start_seconds, span.end_seconds) for span in ends.split.test] == [pytest.approx((2.3, 3.0))] * 12
    assert ends.split.train.ends == pytest.approx([2.2] * 12)
    tracks = StereoMusicDataModule(config_of(folder, split="track", held_out_fraction=0.85))
    train, test = (set(spans.tracks) for spans in (tracks.split.train, tracks.split.test))
    assert train
    assert test
    assert not train & test


def original_of(originals: Path, track: str, start: float, seconds: float) -> Tensor:
    return read_audio(originals / Path(track).name, start_seconds=start, duration_seconds=seconds)


def test_excerpts_and_validation_are_the_prepared_music(originals: Path, folder: Path) -> None:
    data = StereoMusicDataModule(config_of(folder))
    excerpts = data.held_out_excerpts()
    assert [excerpt.track for excerpt in excerpts] == ["folder/piece-10.wav", "folder/piece-11.wav"]
    for excerpt in excerpts:
        original = original_of(originals, excerpt.track, excerpt.start_seconds, 2.0)
        torch.testing.assert_close(excerpt.audio, original, atol=2e-4, rtol=0)
    crops = torch.cat(list(data.val_dataloader()))
    assert crops.shape == (20, 2, 14400)
    for number, track in ((0, "piece-08.wav"), (9, "piece-08.wav"), (10, "piece-09.wav")):
        original = original_of(originals, track, 0.3 * (number % 10), 0.3)
        torch.testing.assert_close(crops[number], original, atol=2e-4, rtol=0)


def test_a_table_of_segments_is_heard_from_the_shards(originals: Path, folder: Path, tmp_path: Path) -> None:
    chosen = StereoMusicDataModule(config_of(folder, evaluation_segment_seconds=0.5))
    table = tmp_path / "segments.csv"
    write_segments(table, chosen.corpus, chosen.evaluation_spans(5))
    data = StereoMusicDataModule(config_of(folder, evaluation_segments=str(table)))
    excerpts = data.held_out_excerpts(2)
    assert len(excerpts) == 5
    for excerpt in excerpts:
        original = original_of(originals, excerpt.track, excerpt.start_seconds, 0.5)
        torch.testing.assert_close(excerpt.audio, original, atol=2e-4, rtol=0)
    with pytest.raises(SegmentsError, match="is trained on"):
        StereoMusicDataModule(replace(data.config, split="end", held_out_fraction=0.1)).held_out_excerpts()


def test_without_windows_crops_come_from_all_shards_at_once(folder: Path, shards_read: list[int]) -> None:
    first(StereoMusicDataModule(config_of(folder, window_shards=0)), 16)
    assert len(set(shards_read)) == 4
    assert len([shard for shard, _ in itertools.groupby(shards_read)]) > 12, "in no order"
    resumed = first(on_rank(config_of(folder, window_shards=0), 1, 2, step=3), 2)
    assert_same(first(on_rank(config_of(folder, window_shards=0), 1, 2), 5)[3:], resumed)


@pytest.fixture
def web_page(tmp_path: Path) -> Path:
    """A server that answers everything with a page, as a login does."""
    page = tmp_path / "page"
    page.mkdir()
    (page / INDEX_NAME).write_text("<html>Please log in</html>")
    return page


WRONG: dict[str, tuple[str, str]] = {
    "no folder": ("{tmp}/nowhere", "No such file or directory"),
    "no index": ("{tmp}", "No such file or directory"),
    "a file": ("{page}/index.parquet", "Not a directory"),
    "no index there": ("{server}/below", "it is not there"),
    "no server": ("http://127.0.0.1:1", "Cannot connect to host"),
    "a page": ("{server}", "is no index of shards"),
    "a page in a folder": ("file://{page}", "is no index of shards"),
    "no protocol": ("nonsense://there", "nonsense:// is not known"),
}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_address_is_one_error_that_says_what_to_type(
    tmp_path: Path, cache: Path, web_page: Path, name: str
) -> None:
    address, reason = WRONG[name]
    with served(web_page) as server:
        given = address.format(tmp=tmp_path, page=web_page, server=server.url)
        with pytest.raises(UserError) as caught:
            StereoMusicDataModule(config_of(given, cache)).setup()
    message = str(caught.value)
    assert message.startswith(f"data.shards={given!r}: ")
    assert reason in message
    assert "data prepare" in message or "allowed are a folder, http://" in message
    assert not cache.exists()


def test_music_that_cannot_be_used_names_the_key(folder: Path) -> None:
    for options, reason in (({"crop_seconds": 4.0}, "lasts less than the 4 s"), ({"keep": "genre == ''"}, "data.keep")):
        with pytest.raises(UserError, match=rf"^data\.shards='{re.escape(str(folder))}': None of the 12 .*{reason}"):
            StereoMusicDataModule(config_of(folder, **options)).setup()


Spoilt = Callable[[Path], dict[str, object]]


def a_file_in_its_place(cache: Path) -> dict[str, object]:
    cache.write_text("not a folder")
    return {}


CACHES: dict[str, tuple[Spoilt, str]] = {
    "a file": (a_file_in_its_place, r"data\.shard_cache='.*cache' cannot keep shards .*; type data\.shard_cache="),
    "too small": (lambda _: {"shard_cache_gigabytes": 1e-4}, r"may have 100000; type data\.shard_cache_gigabytes="),
}


@pytest.mark.parametrize("name", list(CACHES))
def test_a_cache_that_cannot_be_is_told_before_training(folder: Path, cache: Path, name: str) -> None:
    spoil, message = CACHES[name]
    with served(folder) as server:
        options = spoil(cache)
        with pytest.raises(UserError, match=message):
            StereoMusicDataModule(config_of(server.url, cache, **options)).setup()
        assert not [asked for asked in server.asked if asked.endswith(".tar")]
