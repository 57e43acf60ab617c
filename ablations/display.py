"""The interface through which commands show their progress. The command line implements it for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ablations.runner import RunsDisplay


class TrainingProgress(Protocol):
    """Shows one training."""

    def progressed(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show the progress of the training; the arguments are those of `ablations.run.Report`."""


class Display(Protocol):
    """Shows what a command does."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Show work of unknown length until the context ends."""

    def training(self, total_steps: int) -> AbstractContextManager[TrainingProgress]:
        """Show one training until the context ends."""

    def runs(self, total_steps: int) -> AbstractContextManager[RunsDisplay]:
        """Show the runs of a study until the context ends."""


class Silent:
    """A `Display` of one training that shows nothing; for all processes of a distributed run but the first."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def training(self, total_steps: int) -> AbstractContextManager[TrainingProgress]:
        """Show nothing."""
        return nullcontext(self)

    def progressed(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show nothing."""
