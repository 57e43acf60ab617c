"""Intervals, paired tests and rate-quality curves. The unit is the track: segments of one track are not independent.

A nominal 95 % interval covers the true mean in 93 % of cases if tracks are resampled, and in 59 % if segments are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.interpolate import PchipInterpolator

from reports.metrics.score import Score

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
FEWEST_TRACKS = 3  # that an interval needs
SMALLEST_OVERLAP = 0.5  # of the two quality ranges, that a rate difference needs

Values = NDArray[np.float64]


class MeanEstimate(NamedTuple):
    """A mean over tracks with its bootstrap interval."""

    mean: float
    low: float  # NaN without an interval
    high: float  # NaN without an interval
    tracks: int
    skipped: int  # tracks without a value
    reason: str = ""  # why there is no interval


class PairedDifference(NamedTuple):
    """`b - a` on the tracks that have both values, in the unit of the metric."""

    difference: MeanEstimate
    p_value: float  # Wilcoxon signed-rank, two-sided, not corrected; NaN without tracks
    wins: int  # tracks on which b is better
    ties: int


class RateCurve(NamedTuple):
    """Quality of one system over its rate, at least two points."""

    kbps: Sequence[float]  # ascending
    quality: Sequence[float]  # in the unit of the metric


# ---- intervals and tests --------------------------------------------------------------------------------------------


def bootstrap_mean(values: ArrayLike) -> MeanEstimate:
    """Compute a mean with its bias-corrected and accelerated bootstrap interval (Efron 1987).

    Args:
        values: `[tracks]`; NaN is a track without a value.

    Returns:
        The mean and its interval. There is no interval, but a reason, with fewer than FEWEST_TRACKS values or if all
        values are equal: resampling then says nothing about the spread.

    Raises:
        ValueError: If the values are infinite or not one-dimensional.
    """
    given = _one_dimension("values", values)
    known = given[~np.isnan(given)]
    counts = known.size, given.size - known.size
    if known.size == 0:
        return MeanEstimate(math.nan, math.nan, math.nan, *counts, "no track has a value")
    low, high, reason = _interval(known)
    return MeanEstimate(float(known.mean()), low, high, *counts, reason)


def paired_difference(a: ArrayLike, b: ArrayLike, *, higher_is_better: bool) -> PairedDifference:
    """Compare system `b` with system `a` track by track.

    Args:
        a: `[tracks]`; NaN is a track without a value.
        b: `[tracks]`, the same tracks in the same order.
        higher_is_better: The direction of the metric, for the wins.

    Returns:
        The difference `b - a`. A track that lacks one of the values is left out and counted as skipped.

    Raises:
        ValueError: If the numbers of tracks differ, or values are infinite or not one-dimensional.
    """
    first, second = _one_dimension("a", a), _one_dimension("b", b)
    if first.shape != second.shape:
        raise ValueError(f"a and b list the same tracks; given {first.size} and {second.size} values")
    differences = second - first
    known = differences[~np.isnan(differences)]
    better = known > 0 if higher_is_better else known < 0
    return PairedDifference(
        difference=bootstrap_mean(differences),
        p_value=wilcoxon_p(known),
        wins=int(better.sum()),
        ties=int((known == 0).sum()),
    )


def wilcoxon_p(differences: ArrayLike) -> float:
    """Run the two-sided Wilcoxon signed-rank test; it is exact for few tracks.

    Args:
        differences: `[tracks]`, without NaN.

    Returns:
        p for the hypothesis that the differences are symmetric about 0. It is 1 if all differences are 0, and NaN
        without tracks.
    """
    values = _one_dimension("differences", differences)
    if values.size == 0:
        return math.nan
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p values of one family of tests with Holm's step-down method (Holm 1979).

    Args:
        p_values: One p for each test; NaN is not a member of the family.

    Returns:
        The corrected values in the same order; NaN stays NaN.
    """
    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(given.shape, math.nan)
    order = np.argsort(given)[: int((~np.isnan(given)).sum())]  # NaN sorts last
    factors = np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return corrected.tolist()


def _interval(values: Values) -> tuple[float, float, str]:
    if values.size < FEWEST_TRACKS:
        return math.nan, math.nan, f"{values.size} tracks; an interval needs at least {FEWEST_TRACKS}"
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return math.nan, math.nan, "all tracks have the same value"
    # The interval scales with the data. A power of two, which is exact, brings the largest value near 1, so that the
    # cubes in BCa's acceleration do not underflow.
    _, exponent = np.frexp(np.abs(values).max())
    with warnings.catch_warnings():
        # With few tracks, every resampled mean can lie on one side. The interval is then NaN, with a reason.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.ldexp(values, -exponent),),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(SEED),
        )
    low, high = (float(np.ldexp(bound, exponent)) for bound in result.confidence_interval)
    return (low, high, "") if low <= high else (math.nan, math.nan, "the tracks are too alike to resample")


def _one_dimension(name: str, values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or np.isinf(array).any():
        raise ValueError(f"{name}: one finite number, or NaN, per track; given shape {array.shape}")
    return array


# ---- curves ---------------------------------------------------------------------------------------------------------


def bd_quality(anchor: RateCurve, test: RateCurve) -> Score:
    """Compute the mean vertical distance `test - anchor` of two curves where their rates overlap (BD-quality).

    It follows Bjøntegaard 2001, with piecewise cubic Hermite interpolation (PCHIP) over log10 kbps instead of his
    polynomial.

    Args:
        anchor: The curve to compare with.
        test: The curve that is compared.

    Returns:
        The distance in the unit of quality; missing if the curves have no rates in common.

    Raises:
        ValueError: If the points do not make a curve.
    """
    (rate_a, quality_a), (rate_b, quality_b) = _points(anchor), _points(test)
    low, high = max(rate_a[0], rate_b[0]), min(rate_a[-1], rate_b[-1])
    if low >= high:
        return Score.missing("the curves have no rates in common")
    return Score(_mean_distance((rate_a, quality_a), (rate_b, quality_b), low, high))


def bd_rate(anchor: RateCurve, test: RateCurve) -> Score:
    """Compute the mean difference of rate at equal quality (BD-rate).

    Args:
        anchor: The curve to compare with.
        test: The curve that is compared.

    Returns:
        Per cent of the anchor's rate; negative if `test` needs fewer bits. Missing unless both curves rise strictly, or
        both fall strictly (an error metric), and the quality they share is at least SMALLEST_OVERLAP of the wider of
        their two ranges.

    Raises:
        ValueError: If the points do not make a curve.
    """
    (rate_a, quality_a), (rate_b, quality_b) = _points(anchor), _points(test)
    direction = _direction(quality_a)
    if direction == 0 or direction != _direction(quality_b):
        return Score.missing("the curves are not strictly monotone in one direction")
    ordered_a, ordered_b = ((q[::direction], r[::direction]) for r, q in ((rate_a, quality_a), (rate_b, quality_b)))
    low, high = max(ordered_a[0][0], ordered_b[0][0]), min(ordered_a[0][-1], ordered_b[0][-1])
    overlap = max(high - low, 0.0) / max(np.ptp(quality_a), np.ptp(quality_b))
    if overlap < SMALLEST_OVERLAP:
        return Score.missing(
            f"the curves share {overlap:.0%} of their quality range; {SMALLEST_OVERLAP:.0%} are needed"
        )
    return Score(100 * (10 ** _mean_distance(ordered_a, ordered_b, low, high) - 1))


def _points(curve: RateCurve) -> tuple[Values, Values]:
    """`log10 kbps` and quality; ValueError unless they make a curve."""
    rate, quality = np.asarray(curve.kbps, dtype=np.float64), np.asarray(curve.quality, dtype=np.float64)
    if rate.ndim != 1 or rate.shape != quality.shape or rate.size < 2:
        raise ValueError(f"a curve has at least two points, a quality for each rate; given {curve}")
    if not (np.isfinite(rate).all() and np.isfinite(quality).all() and rate[0] > 0 and (np.diff(rate) > 0).all()):
        raise ValueError(f"a curve has finite points with ascending positive rates; given {curve}")
    return np.log10(rate), quality


def _mean_distance(a: tuple[Values, Values], b: tuple[Values, Values], low: float, high: float) -> float:
    def area(curve: tuple[Values, Values]) -> float:
        return float(PchipInterpolator(*curve).integrate(low, high))

    return (area(b) - area(a)) / (high - low)


def _direction(quality: Values) -> int:
    """1 strictly rising, -1 strictly falling, 0 neither."""
    steps = np.sign(np.diff(quality))
    return int(steps[0]) if (steps == steps[0]).all() else 0
