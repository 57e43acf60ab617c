"""MTG-Jamendo: 55,000 songs under Creative Commons licences (https://github.com/MTG/mtg-jamendo-dataset)."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
# raw_30s names all audio there is, autotagging most of it, and its tags are cleaned.
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
    """All audio that the tables name; the split is number 0 of the five official ones.

    The tables of the repository (data/*.tsv, data/splits/split-0/autotagging-*.tsv) lie in `root`, in data/ below it,
    or in a clone named mtg-jamendo-dataset in or beside it. Audio lies anywhere below: raw_30s/audio/00/7400.mp3,
    audio-low/00/7400.low.mp3, ...; of a track in both qualities the better one counts.

    split: "" for the few tracks that are in none, and for all where the split's files are not there. group and artist:
    the artist's id, whom the official split does not divide either. genre: the first tag genre---...

    Raises:
        LayoutError: no tables, a broken one, a track on two sides, no files that they know.
    """
    require_folder(root)
    data = _data(root)
    tracks = _tracks(data)
    splits = _splits(data / "splits" / "split-0")
    files = CorpusFiles(root, _SHAPE)
    taken: dict[str, str] = {}
    for name in sorted(files, key=_better_first):
        match = _AUDIO.search(name)
        if match:
            _take(files, name, match[1] + match[2], tracks, taken)
    folder = next(iter(taken.values()), "").rpartition("/")[0].rpartition("/")[0]
    for path, track in tracks.items():
        if path not in taken:
            files.missing(path, track.table, track.line, below=folder)
    entries = [_entry(name, tracks[path], splits) for path, name in taken.items()]
    return files.found(entries, "is no <2 digits>/<track>.mp3 of MTG-Jamendo")


def _data(root: Path) -> Path:
    """The folder of the tables."""
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
    """Rows by their path: "00/7400.mp3"."""
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
    """The side of each track by its id."""
    sides: dict[str, str] = {}
    tables = {split: folder / f"autotagging-{split}.tsv" for split in SPLITS}
    for split, table in tables.items() if first_file(tables.values()) else ():
        for line in read_table(table, ("TRACK_ID",), tabs=True):
            if sides.setdefault(line.cells[0], split) != split:
                raise broken(table, f"{line.cells[0]} is in {sides[line.cells[0]]} too", line.number)
    return sides


def _better_first(name: str) -> tuple[bool, str]:
    return (name.endswith(".low.mp3"), name)


def _take(files: CorpusFiles, name: str, path: str, tracks: Mapping[str, _Track], taken: dict[str, str]) -> None:
    if path not in tracks:
        files.pass_over(name, f"no table names {path}")
    elif path in taken:
        files.pass_over(name, f"is {path} once more, after {taken[path]!r}")
    else:
        files.take(name)
        taken[path] = name


def _entry(name: str, track: _Track, splits: Mapping[str, str]) -> Entry:
    return Entry(name, split=splits.get(track.number, ""), group=track.artist, artist=track.artist, genre=track.genre)
