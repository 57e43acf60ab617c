"""One style for all figures: colours, fonts, deterministic SVG and WebP. It changes no global state of matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from reports.records import SystemCard
from reports.tables.ablation_tables import same_configuration

INK = "#24292f"
MUTED = "#57606a"
RULE = "#d0d7de"
PAPER = "#ffffff"
Dash = Any  # a matplotlib line style
WIDTH = 7.2  # inches: both columns of a paper
DOTS_PER_INCH = 200  # of WebP

# Okabe and Ito's colours with contrast on both white and black, then some of Tol's. Blue is ours, vermilion is DAC.
OURS = "#0072b2"
_OTHER_CODECS = ("#d55e00", "#cc79a7", "#b8860b")
_VARIANTS = ("#009e73", "#e69f00", "#882255", "#56b4e9", "#7b68c8", "#8c6d31", "#cc79a7", "#44aa99", "#999933")
_CHECK = "#8b949e"
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

_FAMILY = re.compile(r"font-family: [^;\"]+")
_FONTS = "Helvetica Neue, Helvetica, Arial, Liberation Sans, system-ui, sans-serif"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, in the reader's own font
    "font.family": ["DejaVu Sans"],  # matplotlib measures with this wide font, so that narrower fonts fit
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a system's name is a "$"
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class SystemStyle:
    """How every figure of a report draws one system."""

    color: str
    marker: str
    dash: Dash
    hollow: bool = False  # a further seed of the system with the filled marker

    @property
    def dot(self) -> dict[str, Any]:
        """The marker's arguments for `Axes.plot`."""
        inside = PAPER if self.hollow else self.color
        return {"marker": self.marker, "color": self.color, "markerfacecolor": inside}


def system_styles(cards: Sequence[SystemCard]) -> dict[str, SystemStyle]:
    """Choose a style for each system.

    Neighbours differ in colour, marker and dash, so that readers do not depend on colour. Runs that differ only in
    their seed share a colour and a marker.

    Args:
        cards: The cards of all systems.

    Returns:
        System -> style.
    """
    others = zip(cycle(_OTHER_CODECS), cycle(_MARKERS), cycle(_DASHES[:1]), strict=False)
    variants = zip(cycle(_VARIANTS), cycle(_MARKERS), cycle(_DASHES[1:]), strict=False)
    own = sorted((card for card in cards if card.role in ("baseline", "variant")), key=lambda card: card.role)
    styles = {card.name: SystemStyle(_CHECK, "x", _DASHES[2]) for card in cards if card.role == "check"}
    styles |= {card.name: SystemStyle(*next(others)) for card in cards if card.role == "peer"}
    for first, *seeds in same_configuration(own):
        style = SystemStyle(OURS, "o", "-") if first.role == "baseline" else SystemStyle(*next(variants))
        styles[first.name] = style
        styles |= {card.name: replace(style, dash=_DASHES[2], hollow=True) for card in seeds}
    return styles


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Apply the style to everything drawn inside the context; `name` seeds the identifiers in the SVG."""
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure with automatic layout, outside of any window and of pyplot.

    Args:
        height: Inches.
        width: Inches.
    """
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> str:
    """Render a figure as SVG text: the same bytes for the same figure, within one `drawing`."""
    FigureCanvasSVG(figure)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(r"[ \t]+$", "", stream.getvalue(), flags=re.MULTILINE)
    return _FAMILY.sub(f"font-family: {_FONTS}", text)


def webp(figure: Figure) -> bytes:
    """Render a figure as WebP on white: spectrograms consist of pixels, and as SVG they would be larger."""
    stream = io.BytesIO()
    pixels(figure).save(stream, format="WEBP", quality=88, method=4)
    return stream.getvalue()


def pixels(figure: Figure) -> Image.Image:
    """Render a figure as an RGB picture on white."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DOTS_PER_INCH)
    figure.set_facecolor("white")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def inline_svg(text: str, name: str) -> str:
    """Prepare SVG for use inside HTML.

    Args:
        text: SVG of a whole file.
        name: Prefix that makes the identifiers unique in the page.

    Returns:
        SVG without a prologue, with the page's colours and its width in per cent.
    """
    body = text[text.index("<svg") :]
    body = re.sub(
        r'width="([\d.]+)pt" height="[\d.]+pt"', lambda size: f'style="width: {_share(size[1])}%"', body, count=1
    )
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for color, variable in ((INK, "ink"), (MUTED, "muted"), (RULE, "rule"), (PAPER, "page")):
        body = body.replace(color, f"var(--{variable})")
    return body


def _share(points: str) -> str:
    """The width in per cent of a full-width figure, so that letters have one size in all figures."""
    return f"{100 * float(points) / (72 * WIDTH):.1f}"


def direction(higher_is_better: bool) -> str:
    """Write the direction of better for an axis label."""
    return "higher is better" if higher_is_better else "lower is better"


def hide_empty(axes: Sequence[Axes], used: int) -> None:
    """Hide the panels of a grid after the first `used`."""
    for panel in axes[used:]:
        panel.set_axis_off()
