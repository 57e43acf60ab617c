"""What a corpus' layout tells: its tracks, where they lie, and what its own tables say of them. No audio is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamodules.audio.find_files import SkippedFile
from spectrostream.errors import UserError


class LayoutError(UserError):
    """A folder that is not laid out as its corpus is; the message says what is missing and what to type."""


@dataclass(frozen=True)
class Entry:
    """A track before its files are opened.

    name: path below the corpus' folder with forward slashes, as `manifest.table_name` writes it; unique.
    parts: files below the folder, written alike, whose sum is the track; () where `name` is the file itself.
    split: train, validation, test or "" where the corpus does not say.
    group: what must not be divided between training and test (album, song of which this is a rendition, ...); "" alone.
    artist, genre: "" where unknown.
    """

    name: str
    parts: tuple[str, ...] = ()
    split: str = ""
    group: str = ""
    artist: str = ""
    genre: str = ""


@dataclass(frozen=True)
class Found:
    """The tracks of a corpus by name, and the files that are none and why."""

    entries: tuple[Entry, ...]
    skipped: tuple[SkippedFile, ...] = ()


# From the corpus' folder to its tracks; LayoutError where the folder is not such a corpus.
Layout = Callable[[Path], Found]
