import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from reports.statistics import RateCurve, bd_quality, bd_rate, bootstrap_mean, holm, paired_difference, wilcoxon_p

TRACKS = [3.1, 3.4, 2.9, 3.8, 3.3, 3.6, 3.0, 3.5, 3.2]
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_the_interval_is_scipys_with_a_fixed_seed() -> None:
    estimate = bootstrap_mean(TRACKS)
    assert estimate == bootstrap_mean(TRACKS)
    assert estimate.mean == pytest.approx(np.mean(TRACKS))
    scipys = stats.bootstrap((TRACKS,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert (estimate.low, estimate.high) == pytest.approx(tuple(scipys))
    # Near the interval that Student's t gives; bootstrap intervals of few values are a little narrower.
    student = stats.t.interval(0.95, 8, loc=np.mean(TRACKS), scale=stats.sem(TRACKS))
    assert (estimate.high - estimate.low) / (student[1] - student[0]) == pytest.approx(0.85, abs=0.1)


def test_tracks_without_a_value_are_counted_not_zero() -> None:
    estimate = bootstrap_mean([*TRACKS, math.nan])
    assert estimate._replace(skipped=0) == bootstrap_mean(TRACKS)
    assert estimate.skipped == 1
    assert estimate.tracks == 9


@pytest.mark.parametrize(
    ("values", "mean", "reason"),
    [
        ([], math.nan, "no track has a value"),
        ([math.nan, math.nan], math.nan, "no track has a value"),
        ([1.0, 2.0], 1.5, "2 tracks; an interval needs at least 3"),
        ([2.5] * 5, 2.5, "all tracks have the same value"),
        ([0.1 + 0.2, 0.3, 0.3, 0.3], 0.3, "all tracks have the same value"),
    ],
)
def test_no_interval_without_a_spread(values: list[float], mean: float, reason: str) -> None:
    estimate = bootstrap_mean(values)
    assert estimate.reason == reason
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.mean == pytest.approx(mean, nan_ok=True)


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=8))
def test_an_interval_or_a_reason_never_a_warning(values: list[float]) -> None:
    estimate = bootstrap_mean(values)
    assert (estimate.low <= estimate.high) != bool(estimate.reason)


def test_a_paired_difference_is_b_minus_a() -> None:
    b = [*(value + 0.5 for value in TRACKS[:8]), TRACKS[8]]
    result = paired_difference(TRACKS, b, higher_is_better=True)
    assert result.difference.mean == pytest.approx(8 * 0.5 / 9)
    assert (result.wins, result.ties, result.difference.tracks) == (8, 1, 9)
    assert paired_difference(TRACKS, b, higher_is_better=False).wins == 0
    assert paired_difference(b, TRACKS, higher_is_better=False).wins == 8


def test_a_track_that_one_system_lacks_is_left_out() -> None:
    result = paired_difference([1.0, 2.0, math.nan, 4.0], [2.0, math.nan, 3.0, 6.0], higher_is_better=True)
    assert result.difference.mean == pytest.approx(1.5)
    assert (result.difference.tracks, result.difference.skipped, result.wins) == (2, 2, 2)


def test_other_tracks_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="the same tracks"):
        paired_difference([1.0, 2.0], [1.0], higher_is_better=True)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, math.inf])


def test_signed_rank_is_exact_for_few_tracks() -> None:
    # Five differences of one sign: both tails of the 2^5 equally likely sign patterns.
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 2**5)
    assert wilcoxon_p([0.0] * 6) == 1.0
    assert math.isnan(wilcoxon_p([]))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_missing = holm([0.01, math.nan, 0.04])
    assert with_missing[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(with_missing[1])
    assert holm([]) == []


@given(p_lists)
def test_holm_keeps_the_order_and_only_raises(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(q >= p and q <= min(1.0, p * len(p_values)) for p, q in zip(p_values, corrected, strict=True))
    by_p = [q for _, q in sorted(zip(p_values, corrected, strict=True))]
    assert by_p == sorted(by_p)


RATES = (1.0, 2.0, 4.0, 8.0)
QUALITY = (2.0, 3.0, 3.6, 4.0)


@given(shift=st.floats(-2, 2), steps=st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_bd_quality_of_a_shifted_curve_is_the_shift(shift: float, steps: list[float]) -> None:
    quality = np.cumsum([2.0, *steps])
    score = bd_quality(RateCurve(RATES, quality.tolist()), RateCurve(RATES, (quality + shift).tolist()))
    assert score.value == pytest.approx(shift, abs=1e-9)


@given(factor=st.floats(0.6, 1.6))
def test_bd_rate_of_a_stretched_curve_is_the_stretch(factor: float) -> None:
    score = bd_rate(RateCurve(RATES, QUALITY), RateCurve([factor * rate for rate in RATES], QUALITY))
    assert score.value == pytest.approx(100 * (factor - 1), abs=1e-6)


def test_bd_rate_reads_error_metrics_too() -> None:
    errors = [5 - value for value in QUALITY]
    score = bd_rate(RateCurve(RATES, errors), RateCurve([rate / 2 for rate in RATES], errors))
    assert score.value == pytest.approx(-50)


@given(shift=st.floats(-1, 1))
def test_swapping_the_curves_turns_the_sign(shift: float) -> None:
    a, b = RateCurve(RATES, QUALITY), RateCurve((1.5, 3.0, 6.0), (2.2 + shift, 3.1 + shift, 3.9 + shift))
    assert bd_quality(a, b).value == pytest.approx(-bd_quality(b, a).value)
    forth, back = bd_rate(a, b), bd_rate(b, a)
    assume(not forth.reason)
    assert (1 + forth.value / 100) * (1 + back.value / 100) == pytest.approx(1)


@pytest.mark.parametrize(
    ("quality", "reason"),
    [
        ((2.0, 3.0, 2.9, 4.0), "not strictly monotone"),
        ((2.0, 3.0, 3.0, 4.0), "not strictly monotone"),
        ((4.0, 3.6, 3.0, 2.0), "not strictly monotone in one direction"),
        ((3.5, 4.0, 4.5, 5.0), "share 25% of their quality range; 50% are needed"),
        ((5.0, 6.0, 7.0, 8.0), "share 0% of their quality range"),
    ],
)
def test_bd_rate_is_refused_rather_than_extrapolated(quality: tuple[float, ...], reason: str) -> None:
    score = bd_rate(RateCurve(RATES, QUALITY), RateCurve(RATES, quality))
    assert math.isnan(score.value)
    assert reason in score.reason


def test_bd_quality_needs_common_rates() -> None:
    score = bd_quality(RateCurve(RATES, QUALITY), RateCurve((16.0, 32.0), (4.0, 4.2)))
    assert math.isnan(score.value)
    assert score.reason == "the curves have no rates in common"


@pytest.mark.parametrize(
    "curve", [RateCurve([2.0, 1.0], [1.0, 2.0]), RateCurve([1.0], [1.0]), RateCurve([1.0, 2.0], [1.0, math.nan])]
)
def test_points_that_make_no_curve(curve: RateCurve) -> None:
    with pytest.raises(ValueError, match="a curve has"):
        bd_quality(RateCurve(RATES, QUALITY), curve)
