"""FMA, the Free Music Archive's dataset for music analysis (https://github.com/mdeff/fma)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import CorpusFiles, Shape, require_folder
from datamodules.layouts.metadata import broken, first_file, read_table, split_name

_SHAPE = Shape(
    "FMA",
    "<fma_small, fma_medium, fma_large or fma_full>/<3 digits>/<6 digits>.mp3 and tracks.csv",
    "fma_metadata/tracks.csv",
)
_AUDIO = re.compile(r"(?:^|/)(\d{3})/(\1\d{3})\.mp3$", re.ASCII)
# Each folder holds the tracks of those before it; full has them at full length, the others 30 s from the middle.
_FOLDERS = ("fma_small", "fma_medium", "fma_large", "fma_full")
_SUBSETS = ("small", "medium", "large")
_COLUMNS = ("track_id", "set.split", "set.subset", "artist.id", "artist.name", "track.genre_top")


class _Track(NamedTuple):
    line: int
    split: str
    subset: int
    artist_id: str
    artist: str
    genre: str


def fma(root: Path) -> Found:
    """The clips of fma_small to fma_large, or the full songs of fma_full, with the official split.

    `tracks.csv` (fma_metadata.zip) lies in `root`, in fma_metadata/ below it, or beside it. Where several folders hold
    a track, its longest version counts. Files that the table names and nobody has are reported for the subsets of which
    a file is there.

    split: as ("set", "split"). group: the artist's number, whom the official split does not divide either. artist and
    genre: ("artist", "name") and ("track", "genre_top"), which many of fma_large have none of.

    Raises:
        LayoutError: no tracks.csv, a broken one, no files that it knows.
    """
    require_folder(root)
    table = _table(root)
    tracks = _tracks(table)
    files = CorpusFiles(root, _SHAPE)
    taken: dict[int, str] = {}
    for name in sorted(files, key=_longest_first):
        match = _AUDIO.search(name)
        if match:
            _take(files, name, int(match[2]), tracks, taken)
    _note_missing(files, table, tracks, taken)
    entries = [_entry(name, tracks[number]) for number, name in taken.items()]
    return files.found(entries, "is no <3 digits>/<6 digits>.mp3 of FMA")


def _table(root: Path) -> Path:
    candidates = (
        root / "tracks.csv",
        root / "fma_metadata" / "tracks.csv",
        root.absolute().parent / "fma_metadata" / "tracks.csv",
        root.absolute().parent / "tracks.csv",
    )
    table = first_file(candidates)
    if table is None:
        raise _SHAPE.refusal(
            root,
            "There is no tracks.csv in this folder, in fma_metadata/ below it or beside it: get fma_metadata.zip "
            f"(342 MiB) from https://github.com/mdeff/fma and unpack it to {str(root / 'fma_metadata')!r}.",
        )
    return table


def _tracks(table: Path) -> Mapping[int, _Track]:
    """Rows by number of the track."""
    tracks: dict[int, _Track] = {}
    # Two rows of names, and one that names the index.
    for line, (number, split, subset, artist_id, artist, genre), _ in read_table(table, _COLUMNS, header_rows=3):
        if not (number.isascii() and number.isdecimal() and len(number) <= 6):
            raise broken(table, f"the track {number!r} is no number of up to six digits", line)
        if subset not in _SUBSETS:
            raise broken(table, f"the subset {subset!r} is none of {', '.join(_SUBSETS)}", line)
        if int(number) in tracks:
            raise broken(table, f"the track {number} has a line before", line)
        place = _SUBSETS.index(subset)
        tracks[int(number)] = _Track(line, split_name(table, line, split), place, artist_id, artist, genre)
    return tracks


def _longest_first(name: str) -> tuple[int, str]:
    folder = next((place for place, folder in enumerate(_FOLDERS) if folder in name.split("/")), -1)
    return (-folder, name)


def _take(files: CorpusFiles, name: str, number: int, tracks: Mapping[int, _Track], taken: dict[int, str]) -> None:
    if number not in tracks:
        files.pass_over(name, f"tracks.csv has no track {number}")
    elif number in taken:
        files.pass_over(name, f"is track {number} once more, after {taken[number]!r}")
    else:
        files.take(name)
        taken[number] = name


def _note_missing(files: CorpusFiles, table: Path, tracks: Mapping[int, _Track], taken: Mapping[int, str]) -> None:
    largest = max((tracks[number].subset for number in taken), default=-1)
    folder = next(iter(taken.values()), "").rpartition("/")[0].rpartition("/")[0]
    for number, track in tracks.items():
        if number not in taken and track.subset <= largest:
            digits = f"{number:06d}"
            files.missing(f"{digits[:3]}/{digits}.mp3", table, track.line, below=folder)


def _entry(name: str, track: _Track) -> Entry:
    # Names of artists are not unique, numbers are.
    group = f"artist {track.artist_id}" if track.artist_id else ""
    return Entry(name, split=track.split, group=group, artist=track.artist, genre=track.genre)
