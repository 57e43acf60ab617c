"""What the commands show while they work; the command line shows it on a terminal, a notebook as it likes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ablations.runner import RunsDisplay


class TrainingProgress(Protocol):
    """Shows one training."""

    def progressed(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """As `ablations.run.Report`."""


class Display(Protocol):
    """Shows what a command does."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Within it, something of unknown length goes on."""

    def training(self, total_steps: int) -> AbstractContextManager[TrainingProgress]:
        """Within it, one training goes on."""

    def runs(self, total_steps: int) -> AbstractContextManager[RunsDisplay]:
        """Within it, the runs of a study go on."""


class Silent:
    """A `Display` of one training that shows nothing: of the further processes of a distributed run."""

    def say(self, line: str) -> None:
        """Nothing."""

    def training(self, total_steps: int) -> AbstractContextManager[TrainingProgress]:
        """Shows nothing."""
        return nullcontext(self)

    def progressed(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""
