"""The result of a layout: the tracks of a corpus, their files, and what its own tables say. No audio is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamodules.audio.find_files import SkippedFile
from spectrostream.errors import UserError


class LayoutError(UserError):
    """A folder that does not have the layout of its corpus; the message says what is missing and what to type."""


@dataclass(frozen=True)
class Entry:
    """A track before its files are opened.

    Unknown values are "".

    Attributes:
        name: Unique path below the corpus' folder with forward slashes, as `manifest.table_name` writes it.
        parts: Paths of the files whose sum is the track; () if `name` is the file itself.
        split: train, validation or test.
        group: Tracks of one group (an album, renditions of one song, ...) must be on one side of a split.
    """

    name: str
    parts: tuple[str, ...] = ()
    split: str = ""
    group: str = ""
    artist: str = ""
    genre: str = ""


@dataclass(frozen=True)
class Found:
    """The tracks of a corpus by name, and the files that are no tracks, with reasons."""

    entries: tuple[Entry, ...]
    skipped: tuple[SkippedFile, ...] = ()


Layout = Callable[[Path], Found]
"""Folder of a corpus -> its tracks; raises LayoutError if the folder is not such a corpus."""
