"""The statistics of a corpus: hours and tracks by their columns, quantiles of the measurements, findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas

from datamodules.corpora.manifest import read_manifest
from datamodules.corpora.row_filter import fulfilled
from datamodules.scanning.duplicates import count_duplicates, mark_duplicates

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Section -> (column, factor from its unit to the section's).
_MEASURED: Mapping[str, tuple[str, float]] = {
    "loudness (LUFS)": ("loudness_lufs", 1),
    "peak (dBFS)": ("peak_dbfs", 1),
    "bandwidth (kHz)": ("bandwidth_hz", 1e-3),
    "side to mid (dB)": ("side_to_mid_db", 1),
    "duration (minutes)": ("duration_seconds", 1 / 60),
}
# Finding -> condition on the columns.
_FINDINGS: Mapping[str, str] = {
    "mono in two channels (side below -60 dB)": "channels == 2 and side_to_mid_db < -60",
    "clipped (more than 0.01% of the samples)": "clipped_share > 1e-4",
    "silent (more than 50% of the time)": "silent_share > 0.5",
    "not measured (headers only)": "content_hash == ''",
}
_Row = tuple[str, str, int, float, float]
COLUMNS = ("section", "item", "tracks", "hours", "value")


def read_manifests(paths: Sequence[Path]) -> pandas.DataFrame:
    """Read manifests as one; a track in two of them counts once, duplicates are marked across all.

    Raises:
        ManifestError: One is missing or broken.
    """
    table = pandas.concat([read_manifest(path) for path in paths], ignore_index=True)
    return mark_duplicates(table.drop_duplicates(["root", "name", "parts"]))


def usable(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows without a problem."""
    return table[table["problem"] == ""]


def corpus_statistics(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return rows of section, item, tracks, hours and, for a quantile, its value in the section's unit.

    Quantiles are weighted by duration: half of the hours, not of the tracks, are below the item "50 %".
    """
    good = usable(table)
    rows = [
        *_totals(table, good),
        *_grouped("corpus", good["corpus"], good),
        *_grouped("split", good["split"].replace("", "none"), good),
        *_grouped("sample rate (Hz)", good["sample_rate"].astype("str"), good),
        *_grouped("channels", good["channels"].astype("str"), good),
        *_grouped("format", good["container"] + " " + good["subtype"], good),
        *_grouped("genre", good["genre"][good["genre"] != ""], good),
        *_quantiles(good),
        *_findings(good),
        *_problems(table),
    ]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Return the smallest values up to which these shares of the weight are; -inf is allowed as a value."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.asarray(quantiles) * reached[-1])
    return values[order][np.minimum(places, len(values) - 1)]


def _totals(table: pandas.DataFrame, good: pandas.DataFrame) -> Iterator[_Row]:
    yield "all", "can be used", len(good), _hours(good), np.nan
    yield "all", "cannot be used", len(table) - len(good), np.nan, np.nan


def _hours(table: pandas.DataFrame) -> float:
    return float(table["duration_seconds"].sum() / 3600)


def _grouped(section: str, labels: pandas.Series, table: pandas.DataFrame) -> list[_Row]:
    """Return a row for each label, most hours first."""
    groups = table.loc[labels.index, "duration_seconds"].groupby(labels)
    rows = [(section, str(label), len(part), float(part.sum() / 3600), np.nan) for label, part in groups]
    return sorted(rows, key=lambda row: -row[3])


def _quantiles(good: pandas.DataFrame) -> Iterator[_Row]:
    for section, (column, scale) in _MEASURED.items():
        known = good[good[column].notna()]
        if len(known):
            values = known[column].to_numpy(float) * scale
            found = weighted_quantiles(values, known["duration_seconds"].to_numpy(float), QUANTILES)
            for quantile, value in zip(QUANTILES, found, strict=True):
                yield section, f"{quantile:.0%}", len(known), _hours(known), float(value)


def _findings(good: pandas.DataFrame) -> Iterator[_Row]:
    for item, condition in _FINDINGS.items():
        found = good[fulfilled(good, condition, item)]
        yield "finding", item, len(found), _hours(found), np.nan
    duplicates = count_duplicates(good)
    copies = good[good["duplicate_of"] != ""]
    yield "finding", "copies of another track", duplicates.copies, _hours(copies), np.nan
    yield "finding", "same content in two splits", duplicates.across_splits, np.nan, np.nan


def _problems(table: pandas.DataFrame) -> list[_Row]:
    """Return a row for each kind of problem, most files first; numbers and names in it make no difference."""
    bad = table["problem"][table["problem"] != ""]
    kinds = bad.str.replace(r"'[^']*'|\"[^\"]*\"", "...", regex=True).str.replace(r"\b\d[\d.]*", "N", regex=True)
    return [("problem", str(kind), int(count), np.nan, np.nan) for kind, count in kinds.value_counts().items()]
