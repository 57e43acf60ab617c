"""Progress bars: their one style, and the bar over seconds of audio; nothing where there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def progress_bar(console: Console, *columns: ProgressColumn, speed_seconds: float = 30.0) -> Progress:
    """What is done, a bar, `columns`, the time it took and the time that is left.

    speed_seconds: how far back the speed is looked at.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=speed_seconds,
        disable=not console.is_terminal,
    )


class _AudioSeconds(ProgressColumn):
    """Done and all seconds, and how many of them pass in one second."""

    def render(self, task: Task) -> Text:
        """For one moment."""
        total = "?" if task.total is None else f"{task.total:.0f}"
        speed = f", {task.speed:.1f}x" if task.speed else ""
        return Text(f"{task.completed:.0f}/{total} s of audio{speed}")


class AudioProgress:
    """One bar for all files; use as a context.

    seconds: of audio in all files, None if nobody knows.
    """

    def __init__(self, console: Console, seconds: float | None) -> None:
        self._progress = progress_bar(console, _AudioSeconds())
        self._bar = self._progress.add_task("", total=seconds)

    def __enter__(self) -> AudioProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def name(self, what: str) -> None:
        """What is being worked on."""
        self._progress.update(self._bar, description=what)

    def advance(self, seconds: float) -> None:
        """So much more audio is done."""
        self._progress.advance(self._bar, seconds)

    def say(self, line: str) -> None:
        """A line that stays above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
