"""Any folder of music: every audio file is a track. Albums come from the tags, not from the folders' names."""

from __future__ import annotations

from pathlib import Path

from datamodules.audio.find_files import audio_below
from datamodules.corpora.manifest import table_name
from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import require_folder


def folder(root: Path) -> Found:
    """Find all audio files; LayoutError if `root` is no folder."""
    require_folder(root)
    found = audio_below(root)
    paths = sorted((path.relative_to(root) for path in found.paths), key=Path.as_posix)
    return Found(tuple(Entry(table_name(path)) for path in paths), found.skipped)
