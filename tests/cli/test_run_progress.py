from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from ablations.runner import Task
from datamodules.audio.opening import AudioFileError
from datamodules.workers.unreadable_files import list_failure
from spectrostream_cli import progress
from spectrostream_cli.run_progress import StudyDisplay, TrainingDisplay, numbers_in_words

METRICS = {
    "train/generator_loss": 12.3456,
    "train/mel_loss": 2.0,
    "train/steps_per_second": 4.0,
    "train/audio_seconds_per_second": 16.0,
    "train/data_wait_share": 0.05,
}


def plain_lines(steps: int, *, first: int = 0, line_seconds: float, seconds_per_step: float = 1.0) -> list[str]:
    """What a training of `steps` steps says where there is no terminal."""
    now = 1000.0
    patch = pytest.MonkeyPatch()
    patch.setattr(progress.time, "monotonic", lambda: now)
    written = io.StringIO()
    try:
        with TrainingDisplay(Console(file=written), total_steps=steps, line_seconds=line_seconds) as display:
            display._progress.get_time = lambda: now
            display.progressed("training", 0, {})
            for step in range(first + 1, steps + 1):
                now += seconds_per_step
                display.progressed("training", step, METRICS)
                display.progressed("training", step, {})  # a batch of the next update
    finally:
        patch.undo()
    return written.getvalue().splitlines()


def test_the_line_of_an_ended_run_counts_replaced_files(tmp_path: Path) -> None:
    written = io.StringIO()
    settings = SimpleNamespace(training=SimpleNamespace(max_steps=3))
    with StudyDisplay(Console(file=written), total_steps=6) as display:
        for name in ("good", "bad"):
            run: Any = SimpleNamespace(name=name, config=settings)
            task = Task(run, tmp_path / name)
            task.folder.mkdir()
            if name == "bad":
                list_failure(task.files.unreadable, AudioFileError.of(Path("a.wav"), "is cut short"))
            display.started(task)
            display.ended(task, None, 7.0)
    good, bad = [line for line in written.getvalue().splitlines() if "done" in line]
    assert good == "good: done after 7 s"
    assert bad.startswith(
        "bad: done after 7 s; 1 file, shard or folder could not be read in this run (over all its starts) and was"
    )
    assert bad.endswith(f": {tmp_path}/bad/unreadable.txt")


def test_numbers_in_words_leave_missing_metrics_out() -> None:
    assert numbers_in_words(METRICS) == "loss 12.35, mel 2, 4 steps/s, 16 s of audio/s"
    assert numbers_in_words({"train/mel_loss": 0.5}) == "mel 0.5"
    assert numbers_in_words({}) == ""


def test_a_long_wait_for_data_is_shown() -> None:
    assert numbers_in_words({"train/data_wait_share": 0.34}) == "34% waiting for data"


def test_a_log_gets_lines_from_time_to_time_and_at_the_end() -> None:
    lines = plain_lines(100, line_seconds=30)
    assert [line.split(",")[0] for line in lines] == [f"step {step}/100" for step in (1, 31, 61, 91, 100)]
    assert lines[1] == "step 31/100, loss 12.35, mel 2, 4 steps/s, 16 s of audio/s, 0:01:09 left"
    assert lines[-1] == "step 100/100, loss 12.35, mel 2, 4 steps/s, 16 s of audio/s"


def test_steps_before_a_resume_do_not_count_for_the_speed() -> None:
    lines = plain_lines(5100, first=5000, line_seconds=30)
    assert lines[0].startswith("step 5001/5100")
    assert "left" not in lines[0]  # nothing is known yet
    assert lines[1].endswith("0:01:09 left")


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_a_bar_above_the_numbers(width: int) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, legacy_windows=False)
    with TrainingDisplay(console, total_steps=200_000) as display:
        display.progressed("training", 5000, {})
        display.progressed("training", 5001, METRICS)
    last = Text.from_ansi(written.getvalue()).plain.rstrip().splitlines()[-2:]
    bar, numbers = (line.strip() for line in last)
    assert bar.startswith("training ")
    assert "5001/200000" in bar.replace(" ", "")
    assert numbers == "loss 12.35, mel 2, 4 steps/s, 16 s of audio/s"
    assert "step 5001/200000" not in written.getvalue()  # the plain line is for others
