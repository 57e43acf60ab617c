"""The audio files of a corpus, which a layout sorts into tracks, their parts, and skipped files."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datamodules.audio.find_files import SkippedFile, audio_below
from datamodules.corpora.manifest import table_name
from datamodules.layouts.contract import Entry, Found, LayoutError


@dataclass(frozen=True)
class Shape:
    """The look of a corpus, for error messages.

    Attributes:
        corpus: Its name.
        looked_for: The files that it must have, in words.
        pattern: A glob of one of them below the corpus' folder, which also finds a corpus one folder deeper.
    """

    corpus: str
    looked_for: str
    pattern: str

    def refusal(self, root: Path, detail: str = "") -> LayoutError:
        """Return the error for a folder that is not this corpus; `detail` is a sentence."""
        lines = [f"{str(root)!r} is not laid out as {self.corpus}: looked for {self.looked_for}."]
        lines += [detail] if detail else []
        for inner in matching(root, f"*/{self.pattern}")[:1]:
            lines.append(f"The folder {str(root / inner.relative_to(root).parts[0])!r} in it is; type that one.")
        lines.append("With --corpus folder every audio file below is a track instead, and there is no official split.")
        return LayoutError(" ".join(lines))


class CorpusFiles:
    """Audio files below `root`, by their names as `manifest.table_name` writes them.

    A layout takes the files that it knows; `found` reports the rest. Only files that were found below `root` can be
    taken, so no table of a corpus can name a file elsewhere. Folders directly in `root` may be links to another disk.

    Raises:
        LayoutError: `root` is no folder.
    """

    def __init__(self, root: Path, shape: Shape) -> None:
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
        """Iterate over the files that are not taken yet; the loop may take them."""
        return iter(sorted(self._left))

    def take(self, name: str) -> Path:
        """Take a file; return its path."""
        self._taken.add(name)
        return self._left.pop(name)

    def pass_over(self, name: str, reason: str) -> None:
        """Skip a file, with the reason."""
        self.skip(self._left.pop(name), reason)

    def skip(self, path: Path, reason: str) -> None:
        """Report a path, which need not exist, as skipped; a second reason for it is ignored."""
        self._skipped.setdefault(path, SkippedFile(path, reason))

    def take_versions(
        self, candidates: Iterable[tuple[str, str]], listed: Container[str], unlisted: str
    ) -> dict[str, str]:
        """Take one file of each listed track; skip all others.

        Args:
            candidates: (file, track), the best version of a track first.
            listed: The tracks in the corpus' tables.
            unlisted: Start of the reason for a track that is not listed.

        Returns:
            Track -> file.
        """
        taken: dict[str, str] = {}
        for name, track in candidates:
            if track not in listed:
                self.pass_over(name, f"{unlisted} {track}")
            elif track in taken:
                self.pass_over(name, f"is {track} once more, after {taken[track]!r}")
            else:
                self.take(name)
                taken[track] = name
        return taken

    def take_named(self, written: str, table: Path, line: int | None = None, *, below: str = "") -> str | None:
        """Take the file that a table of the corpus names.

        Args:
            written: Path in the table, below the corpus' folder or the folder `below` in it.
            table: The table.
            line: Line of the table.
            below: Name of a folder.

        Returns:
            Name of the file; None, after `missing`, if it cannot be taken.
        """
        name = _name_inside(written, below)
        if name is None or name not in self._left:
            self.missing(written, table, line, below=below)
            return None
        self.take(name)
        return name

    def missing(self, written: str, table: Path, line: int | None = None, *, below: str = "") -> None:
        """Report a file that a table names and that cannot be taken; the arguments are those of `take_named`."""
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
        """Return tracks and skipped files, by name; `unknown` is the reason for files that were never taken.

        Raises:
            LayoutError: There are no tracks.
        """
        for name in self:
            self.pass_over(name, unknown)
        skipped = sorted((*self._skipped.values(), *self._refused), key=lambda file: (str(file.path), file.reason))
        if not entries:
            detail = ""
            if skipped:
                first = f"{str(skipped[0].path)!r}: {skipped[0].reason}"
                detail = f"{len(skipped)} files were passed over, the first {first}."
            raise self._shape.refusal(self.root, detail)
        return Found(tuple(sorted(entries, key=lambda entry: entry.name)), tuple(skipped))


def require_folder(root: Path) -> None:
    """Raise LayoutError unless `root` is a folder."""
    if not os.path.isdir(root):  # noqa: PTH112  Path.is_dir raises below a locked folder
        kind = "is not a folder" if os.path.lexists(root) else "does not exist"
        raise LayoutError(f"The corpus' folder {str(root)!r} {kind}; type the path of one that exists")


def matching(root: Path, pattern: str) -> list[Path]:
    """Return the sorted paths below `root` that match a glob; LayoutError if a folder cannot be read."""
    try:
        return sorted(root.glob(pattern))
    except OSError as error:
        where = f"{str(root)!r} cannot be searched for {pattern}"
        raise LayoutError(
            f"{where} ({error.strerror}: {error.filename!r}); see that nobody changes it, and retry"
        ) from error


def _name_inside(written: str, below: str) -> str | None:
    """Return the name of a path below a folder; None if it is the folder itself or leads out of it."""
    path = PurePosixPath(written)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    return "/".join(filter(None, (below, table_name(path.as_posix()))))
