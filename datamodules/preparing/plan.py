"""Which track becomes which file or goes into which shard: a function of the manifest alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas

from datamodules.layouts.contract import SPLITS
from datamodules.preparing.jobs import Job, Settings, TrackToPrepare
from datamodules.shards.packing import END_BYTES

# A name on a POSIX disk may have 255 bytes; what is longer than this is cut, with a hash in place of the rest.
_LONGEST_NAME_BYTES = 200
_LONGEST_SHARD_WORD = 40
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
    tracks = [
        (row["split"], _track(row, name))
        for row, name in zip(table[usable].to_dict("records"), names[usable], strict=True)
    ]
    if not settings.as_shards:
        return [Job(track.name, (track,), settings) for _, track in tracks]
    jobs = []
    for split in sorted({split for split, _ in tracks}):
        shuffled = sorted((track for side, track in tracks if side == split), key=_order)
        for number, together in enumerate(_shards(shuffled, settings)):
            jobs.append(Job(f"{shard_word(split)}-{number:05d}", tuple(together), settings))
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
    )


def _shards(tracks: Sequence[TrackToPrepare], settings: Settings) -> Iterator[list[TrackToPrepare]]:
    """Runs of tracks that fill a shard; one that is larger by itself has shards of its own."""
    together: list[TrackToPrepare] = []
    size = 0
    for track in tracks:
        expected = track.expected_bytes(settings)
        if together and size + expected + END_BYTES > settings.shard_bytes:
            yield together
            together, size = [], 0
        together.append(track)
        size += expected
    if together:
        yield together


def _order(track: TrackToPrepare) -> str:
    # Shuffled, so that the few shards that are open at a time hold more than one album; by name, so that it is always
    # the same.
    return hashlib.sha256(track.name.encode("utf-8", "surrogateescape")).hexdigest()


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
