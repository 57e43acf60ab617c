"""The audio below a corpus' folder while a layout sorts it into tracks, their parts, and what is passed over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datamodules.audio.find_files import SkippedFile, audio_below
from datamodules.corpora.manifest import table_name
from datamodules.layouts.contract import Entry, Found, LayoutError


@dataclass(frozen=True)
class Shape:
    """How a corpus is known from others, for the error where it is not.

    corpus: its name for people.
    looked_for: the files that it must have, for people.
    pattern: one of them as a glob below the corpus' folder, to notice when the folder above was given.
    """

    corpus: str
    looked_for: str
    pattern: str

    def refusal(self, root: Path, detail: str = "") -> LayoutError:
        """The error of a folder that is none of this corpus; `detail` is a sentence."""
        lines = [f"{str(root)!r} is not laid out as {self.corpus}: looked for {self.looked_for}."]
        lines += [detail] if detail else []
        for inner in matching(root, f"*/{self.pattern}")[:1]:
            lines.append(f"The folder {str(root / inner.relative_to(root).parts[0])!r} in it is; type that one.")
        lines.append("With --corpus folder every audio file below is a track instead, and there is no official split.")
        return LayoutError(" ".join(lines))


class CorpusFiles:
    """Audio files below `root` by their names in a table, and those that were passed over.

    A layout takes the files that it knows; `found` reports the rest. Only what was seen below `root` can be taken, so
    whatever a corpus' tables say, no entry leads out of it. Folders directly in it may be links to another disk.
    """

    def __init__(self, root: Path, shape: Shape) -> None:
        """Raises LayoutError: `root` is no folder."""
        require_folder(root)
        walked = audio_below(root, inside_only=True)
        self.root = root
        self._shape = shape
        # One reason for each path.
        self._skipped = {file.path: file for file in walked.skipped}
        self._refused: list[SkippedFile] = []
        self._taken: set[str] = set()
        self._left = {table_name(path.relative_to(root)): path for path in walked.paths}

    def __iter__(self) -> Iterator[str]:
        """Names of the files that are not taken yet; they may be taken meanwhile."""
        return iter(sorted(self._left))

    def take(self, name: str) -> Path:
        """Takes a file that is not taken yet."""
        self._taken.add(name)
        return self._left.pop(name)

    def pass_over(self, name: str, reason: str) -> None:
        """Takes a file that will be no part of any track, and says why."""
        self.skip(self._left.pop(name), reason)

    def skip(self, path: Path, reason: str) -> None:
        """Notes a path that may not even exist; the first reason for it stays."""
        self._skipped.setdefault(path, SkippedFile(path, reason))

    def take_named(self, written: str, table: Path, line: int | None = None, *, below: str = "") -> str | None:
        """Takes the file that a corpus' own table names.

        Args:
            written: path below the corpus' folder, or below a folder in it.
            table: where that is written.
            line: in it.
            below: our name of the folder.

        Returns:
            Our name of the file; None, with the reason noted, where it cannot be had.
        """
        name = _name_inside(written, below)
        if name is None or name not in self._left:
            self.missing(written, table, line, below=below)
            return None
        self.take(name)
        return name

    def missing(self, written: str, table: Path, line: int | None = None, *, below: str = "") -> None:
        """Notes a file that a table names and that cannot be had; arguments as above."""
        where = f"line {line}: " if line else ""
        name = _name_inside(written, below)
        if name is None:
            self._refused.append(SkippedFile(table, f"{where}the path {written!r} leads out of the folder it is for"))
        elif name in self._taken:
            self._refused.append(SkippedFile(table, f"{where}names {name!r} once more"))
        else:
            reason = f"{table.name}{f', line {line},' if line else ''} names it, but it is not there; copy it again"
            self.skip(self.root / name, reason)

    def found(self, entries: Sequence[Entry], unknown: str) -> Found:
        """The tracks and what was passed over, by name; `unknown` is the reason for all that was never taken.

        Raises:
            LayoutError: no tracks.
        """
        for name in self:
            self.pass_over(name, unknown)
        skipped = sorted((*self._skipped.values(), *self._refused), key=lambda file: (str(file.path), file.reason))
        if not entries:
            first = f"{len(skipped)} files were passed over, the first {_shown(skipped[0])}." if skipped else ""
            raise self._shape.refusal(self.root, first)
        return Found(tuple(sorted(entries, key=lambda entry: entry.name)), tuple(skipped))


def require_folder(root: Path) -> None:
    """LayoutError unless `root` is a folder."""
    if not os.path.isdir(root):  # noqa: PTH112  Path.is_dir raises below a locked folder
        kind = "is not a folder" if os.path.lexists(root) else "does not exist"
        raise LayoutError(f"The corpus' folder {str(root)!r} {kind}; type the path of one that exists")


def matching(root: Path, pattern: str) -> list[Path]:
    """Sorted paths below `root` that match a glob. Raises LayoutError: a folder that vanishes or cannot be read."""
    try:
        return sorted(root.glob(pattern))
    except OSError as error:
        where = f"{str(root)!r} cannot be searched for {pattern}"
        raise LayoutError(
            f"{where} ({error.strerror}: {error.filename!r}); see that nobody changes it, and retry"
        ) from error


def _name_inside(written: str, below: str) -> str | None:
    """Our name for a path below a folder; None for one that leads out of it, or to the folder itself."""
    path = PurePosixPath(written)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    return "/".join(filter(None, (below, table_name(path.as_posix()))))


def _shown(file: SkippedFile) -> str:
    return f"{str(file.path)!r}: {file.reason}"
