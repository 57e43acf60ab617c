"""Shows the progress of runs: bars on a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import MofNCompleteColumn, TaskID
from rich.text import Text

from ablations.runner import Task
from datamodules.workers.unreadable_files import replaced_in_words
from spectrostream_cli.progress import PlainLines, progress_bar

_NUMBERS = {
    "train/generator_loss": "loss {:.4g}",
    "train/mel_loss": "mel {:.3g}",
    "train/steps_per_second": "{:.3g} steps/s",
    "train/audio_seconds_per_second": "{:.3g} s of audio/s",
}
_LONG_WAIT = 0.2  # share of the time spent waiting for data, from which it is shown


class ConsoleDisplay:
    """The commands' `ablations.display.Display` on a terminal, or as lines in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """See `Display`."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def busy(self, what: str) -> AbstractContextManager[object]:
        """See `Display`."""
        return self._console.status(what)

    def training(self, total_steps: int) -> TrainingDisplay:
        """See `Display`."""
        return TrainingDisplay(self._console, total_steps=total_steps)

    def runs(self, total_steps: int) -> StudyDisplay:
        """See `Display`."""
        return StudyDisplay(self._console, total_steps=total_steps)


class StudyDisplay:
    """Shows a bar for each running run and a line for each run that ends; a context manager."""

    def __init__(self, console: Console, *, total_steps: int) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._steps: dict[str, int] = {}
        self._progress = progress_bar(console, MofNCompleteColumn())
        self._total = self._progress.add_task("all runs", total=total_steps)

    def __enter__(self) -> StudyDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, task: Task) -> None:
        """Add a bar for the run."""
        total = task.run.config.training.max_steps
        self._bars[task.run.name] = self._progress.add_task(f"{task.run.name}: starting", total=total)

    def progressed(self, task: Task, phase: str, step: int) -> None:
        """Update the run's bar and the bar of all runs."""
        name = task.run.name
        self._progress.update(self._bars[name], description=f"{name}: {phase}", completed=step)
        self._progress.advance(self._total, step - self._steps.get(name, 0))
        self._steps[name] = step

    def ended(self, task: Task, reason: str | None, seconds: float) -> None:
        """Replace the run's bar by a line that stays."""
        name = task.run.name
        self._progress.remove_task(self._bars.pop(name))
        outcome = "done" if reason is None else f"FAILED: {reason} (see {task.files.failed})"
        line = f"{name}: {outcome} after {seconds:.0f} s"
        if replaced := replaced_in_words(task.files.unreadable):
            line = f"{line}; {replaced}"
        self._progress.print(line, markup=False, highlight=False, soft_wrap=True)


class TrainingDisplay:
    """Shows one training: a bar with losses and speed, or a line from time to time in a log; a context manager.

    Args:
        line_seconds: The shortest time between two lines; the first and the last step always have a line.
    """

    def __init__(self, console: Console, *, total_steps: int, line_seconds: float = 30.0) -> None:
        self._console = console
        self._total = total_steps
        self._lines = PlainLines(console, seconds=line_seconds)
        self._line_step = -1
        self._numbers = ""
        # The speed must not drop to zero during a validation or a set of samples.
        self._progress = progress_bar(console, MofNCompleteColumn(), speed_seconds=300.0)
        self._bar = self._progress.add_task("starting", total=total_steps)
        self._is_started = False
        self._live = Live(console=console, get_renderable=self._both)

    def __enter__(self) -> TrainingDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _both(self) -> Group:
        # In one line they are too wide for 80 columns.
        return Group(self._progress.get_renderable(), Text(self._numbers, no_wrap=True, overflow="ellipsis"))

    def progressed(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show the progress; the arguments are those of `ablations.run.Report`."""
        if step and not self._is_started:
            # The steps before a resume must not count for the speed.
            self._is_started = True
            self._progress.reset(self._bar, completed=step)
        self._progress.update(self._bar, description=phase, completed=step)
        if metrics:
            self._numbers = numbers_in_words(metrics)
        if step != self._line_step and (metrics or step == self._total):
            (task,) = self._progress.tasks
            words = ", ".join(filter(None, (f"step {step}/{self._total}", self._numbers)))
            if self._lines.offer(words, task, is_last=step == self._total):
                self._line_step = step


def numbers_in_words(metrics: Mapping[str, float]) -> str:
    """Return the logged losses and speed of a training in words; missing metrics are left out."""
    named = [form.format(metrics[name]) for name, form in _NUMBERS.items() if name in metrics]
    if (waiting := metrics.get("train/data_wait_share", 0.0)) >= _LONG_WAIT:
        named.append(f"{waiting:.0%} waiting for data")
    return ", ".join(named)
