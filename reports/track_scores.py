"""Scores by operating point, averaged to tracks, with the statistics that tables and figures share.

An operating point is a (system, levels) pair. Each statistic is computed once and then kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from reports.metrics.catalog import METRICS
from reports.records import track_means
from reports.statistics import MeanEstimate, PairedDifference, bootstrap_mean, paired_difference

Point = tuple[str, int]  # (system, levels)


class TrackScores:
    """The scores of one study, track by track.

    Args:
        records: Scores with the columns `reports.records.COLUMNS`.

    Raises:
        ValueError: If they are not records.
    """

    def __init__(self, records: pd.DataFrame) -> None:
        self._means = track_means(records)
        self._frames = dict(iter(self._means.groupby(["system", "levels", "metric"], sort=False)))
        self._estimates: dict[tuple[Point, str], MeanEstimate] = {}
        self._differences: dict[tuple[Point, Point, str], PairedDifference] = {}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The recorded metrics, in the order of `METRICS`."""
        present = set(self._means["metric"])
        return tuple(name for name in METRICS if name in present)

    @cached_property
    def headline_metrics(self) -> tuple[str, ...]:
        """The recorded headline metrics; all recorded metrics if there is no headline metric among them."""
        return tuple(name for name in self.metrics if METRICS[name].headline) or self.metrics

    @cached_property
    def track_count(self) -> int:
        """The number of tracks of the study."""
        return int(self._means["track"].nunique())

    @cached_property
    def rates(self) -> dict[Point, float]:
        """The measured total kbps of every operating point."""
        rates = self._means.groupby(["system", "levels"], sort=False)["kbps"].mean().reset_index()
        points = zip(rates["system"], rates["levels"], strict=True)
        return dict(zip(points, rates["kbps"].astype(float), strict=True))

    def points(self, system: str) -> list[Point]:
        """Return the operating points of `system`, lowest rate first."""
        return sorted((point for point in self.rates if point[0] == system), key=lambda point: self.rates[point])

    def nearest_point(self, system: str, levels: int) -> Point | None:
        """Return the operating point of `system` at `levels`, or at the nearest number of levels; None without any."""
        return min(self.points(system), key=lambda point: abs(point[1] - levels), default=None)

    def values(self, point: Point, metric: str) -> pd.Series[float]:
        """Return the values of the tracks (index: track), without the missing ones."""
        return self._all_values(point, metric).dropna()

    def reason(self, point: Point, metric: str) -> str:
        """Say why tracks have no value, each reason once; "" if every track has one."""
        frame = self._frames.get((*point, metric))
        return "" if frame is None else "; ".join(dict.fromkeys(text for text in frame["reason"] if text))

    def estimate(self, point: Point, metric: str) -> MeanEstimate:
        """Return the mean over tracks with its 95 % bootstrap interval; NaN where there is none."""
        key = (point, metric)
        if key not in self._estimates:
            self._estimates[key] = bootstrap_mean(self._all_values(point, metric).to_numpy())
        return self._estimates[key]

    def mean(self, point: Point, metric: str) -> float:
        """Return the mean over tracks; NaN if no track has a value."""
        values = self.values(point, metric)
        return float(values.mean()) if len(values) else math.nan

    def pairs(self, anchor: Point, point: Point, metric: str) -> pd.DataFrame:
        """Return columns `anchor` and `point`, one row for each track that has both values."""
        both = [self.values(anchor, metric).rename("anchor"), self.values(point, metric).rename("point")]
        return pd.concat(both, axis=1, join="inner")

    def difference(self, anchor: Point, point: Point, metric: str) -> PairedDifference:
        """Return `point` minus `anchor` over the tracks that both have; NaN if there are none."""
        key = (anchor, point, metric)
        if key not in self._differences:
            pairs = self.pairs(anchor, point, metric)
            higher = METRICS[metric].higher_is_better
            self._differences[key] = paired_difference(pairs["anchor"], pairs["point"], higher_is_better=higher)
        return self._differences[key]

    def best(self, points: Iterable[Point], metric: str) -> set[Point]:
        """Find the best points of a column.

        Args:
            points: The operating points to compare.
            metric: A name in `METRICS`.

        Returns:
            The point with the best mean, and every point whose interval of the paired difference to it contains zero.
            Empty with fewer than two known points.
        """
        known = [point for point in points if len(self.values(point, metric))]
        if len(known) < 2:
            return set()
        sign = 1 if METRICS[metric].higher_is_better else -1
        winner = max(known, key=lambda point: sign * self.mean(point, metric))
        return {winner, *(point for point in known if not self._differs(winner, point, metric))}

    def _differs(self, winner: Point, point: Point, metric: str) -> bool:
        estimate = self.difference(winner, point, metric).difference
        if math.isnan(estimate.mean):  # without a common track, nothing shows that they are equal
            return True
        if math.isnan(estimate.low):  # too few tracks, or all have the same difference
            return estimate.mean != 0
        return not estimate.low <= 0 <= estimate.high

    def _all_values(self, point: Point, metric: str) -> pd.Series[float]:
        frame = self._frames.get((*point, metric))
        return pd.Series(dtype=float) if frame is None else frame.set_index("track")["value"]


@dataclass(frozen=True)
class RateGroup:
    """Operating points of about the same total rate."""

    kbps: float  # of the first point
    points: tuple[Point, ...]


def matched_rates(scores: TrackScores, systems: Sequence[str], tolerance: float = 0.15) -> tuple[RateGroup, ...]:
    """Group operating points by total rate.

    Each rate of the first system opens a group. Every other system joins a group with its nearest rate on a log scale,
    if that lies within the tolerance. A rate without a match is a group of its own.

    Args:
        scores: The scores of the study.
        systems: Names of the systems to compare.
        tolerance: The largest relative difference of the rates in a group.

    Returns:
        The groups, lowest rate first.
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
