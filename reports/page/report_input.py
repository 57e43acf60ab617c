"""The data of a report, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from reports.figures.curves import AxisPositions
from reports.records import SystemCard


@dataclass(frozen=True)
class ReportInput:
    """Everything that a page is made from.

    Raises:
        ValueError: If a name has no card, two cards have one name, or decoded audio has no reference.
    """

    title: str
    question: str
    lead: tuple[str, ...]  # the first lines, for example how long the models were trained
    cards: tuple[SystemCard, ...]
    records: pd.DataFrame  # see reports/records.py
    curves: Mapping[str, pd.DataFrame]  # system -> training curves with columns step, name, value
    reference_audio: Mapping[str, Path]  # segment -> audio file
    decoded_audio: Mapping[tuple[str, int, str], Path]  # (system, levels, segment) -> audio file
    baseline: str
    peers: tuple[str, ...]  # the other codecs
    ablation_levels: int  # operating point of the ablation table
    study_facts: Mapping[str, str] = field(default_factory=dict)  # corpus, steps, protocol hash, versions, ...
    axes: Mapping[str, AxisPositions] = field(default_factory=dict)  # title of the axis -> [(system, position)]

    def __post_init__(self) -> None:
        known = {card.name for card in self.cards}
        if len(known) != len(self.cards):
            raise ValueError("two cards have one name; names identify systems in the records")
        placed = (system for positions in self.axes.values() for system, _ in positions)
        decoded = (system for system, _, _ in self.decoded_audio)
        named = (self.baseline, *self.peers, *self.records["system"].unique(), *self.curves, *placed, *decoded)
        unknown = sorted(set(named) - known)
        if unknown:
            raise ValueError(
                f"no card for {', '.join(map(repr, unknown))}; cards are given for {', '.join(sorted(known))}"
            )
        lost = sorted({segment for _, _, segment in self.decoded_audio} - set(self.reference_audio))
        if lost:
            raise ValueError(f"decoded audio without its reference: {', '.join(map(repr, lost))}")
