"""Shows progress: bars on a terminal; without one, as in a batch job's log, a plain line from time to time."""

from __future__ import annotations

import time
from datetime import timedelta

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
    """Return a bar with a description, `columns`, the elapsed time and the remaining time.

    Args:
        speed_seconds: The time over which the speed is averaged.
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


class PlainLines:
    """Writes a line from time to time if there is no terminal; a terminal has a bar instead.

    Args:
        seconds: The shortest time between two lines.
        at_once: Write the first line without waiting.
    """

    def __init__(self, console: Console, *, seconds: float = 30.0, at_once: bool = True) -> None:
        self._console = console
        self._seconds = seconds
        self._due = time.monotonic() + (0.0 if at_once else seconds)

    def offer(self, words: str, task: Task, *, is_last: bool = False) -> bool:
        """Write a line if enough time has passed or if it is the last one.

        Args:
            task: Has the remaining time.

        Returns:
            True if the line was written.
        """
        if self._console.is_terminal or not (is_last or time.monotonic() >= self._due):
            return False
        self._due = time.monotonic() + self._seconds
        left = task.time_remaining
        line = f"{words}, {timedelta(seconds=round(left))} left" if left else words
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        return True


class _AudioSeconds(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_in_words(task))


def _in_words(task: Task) -> str:
    """Return the finished and all seconds of audio, and the speed relative to real time."""
    total = "?" if task.total is None else f"{task.total:.0f}"
    speed = f", {task.speed:.1f}x" if task.speed else ""
    return f"{task.completed:.0f}/{total} s of audio{speed}"


class AudioProgress:
    """Shows one bar for all files, or plain lines after the first half minute; a context manager.

    Args:
        seconds: Audio in all files; None if it is unknown.
    """

    def __init__(self, console: Console, seconds: float | None) -> None:
        self._progress = progress_bar(console, _AudioSeconds())
        self._bar = self._progress.add_task("", total=seconds)
        # Most commands are done sooner, and their last line is enough.
        self._lines = PlainLines(console, at_once=False)

    def __enter__(self) -> AudioProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def name(self, what: str) -> None:
        """Show the name of the present file."""
        self._progress.update(self._bar, description=what)

    def advance(self, seconds: float) -> None:
        """Add finished seconds of audio."""
        self._progress.advance(self._bar, seconds)
        (task,) = self._progress.tasks
        self._lines.offer(f"{task.description}: {_in_words(task)}", task)

    def say(self, line: str) -> None:
        """Show a line that stays above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
