"""One study as a page that explains itself: HTML with everything embedded, Markdown, tables, figures, audio."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from reports.figures.curves import Drawn
from reports.figures.style import system_styles
from reports.method_notes import METRIC_DEFINITIONS, STATISTICS
from reports.page.audio_players import build_players
from reports.page.pictures import Picture, draw_pictures
from reports.page.report_input import ReportInput
from reports.records import write_records
from reports.tables.ablation_tables import (
    ablation_cards,
    ablation_table,
    all_metrics_table,
    learning_table,
    learning_verdict,
    metric_title,
    seeds_table,
)
from reports.tables.integrity import integrity_line, integrity_warnings, provenance_table
from reports.tables.peer_tables import cost_table, curve_table, paired_table, rate_table
from reports.tables.rendering import Table, escape_markdown, to_csv, to_latex, to_markdown
from reports.track_scores import TrackScores

__all__ = ["ReportInput", "report_tables", "write_report"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Section:
    """A numbered heading of the page."""

    number: int
    title: str


def write_report(report: ReportInput, folder: Path, *, progress: Progress | None = None) -> Path:
    """Write the page and all that belongs to it into `folder`; returns the path of its index.html.

    `folder` is built beside and then replaced as a whole, so a reader finds the old report or the new one. A folder
    that holds something else than a report is refused with ValueError.
    """
    tell = progress or (lambda _: None)
    with _replacing(folder) as beside:
        scores, styles = TrackScores(report.records), system_styles(report.cards)
        drawn = Drawn({card.name: card.title for card in report.cards}, styles)
        tell("tables")
        tables = report_tables(report, scores)
        _write_tables(tables, beside / "tables")
        tell("figures")
        pictures = draw_pictures(report, scores, drawn, beside / "figures")
        tell("audio")
        audio = (report.reference_audio, report.decoded_audio, report.cards, scores, styles, beside / "audio")
        players, embedded = build_players(*audio)
        tell("page")
        write_records(report.records, beside / "records.csv")
        context = {**_context(report, scores, tables, pictures), "players": players, "embedded": embedded}
        for template, name in (("report.html.j2", "index.html"), ("report.md.j2", "report.md")):
            text = _environment().get_template(template).render(context)
            (beside / name).write_text(text, encoding="utf-8")
    return folder / "index.html"


def report_tables(report: ReportInput, scores: TrackScores) -> dict[str, Table]:
    """Every table of the page by its file name."""
    ours = (scores, report.cards, report.baseline, report.ablation_levels)
    against = (scores, report.cards, report.baseline, report.peers)
    systems = (report.baseline, *report.peers)
    tables: dict[str, Table | None] = {
        "learning": learning_table(*ours),
        "ablation": ablation_table(*ours),
        "all_metrics": all_metrics_table(*ours),
        "seeds": seeds_table(*ours),
        "rates": rate_table(scores, report.cards, systems),
        "paired": paired_table(*against) if report.peers else None,
        "curves": curve_table(*against) if report.peers else None,
        "cost": cost_table(report.cards, systems),
        "provenance": provenance_table(report.cards),
    }
    stamp = _stamp(report)
    return {
        name: table if name in ("cost", "provenance") else replace(table, notes=(*table.notes, stamp))
        for name, table in tables.items()
        if table is not None
    }


def _stamp(report: ReportInput) -> str:
    """What every table of scores is stamped with: the protocol, and on how much audio it was applied."""
    hashes = sorted({card.protocol_hash for card in report.cards if card.protocol_hash}) or ["not recorded"]
    return f"Evaluation protocol {', '.join(hashes)}; {_evaluated_on(report.records)}."


def _context(
    report: ReportInput, scores: TrackScores, tables: Mapping[str, Table], pictures: tuple[Picture, ...]
) -> dict[str, Any]:
    own = ablation_cards(report.cards, report.baseline)
    compared = [card for card in report.cards if card.name in (report.baseline, *report.peers)]
    return {
        "report": report,
        "facts": {**report.study_facts, **_counts(report.records)},
        "sections": _sections(report),
        "tables": tables,
        "pictures": pictures,
        "has_pictures": any(picture.section == "pictures" for picture in pictures),
        "learning": learning_verdict(scores, report.cards, report.baseline, report.ablation_levels),
        "ablation_warnings": integrity_warnings(own, report.baseline),
        "ablation_line": integrity_line(own),
        "peer_warnings": integrity_warnings(compared, report.baseline),
        "peer_line": integrity_line(compared),
        "metrics": [(metric_title(metric), METRIC_DEFINITIONS[metric]) for metric in scores.metrics],
        "statistics": STATISTICS,
    }


def _sections(report: ReportInput) -> dict[str, Section]:
    titles = {card.name: card.title for card in report.cards}
    peers = ", ".join(titles[peer] for peer in report.peers) or "other codecs"
    names = {
        "learning": "Did it learn?",
        "ablation": "One change at a time",
        "axes": "Along the ablation axes",
        "peers": f"Against {peers}",
        "training": "Training curves",
        "pictures": "Spectrograms and stereo image",
        "listen": "Listen",
        "method": "Method",
    }
    return {key: Section(number, title) for number, (key, title) in enumerate(names.items(), start=1)}


def _counts(records: pd.DataFrame) -> dict[str, str]:
    missing = int(records["value"].isna().sum())
    return {
        "Evaluated on": _evaluated_on(records),
        "Scores": f"{len(records)}, of which {missing} are missing with a reason",
    }


def _evaluated_on(records: pd.DataFrame) -> str:
    segments = records[["track", "segment"]].drop_duplicates()
    return f"{records['track'].nunique()} tracks, {len(segments)} segments"


def _write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    folder.mkdir()
    for name, table in tables.items():
        (folder / f"{name}.csv").write_text(to_csv(table), encoding="utf-8", newline="")
        (folder / f"{name}.tex").write_text(to_latex(table), encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    environment.filters["markdown"] = lambda table: Markup(to_markdown(table))
    environment.filters["literal"] = escape_markdown
    return environment


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place if all goes well, and disappears if not."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "report.md").exists():
        raise ValueError(f"{folder} holds something else than a report; give a new folder, or empty this one")
    beside, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("part", "old"))
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
