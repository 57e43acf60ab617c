"""Finds the audio files in a folder, in an order that depends on names only, and says what was skipped and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# What soundfile's libsndfile opens. Files without a header (.raw) are left out, because nothing says what they hold.
AUDIO_EXTENSIONS = frozenset(
    {
        *(".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus"),
        *(".rf64", ".snd", ".w64", ".wav", ".wave"),
    }
)
# Music that cannot be read here; it is reported, not ignored.
_UNSUPPORTED_EXTENSIONS = frozenset(
    {
        *(".aac", ".ac3", ".ape", ".dsf", ".m4a", ".m4b", ".m4p", ".mka"),
        *(".mkv", ".mov", ".mp4", ".mpc", ".webm", ".wma", ".wv"),
    }
)
_LEADS_OUT = (
    "is a link that leads out of the corpus' folder; only links to folders directly in that are followed: copy it here"
)


@dataclass(frozen=True)
class SkippedFile:
    """A file or folder that was skipped."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FoundAudio:
    """Audio files by name, each once, not opened yet; `seen` counts all files."""

    paths: tuple[Path, ...]
    skipped: tuple[SkippedFile, ...]
    seen: int


def audio_below(root: Path, *, inside_only: bool = False) -> FoundAudio:
    """Find every file below `root` whose name is that of an audio file.

    Links are followed, each folder and file counts once, and hidden names are ignored. With `inside_only`, links out of
    `root` are skipped, except links directly in it to a folder, for instance on another disk.
    """
    skipped: list[SkippedFile] = []
    seen = 0
    candidates: dict[str, Path] = {}
    insides = _insides(root) if inside_only else ()
    real_folders: dict[Path, str] = {}
    for path in files_below(root, skipped, inside_only=inside_only):
        seen += 1
        extension = path.suffix.lower()
        if extension in _UNSUPPORTED_EXTENSIONS:
            skipped.append(
                SkippedFile(path, f"{extension} cannot be read here; convert it, for instance `ffmpeg -i IN OUT.flac`")
            )
        elif extension in AUDIO_EXTENSIONS:
            identity = _identity(path, real_folders)
            if inside_only and not _lies_in(identity, insides):
                skipped.append(SkippedFile(path, _LEADS_OUT))
            elif identity in candidates:
                # Through a link, the same music could be in training and in the held-out part.
                skipped.append(SkippedFile(path, f"is the same file as {str(candidates[identity])!r}"))
            else:
                candidates[identity] = path
    return FoundAudio(tuple(candidates.values()), tuple(skipped), seen)


def files_below(root: Path, skipped: list[SkippedFile], *, inside_only: bool = False) -> Iterator[Path]:
    """Yield every visible file in sorted order; each folder is entered once, also if links lead to it again.

    With `inside_only`, links below the first level to folders outside `root` are not entered.
    """

    def unreadable(error: OSError) -> None:
        skipped.append(SkippedFile(Path(error.filename), f"folder cannot be read: {error.strerror}"))

    insides = _insides(root) if inside_only else ()
    visited = {os.path.realpath(root)}
    for folder, folder_names, file_names in os.walk(root, onerror=unreadable, followlinks=True):
        entered = []
        for name in sorted(folder_names):
            identity = os.path.realpath(Path(folder) / name)
            if name.startswith(".") or identity in visited:
                continue
            if inside_only and not _lies_in(identity, insides):
                skipped.append(SkippedFile(Path(folder) / name, _LEADS_OUT))
            else:
                visited.add(identity)
                entered.append(name)
        # os.walk continues with the names in this list.
        folder_names[:] = entered
        for name in sorted(file_names):
            if not name.startswith("."):
                yield Path(folder) / name


def _identity(path: Path, real_folders: dict[Path, str]) -> str:
    """Return `os.path.realpath`; each folder is resolved once, which is most of the time with 10^5 files."""
    if os.path.islink(path):  # noqa: PTH114  Path.is_symlink raises in a locked folder
        return os.path.realpath(path)
    folder = path.parent
    if folder not in real_folders:
        real_folders[folder] = os.path.realpath(folder)
    return os.path.join(real_folders[folder], path.name)  # noqa: PTH118  names are text here


def _insides(root: Path) -> tuple[str, ...]:
    """Return the folder, and the targets of the links directly in it, as resolved names."""
    top = os.path.realpath(root)
    linked = []
    with suppress(OSError), os.scandir(root) as entries:
        links = [entry.path for entry in entries if entry.is_symlink()]
        # DirEntry.is_dir raises for a link to itself.
        linked = [os.path.realpath(link) for link in links if os.path.isdir(link)]  # noqa: PTH112
    # A link upwards would not lead to another disk, but to everything beside the corpus.
    return (top, *(folder for folder in linked if not _lies_in(top, (folder,))))


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    """Whether a path is one of the folders or below one; all are resolved names."""
    return any(path == folder or path.startswith(os.path.join(folder, "")) for folder in folders)  # noqa: PTH118
