"""The index of shards: a row for each piece of music, with the shard that holds it and where in it.

It is a manifest (`datamodules.corpora.manifest`) with more columns. What does not fit together is refused when it is
read, so that whoever reads audio by it can trust it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet

from datamodules.corpora.manifest import ManifestError, typed
from datamodules.shards.encodings import ENCODINGS
from spectrostream.atomic_files import whole_file

INDEX_NAME = "index.parquet"

# Columns of the index beside those of a manifest.
COLUMNS: Mapping[str, str] = {
    "shard": "name of the tar file, which lies beside the index",
    "shard_bytes": "its size",
    "shard_sha256": "of the whole file",
    "member": "name of the piece in the shard",
    "offset": "of its first byte in the shard",
    "member_bytes": "its size",
    "encoding": "pcm16 and float32 (WAV), flac16 and flac24 (FLAC)",
    "piece": "of which this is the number, from 0, where a track was divided",
    "piece_start_seconds": "where it begins in the track",
    "gain_db": "what the track was scaled by so as not to clip; 0 or less",
    "source_name": "of the track in the manifest it was prepared from",
}
_TEXTS = ("shard", "shard_sha256", "member", "encoding", "name")
_WHOLE = ("shard_bytes", "offset", "member_bytes", "piece", "sample_rate", "channels", "frames")
# What would take an index beyond the memory of a machine, or a shard beyond a disk, is a mistake.
LARGEST_INDEX_BYTES = 2 * 10**9
_LARGEST_SHARD_BYTES = 10**12
_SHARD_NAME = re.compile(r"\w[\w.-]{0,200}\.tar", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HIGHEST_RATE = 768_000
_MOST_CHANNELS = 64


class ShardIndexError(ManifestError):
    """An index that is missing, broken or does not fit together; the message says what to type."""


@dataclass(frozen=True)
class Shard:
    """A tar file: its name beside the index, its size and its SHA-256."""

    name: str
    size_bytes: int
    sha256: str


def write_index(table: pandas.DataFrame, path: Path) -> None:
    """Writes the index, which appears whole or not at all, with checksums in it."""
    with whole_file(path) as file:
        content = pyarrow.Table.from_pandas(table, preserve_index=False)
        pyarrow.parquet.write_table(content, file, write_page_checksum=True)


def read_index(content: bytes, where: str) -> pandas.DataFrame:
    """The index out of its file's content; `where` is for messages.

    Raises ShardIndexError: no index, damaged, or rows that contradict each other.
    """
    try:
        table = pyarrow.parquet.read_table(BytesIO(content), page_checksum_verification=True).to_pandas()
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise ShardIndexError(f"{where} is no index of shards, or is damaged ({error}); {_REMEDY}") from error
    missing = [name for name in (*COLUMNS, *_TEXTS, *_WHOLE) if name not in table]
    if missing:
        raise ShardIndexError(f"{where} has no column {', '.join(missing)}; {_REMEDY}")
    if table.empty:
        raise ShardIndexError(f"{where} has no rows; {_REMEDY}")
    wrong = _contradiction(table)
    if wrong:
        raise ShardIndexError(f"{where} {wrong}; {_REMEDY}")
    return _readable(table, where)


_REMEDY = "write it with `spectrostream data prepare MANIFEST --out FOLDER --format shards` and type data.shards=FOLDER"


def shards_of(table: pandas.DataFrame) -> tuple[list[Shard], np.ndarray]:
    """The shards by name, and the number of its shard for each row, int64 `[rows]`."""
    numbers, names = pandas.factorize(table["shard"], sort=True)
    first = table.drop_duplicates("shard").set_index("shard").loc[list(names)]
    rows = zip(names, first["shard_bytes"], first["shard_sha256"], strict=True)
    return [Shard(name, int(size), digest) for name, size, digest in rows], numbers.astype(np.int64)


def _readable(table: pandas.DataFrame, where: str) -> pandas.DataFrame:
    try:
        return typed(table)
    except (ValueError, TypeError) as error:
        raise ShardIndexError(f"{where} has a value of the wrong kind ({error}); {_REMEDY}") from error


def _contradiction(table: pandas.DataFrame) -> str:
    """What is wrong with the rows, or nothing."""
    for name in _WHOLE:
        if not pandas.api.types.is_integer_dtype(table[name]) or table[name].hasnans:
            return f"has something else than whole numbers in its column {name!r}"
    for name in _TEXTS:
        if table[name].hasnans or not pandas.api.types.is_string_dtype(table[name]):
            return f"has something else than text in its column {name!r}"
    starts = table["piece_start_seconds"]
    if not pandas.api.types.is_numeric_dtype(starts) or not (starts >= 0).all():
        return "has something else than times in its column 'piece_start_seconds'"
    if not table["encoding"].isin(list(ENCODINGS)).all():
        return f"has an unknown encoding; known are {', '.join(ENCODINGS)}"
    for column, pattern in (("shard", _SHARD_NAME), ("shard_sha256", _SHA256)):
        if not all(pattern.fullmatch(text) for text in table[column].unique()):
            return f"has something else than {'names of tar files' if column == 'shard' else 'hashes'} in {column!r}"
    if table.drop_duplicates(["shard", "shard_bytes", "shard_sha256"])["shard"].duplicated().any():
        return "gives a shard two sizes or hashes"
    return _misfit({name: table[name].to_numpy(np.float64) for name in _WHOLE}, table["encoding"])


def _misfit(numbers: Mapping[str, np.ndarray], encoding: pandas.Series) -> str:
    limits: Sequence[tuple[str, float, float]] = (
        ("shard_bytes", 1, _LARGEST_SHARD_BYTES),
        ("offset", 0, _LARGEST_SHARD_BYTES),
        ("member_bytes", 1, _LARGEST_SHARD_BYTES),
        ("piece", 0, 2**31),
        ("sample_rate", 1, _HIGHEST_RATE),
        ("channels", 1, _MOST_CHANNELS),
        ("frames", 1, _LARGEST_SHARD_BYTES),
    )
    for name, lowest, highest in limits:
        if not ((numbers[name] >= lowest) & (numbers[name] <= highest)).all():
            return f"has numbers in its column {name!r} that are not between {lowest:g} and {highest:g}"
    if (numbers["offset"] + numbers["member_bytes"] > numbers["shard_bytes"]).any():
        return "names places beyond the end of a shard"
    for kind in encoding.unique():
        coding = ENCODINGS[kind]
        rows = (encoding == kind).to_numpy()
        samples = numbers["frames"][rows] * numbers["channels"][rows]
        if (
            coding.is_plain
            and (coding.header_bytes + samples * coding.sample_bytes != numbers["member_bytes"][rows]).any()
        ):
            return "has members whose size is not that of their samples"
    return ""
