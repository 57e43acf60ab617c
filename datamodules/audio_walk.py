"""The audio files below a folder, in an order that depends on the names only, and what was passed over and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What soundfile's libsndfile opens by itself; headerless .raw is left out because nothing says what it holds.
AUDIO_EXTENSIONS = frozenset(
    {
        ".aif",
        ".aifc",
        ".aiff",
        ".au",
        ".caf",
        ".flac",
        ".mp3",
        ".oga",
        ".ogg",
        ".opus",
        ".rf64",
        ".snd",
        ".w64",
        ".wav",
        ".wave",
    }
)
# Music all the same, so it is reported instead of passed over.
_FOREIGN_EXTENSIONS = frozenset(
    {".aac", ".ac3", ".ape", ".dsf", ".m4a", ".mka", ".mp4", ".mpc", ".webm", ".wma", ".wv"}
)


@dataclass(frozen=True)
class SkippedFile:
    """A file or folder that was left out."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FoundAudio:
    """Audio files by name, each once, as yet unopened; `seen` counts all files."""

    paths: tuple[Path, ...]
    skipped: tuple[SkippedFile, ...]
    seen: int


def audio_below(root: Path) -> FoundAudio:
    """Every file below `root` that is audio by its name.

    Links are followed, each folder and file counts once, hidden names are passed over.
    """
    skipped: list[SkippedFile] = []
    seen = 0
    candidates: dict[str, Path] = {}
    for path in files_below(root, skipped):
        seen += 1
        extension = path.suffix.lower()
        if extension in _FOREIGN_EXTENSIONS:
            skipped.append(
                SkippedFile(path, f"{extension} cannot be read here; convert it, for instance `ffmpeg -i IN OUT.flac`")
            )
        elif extension in AUDIO_EXTENSIONS:
            identity = os.path.realpath(path)
            if identity in candidates:
                # A link to a track would let the same music stand in training and in the held-out part.
                skipped.append(SkippedFile(path, f"is the same file as {str(candidates[identity])!r}"))
            else:
                candidates[identity] = path
    return FoundAudio(tuple(candidates.values()), tuple(skipped), seen)


def files_below(root: Path, skipped: list[SkippedFile]) -> Iterator[Path]:
    """Every visible file in sorted order; a folder that was met before, through a link, is not entered again."""

    def unreadable(error: OSError) -> None:
        skipped.append(SkippedFile(Path(error.filename), f"folder cannot be read: {error.strerror}"))

    visited = {os.path.realpath(root)}
    for folder, folder_names, file_names in os.walk(root, onerror=unreadable, followlinks=True):
        entered = []
        for name in sorted(folder_names):
            identity = os.path.realpath(Path(folder) / name)
            if not name.startswith(".") and identity not in visited:
                visited.add(identity)
                entered.append(name)
        # os.walk goes on with what is left in this very list.
        folder_names[:] = entered
        for name in sorted(file_names):
            if not name.startswith("."):
                yield Path(folder) / name
