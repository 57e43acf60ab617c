"""Checks before anything is written: no music may be overwritten, and the table must be one that can be prepared."""

from __future__ import annotations

import os
from pathlib import Path

import pandas

from datamodules.corpora.manifest import SPLITS, ManifestError, empty_manifest, file_path, read_manifest, source_names
from datamodules.preparing.log import LoggedTrack, PrepareError, PrepareLog

_MOST_NAMED = 5
# Rounding a length to whole samples of another rate changes it by less than this.
_SAME_LENGTH_SECONDS = 1e-3
# The end of a piece's name in an index.
_PIECE = r"#\d+$"


def require_no_index(table: pandas.DataFrame, manifest: Path | None) -> None:
    """Raise PrepareError if the table is an index of shards, whose rows are no files."""
    if "shard" in table:
        raise PrepareError(
            f"{_called(manifest)} is an index of shards, prepared already; give the manifest it was made from, or "
            "train with data.shards=FOLDER"
        )


def require_known_splits(table: pandas.DataFrame, manifest: Path | None) -> None:
    """Raise PrepareError if the column `split` has an unknown name; "" is allowed."""
    unknown = sorted(set(table["split"].unique()) - {*SPLITS, ""})
    if unknown:
        named = ", ".join(map(repr, unknown[:_MOST_NAMED])) + (", ..." if len(unknown) > _MOST_NAMED else "")
        raise PrepareError(
            f"The column 'split' of {_called(manifest)} has {named}; allowed are {', '.join(SPLITS)} and nothing: "
            "rename them in the manifest, or empty the column"
        )


def require_apart(table: pandas.DataFrame, out: Path) -> None:
    """Raise PrepareError if `out` is, is in, or holds a folder of the music, because it could replace files there."""
    place = resolved(out)
    for root in table["root"].unique():
        folder = file_path(root, "")
        if "\0" in str(folder):  # No folder has such a name; its tracks are skipped later.
            continue
        relation = _relation(place, resolved(folder))
        if relation:
            raise PrepareError(
                f"--out {str(out)!r} {relation} {str(folder)!r}, where music of the manifest lies, which could be "
                f"overwritten; type --out with a folder beside it, for instance --out '{folder}-prepared'"
            )


def require_other_file(manifest: Path | None, written: tuple[Path, ...]) -> None:
    """Raise PrepareError if the manifest is a file that would be written."""
    if manifest is not None and resolved(manifest) in map(resolved, written):
        raise PrepareError(
            f"The manifest {str(manifest)!r} would be overwritten, for the new one has this name in --out "
            f"{str(written[0].parent)!r}; type another --out, or copy the manifest to another folder and give the copy"
        )


def require_same_music(
    table: pandas.DataFrame, names: pandas.Series, written: Path, log: PrepareLog, manifest: Path | None
) -> None:
    """PrepareError where the folder holds other music, which what is prepared now would replace.

    A manifest that was prepared there before may have changed in any way; any other one has a usable track in common
    with what is there, so that folders may move, corpora be renamed, and manifests be put together.

    Args:
        table: the manifest.
        names: what its rows become.
        written: the manifest or index of what was prepared before; the log tells of what was not finished.
        log: of the folder.
        manifest: the file of the table.
    """
    if manifest is not None and str(resolved(manifest)) in log.manifests:
        return
    now = _tracks(table, names)
    before = _tracks_before(written, log, now)
    if before.empty or _have_a_track_in_common(before, now, log.roots):
        return
    made_of = f" of {', '.join(map(repr, sorted(log.manifests)))}" if log.manifests else ""
    example = "" if manifest is None else f", for instance --out '{written.parent}-{manifest.stem}'"
    raise PrepareError(
        f"--out {str(written.parent)!r} holds {len(before)} tracks{made_of}, the first {before['label'].min()!r}; none "
        f"of them is in {_called(manifest)}, which would replace them: type another --out{example}, or remove the "
        "folder"
    )


def _tracks(table: pandas.DataFrame, prepared: pandas.Series) -> pandas.DataFrame:
    """Return the usable tracks of a manifest, whole and once each; `name` is the name at the scan."""
    pieces = pandas.DataFrame(
        {
            "prepared": prepared,
            "label": table["corpus"] + "/" + source_names(table),
            "name": source_names(table),
            "root": table["root"],
            "content_hash": table["content_hash"],
            "seconds": table["frames"].astype("float64") / table["sample_rate"].astype("float64"),
        }
    )[table["problem"] == ""]
    first = pieces.drop_duplicates("prepared").set_index("prepared")
    return first.assign(seconds=pieces.groupby("prepared")["seconds"].sum()).reset_index()


def _tracks_before(written: Path, log: PrepareLog, now: pandas.DataFrame) -> pandas.DataFrame:
    """Return the tracks of the folder's manifest; those of the log if there is none, or an empty one."""
    try:
        table = read_manifest(written)
    except ManifestError:
        table = empty_manifest()
    finished = _tracks(table, table["name"].str.replace(_PIECE, "", regex=True))
    if len(finished):
        return finished
    logged = pandas.DataFrame(log.tracks(), columns=LoggedTrack._fields)
    # Logs of older versions lack the source's name: it is that of the track that has the same new name now.
    like_now = logged["prepared"].map(dict(zip(now["prepared"], now["name"], strict=True)))
    names = logged["source_name"].fillna(like_now).fillna(logged["prepared"])
    return logged.assign(name=names, label=logged["prepared"])


def _have_a_track_in_common(before: pandas.DataFrame, now: pandas.DataFrame, roots: set[str]) -> bool:
    """Compare the tracks by their samples, or by their names in the same folder (`roots` are the folders before).

    Names in other folders say little, many have a `01.flac`. There, tracks without known samples must be as long too,
    and at least half of the tracks of the smaller side must have such a partner.
    """
    if set(before["content_hash"]) & set(now["content_hash"]) - {""}:
        return True
    pairs = before[["name", "content_hash", "seconds"]].merge(now, on="name", suffixes=("_before", ""))
    if len(pairs) and (not roots or pairs["root"].isin(roots).any()):
        return True
    is_unknown = (pairs["content_hash_before"] == "") | (pairs["content_hash"] == "")
    is_as_long = (pairs["seconds_before"] - pairs["seconds"]).abs() < _SAME_LENGTH_SECONDS
    alike = pairs.loc[is_unknown & is_as_long, "name"].nunique()
    return 0 < alike >= min(before["name"].nunique(), now["name"].nunique()) / 2


def _relation(place: Path, folder: Path) -> str:
    if place == folder:
        return "is the folder"
    if place.is_relative_to(folder):
        return "lies in"
    return "holds" if folder.is_relative_to(place) else ""


def resolved(path: Path) -> Path:
    """Return the absolute path without links."""
    # Unlike Path.resolve, this raises nothing for circular links.
    return Path(os.path.realpath(path))


def _called(manifest: Path | None) -> str:
    return "The table" if manifest is None else repr(str(manifest))
