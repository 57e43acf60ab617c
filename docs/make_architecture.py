"""Draws `docs/architecture.svg`: the packages, their sub-packages and who imports whom, from the import graph.

    python docs/make_architecture.py

Needs the extra `dev` (`grimp` comes with import-linter). An arrow points from what imports to what is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Outline

DRAWING = Path(__file__).parent / "architecture.svg"
Point = tuple[float, float]
Arrow = tuple[str, str]

# Left, bottom, width and height of each package, and what it does.
PACKAGES: dict[str, tuple[tuple[float, float, float, float], str]] = {
    "spectrostream_cli": ((0.0, 9.3, 14.4, 1.7), "the command line"),
    "ablations": ((0.0, 7.7, 8.0, 1.0), "what varies: studies, runs, results"),
    "lightning_modules": ((0.0, 3.0, 2.4, 4.1), "training"),
    "reports": ((2.9, 3.0, 3.8, 4.1), "metrics and the report"),
    "datamodules": ((7.1, 3.0, 6.8, 4.1), "music to batches"),
    "spectrostream": ((0.0, 0.0, 14.4, 2.4), "the codec, pure torch"),
}
# Centres of the sub-packages; a package's own name stands for the files directly in it.
PLACES: dict[str, Point] = {
    "spectrostream_cli": (7.2, 10.4),
    "spectrostream_cli.coding": (4.6, 9.75),
    "spectrostream_cli.data": (9.8, 9.75),
    "reports.page": (4.8, 6.3),
    "reports.figures": (3.7, 5.3),
    "reports.tables": (5.9, 5.1),
    "reports": (4.8, 4.3),
    "reports.metrics": (4.8, 3.4),
    "datamodules.preparing": (10.4, 6.5),
    "datamodules.scanning": (13.0, 5.9),
    "datamodules.shards": (8.4, 5.6),
    "datamodules": (8.0, 4.3),
    "datamodules.workers": (11.4, 5.35),
    "datamodules.layouts": (13.0, 4.8),
    "datamodules.corpora": (10.3, 4.2),
    "datamodules.free_corpora": (13.0, 3.4),
    "datamodules.audio": (9.2, 3.4),
    "spectrostream.weight_files": (7.2, 1.4),
    "spectrostream.bitstream": (4.6, 1.4),
    "spectrostream.cpu_inference": (9.8, 1.4),
    "spectrostream.other_codecs": (3.0, 0.5),
    "spectrostream.adversarial": (2.0, 1.4),
    "spectrostream": (7.6, 0.5),
    "spectrostream.frontends": (12.4, 1.4),
}
# Corners of the arrows between packages; an arrow without an entry is a straight line between the two boxes.
ROUTES: dict[Arrow, list[Point]] = {
    ("spectrostream_cli", "ablations"): [(4.0, 9.3), (4.0, 8.7)],
    ("spectrostream_cli", "datamodules"): [(10.5, 9.3), (10.5, 7.1)],
    ("spectrostream_cli", "reports"): [(8.4, 9.3), (8.4, 7.4), (6.2, 7.4), (6.2, 7.1)],
    ("spectrostream_cli", "spectrostream"): [(14.15, 9.3), (14.15, 2.4)],
    ("ablations", "lightning_modules"): [(1.2, 7.7), (1.2, 7.1)],
    ("ablations", "reports"): [(4.8, 7.7), (4.8, 7.1)],
    ("ablations", "datamodules"): [(7.6, 7.7), (7.6, 7.1)],
    ("ablations", "spectrostream"): [(2.65, 7.7), (2.65, 2.4)],
    ("lightning_modules", "spectrostream"): [(1.2, 3.0), (1.2, 2.4)],
    ("reports", "spectrostream"): [(4.8, 3.0), (4.8, 2.4)],
    ("datamodules", "spectrostream"): [(10.5, 3.0), (10.5, 2.4)],
}
BOX_WIDTH, BOX_HEIGHT = 1.4, 0.42


def arrows() -> set[Arrow]:
    """Who imports whom: between packages, and between the sub-packages and own files inside each package."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    found = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            ends = (importer.split(".")[0], imported.split(".")[0])
            if ends[0] == ends[1]:
                ends = (_sub_package(graph, importer), _sub_package(graph, imported))
            if ends[0] != ends[1]:
                found.add(ends)
    return found


def draw(found: set[Arrow]) -> Figure:
    """The drawing of these arrows."""
    figure = Figure(figsize=(14.6, 11.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, 14.5), ylim=(-0.1, 11.1), aspect="equal")
    axes.axis("off")
    for name, ((left, bottom, width, height), role) in PACKAGES.items():
        axes.add_patch(_box(left, bottom, width, height, facecolor="#eef2f7", edgecolor="#5b6b80"))
        style = {"va": "top", "color": "#1f2d3d"}
        axes.text(left + 0.12, bottom + height - 0.1, name, weight="bold", fontsize=11, **style)
        axes.text(left + 0.12, bottom + height - 0.36, role, fontsize=9, **style)
    boxes = {}
    for name, (x, y) in PLACES.items():
        corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
        boxes[name] = _box(*corner, BOX_WIDTH, BOX_HEIGHT, facecolor="white", edgecolor="#9aa7b8", zorder=3)
        axes.add_patch(boxes[name])
        label = name.partition(".")[2] or "its own files"
        axes.text(x, y, label, ha="center", va="center", fontsize=9, zorder=4)
    for importer, imported in sorted(found):
        axes.add_patch(_arrow(importer, imported, boxes))
    return figure


def _sub_package(graph: grimp.ImportGraph, module: str) -> str:
    package, _, rest = module.partition(".")
    child = f"{package}.{rest.split('.')[0]}"
    return child if rest and graph.find_children(child) else package


def _box(left: float, bottom: float, width: float, height: float, **style: object) -> FancyBboxPatch:
    return FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.08", **style)


def _arrow(importer: str, imported: str, boxes: dict[str, FancyBboxPatch]) -> FancyArrowPatch | PathPatch:
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 0, "shrinkB": 0, "gid": f"{importer}--{imported}"}
    if importer.split(".")[0] == imported.split(".")[0]:
        ends = {"patchA": boxes[importer], "patchB": boxes[imported], "connectionstyle": "arc3,rad=0.08"}
        return FancyArrowPatch(PLACES[importer], PLACES[imported], color="#7a8aa0", zorder=2, **ends, **style)
    route = ROUTES.get((importer, imported)) or [_middle(importer), _middle(imported)]
    return FancyArrowPatch(path=Outline(route), color="#1f2d3d", linewidth=1.6, fill=False, zorder=5, **style)


def _middle(package: str) -> Point:
    left, bottom, width, height = PACKAGES[package][0]
    return left + width / 2, bottom + height / 2


def main(path: Path) -> None:
    """Writes the drawing; the suffix chooses SVG or PNG."""
    # Text stays text, and the same graph gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "architecture"}):
        draw(arrows()).savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DRAWING)
