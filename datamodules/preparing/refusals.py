"""What is refused before anything is written: music that would be overwritten, tables that cannot be prepared."""

from __future__ import annotations

import os
from pathlib import Path

import pandas

from datamodules.layouts.contract import SPLITS
from datamodules.manifest import file_path
from datamodules.preparing.log import PrepareError

_MOST_NAMED = 5


def require_no_index(table: pandas.DataFrame, manifest: Path | None) -> None:
    """PrepareError where the table is an index of shards; its rows name pieces in tar files, not files."""
    if "shard" in table:
        raise PrepareError(
            f"{_called(manifest)} is an index of shards, prepared already; give the manifest it was made from, or "
            "train with data.shards=FOLDER"
        )


def require_known_splits(table: pandas.DataFrame, manifest: Path | None) -> None:
    """PrepareError where the column `split` has another word than those of the corpora; empty is none."""
    unknown = sorted(set(table["split"].unique()) - {*SPLITS, ""})
    if unknown:
        named = ", ".join(map(repr, unknown[:_MOST_NAMED])) + (", ..." if len(unknown) > _MOST_NAMED else "")
        raise PrepareError(
            f"The column 'split' of {_called(manifest)} has {named}; allowed are {', '.join(SPLITS)} and nothing: "
            "rename them in the manifest, or empty the column"
        )


def require_apart(table: pandas.DataFrame, out: Path) -> None:
    """PrepareError where `out` is, lies in, or holds a folder of the music, whose files it could replace."""
    place = _resolved(out)
    for root in table["root"].unique():
        folder = file_path(root, "")
        if "\0" in str(folder):  # No folder can be called so; its tracks are passed over later.
            continue
        relation = _relation(place, _resolved(folder))
        if relation:
            raise PrepareError(
                f"--out {str(out)!r} {relation} {str(folder)!r}, where music of the manifest lies, which could be "
                f"overwritten; type --out with a folder beside it, for instance --out '{folder}-prepared'"
            )


def require_other_file(manifest: Path | None, written: tuple[Path, ...]) -> None:
    """PrepareError where the manifest is a file that would be written."""
    if manifest is not None and _resolved(manifest) in map(_resolved, written):
        raise PrepareError(
            f"The manifest {str(manifest)!r} would be overwritten, for the new one has this name in --out "
            f"{str(written[0].parent)!r}; type another --out, or copy the manifest to another folder and give the copy"
        )


def _relation(place: Path, folder: Path) -> str:
    if place == folder:
        return "is the folder"
    if place.is_relative_to(folder):
        return "lies in"
    return "holds" if folder.is_relative_to(place) else ""


def _resolved(path: Path) -> Path:
    # Unlike Path.resolve, this raises nothing for links that go in a circle.
    return Path(os.path.realpath(path))


def _called(manifest: Path | None) -> str:
    return "The table" if manifest is None else repr(str(manifest))
