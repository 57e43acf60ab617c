"""Shards from servers that fail in every way: fetched once per machine, verified, within what the cache may hold."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from local_servers import (
    Fault,
    FolderServer,
    cuts_the_connection,
    flips_a_bit,
    is_silent,
    never_ends,
    s3_bucket,
    served,
    trickles,
    unavailable,
)

from datamodules.corpora.corpus import Corpus
from datamodules.shards.cache import ShardCache
from datamodules.shards.index import Shard, ShardIndexError, shards_of
from datamodules.shards.reader import ShardReader
from datamodules.shards.store import ShardError, ShardStore
from spectrostream.errors import UserError

pytestmark = pytest.mark.processes


@pytest.fixture
def server(shard_folder: Path) -> Iterator[FolderServer]:
    with served(shard_folder) as server:
        yield server


def store_of(url: str, tmp_path: Path, **options: object) -> ShardStore:
    settings = {"cache_folder": tmp_path / "cache", "timeout_seconds": 0.5, "retries": 1} | options
    return ShardStore(url, **settings)  # type: ignore[arg-type]


def all_shards(store: ShardStore) -> list[Shard]:
    return shards_of(store.read_index())[0]


def held_digest(store: ShardStore, shard: Shard) -> str:
    with store.hold(shard) as file:
        return hashlib.sha256(file.read()).hexdigest()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.tar"))


def left_overs(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").glob(".*")]


def test_shards_are_fetched_once_and_are_what_was_prepared(server: FolderServer, tmp_path: Path) -> None:
    store = store_of(server.url, tmp_path)
    shards = all_shards(store)
    for _ in range(3):
        assert [held_digest(store, shard) for shard in shards] == [shard.sha256 for shard in shards]
    assert {name: count for name, count in server.asked.items() if name.endswith("tar")} == {s.name: 1 for s in shards}
    another_run = store_of(server.url, tmp_path)
    assert held_digest(another_run, shards[0]) == shards[0].sha256
    assert server.asked[shards[0].name] == 1
    assert not left_overs(tmp_path)


@pytest.mark.parametrize("address", ["{}", "file://{}", "{}/"])
def test_local_folders_are_read_in_place(shard_folder: Path, tmp_path: Path, address: str) -> None:
    store = store_of(address.format(shard_folder), tmp_path)
    assert [held_digest(store, shard) for shard in all_shards(store)]
    assert not (tmp_path / "cache").exists()


def test_a_server_that_is_busy_is_asked_again(shard_folder: Path, tmp_path: Path) -> None:
    with served(shard_folder, {names_in(shard_folder)[1]: unavailable(2)}) as server:
        store = store_of(server.url, tmp_path, retries=2)
        shard = all_shards(store)[1]
        assert held_digest(store, shard) == shard.sha256
        assert server.asked[shard.name] == 3


FAULTS: dict[str, tuple[Fault, str]] = {
    "busy": (unavailable(99), "503"),
    "cut": (cuts_the_connection, "cannot be fetched"),
    "flipped": (flips_a_bit, "SHA-256"),
    "silent": (is_silent, "too long"),
    "trickle": (trickles, "too long|kB/s"),
    "endless": (never_ends, "more than the"),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_shard_that_does_not_come_is_left_out_and_named_once(
    shard_folder: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault, reason = FAULTS[name]
    second = names_in(shard_folder)[1]
    with served(shard_folder, {second: fault}) as server:
        store = store_of(server.url, tmp_path)
        reader = ShardReader(Corpus("here", store.read_index()), store)
        begin = time.monotonic()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                for track, shard in enumerate(reader.shard_of_track):
                    if shard == 1:
                        with pytest.raises(ShardError, match=reason):
                            reader.read(track, 0.0, 0.5)
                    else:
                        reader.read(track, 0.0, 0.5)
        assert time.monotonic() - begin < 8
        assert server.asked[second] == 2, "one retry, then it is left alone"
        assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
            message for message in caplog.messages if second in message
        ]
        assert len(caplog.records) == 1
        reader.close()
    assert not left_overs(tmp_path)


def test_a_server_that_hangs_costs_its_time_out_once_for_each_shard(shard_folder: Path, tmp_path: Path) -> None:
    first, second, _, fourth, *_ = names_in(shard_folder)
    with served(shard_folder, {first: is_silent, second: is_silent, fourth: unavailable(2)}) as server:
        store = store_of(server.url, tmp_path, retries=2)
        for shard in all_shards(store)[:2]:
            with pytest.raises(ShardError, match="too long"):
                store.hold(shard)
        assert (server.asked[first], server.asked[second]) == (3, 1)
        # It answers again, and is asked again.
        assert [held_digest(store, shard) for shard in all_shards(store)[2:4]]
        assert server.asked[fourth] == 3


def test_a_missing_shard_is_not_asked_for_again(server: FolderServer, tmp_path: Path) -> None:
    store = store_of(server.url, tmp_path, retries=5)
    gone = Shard("all-99999.tar", 1000, "0" * 64)
    for _ in range(2):
        with pytest.raises(ShardError, match="it is not there"):
            store.hold(gone)
    assert server.asked[gone.name] == 1
    # Nor by another process of the machine, for a while.
    with pytest.raises(ShardError, match="another process has just tried"):
        store_of(server.url, tmp_path).hold(gone)
    assert server.asked[gone.name] == 1


def test_a_shard_is_asked_for_again_after_a_while(
    shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(shard_folder, {names_in(shard_folder)[0]: unavailable(1)}) as server:
        store = store_of(server.url, tmp_path, retries=0)
        shard = all_shards(store)[0]
        with pytest.raises(ShardError):
            store.hold(shard)
        monkeypatch.setattr("datamodules.shards.store.RETRY_AFTER_SECONDS", 0.0)
        assert held_digest(store, shard) == shard.sha256
        assert not store.has_failed(shard)


def test_a_server_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ShardIndexError, match="data prepare --format shards"):
        store_of("http://127.0.0.1:1", tmp_path).read_index()
    with pytest.raises(UserError, match=r"pip install 'spectrostream\[remote\]'"):
        store_of("nonsense://there", tmp_path).read_index()


def test_the_cache_keeps_to_its_size_and_removes_what_was_not_used_longest(
    server: FolderServer, tmp_path: Path
) -> None:
    store = store_of(server.url, tmp_path)
    shards = all_shards(store)[:4]
    capacity = sum(shard.size_bytes for shard in shards[:3])
    store = store_of(server.url, tmp_path, cache_bytes=capacity)

    def there() -> set[str]:
        return {path.stem for path in (tmp_path / "cache").glob("*.tar")}

    for shard in shards[:3]:
        store.hold(shard).close()
        time.sleep(0.02)
    store.hold(shards[0]).close()  # used again: the second is now the oldest
    time.sleep(0.02)
    store.hold(shards[3]).close()
    assert shards[1].sha256 not in there()
    assert {shards[0].sha256, shards[3].sha256} <= there()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= capacity


def test_what_is_in_use_is_not_removed(server: FolderServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = all_shards(store_of(server.url, tmp_path))
    store = store_of(server.url, tmp_path, cache_bytes=max(shard.size_bytes for shard in shards))
    with store.hold(shards[0]) as first, caplog.at_level(logging.WARNING):
        for shard in (shards[1], shards[2], shards[1]):
            assert held_digest(store, shard) == shard.sha256
        assert (tmp_path / "cache" / f"{shards[0].sha256}.tar").exists()
        assert hashlib.sha256(first.read()).hexdigest() == shards[0].sha256
    assert len([message for message in caplog.messages if "all of it is in use" in message]) == 1


def test_a_shard_larger_than_the_cache_says_so(server: FolderServer, tmp_path: Path) -> None:
    store = store_of(server.url, tmp_path, cache_bytes=1000)
    with pytest.raises(UserError, match="the cache of shards may have 1000"):
        store.hold(all_shards(store)[0])


def _hold(url: str, cache: Path, barrier: object, results: object) -> None:
    store = ShardStore(url, cache_folder=cache, timeout_seconds=5, retries=0)
    shards = all_shards(store)
    barrier.wait()  # type: ignore[attr-defined]
    results.put([held_digest(store, shard) == shard.sha256 for shard in shards])  # type: ignore[attr-defined]


def test_processes_of_a_machine_share_one_download(server: FolderServer, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (server.url, tmp_path / "cache", barrier, results)
    processes = [context.Process(target=_hold, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        process.close()
    results.close()
    assert all(all(outcome) for outcome in outcomes)
    assert {count for name, count in server.asked.items() if name.endswith("tar")} == {1}


def test_a_process_killed_in_the_middle_of_a_download_blocks_nobody(shard_folder: Path, tmp_path: Path) -> None:
    slowly = threading.Event()

    def half(handler: object, content: bytes, asked: int) -> None:
        handler.headed(200, len(content))  # type: ignore[attr-defined]
        handler.wfile.write(content[: len(content) // 2 if asked == 1 else None])  # type: ignore[attr-defined]
        if asked == 1:
            slowly.wait(20)

    program = """
        import sys
        from datamodules.shards.index import shards_of
        from datamodules.shards.store import ShardStore
        store = ShardStore(sys.argv[1], cache_folder=sys.argv[2], timeout_seconds=30, retries=0)
        store.hold(shards_of(store.read_index())[0][1])
    """
    with served(shard_folder, {names_in(shard_folder)[1]: half}) as server:
        command = [sys.executable, "-c", textwrap.dedent(program), server.url, str(tmp_path / "cache")]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as victim:
            deadline = time.monotonic() + 60
            while not left_overs(tmp_path):
                assert time.monotonic() < deadline
                assert victim.poll() is None, victim.stderr and victim.stderr.read()
                time.sleep(0.02)
            os.kill(victim.pid, signal.SIGKILL)
        slowly.set()
        store = store_of(server.url, tmp_path)
        shard = all_shards(store)[1]
        begin = time.monotonic()
        assert held_digest(store, shard) == shard.sha256
        assert time.monotonic() - begin < 5
    assert not left_overs(tmp_path)


def test_left_overs_of_killed_downloads_make_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1000)
    (tmp_path / ".other.tar.12345678.unfinished").write_bytes(b"x" * 900)
    content = b"y" * 500
    shard = Shard("a.tar", 500, hashlib.sha256(content).hexdigest())
    cache.hold(shard, lambda file: file.writelines([content])).close()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [f"{shard.sha256}.tar"]


def test_the_next_window_is_fetched_in_the_background(server: FolderServer, tmp_path: Path) -> None:
    store = store_of(server.url, tmp_path)
    reader = ShardReader(Corpus("here", store.read_index()), store)
    reader.prefetch([0, 2])
    deadline = time.monotonic() + 10
    while len(list((tmp_path / "cache").glob("*.tar"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert {name for name in server.asked if name.endswith("tar")} == {reader.shards[0].name, reader.shards[2].name}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the S3 server's own packages
def test_s3(shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with s3_bucket(shard_folder) as endpoint:
        store = store_of("s3://music/shards", tmp_path, endpoint_url=endpoint, timeout_seconds=10)
        local = ShardReader(Corpus("local", ShardStore(shard_folder).read_index()), ShardStore(shard_folder))
        remote = ShardReader(Corpus("remote", store.read_index()), store)
        for track in range(len(remote.corpus.tracks)):
            assert torch.equal(remote.read(track, 0.1, 0.5), local.read(track, 0.1, 0.5))
        with pytest.raises(ShardError, match="not there"):
            store.hold(Shard("all-99999.tar", 1000, "0" * 64))
        with pytest.raises(ShardIndexError):
            store_of("s3://music/nothing", tmp_path, endpoint_url=endpoint, timeout_seconds=10).read_index()
        # The variable that all of Amazon's tools know will do as well.
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert all_shards(store_of("s3://music/shards", tmp_path, timeout_seconds=10)) == remote.shards
        for reader in (local, remote):
            reader.close()
