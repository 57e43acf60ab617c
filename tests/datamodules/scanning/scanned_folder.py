"""A folder that is scanned again and again."""

from __future__ import annotations

from pathlib import Path

import pandas
from music_files import noisy_tones, write_raw

from datamodules.scanning.scan import ScanProgress, scan


def music(path: Path, seed: int = 0, seconds: float = 0.5, rate: int = 44100, channels: int = 2) -> Path:
    return write_raw(path, noisy_tones(seconds, rate, seed, channels).clip(-1, 1), rate)


def by_name(table: pandas.DataFrame) -> dict[str, pandas.Series]:
    return {row["name"]: row for _, row in table.iterrows()}


class Scanner:
    """Scans one folder again and again; `measured` counts what was decoded the last time."""

    def __init__(self, root: Path, journal: Path) -> None:
        self.root, self.journal = root, journal
        self.measured = 0
        self.reports: list[ScanProgress] = []

    def __call__(self, corpus: str = "folder", **options: object) -> pandas.DataFrame:
        self.reports = []
        options = {"timeout_seconds": 30.0, **options}
        table = scan(self.root, corpus, journal=self.journal, progress=self.reports.append, **options)  # type: ignore[arg-type]
        self.measured = self.reports[0].waiting
        self.journal.unlink()
        return table
