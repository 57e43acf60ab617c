"""Any folder of music: every audio file is a track. What album it belongs to its tags say, not the folder's name."""

from __future__ import annotations

from pathlib import Path

from datamodules.audio.find_files import audio_below
from datamodules.corpora.manifest import table_name
from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import require_folder


def folder(root: Path) -> Found:
    """Tracks by name. Raises LayoutError: no folder."""
    require_folder(root)
    found = audio_below(root)
    paths = sorted((path.relative_to(root) for path in found.paths), key=Path.as_posix)
    return Found(tuple(Entry(table_name(path)) for path in paths), found.skipped)
