"""What is refused before anything is written: music that would be overwritten, tables that cannot be prepared."""

from __future__ import annotations

import os
from pathlib import Path

import pandas

from datamodules.corpora.manifest import SPLITS, ManifestError, empty_manifest, file_path, read_manifest, source_names
from datamodules.preparing.log import LoggedTrack, PrepareError, PrepareLog

_MOST_NAMED = 5
# Less than this is lost where a length is rounded to whole samples of another rate.
_SAME_LENGTH_SECONDS = 1e-3
# An index calls the pieces of a track so.
_PIECE = r"#\d+$"


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
    """The usable tracks of a manifest, once each, whatever their pieces. `name` is what the source was called."""
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
    """What the folder's manifest names; what was made so far where it has none, or an empty one."""
    try:
        table = read_manifest(written)
    except ManifestError:
        table = empty_manifest()
    finished = _tracks(table, table["name"].str.replace(_PIECE, "", regex=True))
    if len(finished):
        return finished
    logged = pandas.DataFrame(log.tracks(), columns=LoggedTrack._fields)
    # Older logs know only what became of a track: its source is called like the one that would become the same.
    like_now = logged["prepared"].map(dict(zip(now["prepared"], now["name"], strict=True)))
    names = logged["source_name"].fillna(like_now).fillna(logged["prepared"])
    return logged.assign(name=names, label=logged["prepared"])


def _have_a_track_in_common(before: pandas.DataFrame, now: pandas.DataFrame, roots: set[str]) -> bool:
    """By the samples, or by the name in the same folder.

    Other folders have a `01.flac` too: there, where the samples are not known of both, half of the fewer tracks must be
    called the same and be as long.

    roots: folders of the music before, as far as they are known.
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
    """Absolute and without links."""
    # Unlike Path.resolve, this raises nothing for links that go in a circle.
    return Path(os.path.realpath(path))


def _called(manifest: Path | None) -> str:
    return "The table" if manifest is None else repr(str(manifest))
