"""The finished tracks of a corpus that is being built, on disk, so that a killed build can resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.free_corpora.contract import RecipeError
from spectrostream.atomic_files import lock, write_whole

_FILE = "recipe.json"
_WORK = ".building"


class Ledger:
    """The record of one corpus: `DIR/recipe.json` when it is complete, `DIR/.building/recipe.json` before.

    Attributes:
        out: The folder of the corpus.
        work: The folder of everything unfinished; removed when the corpus is complete.
        tracks: Name of each finished track -> what is known of it.
    """

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        """Read the record, if there is one.

        Raises:
            RecipeError: `out` was built from something else, or is no folder of a build.
        """
        self.out = out
        self.work = out / _WORK
        self._asked = asked
        self._made_with: dict[str, Any] = {}
        self.tracks: dict[str, dict[str, Any]] = {}
        self._read()

    @property
    def is_complete(self) -> bool:
        """Whether everything was built and is still there."""
        return (self.out / _FILE).is_file() and all(self.has(name) for name in self.tracks)

    def has(self, name: str) -> bool:
        """Whether the track is finished and its file still has the same size."""
        path = self.out / name
        return name in self.tracks and path.is_file() and path.stat().st_size == self.tracks[name]["size_bytes"]

    def begin(self, made_with: dict[str, Any]) -> None:
        """Record what the next tracks are made with; RecipeError if earlier ones were made with something else."""
        if self.tracks and self._made_with != made_with:
            raise RecipeError(
                f"{str(self.out)!r} was begun with {_listed(self._made_with)} and would go on with "
                f"{_listed(made_with)}; build it in another folder, or remove this one"
            )
        self._made_with = made_with
        if (self.out / _FILE).is_file():
            # A corpus with this file counts as complete.
            (self.out / _FILE).replace(self.work / _FILE)
        self._write(self.work / _FILE)

    def add(self, name: str, facts: dict[str, Any]) -> None:
        """Record a finished track."""
        self.tracks[name] = facts
        self._write(self.work / _FILE)

    def complete(self) -> None:
        """Record that all tracks are finished."""
        self._write(self.out / _FILE)
        shutil.rmtree(self.work, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out of the folder; RecipeError if another one is at work."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("wb") as file:
            if not lock(file, wait=False):
                raise RecipeError(f"Another process builds in {str(self.out)!r}; wait for it")
            yield

    def _read(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise RecipeError(f"{str(self.out)!r} is a file; type the name of a new folder")
        path = next((p for p in (self.out / _FILE, self.work / _FILE) if p.is_file()), None)
        if path is None:
            if self.out.is_dir() and any(path.name != _WORK for path in self.out.iterdir()):
                raise RecipeError(f"{str(self.out)!r} is not empty and no build was begun there; type a new folder")
            return
        try:
            record = json.loads(path.read_bytes())
            asked, self._made_with, self.tracks = record["asked"], record["made_with"], record["pieces"]
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{str(path)!r} is no record of a build ({error!r}); remove the folder") from error
        # While no track is finished, another build may take the folder.
        if self.tracks and asked != self._asked:
            raise RecipeError(
                f"{str(self.out)!r} was built with {_listed(asked)}; asked is {_listed(self._asked)}; type the same "
                "again to go on, or another folder"
            )

    def _write(self, path: Path) -> None:
        record = {"asked": self._asked, "made_with": self._made_with, "pieces": dict(sorted(self.tracks.items()))}
        write_whole(path, json.dumps(record, indent=1))


def _listed(record: dict[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in record.items())
