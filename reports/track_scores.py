"""Scores by operating point, averaged to tracks, with the statistics that tables and figures share.

An operating point is a (system, levels) pair. Statistics are computed once, however many tables ask for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from reports.records import METRICS, track_means
from reports.statistics import MeanEstimate, PairedDifference, bootstrap_mean, paired_difference

Point = tuple[str, int]  # (system, levels)

HEADLINE_METRICS = ("visqol_lr", "mel_distance", "stft_distance", "si_sdr", "ipd_error", "ic_error")


class TrackScores:
    """Read access to the records of one study, track by track."""

    def __init__(self, records: pd.DataFrame) -> None:
        self._means = track_means(records)
        self._frames = dict(iter(self._means.groupby(["system", "levels", "metric"], sort=False)))
        self._estimates: dict[tuple[Point, str], MeanEstimate] = {}
        self._differences: dict[tuple[Point, Point, str], PairedDifference] = {}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were recorded at all, in the order of `METRICS`."""
        present = set(self._means["metric"])
        return tuple(name for name in METRICS if name in present)

    @cached_property
    def track_count(self) -> int:
        """Number of tracks of the study."""
        return int(self._means["track"].nunique())

    @cached_property
    def rates(self) -> dict[Point, float]:
        """Measured total kbps of every operating point."""
        rates = self._means.groupby(["system", "levels"], sort=False)["kbps"].mean().reset_index()
        points = zip(rates["system"], rates["levels"], strict=True)
        return dict(zip(points, rates["kbps"].astype(float), strict=True))

    def points(self, system: str) -> list[Point]:
        """The operating points of `system`, lowest rate first."""
        return sorted((point for point in self.rates if point[0] == system), key=lambda point: self.rates[point])

    def nearest_point(self, system: str, levels: int) -> Point | None:
        """`system` at `levels`, else at its nearest number of levels; None without any record."""
        return min(self.points(system), key=lambda point: abs(point[1] - levels), default=None)

    def values(self, point: Point, metric: str) -> pd.Series[float]:
        """Per-track values (index: track) without the missing ones."""
        return self._all_values(point, metric).dropna()

    def reason(self, point: Point, metric: str) -> str:
        """Why tracks of this score are missing, each reason once; empty if none is."""
        frame = self._frames.get((*point, metric))
        return "" if frame is None else "; ".join(dict.fromkeys(text for text in frame["reason"] if text))

    def estimate(self, point: Point, metric: str) -> MeanEstimate:
        """Mean over tracks with its 95 % bootstrap interval; NaN where there is none."""
        key = (point, metric)
        if key not in self._estimates:
            self._estimates[key] = bootstrap_mean(self._all_values(point, metric).to_numpy())
        return self._estimates[key]

    def mean(self, point: Point, metric: str) -> float:
        """Mean over tracks; NaN if every track is missing."""
        values = self.values(point, metric)
        return float(values.mean()) if len(values) else math.nan

    def pairs(self, reference: Point, point: Point, metric: str) -> pd.DataFrame:
        """Columns `reference` and `point`, one row for each track that has both values."""
        both = [self.values(reference, metric).rename("reference"), self.values(point, metric).rename("point")]
        return pd.concat(both, axis=1, join="inner")

    def difference(self, reference: Point, point: Point, metric: str) -> PairedDifference:
        """`point` minus `reference` over the tracks that both have; NaN if there are none."""
        key = (reference, point, metric)
        if key not in self._differences:
            pairs = self.pairs(reference, point, metric)
            higher = METRICS[metric].higher_is_better
            self._differences[key] = paired_difference(pairs["reference"], pairs["point"], higher_is_better=higher)
        return self._differences[key]

    def best(self, points: Iterable[Point], metric: str) -> set[Point]:
        """The point with the best mean and all whose paired difference to it has an interval that contains zero."""
        known = [point for point in points if len(self.values(point, metric))]
        if len(known) < 2:
            return set()
        sign = 1 if METRICS[metric].higher_is_better else -1
        winner = max(known, key=lambda point: sign * self.mean(point, metric))
        return {winner, *(point for point in known if not self._differs(winner, point, metric))}

    def _differs(self, winner: Point, point: Point, metric: str) -> bool:
        estimate = self.difference(winner, point, metric).difference
        if math.isnan(estimate.mean):  # no common track: nothing says that they are alike
            return True
        if math.isnan(estimate.low):  # too few tracks, or the same difference in all of them
            return estimate.mean != 0
        return not estimate.low <= 0 <= estimate.high

    def _all_values(self, point: Point, metric: str) -> pd.Series[float]:
        frame = self._frames.get((*point, metric))
        return pd.Series(dtype=float) if frame is None else frame.set_index("track")["value"]


@dataclass(frozen=True)
class RateGroup:
    """Operating points of about one total rate; `kbps` is that of the first system in it."""

    kbps: float
    points: tuple[Point, ...]


def matched_rates(scores: TrackScores, systems: Sequence[str], tolerance: float = 0.15) -> tuple[RateGroup, ...]:
    """Group the operating points of `systems` by total rate, lowest first.

    Each rate of the first system opens a group; every other system joins with the rate nearest to it on a log scale
    if that lies within the relative `tolerance`. Rates that match nothing form groups of their own.
    """
    opened = {point: [point] for system in systems[:1] for point in scores.points(system)}
    for system in systems[1:]:
        free = scores.points(system)
        for anchor, members in opened.items():
            nearest = min(free, key=lambda point, at=anchor: _log_ratio(scores, point, at), default=None)  # type: ignore[misc]
            if nearest is not None and _log_ratio(scores, nearest, anchor) <= math.log1p(tolerance):
                members.append(nearest)
                free.remove(nearest)
        opened |= {point: [point] for point in free}
    groups = [RateGroup(scores.rates[anchor], tuple(members)) for anchor, members in opened.items()]
    return tuple(sorted(groups, key=lambda group: group.kbps))


def _log_ratio(scores: TrackScores, point: Point, other: Point) -> float:
    rate, other_rate = scores.rates[point], scores.rates[other]
    return abs(math.log(rate / other_rate)) if rate > 0 and other_rate > 0 else math.inf
