"""Write the report of one study: a self-contained HTML page, Markdown, tables, figures, audio."""

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
from reports.method_notes import STATISTICS
from reports.metrics.catalog import METRICS
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
    """Write the page and its files.

    The new report replaces an old one as a whole: a reader finds the complete old report or the complete new one.

    Args:
        report: The data of the report.
        folder: The folder of the report.
        progress: Receives the name of each step.

    Returns:
        The path of the page, `<folder>/index.html`.

    Raises:
        ValueError: If the folder holds something else than a report.
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
    """Make every table of the page.

    Args:
        report: The data of the report.
        scores: The scores of its records.

    Returns:
        File name without its ending -> table.
    """
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
    """Write the note that every table of scores has: the protocol, and the amount of audio."""
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
        "comparison_warnings": integrity_warnings(compared, report.baseline),
        "comparison_line": integrity_line(compared),
        "metrics": [METRICS[metric] for metric in scores.metrics],
        "statistics": STATISTICS,
    }


def _sections(report: ReportInput) -> dict[str, Section]:
    titles = {card.name: card.title for card in report.cards}
    others = ", ".join(titles[other] for other in report.peers) or "other codecs"
    names = {
        "learning": "Did it learn?",
        "ablation": "One change at a time",
        "axes": "Along the ablation axes",
        "peers": f"Comparison with {others}",
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
    """Make a folder beside `folder`. It replaces `folder` on success and is deleted after an error."""
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
