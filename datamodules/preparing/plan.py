"""Which track becomes which file or goes into which shard: a function of the manifest alone."""

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

# A name on a POSIX disk may have 255 bytes; what is longer than this is cut, with a hash in place of the rest.
_LONGEST_NAME_BYTES = 200
_LONGEST_SHARD_WORD = 40
_PLACES = 2**32
_PARTS = 64
# Escaped dots, slashes and zero bytes, which `manifest.table_name` never writes.
_LEADING_OUT = re.compile(r"\\x(?:00|2e|2f)")
_NOTES = ("corpus", "split", "group", "artist", "genre")


def prepared_names(table: pandas.DataFrame, settings: Settings) -> pandas.Series:
    """What each row becomes: `CORPUS/NAME` with the new extension at its end, unique.

    A second folder that was scanned as the same corpus is called `CORPUS-2`, and so on.
    """
    extension = settings.coding.extension
    folders = _folders(table)
    taken: set[str] = set()
    names = []
    for corpus, root, name in zip(table["corpus"], table["root"], table["name"], strict=True):
        proposed = f"{folders[corpus, root]}/{_shortened(_relative(name))}"
        while not proposed.endswith(extension) or proposed in taken:
            proposed += extension
        taken.add(proposed)
        names.append(proposed)
    return pandas.Series(names, index=table.index, dtype="str")


def jobs_of(table: pandas.DataFrame, names: pandas.Series, settings: Settings) -> list[Job]:
    """The usable rows as jobs: each a track, or the tracks of a shard."""
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
    """What the names of a split's shards begin with: ASCII, short, and another word for every split."""
    if split in SPLITS:
        return split
    if not split:
        return "all"
    readable = re.sub(r"[^A-Za-z0-9]+", "_", split)[:_LONGEST_SHARD_WORD]
    return f"{readable}-{_short_hash(split.encode('utf-8', 'surrogateescape'))}"


def _track(row: Mapping[Any, Any], name: str) -> TrackToPrepare:
    parts = tuple(filter(None, row["parts"].split("\n")))
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
        content_hash=_content_hash(row),
        source_name=row["source_name"] if _is_prepared(row) else row["name"],
        source_hash=row["content_hash"],
    )


def _is_prepared(row: Mapping[Any, Any]) -> bool:
    return isinstance(row.get("source_name"), str) and row["source_name"] != ""


def _content_hash(row: Mapping[Any, Any]) -> str:
    """Of the samples in the row's files, if it is known how this version would make it."""
    # What was prepared before keeps the hash of the music that it was made from, whatever its own samples are.
    return "" if _is_prepared(row) or _whole(row["measurement_version"]) != VERSION else row["content_hash"]


def _shards(
    placed: Sequence[tuple[int, TrackToPrepare]], first: int, stop: int, settings: Settings
) -> Iterator[tuple[int, tuple[TrackToPrepare, ...]]]:
    """The tracks with places from `first` on and before `stop`, by place, as shards, each with its first place.

    What does not fit into one shard is halved by place, so that one more track changes its own shard and no other.
    Shards are half full to full where tracks are small; a track that is larger by itself has shards of its own.
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
    """Of each track among all, below 2**32: shuffled by name, so that a few shards hold more than a few albums.

    First by the part of the corpus in which its division by hash puts it: what is held out shares few shards with what
    is trained on, whatever fraction that is.
    """
    parts = np.floor(hash_places(table) * _PARTS).astype(int).tolist()
    digests = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    size = _PLACES // _PARTS
    return [part * size + int.from_bytes(digest[:4], "big") % size for part, digest in zip(parts, digests, strict=True)]


def _folders(table: pandas.DataFrame) -> dict[tuple[str, str], str]:
    folders: dict[tuple[str, str], str] = {}
    count: dict[str, int] = {}
    for corpus, root in table[["corpus", "root"]].drop_duplicates().itertuples(index=False):
        name = _short_part(_file_safe(corpus)) or "music"
        count[name] = count.get(name, 0) + 1
        folders[corpus, root] = name if count[name] == 1 else f"{name}-{count[name]}"
    return folders


def _relative(name: str) -> str:
    """Without anything that would lead out of the output folder, as a manifest from elsewhere could hold."""
    return "/".join(part for part in _LEADING_OUT.sub("_", name).split("/") if part not in ("", ".", ".."))


def _shortened(name: str) -> str:
    return "/".join(map(_short_part, name.split("/")))


def _short_part(part: str) -> str:
    content = part.encode("utf-8", "surrogateescape")
    if len(content) <= _LONGEST_NAME_BYTES:
        return part
    kept = content[: _LONGEST_NAME_BYTES - 20].decode("utf-8", "ignore")
    return f"{kept}-{_short_hash(content)}"


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _file_safe(word: str) -> str:
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in word)


def _whole(value: Any) -> int | None:
    return None if pandas.isna(value) else int(value)
