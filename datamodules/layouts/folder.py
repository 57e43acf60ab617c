"""Any folder of music: every audio file is a track, the folder that it lies in its album."""

from __future__ import annotations

from pathlib import Path

from datamodules.audio_walk import audio_below
from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import require_folder
from datamodules.manifest import table_name


def folder(root: Path) -> Found:
    """Tracks by name; those of one folder below `root` stay together in a split. Raises LayoutError: no folder."""
    require_folder(root)
    found = audio_below(root)
    paths = sorted((path.relative_to(root) for path in found.paths), key=Path.as_posix)
    return Found(tuple(Entry(table_name(path), group=album_of(path)) for path in paths), found.skipped)


def album_of(path: Path) -> str:
    """The folder of a file whose path is relative to the corpus' folder; "" directly in that one."""
    # What lies in the corpus' folder itself has no album: one group of all would be no split at all.
    return table_name(path.parent) if path.parent.name else ""
