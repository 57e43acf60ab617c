"""MoisesDB: 240 songs as sources (https://github.com/moises-ai/moises-db)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datamodules.corpora.manifest import table_name
from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import CorpusFiles, Shape, matching, require_folder
from datamodules.layouts.metadata import broken, first_file, read_json

_SHAPE = Shape("MoisesDB", "moisesdb_v0.1/<song>/data.json and <song>/<stem>/<source>.wav", "*/*/data.json")


def moisesdb(root: Path) -> Found:
    """Find the songs below `root` or below moisesdb_v0.1/ in it, each the sum of the sources that its data.json names.

    This corpus has no mixtures and no official split. A song with a missing source is skipped, because the sum of the
    others is not the song. The group is the artist.

    Raises:
        LayoutError: No songs, or a broken data.json.
    """
    require_folder(root)
    tables = _tables(root)
    if not tables:
        raise _SHAPE.refusal(root, "There is no data.json in its folders.")
    files = CorpusFiles(root, _SHAPE)
    entries = [_entry(root, table, files) for table in tables]
    return files.found([entry for entry in entries if entry], "is named by no data.json")


def _tables(root: Path) -> Sequence[Path]:
    found = matching(root, "*/data.json") + matching(root, "*/*/data.json")
    # Hidden folders are skipped, as in every corpus.
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return [path for path in visible if first_file([path])]


def _entry(root: Path, table: Path, files: CorpusFiles) -> Entry | None:
    """Return the song; None, after reporting it as skipped, if a source is missing."""
    folder = table.parent
    song = _mapping(table, read_json(table), "the file")
    name = table_name(folder.relative_to(root))
    # A source that is named twice is summed once.
    written = dict.fromkeys(_sources(table, song))
    parts = [files.take_named(source, table, below=name) for source in written]
    if not parts:
        files.skip(folder, "its data.json names no sources")
    elif None in parts:
        files.skip(folder, f"{parts.count(None)} of its {len(parts)} sources are missing, so their sum is not the song")
    else:
        artist, genre = _text(table, song, "artist"), _text(table, song, "genre")
        names = tuple(sorted(part for part in parts if part is not None))
        return Entry(name, names, group=artist, artist=artist, genre=genre)
    return None


def _sources(table: Path, song: Mapping[str, object]) -> Iterator[str]:
    """Yield the sources' paths below the song's folder."""
    for stem in _mappings(table, song, "stems"):
        folder = _text(table, stem, "stemName")
        for source in _mappings(table, stem, "tracks"):
            yield f"{folder}/{_text(table, source, 'id')}.{_text(table, source, 'extension')}"


def _mappings(table: Path, parent: Mapping[str, object], key: str) -> Iterator[Mapping[str, object]]:
    values = parent.get(key)
    if not isinstance(values, list):
        raise broken(table, f"{key!r} is no list")
    return (_mapping(table, value, f"an element of {key!r}") for value in values)


def _mapping(table: Path, value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise broken(table, f"{what} is no object")
    return value


def _text(table: Path, parent: Mapping[str, object], key: str) -> str:
    value = parent.get(key) or ""
    # JSON can hold half a surrogate pair, which cannot be encoded.
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise broken(table, f"{key!r} is no text")
    return value
