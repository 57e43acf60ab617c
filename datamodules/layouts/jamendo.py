"""MTG-Jamendo: 55,000 songs under Creative Commons licences (https://github.com/MTG/mtg-jamendo-dataset)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from datamodules.corpora.manifest import SPLITS
from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import CorpusFiles, Shape, require_folder
from datamodules.layouts.metadata import Line, broken, first_file, read_table

_SHAPE = Shape(
    "MTG-Jamendo",
    "<2 digits>/<track>.mp3 or <track>.low.mp3, and raw_30s.tsv or autotagging.tsv",
    "data/autotagging.tsv",
)
_AUDIO = re.compile(r"(?:^|/)(\d\d/\d+)(?:\.low)?(\.mp3)$", re.ASCII)
# raw_30s names all audio; autotagging names most of it, with cleaned tags.
_TABLES = ("raw_30s.tsv", "autotagging.tsv")
_COLUMNS = ("TRACK_ID", "ARTIST_ID", "PATH", "TAGS")
_GENRE = "genre---"


class _Track(NamedTuple):
    table: Path
    line: int
    number: str
    artist: str
    genre: str


def jamendo(root: Path) -> Found:
    """Find all audio that the tables name, with number 0 of the five official splits.

    The tables of the repository (data/*.tsv, data/splits/split-0/autotagging-*.tsv) are in `root`, in data/ below it,
    or in a clone named mtg-jamendo-dataset in or beside it. The audio is anywhere below: raw_30s/audio/00/7400.mp3,
    audio-low/00/7400.low.mp3, ... If a track has both qualities, the better one is used.

    A few tracks are in no split, and all are if the split's files are missing. Group and artist are the artist's id,
    because the official split does not divide artists. The genre is the first tag genre---...

    Raises:
        LayoutError: No tables, a broken one, a track on two sides, or no files that the tables name.
    """
    require_folder(root)
    data = _data(root)
    tracks = _tracks(data)
    splits = _splits(data / "splits" / "split-0")
    files = CorpusFiles(root, _SHAPE)
    taken = files.take_versions(_versions(files), tracks, "no table names")
    folder = next(iter(taken.values()), "").rpartition("/")[0].rpartition("/")[0]
    for path, track in tracks.items():
        if path not in taken:
            files.missing(path, track.table, track.line, below=folder)
    entries = [_entry(name, tracks[path], splits) for path, name in taken.items()]
    return files.found(entries, "is no <2 digits>/<track>.mp3 of MTG-Jamendo")


def _data(root: Path) -> Path:
    """Find the folder of the tables."""
    parent = root.absolute().parent
    clones = (root / "mtg-jamendo-dataset", parent, parent / "mtg-jamendo-dataset")
    folders = (root / "data", root, *(clone / "data" for clone in clones))
    table = first_file(folder / table for folder in folders for table in _TABLES)
    if table is None:
        raise _SHAPE.refusal(
            root,
            f"There is neither {' nor '.join(_TABLES)} in it, in data/ below it, or in mtg-jamendo-dataset/data: "
            f"type `git clone https://github.com/MTG/mtg-jamendo-dataset {str(root / 'mtg-jamendo-dataset')!r}`.",
        )
    return table.parent


def _tracks(data: Path) -> Mapping[str, _Track]:
    """Read the tables: "00/7400.mp3" -> its row."""
    tracks: dict[str, _Track] = {}
    for name in _TABLES:
        table = first_file([data / name])
        for line in read_table(table, _COLUMNS, tabs=True) if table else ():
            number, artist, path, _ = line.cells
            tracks[path] = _Track(data / name, line.number, number, artist, _genre(line))
    return tracks


def _genre(line: Line) -> str:
    tags = (line.cells[-1], *line.rest)
    return next((tag.removeprefix(_GENRE) for tag in tags if tag.startswith(_GENRE)), "")


def _splits(folder: Path) -> Mapping[str, str]:
    """Read the split: id of a track -> its side."""
    sides: dict[str, str] = {}
    tables = {split: folder / f"autotagging-{split}.tsv" for split in SPLITS}
    for split, table in tables.items() if first_file(tables.values()) else ():
        for line in read_table(table, ("TRACK_ID",), tabs=True):
            if sides.setdefault(line.cells[0], split) != split:
                raise broken(table, f"{line.cells[0]} is in {sides[line.cells[0]]} too", line.number)
    return sides


def _versions(files: CorpusFiles) -> Iterator[tuple[str, str]]:
    """The files with their paths in the tables, the better quality first."""
    for name in sorted(files, key=lambda name: (name.endswith(".low.mp3"), name)):
        if match := _AUDIO.search(name):
            yield name, match[1] + match[2]


def _entry(name: str, track: _Track, splits: Mapping[str, str]) -> Entry:
    return Entry(name, split=splits.get(track.number, ""), group=track.artist, artist=track.artist, genre=track.genre)
