"""The index of shards: a row for each piece of a track, with its shard and its place there.

It is a manifest (`datamodules.corpora.manifest`) with more columns. It is checked when it is read, so that the readers
of the audio can trust it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

# Columns of the index besides those of a manifest.
COLUMNS: Mapping[str, str] = {
    "shard": "name of the tar file, beside the index",
    "shard_bytes": "its size",
    "shard_sha256": "of the whole file",
    "member": "name of the piece in the shard",
    "offset": "of its first byte in the shard",
    "member_bytes": "its size",
    "encoding": "pcm16 and float32 (WAV), flac16 and flac24 (FLAC)",
    "piece": "number of the piece, from 0, if the track was divided",
    "piece_start_seconds": "where it begins in the track",
    "gain_db": "gain of the track, 0 or less, so that it does not clip",
    "source_name": "of the track in the manifest it was prepared from",
}
_TEXTS = ("shard", "shard_sha256", "member", "encoding", "name")
LARGEST_INDEX_BYTES = 2 * 10**9
# Larger numbers are mistakes: no disk has such a shard.
_LARGEST_SHARD_BYTES = 10**12
# Columns of whole numbers, with the lowest and the highest.
_LIMITS: Mapping[str, tuple[int, int]] = {
    "shard_bytes": (1, _LARGEST_SHARD_BYTES),
    "offset": (0, _LARGEST_SHARD_BYTES),
    "member_bytes": (1, _LARGEST_SHARD_BYTES),
    "piece": (0, 2**31),
    "sample_rate": (1, 768_000),
    "channels": (1, 64),
    "frames": (1, _LARGEST_SHARD_BYTES),
}
_PATTERNS = {
    "shard": ("names of tar files", re.compile(r"\w[\w.-]{0,200}\.tar", re.ASCII)),
    "shard_sha256": ("hashes", re.compile(r"[0-9a-f]{64}")),
}
_REMEDY = "write it with `spectrostream data prepare MANIFEST --out FOLDER --format shards` and type data.shards=FOLDER"


class ShardIndexError(ManifestError):
    """The index is missing, broken or contradicts itself; the message says what to type."""


@dataclass(frozen=True)
class Shard:
    """A tar file: its name beside the index, its size and its SHA-256."""

    name: str
    size_bytes: int
    sha256: str


def write_index(table: pandas.DataFrame, path: Path) -> None:
    """Write the index, which appears whole or not at all, with checksums in it."""
    with whole_file(path) as file:
        content = pyarrow.Table.from_pandas(table, preserve_index=False)
        pyarrow.parquet.write_table(content, file, write_page_checksum=True)


def read_index(content: bytes, where: str) -> pandas.DataFrame:
    """Read the index and check it.

    Args:
        content: Of its file.
        where: Its place, for messages.

    Raises:
        ShardIndexError: No index, damaged, or rows that contradict each other.
    """
    try:
        table = pyarrow.parquet.read_table(BytesIO(content), page_checksum_verification=True).to_pandas()
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise ShardIndexError(f"{where} is no index of shards, or is damaged ({error}); {_REMEDY}") from error
    wrong = _contradiction(table)
    if wrong:
        raise ShardIndexError(f"{where} {wrong}; {_REMEDY}")
    try:
        return typed(table)
    except (ValueError, TypeError) as error:
        raise ShardIndexError(f"{where} has a value of the wrong kind ({error}); {_REMEDY}") from error


def shards_of(table: pandas.DataFrame) -> tuple[list[Shard], np.ndarray]:
    """Return the shards by name, and the number of its shard for each row, int64 `[rows]`."""
    numbers, names = pandas.factorize(table["shard"], sort=True)
    first = table.drop_duplicates("shard").set_index("shard").loc[list(names)]
    rows = zip(names, first["shard_bytes"], first["shard_sha256"], strict=True)
    return [Shard(name, int(size), digest) for name, size, digest in rows], numbers.astype(np.int64)


def _contradiction(table: pandas.DataFrame) -> str:
    """Return what is wrong with the table; "" if nothing is."""
    missing = [name for name in (*COLUMNS, *_TEXTS, *_LIMITS) if name not in table]
    if missing:
        return f"has no column {', '.join(missing)}"
    if table.empty:
        return "has no rows"
    for name, (lowest, highest) in _LIMITS.items():
        if not pandas.api.types.is_integer_dtype(table[name]) or table[name].hasnans:
            return f"has something else than whole numbers in its column {name!r}"
        if not table[name].between(lowest, highest).all():
            return f"has numbers in its column {name!r} that are not between {lowest:g} and {highest:g}"
    table = table.astype(dict.fromkeys(_LIMITS, np.int64))
    for name in _TEXTS:
        if table[name].hasnans or not pandas.api.types.is_string_dtype(table[name]):
            return f"has something else than text in its column {name!r}"
    starts = table["piece_start_seconds"]
    if not pandas.api.types.is_numeric_dtype(starts) or not (starts >= 0).all():
        return "has something else than times in its column 'piece_start_seconds'"
    if not table["encoding"].isin(list(ENCODINGS)).all():
        return f"has an unknown encoding; known are {', '.join(ENCODINGS)}"
    for name, (kind, pattern) in _PATTERNS.items():
        if not all(pattern.fullmatch(text) for text in table[name].unique()):
            return f"has something else than {kind} in {name!r}"
    if table.drop_duplicates(["shard", "shard_bytes", "shard_sha256"])["shard"].duplicated().any():
        return "gives a shard two sizes or hashes"
    if (table["offset"] + table["member_bytes"] > table["shard_bytes"]).any():
        return "names places beyond the end of a shard"
    for key, rows in table.groupby("encoding"):
        encoding = ENCODINGS[str(key)]
        sizes = encoding.header_bytes + rows["frames"] * rows["channels"] * encoding.sample_bytes
        if encoding.is_plain and (sizes != rows["member_bytes"]).any():
            return "has members whose size is not that of their samples"
    return ""
