"""What is refused before anything is written: music that would be overwritten, tables that cannot be prepared."""

from __future__ import annotations

import os
from pathlib import Path

import pandas

from datamodules.layouts.contract import SPLITS
from datamodules.manifest import ManifestError, file_path, read_manifest, source_names
from datamodules.preparing.log import PrepareError, PrepareLog

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
    place = resolved(out)
    for root in table["root"].unique():
        folder = file_path(root, "")
        if "\0" in str(folder):  # No folder can be called so; its tracks are passed over later.
            continue
        relation = _relation(place, resolved(folder))
        if relation:
            raise PrepareError(
                f"--out {str(out)!r} {relation} {str(folder)!r}, where music of the manifest lies, which could be "
                f"overwritten; type --out with a folder beside it, for instance --out '{folder}-prepared'"
            )


def require_other_file(manifest: Path | None, written: tuple[Path, ...]) -> None:
    """PrepareError where the manifest is a file that would be written."""
    if manifest is not None and resolved(manifest) in map(resolved, written):
        raise PrepareError(
            f"The manifest {str(manifest)!r} would be overwritten, for the new one has this name in --out "
            f"{str(written[0].parent)!r}; type another --out, or copy the manifest to another folder and give the copy"
        )


def require_same_music(
    table: pandas.DataFrame, names: pandas.Series, written: Path, log: PrepareLog, manifest: Path | None
) -> None:
    """PrepareError where the folder holds other music, which what is prepared now would replace.

    A manifest that was prepared there before may have changed in any way; any other one has a track in common with
    what is there, so that folders may move, corpora be renamed, and manifests be put together.

    Args:
        table: the manifest.
        names: what its rows become.
        written: the manifest or index of what was prepared before, if that was finished.
        log: of the folder.
        manifest: the file of the table.
    """
    if manifest is not None and str(resolved(manifest)) in log.manifests:
        return
    try:
        before = read_manifest(written)
    except ManifestError:  # nothing was finished yet
        there = log.track_names()
        is_other = bool(there) and there.isdisjoint(names)
    else:
        there = set(before["corpus"] + "/" + source_names(before))
        is_other = not _have_a_track_in_common(before, table, log.roots)
    if is_other:
        made_of = f" of {', '.join(map(repr, sorted(log.manifests)))}" if log.manifests else ""
        example = "" if manifest is None else f", for instance --out '{written.parent}-{manifest.stem}'"
        raise PrepareError(
            f"--out {str(written.parent)!r} holds {len(there)} tracks{made_of}, the first {min(there)!r}; none of them "
            f"is in {_called(manifest)}, which would replace them: type another --out{example}, or remove the folder"
        )


def _have_a_track_in_common(before: pandas.DataFrame, now: pandas.DataFrame, roots: set[str]) -> bool:
    """By the samples, or by the name. In another folder a name says nothing where the samples are known to differ.

    roots: folders of the music before, as far as they are known.
    """
    if set(before["content_hash"]) & set(now["content_hash"]) - {""}:
        return True
    old, new = (dict(zip(source_names(rows), rows["content_hash"], strict=True)) for rows in (before, now))
    may_be_the_same = not roots or not roots.isdisjoint(now["root"])
    return any(may_be_the_same or not old[name] or not new[name] for name in old.keys() & new.keys())


def _relation(place: Path, folder: Path) -> str:
    if place == folder:
        return "is the folder"
    if place.is_relative_to(folder):
        return "lies in"
    return "holds" if folder.is_relative_to(place) else ""


def resolved(path: Path) -> Path:
    """Absolute and without links."""
    # Unlike Path.resolve, this raises nothing for links that go in a circle.
    return Path(os.path.realpath(path))


def _called(manifest: Path | None) -> str:
    return "The table" if manifest is None else repr(str(manifest))
