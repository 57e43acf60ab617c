"""FMA, the Free Music Archive's dataset for music analysis (https://github.com/mdeff/fma)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
# Each folder has the tracks of those before it; fma_full has full lengths, the others 30 s from the middle.
_FOLDERS = ("fma_small", "fma_medium", "fma_large", "fma_full")
_SUBSETS = ("small", "medium", "large")
_COLUMNS = ("track_id", "set.split", "set.subset", "artist.id", "artist.name", "track.genre_top")


class _Track(NamedTuple):
    number: int
    line: int
    split: str
    subset: int
    artist_id: str
    artist: str
    genre: str


def fma(root: Path) -> Found:
    """Find the 30 s tracks of fma_small to fma_large, or the full songs of fma_full, with the official split.

    `tracks.csv` (fma_metadata.zip) is in `root`, in fma_metadata/ below it, or beside it. If several folders have a
    track, the longest version is used. Missing files are reported for the subsets that have at least one file.

    The group is the artist's number, because the official split does not divide artists. Many tracks of fma_large have
    no genre.

    Raises:
        LayoutError: No tracks.csv, a broken one, or no files that it names.
    """
    require_folder(root)
    table = _table(root)
    tracks = _tracks(table)
    files = CorpusFiles(root, _SHAPE)
    taken = files.take_versions(_versions(files), tracks, "tracks.csv has no")
    _note_missing(files, table, tracks, taken)
    entries = [_entry(name, tracks[key]) for key, name in taken.items()]
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


def _tracks(table: Path) -> Mapping[str, _Track]:
    """Read the table: "track 2" -> its row."""
    tracks: dict[str, _Track] = {}
    # The header has two rows of names, and one with the name of the index.
    for line, (number, split, subset, artist_id, artist, genre), _ in read_table(table, _COLUMNS, header_rows=3):
        if not (number.isascii() and number.isdecimal() and len(number) <= 6):
            raise broken(table, f"the track {number!r} is no number of up to six digits", line)
        if subset not in _SUBSETS:
            raise broken(table, f"the subset {subset!r} is none of {', '.join(_SUBSETS)}", line)
        key = f"track {int(number)}"
        if key in tracks:
            raise broken(table, f"the track {number} has a line before", line)
        place, side = _SUBSETS.index(subset), split_name(table, line, split)
        tracks[key] = _Track(int(number), line, side, place, artist_id, artist, genre)
    return tracks


def _longest_first(name: str) -> tuple[int, str]:
    folder = next((place for place, folder in enumerate(_FOLDERS) if folder in name.split("/")), -1)
    return (-folder, name)


def _versions(files: CorpusFiles) -> Iterator[tuple[str, str]]:
    for name in sorted(files, key=_longest_first):
        if match := _AUDIO.search(name):
            yield name, f"track {int(match[2])}"


def _note_missing(files: CorpusFiles, table: Path, tracks: Mapping[str, _Track], taken: Mapping[str, str]) -> None:
    largest = max((tracks[key].subset for key in taken), default=-1)
    folder = next(iter(taken.values()), "").rpartition("/")[0].rpartition("/")[0]
    for key, track in tracks.items():
        if key not in taken and track.subset <= largest:
            digits = f"{track.number:06d}"
            files.missing(f"{digits[:3]}/{digits}.mp3", table, track.line, below=folder)


def _entry(name: str, track: _Track) -> Entry:
    # Names of artists are not unique, numbers are.
    group = f"artist {track.artist_id}" if track.artist_id else ""
    return Entry(name, split=track.split, group=group, artist=track.artist, genre=track.genre)
