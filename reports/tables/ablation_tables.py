"""The tables about our own runs: did the model learn, what does each change do, are the rows comparable."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from reports.records import METRICS, SystemCard
from reports.statistics import FEWEST_TRACKS
from reports.tables.rendering import (
    NOT_APPLICABLE,
    Cell,
    Column,
    Row,
    Table,
    not_available,
    number,
    signed,
    with_interval,
)
from reports.track_scores import HEADLINE_METRICS, Point, TrackScores

FEW_TRACKS = 20  # below, the page says how little the intervals can tell


def metric_title(metric: str) -> str:
    """`ILD error (dB) ↓`: title, unit, direction of better."""
    info = METRICS[metric]
    unit = f" ({info.unit})" if info.unit and info.unit != "MOS-LQO" else ""
    return f"{info.title}{unit} {'↑' if info.higher_is_better else '↓'}"


def metric_column(metric: str, *details: str, group: str = "") -> Column:
    """The column of one metric."""
    return Column(metric, metric_title(metric), group=group, details=details)


def headline_metrics(scores: TrackScores) -> tuple[str, ...]:
    """The headline metrics that were recorded; if none was, all that were."""
    return tuple(metric for metric in HEADLINE_METRICS if metric in scores.metrics) or scores.metrics


def missing_cell(scores: TrackScores, point: Point, metric: str) -> Cell:
    """`n/a (reason)` for a refused score, `–` for one that was never asked for."""
    return Cell(not_available(scores.reason(point, metric)), css="missing")


def mean_cell(scores: TrackScores, point: Point, metric: str, *, bold: bool = False) -> Cell:
    """`3.83 [3.76, 3.90]`: mean over tracks and its interval; CSV details `low`, `high`."""
    estimate = scores.estimate(point, metric)
    if math.isnan(estimate.mean):
        return missing_cell(scores, point, metric)
    text = with_interval(estimate.mean, estimate.low, estimate.high, METRICS[metric].decimals)
    return Cell(text, estimate.mean, bold, detail_raw=(estimate.low, estimate.high))


def difference_cell(scores: TrackScores, baseline: Point, point: Point, metric: str, *, bold: bool) -> Cell:
    """The mean, and as its detail the paired difference against `baseline`."""
    mean = scores.mean(point, metric)
    if math.isnan(mean):
        return missing_cell(scores, point, metric)
    decimals = METRICS[metric].decimals
    if point == baseline:
        return Cell(number(mean, decimals), mean, bold, detail_raw=(None,))
    difference = scores.difference(baseline, point, metric).difference.mean
    return Cell(number(mean, decimals), mean, bold, detail=signed(difference, decimals), detail_raw=(difference,))


def value_cell(value: float | int | bool | str | None, decimals: int = 0, scale: float = 1.0) -> Cell:
    """A fact of a card, shown in units of `scale`; CSV gets the shown unit too. None is `–`."""
    if value is None or value == "":
        return Cell(NOT_APPLICABLE)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", "yes" if value else "no")
    if isinstance(value, str):
        return Cell(value, value)
    shown = value if scale == 1 else value / scale
    return Cell(f"{shown:,.{decimals}f}".replace(",", "\u202f"), shown)  # narrow space: 12 000


# ---- did it learn? ------------------------------------------------------------------------------------------------


def learning_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, levels: int) -> Table:
    """The trained baseline beside its untrained self and a decoder that is fed zero codes."""
    by_name = {card.name: card for card in cards}
    checks = [card for card in cards if card.role == "check" and card.name.startswith(f"{baseline}@")]
    metrics = headline_metrics(scores)
    rows, points = [], {}
    for card in [*checks, by_name[baseline]]:
        point = scores.nearest_point(card.name, levels)
        points[card.name] = point
        cells = [mean_cell(scores, point, metric) if point else Cell(NOT_APPLICABLE) for metric in metrics]
        title = Cell(card.title, card.name, detail=failure(card))
        rows.append(Row((title, value_cell(card.steps), *cells), css=_row_css(card)))
    columns = (
        Column("system", "System", css="text"),
        Column("steps", "Steps"),
        *(metric_column(metric, "low", "high") for metric in metrics),
    )
    notes = (_interval_note(scores), *skipped_notes(scores, [point for point in points.values() if point]))
    return Table("Held-out audio before and after training", columns, tuple(rows), notes)


def learning_verdict(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, levels: int) -> tuple[str, ...]:
    """One sentence per check: on how many tracks the trained model is better, and by how much."""
    trained = scores.nearest_point(baseline, levels)
    metric = "mel_distance" if "mel_distance" in scores.metrics else next(iter(scores.metrics), None)
    if trained is None or metric is None:
        return ("There are no scores of the trained model, so this question stays open.",)
    checks = [card for card in cards if card.role == "check" and card.name.startswith(f"{baseline}@")]
    points = [(card, scores.nearest_point(card.name, levels)) for card in checks]
    return tuple(_verdict(scores, card, point, trained, metric) for card, point in points if point) or (
        "No untrained model was evaluated, so this question stays open.",
    )


def _verdict(scores: TrackScores, card: SystemCard, check: Point, trained: Point, metric: str) -> str:
    result = scores.difference(check, trained, metric)
    estimate, decimals = result.difference, METRICS[metric].decimals
    if math.isnan(estimate.mean):
        return f"Against “{card.title}”: no track has both scores."
    sign = 1 if METRICS[metric].higher_is_better else -1
    clear = sign * (estimate.low if sign > 0 else estimate.high) > 0
    answer = "Yes" if clear else "Not shown"
    change = with_interval(estimate.mean, estimate.low, estimate.high, decimals)
    return (
        f"{answer}: against “{card.title}” the trained model is better on {result.wins} of {estimate.tracks} tracks; "
        f"{METRICS[metric].title.lower()} changes by {change}."
    )


# ---- ablation -----------------------------------------------------------------------------------------------------


def ablation_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, levels: int) -> Table:
    """One change per row, in words; the headline metrics with differences, the cost and the training of each row."""
    shown = ablation_cards(cards, baseline)
    metrics = headline_metrics(scores)
    points = {card.name: (card.name, levels) for card in shown if card.status == "finished"}
    best = {metric: scores.best(points.values(), metric) for metric in metrics}
    rows = []
    for card in shown:
        point = points.get(card.name)
        cells = [
            difference_cell(scores, (baseline, levels), point, metric, bold=point in best[metric])
            if point
            else Cell(NOT_APPLICABLE)
            for metric in metrics
        ]
        rows.append(Row((_change_cell(card, baseline), *cells, *_fact_cells(card)), css=_row_css(card, baseline)))
    columns = (
        Column("change", "Change", css="text"),
        *(
            metric_column(metric, "difference", group="Quality: mean, and difference to the baseline")
            for metric in metrics
        ),
        *_FACT_COLUMNS,
    )
    kbps = scores.rates.get((baseline, levels), math.nan)
    title = f"One change at a time, at {levels} levels ({number(kbps, 2)} kbps)"
    return Table(
        title,
        columns,
        tuple(rows),
        (*_best_notes(scores, [(baseline, levels)]), *skipped_notes(scores, points.values())),
    )


def all_metrics_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, levels: int) -> Table:
    """Every recorded metric of every finished row at the ablation's operating point."""
    shown = [card for card in ablation_cards(cards, baseline) if card.status == "finished"]
    best = {m: scores.best([(card.name, levels) for card in shown], m) for m in scores.metrics}
    rows = []
    for card in shown:
        point = (card.name, levels)
        cells = [
            difference_cell(scores, (baseline, levels), point, metric, bold=point in best[metric])
            for metric in scores.metrics
        ]
        rows.append(Row((_change_cell(card, baseline), *cells), css=_row_css(card, baseline)))
    columns = (Column("change", "Change", css="text"), *(metric_column(m, "difference") for m in scores.metrics))
    notes = skipped_notes(scores, [(card.name, levels) for card in shown])
    return Table(f"All metrics at {levels} levels", columns, tuple(rows), notes)


def seeds_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, levels: int) -> Table | None:
    """Mean and standard deviation over seeds of what was trained more than once; None if nothing was."""
    metrics = headline_metrics(scores)
    rows = []
    for members in same_configuration(ablation_cards(cards, baseline)):
        finished = [card for card in members if card.status == "finished"]
        if len(finished) < 2:
            continue
        cells = [
            _seed_cell([scores.mean((card.name, levels), metric) for card in finished], metric) for metric in metrics
        ]
        seeds = ", ".join(str(card.seed) for card in finished)
        rows.append(Row((_change_cell(members[0], baseline), Cell(seeds, seeds), *cells)))
    columns = (
        Column("change", "Configuration", css="text"),
        Column("seeds", "Seeds", css="text"),
        *(metric_column(metric, "sd") for metric in metrics),
    )
    note = "Mean ± standard deviation over training seeds; seeds are never pooled as if they were further tracks."
    return Table("Spread over training seeds", columns, tuple(rows), (note,)) if rows else None


def ablation_cards(cards: Sequence[SystemCard], baseline: str) -> list[SystemCard]:
    """The baseline first, then every variant in the order given (further seeds of the baseline among them)."""
    own = [card for card in cards if card.role in ("baseline", "variant")]
    return sorted(own, key=lambda card: card.name != baseline)


def same_configuration(cards: Iterable[SystemCard]) -> list[list[SystemCard]]:
    """Cards that differ by nothing but their seed, together."""
    groups: dict[tuple[str, ...], list[SystemCard]] = defaultdict(list)
    for card in cards:
        changes = sorted((key, repr(value)) for key, value in card.changes.items() if key.split(".")[-1] != "seed")
        groups[tuple(f"{key}={value}" for key, value in changes)].append(card)
    return list(groups.values())


_FACT_COLUMNS = (
    Column("parameters_millions", "Parameters (M)", group="Cost"),
    Column("gmacs_per_second", "GMAC/s", group="Cost"),
    Column("encode_real_time_factor", "RTF encode", group="Cost"),
    Column("decode_real_time_factor", "RTF decode", group="Cost"),
    Column("steps", "Steps", group="Training"),
    Column("training_minutes", "Minutes", group="Training"),
    Column("seed", "Seed", group="Training"),
)


def _fact_cells(card: SystemCard) -> tuple[Cell, ...]:
    return (
        value_cell(card.parameters, 2, 1e6),
        value_cell(card.macs_per_second, 2, 1e9),
        value_cell(card.encode_real_time_factor, 3),
        value_cell(card.decode_real_time_factor, 3),
        value_cell(card.steps),
        value_cell(card.training_seconds, 1, 60),
        Cell(NOT_APPLICABLE) if card.seed is None else Cell(str(card.seed), card.seed),
    )


def _change_cell(card: SystemCard, baseline: str) -> Cell:
    text = card.change or card.title
    if card.name == baseline:
        text = f"Baseline: {card.title}" + (f" ({card.change})" if card.change else "")
    return Cell(text, card.name, detail=failure(card))


def failure(card: SystemCard) -> str:
    """`failed: reason`, or nothing."""
    return f"failed: {card.status_reason}" if card.status == "failed" else ""


def _row_css(card: SystemCard, baseline: str = "") -> str:
    if card.status == "failed":
        return "failed"
    return "baseline" if card.name == baseline else ""


def _seed_cell(means: list[float], metric: str) -> Cell:
    known = [mean for mean in means if not math.isnan(mean)]
    if len(known) < 2:
        return Cell(NOT_APPLICABLE)
    mean, sd = float(np.mean(known)), float(np.std(known, ddof=1))
    decimals = METRICS[metric].decimals
    # One more decimal: the spread over seeds is often smaller than the precision of the table.
    return Cell(f"{number(mean, decimals + 1)} ± {number(sd, decimals + 1)}", mean, detail_raw=(sd,))


# ---- notes --------------------------------------------------------------------------------------------------------


def _interval_note(scores: TrackScores) -> str:
    return "Mean over tracks with its 95 % bootstrap interval (BCa, resampling tracks)." + few_tracks(scores)


def few_tracks(scores: TrackScores) -> str:
    """A sentence about the number of tracks if they are few, else nothing."""
    tracks = scores.track_count
    if tracks >= FEW_TRACKS:
        return ""
    if tracks < FEWEST_TRACKS:
        return f" Only {tracks} track{'s' * (tracks != 1)}: too few for any interval."
    return f" Only {tracks} tracks: the intervals are wide, and no signed-rank p can be below {2 * 0.5**tracks:.2g}."


def _best_notes(scores: TrackScores, points: Iterable[Point]) -> tuple[str, ...]:
    note = (
        "Bold: the best of a column, and all whose 95 % interval of the paired difference to it (BCa over tracks) "
        "contains zero."
    )
    return (note + few_tracks(scores),)


def skipped_notes(scores: TrackScores, points: Iterable[Point]) -> tuple[str, ...]:
    """Which metrics lack tracks, and why: a mean over fewer tracks than the others must say so."""
    reasons: Counter[tuple[str, str, int]] = Counter()
    for point in points:
        for metric in scores.metrics:
            estimate = scores.estimate(point, metric)
            if estimate.skipped and estimate.tracks:
                reasons[metric, scores.reason(point, metric), estimate.skipped] += 1
    return tuple(
        f"{METRICS[metric].title}: {skipped} of {scores.track_count} tracks have no value in {systems} rows ({reason})."
        for (metric, reason, skipped), systems in reasons.items()
    )
