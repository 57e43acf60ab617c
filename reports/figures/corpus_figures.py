"""One figure of a corpus: hours by bandwidth, loudness, width, length, rate and genre, from a manifest's columns."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from reports.figures.style import INK, MUTED, OURS, drawing, new_figure, pixels, svg

_UPPER, _LOWER, _BAR = 2.3, 0.75, 0.19  # heights in inches: of the histograms, around the bars, of a bar
_FEWEST_BARS, _MOST_BARS = 3, 8
_COLORS = (OURS, "#d55e00", "#009e73", "#e69f00", "#882255", "#56b4e9")
_OTHERS = "#8b949e"
_LONGEST_LABEL = 24
_MINUTES = (0.1, 1, 10, 100)


class CorpusPicture(NamedTuple):
    """The same figure as SVG and as PNG on white."""

    svg: str
    png: bytes


def corpus_picture(table: pd.DataFrame) -> CorpusPicture:
    """Draw the tracks of a manifest. Several corpora are stacked.

    Args:
        table: The tracks without a problem, with the columns corpus, duration_seconds, sample_rate, channels,
            container, subtype, genre, bandwidth_hz, loudness_lufs and side_to_mid_db. Values that were not measured
            are empty; the figure leaves them out.

    Returns:
        The figure.
    """
    with drawing("corpus"), warnings.catch_warnings():
        # The font lacks some scripts: their letters are boxes in the PNG, while the SVG keeps them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _figure(table)
        stream = io.BytesIO()
        text = svg(figure)
        pixels(figure).save(stream, format="PNG", optimize=True)
    return CorpusPicture(text, stream.getvalue())


@dataclass(frozen=True)
class _Stacks:
    """The corpora in the order of the stacks, and their colours."""

    table: pd.DataFrame
    labels: pd.Series
    colors: Mapping[str, str]

    @classmethod
    def of(cls, table: pd.DataFrame) -> _Stacks:
        """Put the corpus with most hours first; corpora without their own colour share one stack."""
        hours = table.groupby("corpus")["hours"].sum().sort_values(ascending=False)
        shown = list(hours.index) if len(hours) <= len(_COLORS) else list(hours.index[: len(_COLORS) - 1])
        labels = table["corpus"].where(table["corpus"].isin(shown), "others")
        colors = dict(zip(shown, _COLORS, strict=False))
        return cls(table, labels, colors if len(shown) == len(hours) else colors | {"others": _OTHERS})


def _figure(table: pd.DataFrame) -> Figure:
    table = table.assign(hours=table["duration_seconds"].astype(float) / 3600)
    stacks = _Stacks.of(table)
    title, kinds = _kinds(table)
    bars = (("Rate and channels", _rates(table)), (title, kinds))
    most = min(max(_FEWEST_BARS, *(labels.nunique() for _, labels in bars)), _MOST_BARS)
    heights = _UPPER, _LOWER + _BAR * most
    figure = new_figure(sum(heights))
    _draw_head(figure, stacks)
    # Two subfigures, so that the long labels of the bars do not move the histograms.
    grid = figure.add_gridspec(2, 1, height_ratios=heights)
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    histograms = upper.subplots(1, 4)
    for panel, draw in zip(histograms, (_draw_bandwidth, _draw_loudness, _draw_width, _draw_duration), strict=True):
        draw(panel, stacks)
    histograms[0].set_ylabel("hours")
    for panel, (name, labels) in zip(lower.subplots(1, 2), bars, strict=True):
        _draw_bars(panel, stacks, name, labels, most)
    return figure


def _draw_head(figure: Figure, stacks: _Stacks) -> None:
    """Draw the total amount, and the legend of the corpora."""
    hours = float(stacks.table["hours"].sum())
    words = f"{len(stacks.table)} tracks, {_hours_text(hours)} hours; left of a dashed line lies half of the hours"
    figure.suptitle(words, x=0.01, ha="left", fontsize=8)
    if len(stacks.colors) > 1:
        handles = [Patch(color=color, label=_short(name)) for name, color in stacks.colors.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


# ---- histograms


def _draw_bandwidth(panel: Axes, stacks: _Stacks) -> None:
    values = stacks.table["bandwidth_hz"].astype(float) / 1000
    highest = 24 if not values.gt(24).any() else float(np.ceil(values.max() / 12) * 12)
    edges = np.arange(0, highest + 1e-9, highest / 24)
    _draw_histogram(panel, stacks, values, edges, "Bandwidth", "kHz (above −90 dB)")
    panel.xaxis.set_major_locator(FixedLocator(np.linspace(0, highest, 4).tolist()))


def _draw_loudness(panel: Axes, stacks: _Stacks) -> None:
    values = stacks.table["loudness_lufs"].astype(float)
    _draw_histogram(panel, stacks, values, np.arange(-40, 1, 2), "Loudness", "LUFS (integrated)")
    _set_open_ticks(panel, (-40, -30, -20, -10, 0))


def _draw_width(panel: Axes, stacks: _Stacks) -> None:
    values = stacks.table["side_to_mid_db"].astype(float)
    # Equal channels (mono) have a width of minus infinity, channels of opposite sign of plus infinity.
    _draw_histogram(panel, stacks, values, np.arange(-40, 21, 4), "Stereo width", "dB (side over mid)")
    _set_open_ticks(panel, (-40, -20, 0, 20))


def _draw_duration(panel: Axes, stacks: _Stacks) -> None:
    values = stacks.table["duration_seconds"].astype(float) / 60
    edges = np.geomspace(_MINUTES[0], _MINUTES[-1], 25)
    _draw_histogram(panel, stacks, values, edges, "Length", "minutes")
    panel.set_xscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    _set_open_ticks(panel, _MINUTES)


def _set_open_ticks(panel: Axes, ticks: Sequence[float]) -> None:
    """Label the ticks; the outer two are open (≤ and ≥), because the outer bins include all values beyond."""
    lowest, *inner, highest = map(_signed, ticks)
    panel.xaxis.set_major_locator(FixedLocator(list(ticks)))
    panel.xaxis.set_major_formatter(FixedFormatter([f"≤ {lowest}", *inner, f"≥ {highest}"]))


def _draw_histogram(panel: Axes, stacks: _Stacks, values: pd.Series, edges: np.ndarray, title: str, label: str) -> None:
    """Draw the hours in each bin, stacked by corpus. The outer bins include all values beyond the edges."""
    known = values.notna()
    panel.set_title(title)
    panel.set_xlabel(label)
    panel.set_xlim(edges[0], edges[-1])
    panel.grid(axis="x", visible=False)
    if not known.any():
        _say(panel, "not measured")
        return
    inside = values.clip(edges[0], np.nextafter(edges[-1], edges[0]))
    parts = [known & (stacks.labels == name) for name in stacks.colors]
    panel.hist(
        [inside[part].to_numpy() for part in parts],
        bins=list(edges),
        weights=[stacks.table["hours"][part].to_numpy() for part in parts],
        color=list(stacks.colors.values()),
        stacked=True,
        rwidth=0.9,
    )
    panel.yaxis.set_major_locator(MaxNLocator(4))
    _mark_median(panel, values[known].to_numpy(), stacks.table["hours"][known].to_numpy(), edges)


def _mark_median(panel: Axes, values: np.ndarray, hours: np.ndarray, edges: np.ndarray) -> None:
    """Draw a line with half of the hours on each side."""
    order = np.argsort(values)
    middle = values[order][np.searchsorted(np.cumsum(hours[order]), hours.sum() / 2)]
    panel.axvline(float(np.clip(middle, edges[0], edges[-1])), color=INK, linewidth=0.9, linestyle=(0, (4, 2)))


# ---- bars


def _rates(table: pd.DataFrame) -> pd.Series:
    rates = table["sample_rate"].map(lambda rate: f"{rate / 1000:g} kHz")
    names = {1: "mono", 2: "stereo"}
    return rates + ", " + table["channels"].map(lambda channels: names.get(channels, f"{channels} channels"))


def _kinds(table: pd.DataFrame) -> tuple[str, pd.Series]:
    """Genres if a quarter of the hours has one, else formats."""
    has_genre = table["genre"] != ""
    if table["hours"][has_genre].sum() >= table["hours"].sum() / 4:
        return "Genre", table["genre"].where(has_genre, "unknown")
    return "Format", table["container"] + " " + table["subtype"].str.replace("_", " ")


def _draw_bars(panel: Axes, stacks: _Stacks, title: str, labels: pd.Series, places: int) -> None:
    """Draw the hours of the most frequent labels, longest bar on top, all others in one bar; room for `places` bars."""
    hours = stacks.table["hours"].groupby(labels).sum().sort_values(ascending=False)
    shown = list(hours.index) if len(hours) <= _MOST_BARS else list(hours.index[: _MOST_BARS - 1])
    rest = f"others ({len(hours) - len(shown)})"
    labels = labels.where(labels.isin(shown), rest)
    rows = shown if len(shown) == len(hours) else [*shown, rest]
    panel.set_title(title)
    panel.set_xlabel("hours")
    panel.grid(visible=False)
    left = np.zeros(len(rows))
    for name, color in stacks.colors.items():
        part = stacks.labels == name
        widths = stacks.table["hours"][part].groupby(labels[part]).sum().reindex(rows, fill_value=0.0).to_numpy()
        panel.barh(range(len(rows)), widths, left=left, color=color, height=0.7)
        left += widths
    _label_bars(panel, rows, left)
    panel.set_ylim(places - 0.5, -0.5)


def _label_bars(panel: Axes, rows: Sequence[str], hours: np.ndarray) -> None:
    panel.set_yticks(range(len(rows)), [_short(row) for row in rows])
    panel.tick_params(axis="y", length=0)
    most = float(hours.max()) if len(hours) else 1.0
    panel.set_xlim(0, 1.2 * most)  # room for the numbers
    panel.xaxis.set_major_locator(MaxNLocator(4))
    for row, value in enumerate(hours):
        panel.text(value + 0.02 * most, row, _hours_text(float(value)), va="center", color=MUTED, fontsize=7)


def _hours_text(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.2g}"


# ---- words


def _short(text: str) -> str:
    # Genres come from tables of other people, and SVG allows no control characters.
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def _signed(number: float) -> str:
    return f"{number:g}".replace("-", "−")


def _say(panel: Axes, words: str) -> None:
    panel.text(0.5, 0.5, words, transform=panel.transAxes, ha="center", va="center", color=MUTED)
    panel.set_yticks([])
