"""A manifest: a table with a row for each track of a corpus, its header and its measurements; Parquet or CSV.

A row names its track by the corpus' folder (`root`) and the path below it (`name`), so manifests can be concatenated. A
file that cannot be used has a row too, with the reason in `problem`. Cells without a measurement are empty.

File names are bytes, tables hold text: `table_name` and `file_path` convert them without loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas
from pandas.api.types import pandas_dtype

from spectrostream.atomic_files import whole_file
from spectrostream.errors import UserError

FORMATS = (".parquet", ".csv")
# The manifest in the folder of its music; the folder is then read by it.
MANIFEST_NAME = "manifest.parquet"
# Our names of the official splits.
SPLITS = ("train", "validation", "test")

TEXT, WHOLE, REAL = "str", "Int64", "float64"
# Column -> type and meaning, in the order of the table.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "corpus": (TEXT, "which layout: folder, musdb18hq, fma, ...; or as `data scan --name` called it"),
    "root": (TEXT, "absolute path of the corpus' folder"),
    "name": (TEXT, "path of the track below it, with forward slashes; unique within the corpus"),
    "parts": (TEXT, "files below root whose sum is the track, one a line; empty where name is the file"),
    "split": (TEXT, "train, validation or test where the corpus says so, else empty"),
    "group": (TEXT, "what must lie on one side of a split: an artist, a song, an album; empty where unknown"),
    "artist": (TEXT, "empty where unknown"),
    "album": (TEXT, "as the file's tags have it; empty where they do not"),
    "genre": (TEXT, "the main one; empty where unknown"),
    "sample_rate": (WHOLE, "Hz"),
    "channels": (WHOLE, "of the file"),
    "frames": (WHOLE, "samples of one channel"),
    "duration_seconds": (REAL, "frames / sample_rate"),
    "container": (TEXT, "libsndfile's name, for instance FLAC"),
    "subtype": (TEXT, "libsndfile's name, for instance PCM_16"),
    "size_bytes": (WHOLE, "of the file, of all parts together"),
    "modified_ns": (WHOLE, "time of the last change, of the youngest part"),
    "loudness_lufs": (REAL, "integrated loudness, ITU-R BS.1770-4; empty below the absolute gate of -70"),
    "peak_dbfs": (REAL, "largest sample in dB re full scale 1; above 0 in lossy files; empty for digital silence"),
    "clipped_share": (REAL, "share of samples in runs of three or more at the same extreme"),
    "silent_share": (REAL, "share of blocks of 100 ms whose RMS is below -60 dB re full scale"),
    "side_to_mid_db": (REAL, "energy of left minus right over left plus right; empty for mono files; -inf: mono twice"),
    "bandwidth_hz": (REAL, "highest frequency above -90 dB re full scale in the average spectrum"),
    "content_hash": (TEXT, "of the samples as scanned: equal for the same music in another lossless container"),
    "measurement_version": (WHOLE, "of the code that measured; what another version measured is measured again"),
    "duplicate_of": (TEXT, "first track with the same content, as corpus/name; empty for that one and all others"),
    "problem": (TEXT, "why the file cannot be used; empty for a good one"),
}
# Other columns may be missing in a table of other software.
_NEEDED = ("root", "name", "sample_rate", "channels", "frames")


class ManifestError(UserError):
    """A manifest that is missing, broken or lacks columns; the message says what to type."""


def empty_manifest() -> pandas.DataFrame:
    """Return a manifest with all columns and no rows."""
    return typed(pandas.DataFrame())


def typed(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return the table with all columns in their order and types; missing ones are empty, own ones are last."""
    columns = {
        column: table[column].astype(pandas_dtype(kind)) if column in table else _empty(kind, table.index)
        for column, (kind, _) in COLUMNS.items()
    }
    others = {column: table[column] for column in table.columns if column not in COLUMNS}
    result = pandas.DataFrame({**columns, **others}, index=table.index)
    incomplete = [column for column, (kind, _) in COLUMNS.items() if kind == TEXT and result[column].hasnans]
    result[incomplete] = result[incomplete].fillna("")
    return result


def source_names(table: pandas.DataFrame) -> pandas.Series:
    """Return the name of each track at its scan, however often it was prepared since; equal for its pieces.

    A scanned row has no `source_name`; this is its name.
    """
    if "source_name" not in table:
        return table["name"]
    known = table["source_name"].fillna("").astype("str")
    return known.where(known != "", table["name"])


def write_manifest(table: pandas.DataFrame, path: Path) -> None:
    """Write the table to a .parquet or .csv file, which appears whole or not at all.

    Raises:
        ManifestError: Another extension.
        OSError: The disk is full, or writing is not allowed.
    """
    require_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        if path.suffix == ".csv":
            table.to_csv(file, index=False)
        else:
            table.to_parquet(file, index=False)


def read_manifest(path: Path) -> pandas.DataFrame:
    """Read a table of `write_manifest`, with the rows of unusable files.

    Raises:
        ManifestError: The file is missing, is no table, or lacks needed columns.
    """
    require_format(path)
    remedy = f"write it with `spectrostream data scan FOLDER --out {path}`"
    try:
        table = _read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    except FileNotFoundError as error:
        raise ManifestError(f"The manifest {str(path)!r} does not exist; {remedy}") from error
    except (ValueError, OSError) as error:
        raise ManifestError(f"The manifest {str(path)!r} cannot be read ({error}); {remedy}") from error
    missing = [column for column in _NEEDED if column not in table]
    if missing:
        raise ManifestError(f"The manifest {str(path)!r} has no column {', '.join(missing)}; {remedy}")
    try:
        return typed(table)
    except (ValueError, TypeError) as error:
        raise ManifestError(f"The manifest {str(path)!r} has a value of the wrong kind ({error}); {remedy}") from error


def require_format(path: Path) -> None:
    """Raise ManifestError unless the extension is known."""
    if path.suffix not in FORMATS:
        raise ManifestError(f"A manifest is {' or '.join(FORMATS)}, given was {str(path)!r}")


def table_name(path: str | Path) -> str:
    r"""Convert a file name to text; bytes that are no UTF-8, control characters and backslashes become \xNN."""
    text = path.as_posix() if isinstance(path, Path) else path
    return _UNPRINTABLE.sub(_escaped, text)


def file_path(root: str, name: str) -> Path:
    """Convert a `table_name` below the `table_name` of a folder back to its path."""
    return Path(f"{_unescaped(root).rstrip('/')}/{_unescaped(name)}")


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\\\\\udc80-\udcff]")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def _escaped(match: re.Match[str]) -> str:
    # A byte that is no UTF-8 is the surrogate U+DC00 + byte in Python's file names.
    return f"\\x{ord(match[0]) & 0xFF:02x}"


def _unescaped(name: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = int(match[1], 16)
        return chr(code) if code < 0x80 else chr(0xDC00 + code)

    return _ESCAPE.sub(character, name)


def _empty(kind: str, index: pandas.Index) -> pandas.Series:
    return pandas.Series("" if kind == TEXT else None, index=index, dtype=pandas_dtype(kind))


def _read_csv(path: Path) -> pandas.DataFrame:
    # With types, because nanoseconds do not fit into floats. "NA" is a possible genre.
    kinds = {column: pandas_dtype(kind) for column, (kind, _) in COLUMNS.items()}
    return pandas.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])
