"""Curves over rate, ablation axes, scatter over tracks, training curves. Each public figure is SVG text."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from reports.figures.style import (
    INK,
    MUTED,
    WIDTH,
    SystemStyle,
    direction,
    drawing,
    hide_empty,
    new_figure,
    svg,
)
from reports.metrics.catalog import METRICS
from reports.track_scores import Point, TrackScores

CURVE_METRICS = ("visqol_lr", "visqol_s", "mel_distance", "ipd_error")
AXIS_METRICS = ("ipd_error", "ic_error")
_MOST_POINTS = 200  # that a training curve is drawn with
_RATE_TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536)  # kbps
_SMOOTHING = 30  # running means cover one thirtieth of the longest run

AxisPositions = Sequence[tuple[str, float | str]]  # (system, its position on the axis)


@dataclass(frozen=True)
class Drawn:
    """Titles and styles of the systems."""

    titles: Mapping[str, str]
    styles: Mapping[str, SystemStyle]


def quality_metric(scores: TrackScores) -> str:
    """Choose ViSQOL-LR if it was recorded, else the mel distance, else the first recorded metric."""
    return next(metric for metric in ("visqol_lr", "mel_distance", *scores.metrics) if metric in scores.metrics)


# ---- rate and quality ---------------------------------------------------------------------------------------------


def rate_curves(scores: TrackScores, systems: Sequence[str], drawn: Drawn) -> str:
    """Draw quality over measured total kbps, one panel per metric; bands are 95 % intervals over tracks.

    Args:
        scores: The scores of the study.
        systems: Names of the systems to draw.
        drawn: Their titles and styles.
    """
    metrics = [metric for metric in CURVE_METRICS if metric in scores.metrics] or list(scores.metrics[:4])
    rows = math.ceil(len(metrics) / 2)
    with drawing("rate-curves"):
        figure = new_figure(0.35 + 2.3 * rows)
        panels = figure.subplots(rows, min(2, len(metrics)), squeeze=False).flatten().tolist()
        for panel, metric in zip(panels, metrics, strict=False):
            for system in systems:
                _rate_curve(panel, scores, scores.points(system), metric, drawn.styles[system])
            _rate_axis(panel, [scores.rates[point] for system in systems for point in scores.points(system)])
            panel.set_title(METRICS[metric].label)
            panel.set_ylabel(direction(METRICS[metric].higher_is_better))
        hide_empty(panels, len(metrics))
        _legend(figure, systems, drawn)
        return svg(figure)


def _rate_curve(panel: Axes, scores: TrackScores, points: list[Point], metric: str, style: SystemStyle) -> None:
    known = [(scores.rates[point], scores.estimate(point, metric)) for point in points]
    known = [(kbps, estimate) for kbps, estimate in known if not math.isnan(estimate.mean)]
    kbps = [rate for rate, _ in known]
    panel.plot(kbps, [estimate.mean for _, estimate in known], linestyle=style.dash, **style.dot)
    low, high = ([getattr(estimate, side) for _, estimate in known] for side in ("low", "high"))
    panel.fill_between(kbps, low, high, color=style.color, alpha=0.15, linewidth=0)


def _rate_axis(panel: Axes, rates: Sequence[float]) -> None:
    panel.set_xscale("log")
    low, high = min(rates), max(rates)
    panel.set_xlim(low / 1.12, high * 1.12)
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in _RATE_TICKS if low / 1.12 <= tick <= high * 1.12]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.set_xlabel("total kbps, measured (log scale)")


# ---- ablation axes ------------------------------------------------------------------------------------------------


def ablation_axis(
    title: str, scores: TrackScores, positions: AxisPositions, anchor: Point, drawn: Drawn, name: str = "axis"
) -> str:
    """Draw one ablation axis: quality beside the stereo-cue errors, because an axis can trade one for the other.

    Every run is a dot. Unless all positions are words, a line joins the means over seeds. Bars are the 95 % interval of
    the paired difference to the baseline: a bar that does not cross the dashed line is a difference.

    Args:
        title: Label of the axis.
        scores: The scores of the study.
        positions: The runs and their positions on the axis.
        anchor: The operating point of the baseline.
        drawn: Titles and styles of the systems.
        name: Seeds the identifiers in the SVG.
    """
    metrics = [metric for metric in (quality_metric(scores), *AXIS_METRICS) if metric in scores.metrics]
    where = _places(positions)
    placed = [(system, where[at]) for system, at in positions]
    has_numbers = any(not isinstance(at, str) for at in where)
    with drawing(name):
        figure = new_figure(2.5)
        for panel, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            _axis_panel(panel, scores, placed, anchor, metric, drawn)
            if has_numbers:
                _seed_means(panel, scores, placed, anchor[1], metric)
            _axis_ticks(panel, where, margin=0.08 if has_numbers else 0.5)
            panel.set_title(METRICS[metric].label)
            panel.set_ylabel(direction(METRICS[metric].higher_is_better))
            panel.set_xlabel(title)
        return svg(figure)


def _places(positions: AxisPositions) -> dict[float | str, float]:
    """Positions in the drawing: numbers at their value, words left of them ("input" lies before block 0)."""
    values = list(dict.fromkeys(position for _, position in positions))
    words = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if not isinstance(value, str)]
    start = min([0.0, *numbers]) - len(words)
    return {word: start + index for index, word in enumerate(words)} | {number: float(number) for number in numbers}


def _axis_panel(
    panel: Axes, scores: TrackScores, placed: Sequence[tuple[str, float]], anchor: Point, metric: str, drawn: Drawn
) -> None:
    panel.axhline(scores.mean(anchor, metric), color=INK, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
    for system, at in placed:
        point, style = (system, anchor[1]), drawn.styles[system]
        mean = scores.mean(point, metric)
        if math.isnan(mean):
            panel.annotate("n/a", (at, 0.03), xycoords=("data", "axes fraction"), ha="center", color=MUTED)
            continue
        panel.plot([at], [mean], linestyle="none", zorder=3, **style.dot)
        if point == anchor:
            panel.plot([at], [mean], color=style.color, marker="o", markersize=9, fillstyle="none", markeredgewidth=0.8)
            continue
        estimate = scores.difference(anchor, point, metric).difference
        bar = [mean + side - estimate.mean for side in (estimate.low, estimate.high)]
        panel.plot([at, at], bar, color=style.color, linewidth=1.1, zorder=2)


def _seed_means(
    panel: Axes, scores: TrackScores, placed: Sequence[tuple[str, float]], levels: int, metric: str
) -> None:
    seeds: dict[float, list[float]] = defaultdict(list)
    for system, at in placed:
        seeds[at].append(scores.mean((system, levels), metric))
    line = [(at, float(np.nanmean(means))) for at, means in sorted(seeds.items()) if not np.isnan(means).all()]
    panel.plot([at for at, _ in line], [mean for _, mean in line], color=MUTED, linewidth=0.9, zorder=1.5)


def _axis_ticks(panel: Axes, where: Mapping[float | str, float], margin: float) -> None:
    at = list(where.values())
    panel.set_xticks(at, [label if isinstance(label, str) else f"{label:g}" for label in where])
    margin *= max(max(at) - min(at), 1)
    panel.set_xlim(min(at) - margin, max(at) + margin)
    panel.margins(y=0.12)
    panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.grid(visible=False, axis="x")


# ---- per-track scatter --------------------------------------------------------------------------------------------


def track_scatter(
    scores: TrackScores, pairs: Sequence[tuple[Point, Point]], metric: str, drawn: Drawn, name: str = "scatter"
) -> str:
    """Draw every track as a dot, ours over theirs, one panel per pair; on the diagonal both are equal.

    Args:
        scores: The scores of the study.
        pairs: Operating points (ours, theirs).
        metric: A name in `METRICS`.
        drawn: Titles and styles of the systems.
        name: Seeds the identifiers in the SVG.
    """
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    with drawing(name):
        figure = new_figure(0.25 + 2.45 * rows, width=min(WIDTH, 2.45 * columns))
        panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for panel, (ours, theirs) in zip(panels, pairs, strict=False):
            _scatter_panel(panel, scores, ours, theirs, metric, drawn)
        hide_empty(panels, len(pairs))
        return svg(figure)


def _scatter_panel(panel: Axes, scores: TrackScores, ours: Point, theirs: Point, metric: str, drawn: Drawn) -> None:
    pairs = scores.pairs(theirs, ours, metric)
    higher, style = METRICS[metric].higher_is_better, drawn.styles[ours[0]]
    wins = scores.difference(theirs, ours, metric).wins
    panel.set_title(f"{METRICS[metric].title}: better on {wins} of {len(pairs)}")
    panel.set_xlabel(textwrap.fill(f"{drawn.titles[theirs[0]]}, {scores.rates[theirs]:.2f} kbps", 30))
    panel.set_ylabel(textwrap.fill(f"{drawn.titles[ours[0]]}, {scores.rates[ours]:.2f} kbps", 30))
    panel.set_aspect("equal")
    if pairs.empty:
        panel.text(0.5, 0.5, "no track has both scores", transform=panel.transAxes, ha="center", color=MUTED)
        return
    low, high = float(pairs.min().min()), float(pairs.max().max())
    margin = 0.08 * (high - low) or 0.1
    ends = [low - margin, high + margin]
    panel.fill_between(ends, ends, [ends[1 if higher else 0]] * 2, color=style.color, alpha=0.08, linewidth=0)
    panel.plot(ends, ends, color=MUTED, linewidth=0.7)
    panel.plot(pairs["anchor"], pairs["point"], linestyle="none", marker="o", color=style.color, alpha=0.85)
    panel.set(xlim=ends, ylim=ends)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(4))


# ---- training -----------------------------------------------------------------------------------------------------


def training_curves(curves: Mapping[str, pd.DataFrame], drawn: Drawn) -> str:
    """Draw all runs over the same steps, one panel per logged quantity, smoothed; the first run lies on top.

    Args:
        curves: System -> columns step, name, value.
        drawn: Titles and styles of the systems.
    """
    names = list(dict.fromkeys(name for frame in curves.values() for name in frame["name"]))
    names.sort(key=lambda name: (not name.startswith("validation"), name))
    columns = 2 if len(names) in (2, 4) else min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with drawing("training-curves"):
        figure = new_figure(0.55 + 1.9 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for panel, name in zip(panels, names, strict=False):
            shown = {system: _logged(frame, name) for system, frame in curves.items()}
            window = max(1, max(len(curve) for curve in shown.values()) // _SMOOTHING)
            for system, curve in reversed(list(shown.items())):
                _training_curve(panel, curve, drawn.styles[system], window, first=system == next(iter(curves)))
            panel.set_title(name.replace("_", " "))
            panel.set_xlabel("step")
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            panel.yaxis.set_major_locator(MaxNLocator(5))
            panel.xaxis.set_major_formatter(FuncFormatter(_steps))
        hide_empty(panels, len(names))
        _legend(figure, list(curves), drawn, markers=False)
        return svg(figure)


def _logged(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Columns `step` and `value` of one logged quantity, in the order of the steps."""
    return frame.loc[frame["name"] == name, ["step", "value"]].dropna().sort_values("step")


def _training_curve(panel: Axes, curve: pd.DataFrame, style: SystemStyle, window: int, *, first: bool) -> None:
    if curve.empty:
        return
    smooth = curve.rolling(window, min_periods=1, center=True).mean()
    thinned = smooth.iloc[:: max(1, len(smooth) // _MOST_POINTS)]
    width, order = (1.8, 3) if first else (1.0, 2)
    panel.plot(
        thinned["step"], thinned["value"], color=style.color, linestyle=style.dash, linewidth=width, zorder=order
    )


def _steps(value: float, _: int | None) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _legend(figure: Figure, systems: Sequence[str], drawn: Drawn, *, markers: bool = True) -> None:
    """Draw the legend above the panels: with eight curves there is no room inside them."""
    handles = [
        Line2D([], [], color=style.color, linestyle=style.dash, marker=style.marker if markers else None)
        for style in (drawn.styles[system] for system in systems)
    ]
    longest = max((len(drawn.titles[system]) for system in systems), default=1)
    columns = max(1, min(len(systems), 110 // (longest + 8)))
    figure.legend(
        handles, [drawn.titles[system] for system in systems], loc="outside upper left", ncols=columns, handlelength=2.6
    )
