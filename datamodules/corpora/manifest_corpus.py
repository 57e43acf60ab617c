"""Make a corpus of manifests: concatenated, without unusable files, filtered, weighted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pandas

from datamodules.audio.find_files import SkippedFile
from datamodules.corpora.corpus import Corpus, EmptyCorpusError
from datamodules.corpora.manifest import ManifestError, file_path, read_manifest, table_name
from datamodules.corpora.row_filter import fulfilled
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.data_config import DataConfig, DataConfigError, Weight

logger = logging.getLogger(__name__)

_LARGEST_WEIGHT = 1e9


def load_manifests(
    paths: Sequence[str | Path],
    *,
    root: str | None = None,
    keep: str | None = None,
    minimum_seconds: float = 0.0,
    channels: int = 2,
) -> Corpus:
    """Load the usable tracks of manifests; no audio is opened.

    Args:
        paths: .parquet or .csv files of `spectrostream data scan`.
        root: The new folder of the music, if it moved after the scan; for one corpus only.
        keep: A condition on the columns, for example "bandwidth_hz > 18000 and side_to_mid_db > -40". An empty number
            fulfils no condition. None keeps all tracks.
        minimum_seconds: Shorter tracks are skipped.
        channels: Tracks with another number of channels than this or 1 are skipped.

    Raises:
        ManifestError: A manifest cannot be read.
        DataConfigError: `keep` is no condition on the columns.
        EmptyCorpusError: Nothing is left.
    """
    table = pandas.concat([_manifest(Path(path).expanduser()) for path in paths], ignore_index=True)
    where = ", ".join(str(path) for path in paths)
    if root is not None:
        table = _moved(table, root)
    return usable_corpus(where, table, keep=keep, minimum_seconds=minimum_seconds, channels=channels)


def usable_corpus(
    where: str, table: pandas.DataFrame, *, keep: str | None, minimum_seconds: float, channels: int
) -> Corpus:
    """Return the usable rows as a corpus, see `load_manifests`; `where` is for messages."""
    reasons = _reasons(table, minimum_seconds, channels)
    usable = reasons == ""
    unwanted = usable & ~fulfilled(table, keep, "data.keep") if keep else usable & False
    reasons[unwanted] = f"does not fulfil data.keep={keep!r}"
    usable = reasons == ""
    if not usable.any():
        raise EmptyCorpusError(f"None of the {len(table)} tracks in {where} can be used: {_most_frequent(reasons)}")
    if not usable.all():
        logger.warning(
            "%s: %d of %d tracks are not used: %s", where, (~usable).sum(), len(table), _most_frequent(reasons[~usable])
        )
    # Tracks that `keep` excludes do not count as skipped.
    broken = ~(usable | unwanted)
    skipped = _SkippedRows(table.loc[broken, "root"], table.loc[broken, "name"], reasons[broken])
    return Corpus(where, table[usable], skipped if len(skipped) else ())


class _SkippedRows(Sequence[SkippedFile]):
    """Rows of a manifest as skipped files, made at access, because 300000 paths take seconds."""

    def __init__(self, roots: pandas.Series, names: pandas.Series, reasons: pandas.Series) -> None:
        self._columns = tuple(column.to_numpy(object) for column in (roots, names, reasons))

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, index: int) -> SkippedFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[SkippedFile]: ...
    def __getitem__(self, index: int | slice) -> SkippedFile | list[SkippedFile]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        root, name, reason = (column[index] for column in self._columns)
        return SkippedFile(file_path(root, name), reason)

    @property
    def reasons(self) -> np.ndarray:
        """The reasons of all rows, without making paths."""
        return self._columns[2]


def skip_reasons(skipped: Sequence[SkippedFile]) -> Counter[str]:
    """Count a corpus' skipped files by reason."""
    return Counter(skipped.reasons if isinstance(skipped, _SkippedRows) else (file.reason for file in skipped))


def range_weights(corpus: Corpus, ranges: TimeRanges, config: DataConfig, *, sample_rate: int) -> np.ndarray | None:
    """Return the relative probability of a second of each training range.

    `data.balance` gives all values of a column, also the empty one, equal shares of the crops; a range has as many
    crops as samples at which a whole crop can begin. `data.weights` then multiply the ranges of the tracks that fulfil
    their conditions.

    Returns:
        float64 `[ranges]`; None if all are equal.

    Raises:
        DataConfigError: A condition or column is not possible, or no range has a weight above 0.
    """
    if not config.weights and config.balance is None:
        return None
    factors = np.ones(len(corpus.table))
    for weight in map(Weight.of, config.weights):
        holds = fulfilled(corpus.table, weight.condition, "data.weights").to_numpy()
        if not holds[ranges.tracks].any():
            logger.warning("data.weights: no training track fulfils %r", weight.condition)
        with np.errstate(over="ignore"):  # refused below
            factors[holds] *= weight.factor
    result = factors[ranges.tracks]
    if not (result <= _LARGEST_WEIGHT).all():
        raise DataConfigError(
            f"data.weights={list(config.weights)} gives a track a weight above {_LARGEST_WEIGHT:g}; type "
            "smaller factors"
        )
    if not result.any():
        raise DataConfigError(
            f"data.weights={list(config.weights)} gives every training track the weight 0; type others, or another "
            "data.split"
        )
    if config.balance is not None:
        result /= _crops_of_value(corpus, ranges, config.balance, ranges.start_counts(config.crop_seconds, sample_rate))
    return result


def _crops_of_value(corpus: Corpus, ranges: TimeRanges, column: str, crops: np.ndarray) -> np.ndarray:
    """Return, for each range, the number of crops of all ranges with its value in the column; infinite for 0."""
    if column not in corpus.table:
        raise DataConfigError(f"data.balance={column!r} is no column; allowed are {', '.join(map(str, corpus.table))}")
    values = pandas.factorize(corpus.table[column], use_na_sentinel=False)[0][ranges.tracks]
    if len(np.unique(values)) == 1:
        logger.warning("data.balance=%s changes nothing: all training tracks have the same value", column)
    # float64 is exact here: a million tracks have at most 2**45 crops.
    together = np.bincount(values, weights=crops)[values]
    return np.where(together > 0, together, np.inf)


def _manifest(path: Path) -> pandas.DataFrame:
    table = read_manifest(path)
    if "shard" in table:
        raise ManifestError(
            f"{str(path)!r} is the index of shards, which are read by their folder; type data.shards={path.parent}"
        )
    return table


def _moved(table: pandas.DataFrame, root: str) -> pandas.DataFrame:
    if table["root"].nunique() > 1:
        raise DataConfigError(
            f"data.root={root!r} cannot stand for the {table['root'].nunique()} folders of these manifests; leave it "
            "out, or scan the folders again where they lie now"
        )
    return table.assign(root=table_name(Path(root).expanduser()))


def _reasons(table: pandas.DataFrame, minimum_seconds: float, channels: int) -> pandas.Series:
    """Return the reason why each row cannot be used; "" for usable rows."""
    reasons = table["problem"].astype(object)

    def exclude(rows: pandas.Series, reason: str) -> None:
        reasons[(reasons == "") & rows.fillna(True).astype(bool)] = reason

    exclude((table["frames"] <= 0) | (table["sample_rate"] <= 0), "has no length or sample rate in the manifest")
    exclude(~table["channels"].isin([1, channels]), f"has another number of channels than 1 or {channels}")
    seconds = table["frames"] / table["sample_rate"]
    exclude(seconds < minimum_seconds, f"lasts less than the {minimum_seconds:g} s that are needed")
    return reasons


def _most_frequent(reasons: pandas.Series) -> str:
    counts = reasons.value_counts()
    shown = [f"{count} x {reason}" for reason, count in counts.head(3).items()]
    return "; ".join(shown) + ("; ..." if len(counts) > len(shown) else "")
