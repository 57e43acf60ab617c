"""Plan the file or the shard of each track, as a function of the manifest alone."""

from __future__ import annotations

import hashlib
import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from datamodules.corpora.manifest import SPLITS
from datamodules.corpora.splits import hash_places
from datamodules.preparing.jobs import Job, Settings, TrackToPrepare
from datamodules.scanning.measuring import VERSION
from datamodules.shards.packing import END_BYTES

# A POSIX file name may have 255 bytes. Longer names are cut, and end in a hash.
_LONGEST_NAME_BYTES = 200
_LONGEST_SHARD_WORD = 40
_PLACES = 2**32
_PARTS = 64
# Escaped dots, slashes and zero bytes. `manifest.table_name` never writes them.
_LEADING_OUT = re.compile(r"\\x(?:00|2e|2f)")
_NOTES = ("corpus", "split", "group", "artist", "genre")


def prepared_names(table: pandas.DataFrame, settings: Settings) -> pandas.Series:
    """Return the unique new name of each row: `CORPUS/NAME` with the new extension at its end.

    A second folder with the same corpus' name becomes `CORPUS-2`, and so on.
    """
    extension = settings.coding.extension
    folders = _folders(table)
    taken: set[str] = set()
    names = []
    for corpus, root, name in zip(table["corpus"], table["root"], table["name"], strict=True):
        proposed = f"{folders[corpus, root]}/{_safe_path(name)}"
        while not proposed.endswith(extension) or proposed in taken:
            proposed += extension
        taken.add(proposed)
        names.append(proposed)
    return pandas.Series(names, index=table.index, dtype="str")


def jobs_of(table: pandas.DataFrame, names: pandas.Series, settings: Settings) -> list[Job]:
    """Return a job for each usable row, or for each shard of usable rows."""
    usable = (table["problem"] == "") & (table["frames"] > 0) & (table["sample_rate"] > 0) & (table["channels"] > 0)
    usable = usable.fillna(False).astype(bool)
    table, names = table[usable], names[usable]
    tracks = [_track(row, name) for row, name in zip(table.to_dict("records"), names, strict=True)]
    if not settings.as_shards:
        return [Job(track.name, (track,), settings) for track in tracks]
    placed = sorted(zip(table["split"], _places(table, names), names, tracks, strict=True), key=lambda row: row[:3])
    jobs = []
    for split, rows in itertools.groupby(placed, key=lambda row: row[0]):
        for first, together in _shards([(place, track) for _, place, _, track in rows], 0, _PLACES, settings):
            jobs.append(Job(f"{shard_word(split)}-{first:08x}", together, settings))
    return jobs


def shard_word(split: str) -> str:
    """Return the start of the names of a split's shards: ASCII, short, and unique."""
    if split in SPLITS:
        return split
    if not split:
        return "all"
    readable = re.sub(r"[^A-Za-z0-9]+", "_", split)[:_LONGEST_SHARD_WORD]
    return f"{readable}-{_short_hash(split.encode('utf-8', 'surrogateescape'))}"


def _track(row: Mapping[Any, Any], name: str) -> TrackToPrepare:
    parts = tuple(filter(None, row["parts"].split("\n")))
    # Prepared files keep the hash of the music that they were made from, and older versions made other hashes.
    is_prepared = isinstance(row.get("source_name"), str) and row["source_name"] != ""
    is_old = _whole(row["measurement_version"]) != VERSION
    return TrackToPrepare(
        name=name,
        root=row["root"],
        sources=parts or (row["name"],),
        frames=int(row["frames"]),
        sample_rate=int(row["sample_rate"]),
        channels=int(row["channels"]),
        size_bytes=_whole(row["size_bytes"]),
        modified_ns=_whole(row["modified_ns"]),
        notes={key: row[key] for key in _NOTES},
        content_hash="" if is_prepared or is_old else row["content_hash"],
        source_name=row["source_name"] if is_prepared else row["name"],
        source_hash=row["content_hash"],
    )


def _shards(
    placed: Sequence[tuple[int, TrackToPrepare]], first: int, stop: int, settings: Settings
) -> Iterator[tuple[int, tuple[TrackToPrepare, ...]]]:
    """Yield shards of the tracks with places in [first, stop), each with its first place.

    Tracks that do not fit into one shard are halved by place, so that a new track changes its own shard only. Shards of
    small tracks are at least half full. A track that is larger than a shard has shards of its own.
    """
    if not placed:
        return
    size = END_BYTES + sum(track.expected_bytes(settings) for _, track in placed)
    if size <= settings.shard_bytes or len(placed) == 1 or stop - first == 1:
        yield first, tuple(track for _, track in placed)
        return
    middle = (first + stop) // 2
    cut = bisect_left(placed, middle, key=lambda item: item[0])
    yield from _shards(placed[:cut], first, middle, settings)
    yield from _shards(placed[cut:], middle, stop, settings)


def _places(table: pandas.DataFrame, names: pandas.Series) -> list[int]:
    """Return the place of each track, in [0, 2**32).

    The upper bits are those of the split by hash, so that training and held-out tracks share few shards. The rest is
    shuffled by name, so that a few shards have tracks of many albums.
    """
    parts = np.floor(hash_places(table) * _PARTS).astype(int).tolist()
    digests = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    size = _PLACES // _PARTS
    return [part * size + int.from_bytes(digest[:4], "big") % size for part, digest in zip(parts, digests, strict=True)]


def _folders(table: pandas.DataFrame) -> dict[tuple[str, str], str]:
    folders: dict[tuple[str, str], str] = {}
    count: dict[str, int] = {}
    for corpus, root in table[["corpus", "root"]].drop_duplicates().itertuples(index=False):
        safe = "".join(character if character.isalnum() or character in "-_" else "_" for character in corpus)
        name = _short_part(safe) or "music"
        count[name] = count.get(name, 0) + 1
        folders[corpus, root] = name if count[name] == 1 else f"{name}-{count[name]}"
    return folders


def _safe_path(name: str) -> str:
    """Return a path that does not lead out of the output folder, with parts that a disk accepts."""
    parts = _LEADING_OUT.sub("_", name).split("/")
    return "/".join(_short_part(part) for part in parts if part not in ("", ".", ".."))


def _short_part(part: str) -> str:
    content = part.encode("utf-8", "surrogateescape")
    if len(content) <= _LONGEST_NAME_BYTES:
        return part
    kept = content[: _LONGEST_NAME_BYTES - 20].decode("utf-8", "ignore")
    return f"{kept}-{_short_hash(content)}"


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _whole(value: Any) -> int | None:
    return None if pandas.isna(value) else int(value)
