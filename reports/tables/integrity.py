"""Check that the rows of a table are comparable: facts that should be equal are compared on the cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reports.records import SystemCard
from reports.tables.ablation_tables import failure, value_cell
from reports.tables.rendering import Cell, Column, Row, Table

_SAME: tuple[tuple[str, Callable[[SystemCard], Any]], ...] = (
    ("data", lambda card: card.data_fingerprint or None),
    ("steps", lambda card: card.steps),
    ("seconds of audio seen", lambda card: card.audio_seconds_seen),
    ("evaluation protocol", lambda card: card.protocol_hash or None),
    ("code revision", lambda card: card.git_revision or None),
    ("library versions", lambda card: tuple(sorted(card.versions.items())) or None),
)


def integrity_warnings(cards: Sequence[SystemCard], baseline: str) -> tuple[str, ...]:
    """Name every fact that should be equal in all finished rows, but is not.

    Args:
        cards: The cards of the rows.
        baseline: Name of the card with which the others are compared.

    Returns:
        One line per fact; empty if all facts are equal.
    """
    finished = [card for card in cards if card.status == "finished"]
    anchor = next(card for card in cards if card.name == baseline)
    warnings = []
    for what, fact in _SAME:
        expected = fact(anchor)
        others = [f"{card.title} ({_shown(fact(card))})" for card in finished if fact(card) != expected]
        if others:
            warnings.append(f"{what}: {_shown(expected)} in {anchor.title}, but not in {', '.join(others)}")
        elif expected is None:
            warnings.append(f"{what}: not recorded, so it cannot be checked")
    return tuple(warnings)


def integrity_line(cards: Sequence[SystemCard]) -> str:
    """Write what is equal, for rows without a warning."""
    steps = value_cell(next((card.steps for card in cards if card.steps is not None), None)).text
    finished = sum(card.status == "finished" for card in cards)
    what = ", ".join(what for what, _ in _SAME)
    return f"These {finished} finished systems have the same {what} ({steps} steps), as their cards show."


def provenance_table(cards: Sequence[SystemCard]) -> Table:
    """Make the table of hashes and library versions that identify every system."""
    rows = tuple(
        Row(
            (
                Cell(card.title, card.name, detail=failure(card)),
                *(value_cell(fact) for fact in (card.signature, card.data_fingerprint, card.protocol_hash)),
                value_cell(card.git_revision),
                value_cell(", ".join(f"{name} {version}" for name, version in sorted(card.versions.items()))),
            )
        )
        for card in cards
    )
    columns = (
        Column("system", "System", css="text"),
        Column("signature", "Configuration", css="text"),
        Column("data", "Data", css="text"),
        Column("protocol", "Protocol", css="text"),
        Column("revision", "Code", css="text"),
        Column("versions", "Versions", css="text"),
    )
    return Table("Provenance of every system", columns, rows)


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    if isinstance(value, tuple):
        return ", ".join(f"{name} {version}" for name, version in value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)
