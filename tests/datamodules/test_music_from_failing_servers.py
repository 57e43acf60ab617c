"""Shards from servers that go away, addresses that are wrong, caches that cannot be: what a training says and does."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "shards"))
from local_servers import Handler, served, unavailable
from shard_music import TARS, assert_same, config_of, first, windows_of

from datamodules.crop_dataset import NothingReadableError
from datamodules.shards.index import INDEX_NAME
from datamodules.shards.reader import ShardReader
from datamodules.stereo_music import StereoMusicDataModule
from spectrostream.errors import UserError

pytestmark = pytest.mark.processes


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
    cut_shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is fetched ahead would depend on which is faster.
    monkeypatch.setattr(ShardReader, "prefetch", lambda *_: None)
    config = config_of(cut_shards)
    whole = StereoMusicDataModule(config).train_dataset()
    keys = [(step, slot) for step in range(2 * windows_of(whole).crops_per_round // 2) for slot in range(2)]
    with served(cut_shards) as server:
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
    cut_shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: self.refuse(503))
    with served(cut_shards, dict.fromkeys(TARS, unavailable(2))) as server:
        data = StereoMusicDataModule(config_of(server.url, cache))
        assert_same(first(data, 40), first(StereoMusicDataModule(config_of(cut_shards)), 40))
        assert not data.train_dataset().failures
        assert [server.asked[name] for name in TARS] == [3] * 4


@pytest.mark.usefixtures("hurried")
def test_only_when_nothing_can_be_read_it_ends_and_a_new_run_tries_again(cut_shards: Path, cache: Path) -> None:
    with served(cut_shards) as server:
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
        # The server is repaired, and the same command runs again.
        server.faults.clear()
        again = StereoMusicDataModule(config_of(server.url, cache / "of another machine"))
        assert_same(first(again, 40), first(StereoMusicDataModule(config_of(cut_shards)), 40))


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_a_worker_says_in_words_that_nothing_can_be_read(cut_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cut_shards, tmp_path / "copy")
    data = StereoMusicDataModule(config_of(copy, num_workers=1))
    data.setup()
    for shard in copy.glob("*.tar"):
        shard.unlink()
    with pytest.raises(NothingReadableError) as caught:
        first(data, 1)
    assert re.fullmatch(r"None of the 8 training tracks can be read; the last: the shard .*", str(caught.value))


def test_validation_goes_on_with_what_is_there(cut_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cut_shards, tmp_path / "copy")
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
        again.held_out_segments()


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


def test_music_that_cannot_be_used_names_the_key(cut_shards: Path) -> None:
    for options, reason in (({"crop_seconds": 4.0}, "lasts less than the 4 s"), ({"keep": "genre == ''"}, "data.keep")):
        with pytest.raises(
            UserError, match=rf"^data\.shards='{re.escape(str(cut_shards))}': None of the 12 .*{reason}"
        ):
            StereoMusicDataModule(config_of(cut_shards, **options)).setup()


Spoilt = Callable[[Path], dict[str, object]]


def a_file_in_its_place(cache: Path) -> dict[str, object]:
    cache.write_text("not a folder")
    return {}


CACHES: dict[str, tuple[Spoilt, str]] = {
    "a file": (a_file_in_its_place, r"data\.shard_cache='.*cache' cannot keep shards .*; type data\.shard_cache="),
    "too small": (lambda _: {"shard_cache_gigabytes": 1e-4}, r"may have 100000; type data\.shard_cache_gigabytes="),
}


@pytest.mark.parametrize("name", list(CACHES))
def test_a_cache_that_cannot_be_is_told_before_training(cut_shards: Path, cache: Path, name: str) -> None:
    spoil, message = CACHES[name]
    with served(cut_shards) as server:
        options = spoil(cache)
        with pytest.raises(UserError, match=message):
            StereoMusicDataModule(config_of(server.url, cache, **options)).setup()
        assert not [asked for asked in server.asked if asked.endswith(".tar")]
