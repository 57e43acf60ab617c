"""Are the rows of a table comparable? What should be equal is compared on the cards, and every difference is named."""

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


def integrity_warnings(cards: Sequence[SystemCard], reference: str) -> tuple[str, ...]:
    """What differs between finished rows that should differ in one thing only; empty if nothing does.

    `reference` names the card that the others are held against.
    """
    finished = [card for card in cards if card.status == "finished"]
    anchor = next(card for card in cards if card.name == reference)
    warnings = []
    for what, fact in _SAME:
        expected = fact(anchor)
        others = [f"{card.title} ({_shown(fact(card))})" for card in finished if fact(card) != expected]
        if others:
            warnings.append(f"{what}: {_shown(expected)} in {anchor.title}, but not in {', '.join(others)}")
        elif expected is None:
            warnings.append(f"{what}: not recorded, so that it cannot be checked")
    return tuple(warnings)


def integrity_line(cards: Sequence[SystemCard]) -> str:
    """What was found equal, for rows without a warning."""
    steps = value_cell(next((card.steps for card in cards if card.steps is not None), None)).text
    finished = sum(card.status == "finished" for card in cards)
    what = ", ".join(what for what, _ in _SAME)
    return f"Checked on the cards of these {finished} finished systems: same {what} ({steps} steps)."


def provenance_table(cards: Sequence[SystemCard]) -> Table:
    """Where every row comes from: the hashes that make it repeatable, and the libraries it ran with."""
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
