"""Progress of runs on a terminal, and plain lines where there is none."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ablations.runner import Task


class ConsoleDisplay:
    """Bars for the running cells and a line for each that ends; use as a context."""

    def __init__(self, console: Console, *, total_steps: int) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._steps: dict[str, int] = {}
        self._progress = progress_bar(console)
        self._total = self._progress.add_task("all runs", total=total_steps)

    def __enter__(self) -> ConsoleDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, task: Task) -> None:
        """A bar for the cell."""
        total = task.cell.config.training.max_steps
        self._bars[task.cell.name] = self._progress.add_task(f"{task.cell.name}: starting", total=total)

    def progressed(self, task: Task, phase: str, step: int) -> None:
        """Moves the cell's bar and the one of all."""
        name = task.cell.name
        self._progress.update(self._bars[name], description=f"{name}: {phase}", completed=step)
        self._progress.advance(self._total, step - self._steps.get(name, 0))
        self._steps[name] = step

    def ended(self, task: Task, reason: str | None, seconds: float) -> None:
        """One line that stays."""
        name = task.cell.name
        self._progress.remove_task(self._bars.pop(name))
        outcome = "done" if reason is None else f"FAILED: {reason} (see {task.folder / 'failed.json'})"
        self._progress.print(f"{name}: {outcome} after {seconds:.0f} s", markup=False, highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """The one style of bar."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
