"""The tables that compare our codec with other codecs at matched total rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.metrics.catalog import METRICS
from reports.metrics.score import Score
from reports.records import SystemCard
from reports.statistics import PairedDifference, RateCurve, bd_quality, bd_rate, holm
from reports.tables.ablation_tables import (
    failure,
    few_tracks,
    mean_cell,
    metric_column,
    skipped_notes,
    value_cell,
)
from reports.tables.rendering import (
    NOT_APPLICABLE,
    Cell,
    Column,
    Row,
    Table,
    not_available,
    number,
    p_value,
    signed,
)
from reports.track_scores import Point, RateGroup, TrackScores, matched_rates

SIGNIFICANT = 0.05  # corrected p of a paired comparison
CHANNELS = 2  # all systems code stereo; a mono codec codes it in two passes


_PAIRED_COLUMNS = (
    Column("metric", "Metric", css="text", details=("against", "kbps", "against_kbps")),
    Column("difference", "Difference [95 % interval]", details=("low", "high")),
    Column("p", "p, corrected"),
    Column("wins", "Wins / tracks", details=("tracks",)),
    Column("verdict", "Better", css="text"),
)


def rate_table(scores: TrackScores, cards: Sequence[SystemCard], systems: Sequence[str]) -> Table:
    """Make the table of the headline metrics, rows grouped by matched rate; the best of each group is bold.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        systems: Names of the compared systems, ours first.
    """
    titles = {card.name: card.title for card in cards}
    metrics = scores.headline_metrics
    rows = []
    for group in matched_rates(scores, systems):
        best = {metric: scores.best(group.points, metric) for metric in metrics}
        for index, point in enumerate(group.points):
            cells = [mean_cell(scores, point, metric, bold=point in best[metric]) for metric in metrics]
            rates = [value_cell(scores.rates[point] / share, 2) for share in (1, CHANNELS)]
            identity = (Cell(titles[point[0]], point[0]), Cell(str(point[1]), point[1]), *rates)
            rows.append(Row((*identity, *cells), heading=_group_title(group) if index == 0 else ""))
    rows += [
        _unscored_row(card, 3 + len(metrics)) for card in cards if card.name in systems and not scores.points(card.name)
    ]
    columns = (
        Column("system", "System", css="text"),
        Column("levels", "Levels"),
        Column("kbps", "total", group="kbps, measured"),
        Column("kbps_per_channel", "per channel", group="kbps, measured"),
        *(metric_column(m, "low", "high", group="Mean over tracks and 95 % interval") for m in metrics),
    )
    notes = (
        "Rates are measured from the bits of the codes. Bold, within a group: the best, and every value whose paired "
        "difference to it has a 95 % interval (BCa over tracks) that contains zero." + few_tracks(scores),
        *skipped_notes(scores, [point for system in systems for point in scores.points(system)]),
    )
    return Table("Systems at matched rates", columns, tuple(rows), notes)


def paired_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, others: Sequence[str]) -> Table:
    """Make the table of paired differences, ours minus each other codec, at every matched rate.

    All rows of the table are one family of tests for Holm's correction.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        baseline: Name of our codec.
        others: Names of the other codecs.
    """
    titles = {card.name: card.title for card in cards}
    comparisons = [
        (group, ours, theirs, metric, scores.difference(theirs, ours, metric))
        for group, ours, theirs in matched_pairs(scores, baseline, others)
        for metric in scores.headline_metrics
    ]
    corrected = holm([result.p_value for *_, result in comparisons])
    rows, heading = [], ""
    for (_, ours, theirs, metric, result), p in zip(comparisons, corrected, strict=True):
        line = (
            f"{titles[baseline]} at {number(scores.rates[ours], 2)} kbps minus "
            f"{titles[theirs[0]]} at {number(scores.rates[theirs], 2)} kbps"
        )
        detail = (theirs[0], scores.rates[ours], scores.rates[theirs])
        label = Cell(METRICS[metric].heading, metric, detail_raw=detail)
        rows.append(Row((label, *_paired_cells(metric, result, p)), heading=line if line != heading else ""))
        heading = line
    notes = (
        f"p: Wilcoxon signed-rank over tracks, Holm-corrected over the {len(rows)} comparisons of this table. “Better” "
        f"is open unless the interval excludes zero and p is below {SIGNIFICANT}." + few_tracks(scores),
    )
    return Table("Paired differences, track by track", _PAIRED_COLUMNS, tuple(rows), notes)


def curve_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, others: Sequence[str]) -> Table:
    """Make the table that compares whole curves: BD-quality and BD-rate.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        baseline: Name of our codec.
        others: Names of the other codecs.
    """
    titles = {card.name: card.title for card in cards}
    rows = []
    for other in others:
        for metric in scores.headline_metrics:
            ours, theirs = _curve(scores, baseline, metric), _curve(scores, other, metric)
            label = (Cell(METRICS[metric].title, metric), Cell(titles[other], other))
            if ours is None or theirs is None:
                refused = Cell(not_available("fewer than two rates"), css="missing")
                rows.append(Row((*label, refused, refused)))
                continue
            quality, rate = bd_quality(theirs, ours), bd_rate(theirs, ours)
            gain, saving = signed(quality.value, METRICS[metric].decimals), f"{signed(rate.value, 1)} %"
            rows.append(Row((*label, _score_cell(quality, gain), _score_cell(rate, saving))))
    columns = (
        Column("metric", "Metric", css="text"),
        Column("against", "Against", css="text"),
        Column("bd_quality", "BD-quality"),
        Column("bd_rate_percent", "BD-rate"),
    )
    note = "Ours minus the other, over the rates that both cover; a negative BD-rate means fewer bits at equal quality."
    return Table("Rate-quality curves in one number", columns, tuple(rows), (note,))


def cost_table(cards: Sequence[SystemCard], systems: Sequence[str]) -> Table:
    """Make the table of parameters, multiply-accumulates, real-time factors, latency and training of each system."""
    by_name = {card.name: card for card in cards}
    rows = [Row(_cost_cells(by_name[name])) for name in systems]
    columns = (
        Column("system", "System", css="text"),
        Column("parameters_millions", "networks", group="Parameters (M)"),
        Column("codebook_parameters_millions", "codebooks", group="Parameters (M)"),
        Column("gmacs_per_second", "GMAC/s"),
        Column("encode_real_time_factor", "encode", group="Real-time factor ↓"),
        Column("decode_real_time_factor", "decode", group="Real-time factor ↓"),
        Column("threads", "Threads"),
        Column("latency_ms", "Latency (ms)"),
        Column("causal", "Causal", css="text"),
        Column("sample_rate_khz", "Sample rate (kHz)"),
        Column("steps", "Steps", group="Training"),
        Column("training_minutes", "Minutes", group="Training"),
    )
    note = (
        "Real-time factor: seconds of computing per second of stereo audio, with the stated number of threads. "
        "It and the multiply-accumulates (GMAC/s) are for all trained levels. Networks are counted without codebooks. "
        "Training minutes are wall time; other runs may have shared the machine."
    )
    return Table("Cost", columns, tuple(rows), (note,))


def matched_pairs(scores: TrackScores, baseline: str, others: Sequence[str]) -> list[tuple[RateGroup, Point, Point]]:
    """List (group, our point, the other's point) for every other codec and every rate that both have."""
    return [
        (group, group.points[0], point)
        for other in others
        for group in matched_rates(scores, (baseline, other))
        for point in group.points[1:]
    ]


def _group_title(group: RateGroup) -> str:
    alone = "" if len(group.points) > 1 else ", no matching rate"
    return f"about {number(group.kbps, 1)} kbps{alone}"


def _unscored_row(card: SystemCard, others: int) -> Row:
    title = Cell(card.title, card.name, detail=failure(card) or "no scores")
    return Row((title, *[Cell(NOT_APPLICABLE)] * others), css="failed", heading="not scored")


def _paired_cells(metric: str, result: PairedDifference, p: float) -> tuple[Cell, ...]:
    estimate, info = result.difference, METRICS[metric]
    if math.isnan(estimate.mean):
        missing = Cell(not_available("no track has both scores"), css="missing")
        nothing = Cell(NOT_APPLICABLE)
        return (missing, nothing, nothing, nothing)
    sign = 1 if info.higher_is_better else -1
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    # Both are needed: with few tracks the interval alone is too narrow, and p alone does not say how large it is.
    settled = p < SIGNIFICANT
    verdict = "ours" if settled and low > 0 else "theirs" if settled and high < 0 else "open"
    text = signed(estimate.mean, info.decimals)
    if not math.isnan(estimate.low):
        text += f" [{signed(estimate.low, info.decimals)}, {signed(estimate.high, info.decimals)}]"
    return (
        Cell(text, estimate.mean, detail_raw=(estimate.low, estimate.high)),
        Cell(p_value(p), p),
        Cell(f"{result.wins} / {estimate.tracks}", result.wins, detail_raw=(estimate.tracks,)),
        Cell(verdict, verdict, bold=verdict != "open"),
    )


def _score_cell(score: Score, text: str) -> Cell:
    return Cell(not_available(score.reason), css="missing") if score.reason else Cell(text, score.value)


def _curve(scores: TrackScores, system: str, metric: str) -> RateCurve | None:
    points = [(scores.rates[point], scores.mean(point, metric)) for point in scores.points(system)]
    known = [(kbps, mean) for kbps, mean in points if not math.isnan(mean)]
    return RateCurve(*zip(*known, strict=True)) if len(known) > 1 else None


def _cost_cells(card: SystemCard) -> tuple[Cell, ...]:
    return (
        Cell(card.title, card.name, detail=failure(card)),
        value_cell(card.parameters, 2, 1e6),
        value_cell(card.codebook_parameters, 2, 1e6),
        value_cell(card.macs_per_second, 2, 1e9),
        value_cell(card.encode_real_time_factor, 3),
        value_cell(card.decode_real_time_factor, 3),
        value_cell(card.threads),
        value_cell(card.latency_ms, 1),
        value_cell(card.is_causal),
        value_cell(card.sample_rate, 1, 1000),
        value_cell(card.steps),
        value_cell(card.training_seconds, 1, 60),
    )
