"""What is finished of a corpus that is being built, so that a build which was stopped or killed goes on."""

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
    """The record of one corpus: `DIR/recipe.json` once it is complete, `DIR/.building/recipe.json` until then.

    work: the folder for everything unfinished; gone when the corpus is complete.
    pieces: what is known of each finished piece, by name.
    """

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        self.out = out
        self.work = out / _WORK
        self._asked = asked
        self._made_with: dict[str, Any] = {}
        self.pieces: dict[str, dict[str, Any]] = {}
        self._read()

    @property
    def is_complete(self) -> bool:
        """Whether everything was built before and is still there."""
        return (self.out / _FILE).is_file() and all(self.has(name) for name in self.pieces)

    def has(self, name: str) -> bool:
        """Whether the piece is finished and its file has the size that it had then."""
        path = self.out / name
        return name in self.pieces and path.is_file() and path.stat().st_size == self.pieces[name]["size_bytes"]

    def begin(self, made_with: dict[str, Any]) -> None:
        """From now on pieces are made with this. RecipeError: earlier ones were made with something else."""
        if self.pieces and self._made_with != made_with:
            raise RecipeError(
                f"{str(self.out)!r} was begun with {_said(self._made_with)} and would go on with {_said(made_with)}; "
                "build it in another folder, or remove this one"
            )
        self._made_with = made_with
        if (self.out / _FILE).is_file():
            # While it is there, the corpus counts as complete.
            (self.out / _FILE).replace(self.work / _FILE)
        self._write(self.work / _FILE)

    def add(self, name: str, facts: dict[str, Any]) -> None:
        """The piece is finished."""
        self.pieces[name] = facts
        self._write(self.work / _FILE)

    def complete(self) -> None:
        """All pieces are finished."""
        self._write(self.out / _FILE)
        shutil.rmtree(self.work, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else builds here meanwhile. RecipeError: somebody does."""
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
            self._require_empty()
            return
        try:
            record = json.loads(path.read_bytes())
            asked, self._made_with, self.pieces = record["asked"], record["made_with"], record["pieces"]
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{str(path)!r} is no record of a build ({error!r}); remove the folder") from error
        # As long as nothing is finished, anything may be asked for instead.
        if self.pieces and asked != self._asked:
            raise RecipeError(
                f"{str(self.out)!r} was built with {_said(asked)}; asked is {_said(self._asked)}; type the same again "
                "to go on, or another folder"
            )

    def _require_empty(self) -> None:
        if self.out.is_dir() and any(path.name != _WORK for path in self.out.iterdir()):
            raise RecipeError(f"{str(self.out)!r} is not empty and no build was begun there; type a new folder")

    def _write(self, path: Path) -> None:
        record = {"asked": self._asked, "made_with": self._made_with, "pieces": dict(sorted(self.pieces.items()))}
        write_whole(path, json.dumps(record, indent=1))


def _said(record: dict[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in record.items())
