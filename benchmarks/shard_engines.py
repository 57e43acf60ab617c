"""Measures how fast engines read random crops of 1.28 s from prepared music: ours, WebDataset, LitData, soundfile.

    spectrostream data prepare music.parquet --out shards --format shards --shard-megabytes 64
    python -m benchmarks.shard_engines shards --engines local soundfile http s3 webdataset fsspec
    python benchmarks/shard_engines.py shards --engines litdata    # in its own environment

Every engine returns float32 `[2, 61440]` from 16-bit members. The servers run on this machine. `cold` begins with an
empty cache, `warm` with a full one. WebDataset reads whole members in order, so it takes as many crops of each member
as fit into it. LitData fetches single items, so its items are 10 s long.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_CROP_SECONDS = 1.28
_RATE = 48000
_CROP = round(_CROP_SECONDS * _RATE)
_ITEM_SECONDS = 10
_PACKAGES = {
    "http": ("fsspec", "aiohttp"),
    "s3": ("fsspec", "s3fs"),
    "webdataset": ("webdataset",),
    "litdata": ("litdata", "torchvision"),
}
_KEYS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}

Row = dict[str, Any]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Serve the folder on this machine; yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def s3_server(folder: Path, below: str = "shards") -> Iterator[str]:
    """Serve the folder in the bucket `music` of an S3 server on this machine; yield the endpoint."""
    import os

    import boto3
    from moto.server import ThreadedMotoServer

    os.environ.update(_KEYS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="music")
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            client.upload_file(str(path), "music", f"{below}/{path.name}")
    yield endpoint
    server.stop()


def timed(name: str, crops: Callable[[], int], megabytes: float | None = None) -> Row:
    """Time `crops`, which returns the number of its crops."""
    begin = time.perf_counter()
    count = crops()
    seconds = time.perf_counter() - begin
    size = count * _CROP * 4 / 1e6 if megabytes is None else megabytes
    return {"engine": name, "crops": count, "seconds": seconds, "crops/s": count / seconds, "MB/s": size / seconds}


def our_crops(url: str, count: int, cache: Path | None, **options: Any) -> Callable[[], int]:
    """Return a function that takes crops through windows of shards, as training does."""

    def take() -> int:
        from datamodules.corpora.corpus import Corpus
        from datamodules.corpora.time_ranges import TimeRanges
        from datamodules.crops import RandomCrops
        from datamodules.shards.reader import ShardReader
        from datamodules.shards.store import ShardStore
        from datamodules.shards.windows import WindowedCrops

        store = ShardStore(url, cache_folder=cache, **options)
        reader = ShardReader(Corpus(url, store.read_index()), store)
        seconds = reader.corpus.durations
        ranges = TimeRanges(np.arange(len(seconds)), np.zeros(len(seconds)), seconds)
        drawn = RandomCrops(ranges, _CROP_SECONDS, _RATE)
        crops = WindowedCrops(drawn, reader.shard_of_track, batch_size=16, announce=reader.prefetch)
        for index in range(count):
            crop = crops.crop_for(0, *divmod(index, 16))
            assert reader.read(crop.track_index, crop.start_seconds, _CROP_SECONDS).shape == (2, _CROP)
        return count

    return take


def soundfile_crops(files: list[Path], count: int) -> Callable[[], int]:
    """Return a function that opens, seeks, reads and closes files, without any of our code."""

    def take() -> int:
        import soundfile
        import torch

        frames = [soundfile.info(path).frames for path in files]
        random = np.random.default_rng(0)
        for _ in range(count):
            which = int(random.integers(len(files)))
            with soundfile.SoundFile(files[which]) as file:
                file.seek(int(random.integers(frames[which] - _CROP)))
                audio = torch.from_numpy(file.read(_CROP, dtype="float32").T)
            assert audio.shape[-1] == _CROP
        return count

    return take


def webdataset_crops(urls: list[str], cache: Path | None) -> Callable[[], int]:
    """Return a function that reads whole members and takes random crops of each; a buffer of 1000 mixes them."""

    def crops(members: Iterator[Any]) -> Iterator[Any]:
        import soundfile
        import torch

        random = np.random.default_rng(0)
        for member in members:
            audio, _ = soundfile.read(io.BytesIO(member["wav"]), dtype="float32")
            for _ in range(len(audio) // _CROP):
                start = int(random.integers(len(audio) - _CROP))
                yield torch.from_numpy(np.ascontiguousarray(audio[start : start + _CROP].T))

    def take() -> int:
        import webdataset

        options = {"cache_dir": str(cache)} if cache else {}
        dataset = webdataset.WebDataset(urls, shardshuffle=100, **options).compose(crops).shuffle(1000)
        return sum(1 for _ in dataset)

    return take


def fsspec_transfer(urls: list[str], **options: Any) -> Callable[[], int]:
    """Return a function that only transfers whole files into memory."""

    def take() -> int:
        import fsspec

        for url in urls:
            with fsspec.open(url, "rb", **options) as file:
                while file.read(2**20):
                    pass
        return 0

    return take


def litdata_items(folder: Path, index: list[list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield items of 10 s for LitData."""
    for shard, offset, size in index:
        content = np.memmap(folder / shard, np.int16, "r", offset + 44, ((size - 44) // 4, 2))
        for start in range(0, len(content) - _ITEM_SECONDS * _RATE, _ITEM_SECONDS * _RATE):
            yield {"audio": np.array(content[start : start + _ITEM_SECONDS * _RATE])}


def litdata_crops(url: str, count: int, cache: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Return a function that takes random items, and one random crop of each."""

    def take() -> int:
        import litdata
        import torch

        dataset = litdata.StreamingDataset(url, shuffle=True, seed=0, cache_dir=str(cache), storage_options=options)
        random = np.random.default_rng(0)
        taken = 0
        while taken < count:
            for item in dataset:
                start = int(random.integers(len(item["audio"]) - _CROP))
                audio = torch.from_numpy(item["audio"][start : start + _CROP].T.astype(np.float32) / 2**15)
                assert audio.shape == (2, _CROP)
                taken += 1
                if taken == count:
                    break
        return taken

    return take


def package_megabytes(names: tuple[str, ...]) -> float:
    """Return the size of packages and their requirements, without torch and its requirements."""
    torch_needs = _needed({"torch", "numpy"}) if _is_there("torch") else set()
    return sum(map(_megabytes, _needed(set(names)) - torch_needs))


def _needed(names: set[str]) -> set[str]:
    import re

    found: set[str] = set()
    rest = set(names)
    while rest:
        name = rest.pop()
        if name in found or not _is_there(name):
            continue
        found.add(name)
        lines = metadata.requires(name) or []
        rest |= {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in lines if "extra ==" not in line}
    return found


def _is_there(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _megabytes(name: str) -> float:
    return sum(file.size or 0 for file in metadata.files(name) or []) / 1e6


def run_ours(folder: Path, count: int, engines: list[str]) -> Iterator[Row]:
    """Measure all engines but LitData, which needs its own environment."""
    tars = sorted(folder.glob("*.tar"))
    size = sum(path.stat().st_size for path in tars) / 1e6
    if "local" in engines:
        yield timed("ours, local", our_crops(str(folder), count, None))
    with tempfile.TemporaryDirectory() as cache, http_server(folder) as url:
        if "http" in engines:
            yield timed("ours, HTTP, cold", our_crops(url, count, Path(cache)))
            yield timed("ours, HTTP, warm", our_crops(url, count, Path(cache)))
        if "fsspec" in engines:
            yield timed(
                "fsspec HTTP, transfer alone", fsspec_transfer([f"{url}/{p.name}" for p in tars], block_size=0), size
            )
        if "webdataset" in engines:
            urls = [f"{url}/{path.name}" for path in tars]
            (Path(cache) / "webdataset").mkdir()
            yield timed("WebDataset, HTTP, no cache", webdataset_crops(urls, None))
            yield timed("WebDataset, HTTP, cold cache", webdataset_crops(urls, Path(cache) / "webdataset"))
            yield timed("WebDataset, HTTP, warm cache", webdataset_crops(urls, Path(cache) / "webdataset"))
            yield timed("WebDataset, local", webdataset_crops([str(path) for path in tars], None))
    if "s3" in engines:
        with tempfile.TemporaryDirectory() as cache, s3_server(folder) as endpoint:
            for state in ("cold", "warm"):
                take = our_crops("s3://music/shards", count, Path(cache), endpoint_url=endpoint)
                yield timed(f"ours, S3, {state}", take)
            options = {"client_kwargs": {"endpoint_url": endpoint}}
            urls = [f"s3://music/shards/{path.name}" for path in tars]
            yield timed("fsspec S3, transfer alone", fsspec_transfer(urls, **options), size)


def run_litdata(folder: Path, count: int) -> Iterator[Row]:
    """Measure LitData, local and on S3; it cannot read plain HTTP."""
    import litdata
    from litdata.streaming import downloader

    # LitData 0.2.76 has no option for servers without TLS.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
    index = json.loads((folder / "members.json").read_text())
    with tempfile.TemporaryDirectory() as work:
        items = list(litdata_items(folder, index))
        litdata.optimize(fn=_item, inputs=items, output_dir=f"{work}/chunks", chunk_bytes="64MB", num_workers=1)
        yield timed("LitData, local", litdata_crops(f"{work}/chunks", count, Path(work) / "local", {}))
        with s3_server(Path(work) / "chunks", "chunks") as endpoint:
            options = {"endpoint_url": endpoint}
            for state in ("cold", "warm"):
                take = litdata_crops("s3://music/chunks", count, Path(work) / "s3", options)
                yield timed(f"LitData, S3, {state}", take)


def _item(item: Any) -> Any:
    return item


def write_member_list(folder: Path) -> None:
    """Write the index as JSON for LitData's environment, which has no Parquet."""
    from datamodules.shards.store import ShardStore

    table = ShardStore(folder).read_index()
    members = table[["shard", "offset", "member_bytes"]].values.tolist()
    (folder / "members.json").write_text(json.dumps(members))


def main() -> None:
    """Print a row for each engine, then the size of its packages on the disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--engines", nargs="+", default=["local", "http", "s3", "fsspec", "webdataset"])
    parser.add_argument("--crops", type=int, default=3000)
    parser.add_argument("--files", type=Path, help="a folder of audio files, for plain soundfile")
    arguments = parser.parse_args()
    if arguments.files:
        files = sorted(path for path in arguments.files.rglob("*") if path.suffix in (".flac", ".wav"))
        rows = iter([timed(f"soundfile, {files[0].suffix}", soundfile_crops(files, arguments.crops))])
    elif arguments.engines == ["litdata"]:
        rows = run_litdata(arguments.shards, arguments.crops)
    else:
        write_member_list(arguments.shards)
        rows = run_ours(arguments.shards, arguments.crops, arguments.engines)
    for row in rows:
        print("{engine:30} {crops:6d} crops {seconds:7.2f} s {crops/s:9.0f} crops/s {MB/s:8.0f} MB/s".format(**row))
        sys.stdout.flush()
    for name in set(arguments.engines) & set(_PACKAGES):
        print(f"{name}: {package_megabytes(_PACKAGES[name]):.0f} MB of packages")


if __name__ == "__main__":
    main()
