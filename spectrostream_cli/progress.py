"""Progress: bars of one style on a terminal, plain lines now and then where there is none, as in a batch job's log."""

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


class PlainLines:
    """A line now and then where there is no terminal; on one, nothing, for it has a bar.

    seconds: the shortest time between two lines. at_once: whether the first one need not wait as long.
    """

    def __init__(self, console: Console, *, seconds: float = 30.0, at_once: bool = True) -> None:
        self._console = console
        self._seconds = seconds
        self._due = time.monotonic() + (0.0 if at_once else seconds)

    def offer(self, words: str, task: Task, *, is_last: bool = False) -> bool:
        """Writes a line if it is its time, or if none will follow; tells whether. `task` knows what time is left."""
        if self._console.is_terminal or not (is_last or time.monotonic() >= self._due):
            return False
        self._due = time.monotonic() + self._seconds
        left = task.time_remaining
        line = f"{words}, {timedelta(seconds=round(left))} left" if left else words
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        return True


class _AudioSeconds(ProgressColumn):
    """As `_in_words`."""

    def render(self, task: Task) -> Text:
        """For one moment."""
        return Text(_in_words(task))


def _in_words(task: Task) -> str:
    """Done and all seconds, and how many of them pass in one second."""
    total = "?" if task.total is None else f"{task.total:.0f}"
    speed = f", {task.speed:.1f}x" if task.speed else ""
    return f"{task.completed:.0f}/{total} s of audio{speed}"


class AudioProgress:
    """One bar for all files, or lines from the first half minute on; use as a context.

    seconds: of audio in all files, None if nobody knows.
    """

    def __init__(self, console: Console, seconds: float | None) -> None:
        self._progress = progress_bar(console, _AudioSeconds())
        self._bar = self._progress.add_task("", total=seconds)
        # Most files are done sooner, and their last line tells it all.
        self._lines = PlainLines(console, at_once=False)

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
        (task,) = self._progress.tasks
        self._lines.offer(f"{task.description}: {_in_words(task)}", task)

    def say(self, line: str) -> None:
        """A line that stays above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
