"""The tables about a study's own runs: whether the model learned, the effect of each change, the spread over seeds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from reports.metrics.catalog import METRICS
from reports.records import SystemCard
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
from reports.track_scores import Point, TrackScores

FEW_TRACKS = 20  # with fewer tracks, the page says how uncertain the intervals are


def metric_column(metric: str, *details: str, group: str = "") -> Column:
    """Make the column of one metric.

    Args:
        metric: A name in `METRICS`.
        details: Names of the further CSV columns.
        group: Title of the spanning header; "" for none.
    """
    return Column(metric, METRICS[metric].heading, group=group, details=details)


def missing_cell(scores: TrackScores, point: Point, metric: str) -> Cell:
    """Make `n/a (reason)` for a missing score, or `–` for a score that was not computed."""
    return Cell(not_available(scores.reason(point, metric)), css="missing")


def mean_cell(scores: TrackScores, point: Point, metric: str, *, bold: bool = False) -> Cell:
    """Make `3.83 [3.76, 3.90]`: the mean over tracks and its interval, with the CSV details `low` and `high`."""
    estimate = scores.estimate(point, metric)
    if math.isnan(estimate.mean):
        return missing_cell(scores, point, metric)
    text = with_interval(estimate.mean, estimate.low, estimate.high, METRICS[metric].decimals)
    return Cell(text, estimate.mean, bold, detail_raw=(estimate.low, estimate.high))


def difference_cell(scores: TrackScores, baseline: Point, point: Point, metric: str, *, bold: bool) -> Cell:
    """Make the mean over tracks, and as its detail the paired difference to `baseline`."""
    mean = scores.mean(point, metric)
    if math.isnan(mean):
        return missing_cell(scores, point, metric)
    decimals = METRICS[metric].decimals
    if point == baseline:
        return Cell(number(mean, decimals), mean, bold, detail_raw=(None,))
    difference = scores.difference(baseline, point, metric).difference.mean
    return Cell(number(mean, decimals), mean, bold, detail=signed(difference, decimals), detail_raw=(difference,))


def value_cell(value: float | int | bool | str | None, decimals: int = 0, scale: float = 1.0) -> Cell:
    """Make the cell of a card's fact.

    Args:
        value: The fact; None or "" is shown as `–`.
        decimals: Decimals of a number.
        scale: The unit that is shown, for example 1e6 for millions. CSV has the same unit.
    """
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
    """Make the table of the trained baseline, the untrained model and a decoder that receives zero codes.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        baseline: Name of the baseline.
        levels: Number of levels at the ablation's operating point.
    """
    by_name = {card.name: card for card in cards}
    checks = [card for card in cards if card.role == "check" and card.name.startswith(f"{baseline}@")]
    metrics = scores.headline_metrics
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
    """Write one sentence per check: on how many tracks the trained model is better, and by how much.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        baseline: Name of the baseline.
        levels: Number of levels at the ablation's operating point.
    """
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
    """Make the table with one change per row: the headline metrics with differences, the cost and the training.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        baseline: Name of the baseline.
        levels: Number of levels at the ablation's operating point.
    """
    shown = ablation_cards(cards, baseline)
    metrics = scores.headline_metrics
    points = {card.name: (card.name, levels) for card in shown if card.status == "finished"}
    best = {metric: scores.best(points.values(), metric) for metric in metrics}
    rows = []
    for card in shown:
        cells = _difference_cells(scores, (baseline, levels), points.get(card.name), best)
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
    return Table(title, columns, tuple(rows), (_best_note(scores), *skipped_notes(scores, points.values())))


def all_metrics_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, levels: int) -> Table:
    """Make the table of every recorded metric of every finished row at the ablation's operating point.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        baseline: Name of the baseline.
        levels: Number of levels at the ablation's operating point.
    """
    shown = [card for card in ablation_cards(cards, baseline) if card.status == "finished"]
    best = {m: scores.best([(card.name, levels) for card in shown], m) for m in scores.metrics}
    rows = []
    for card in shown:
        cells = _difference_cells(scores, (baseline, levels), (card.name, levels), best)
        rows.append(Row((_change_cell(card, baseline), *cells), css=_row_css(card, baseline)))
    columns = (Column("change", "Change", css="text"), *(metric_column(m, "difference") for m in scores.metrics))
    notes = skipped_notes(scores, [(card.name, levels) for card in shown])
    return Table(f"All metrics at {levels} levels", columns, tuple(rows), notes)


def seeds_table(scores: TrackScores, cards: Sequence[SystemCard], baseline: str, levels: int) -> Table | None:
    """Make the table of mean and standard deviation over seeds.

    Args:
        scores: The scores of the study.
        cards: The cards of all systems.
        baseline: Name of the baseline.
        levels: Number of levels at the ablation's operating point.

    Returns:
        One row per configuration that was trained more than once; None if there is none.
    """
    metrics = scores.headline_metrics
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
    note = "Mean ± standard deviation over training seeds; seeds never count as further tracks."
    return Table("Spread over training seeds", columns, tuple(rows), (note,)) if rows else None


def ablation_cards(cards: Sequence[SystemCard], baseline: str) -> list[SystemCard]:
    """Select the baseline, which comes first, and every variant in the given order (with further seeds)."""
    own = [card for card in cards if card.role in ("baseline", "variant")]
    return sorted(own, key=lambda card: card.name != baseline)


def same_configuration(cards: Iterable[SystemCard]) -> list[list[SystemCard]]:
    """Group the cards that differ only in their seed."""
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


def _difference_cells(
    scores: TrackScores, baseline: Point, point: Point | None, best: Mapping[str, set[Point]]
) -> list[Cell]:
    """One cell per metric of `best`, which names the points in bold; `–` without a point."""
    if point is None:
        return [Cell(NOT_APPLICABLE)] * len(best)
    return [difference_cell(scores, baseline, point, metric, bold=point in bold) for metric, bold in best.items()]


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
    """Write `failed: reason` for a failed system, else ""."""
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
    # One more decimal, because the spread over seeds is often smaller than the precision of the table.
    return Cell(f"{number(mean, decimals + 1)} ± {number(sd, decimals + 1)}", mean, detail_raw=(sd,))


# ---- notes --------------------------------------------------------------------------------------------------------


def _interval_note(scores: TrackScores) -> str:
    return "Mean over tracks with its 95 % bootstrap interval (BCa, resampling tracks)." + few_tracks(scores)


def few_tracks(scores: TrackScores) -> str:
    """Write a sentence about the number of tracks if there are few, else ""."""
    tracks = scores.track_count
    if tracks >= FEW_TRACKS:
        return ""
    if tracks < FEWEST_TRACKS:
        return f" Only {tracks} track{'s' * (tracks != 1)}: too few for any interval."
    return f" Only {tracks} tracks: the intervals are wide, and no signed-rank p can be below {2 * 0.5**tracks:.2g}."


def _best_note(scores: TrackScores) -> str:
    note = (
        "Bold: the best of a column, and every value whose paired difference to it has a 95 % interval (BCa over "
        "tracks) that contains zero."
    )
    return note + few_tracks(scores)


def skipped_notes(scores: TrackScores, points: Iterable[Point]) -> tuple[str, ...]:
    """Write which metrics lack tracks and why: readers must see that a mean covers fewer tracks than the others."""
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
