"""Where there is no terminal, as in a batch job's log: a plain line now and then, and none from what is soon done."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from workbench import write_sound

sys.path.insert(0, str(Path(__file__).parent.parent / "datamodules" / "free_corpora"))
from stand_ins import apt_get, fluidsynth, write_debs

from spectrostream_cli import main, progress
from spectrostream_cli.progress import AudioProgress, PlainLines, progress_bar

pytestmark = pytest.mark.processes


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def slow_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a minute after the one before."""
    minutes = itertools.count(0.0, 60.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(minutes)))


def _lines(clock: Clock, written: Console, *, at_once: bool) -> list[str]:
    """Of a task of 100 steps, one in a second."""
    with progress_bar(written) as bar:
        bar.get_time = clock
        number = bar.add_task("", total=100)
        lines = PlainLines(written, at_once=at_once)
        for step in range(1, 101):
            clock.now += 1.0
            bar.update(number, completed=step)
            lines.offer(f"[bold]{step}[/]", bar.tasks[0], is_last=step == 100)
    return written.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_lines_are_half_a_minute_apart_and_say_how_long_it_takes(clock: Clock) -> None:
    lines = _lines(clock, Console(file=io.StringIO()), at_once=True)
    assert lines[0].startswith("[bold]1[/]")
    assert lines[1:] == [
        "[bold]31[/], 0:01:09 left",
        "[bold]61[/], 0:00:39 left",
        "[bold]91[/], 0:00:09 left",
        "[bold]100[/]",
    ]


def test_the_first_line_can_wait_for_the_interval(clock: Clock) -> None:
    lines = _lines(clock, Console(file=io.StringIO()), at_once=False)
    assert [line.split("[/]")[0] for line in lines] == [f"[bold]{step}" for step in (30, 60, 90, 100)]


def test_a_terminal_has_its_bar_alone(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, legacy_windows=False)
    assert "[bold]" not in "".join(_lines(clock, console, at_once=True))


def test_seconds_of_audio_are_printed_after_the_first_half_minute(clock: Clock) -> None:
    written = io.StringIO()
    with AudioProgress(Console(file=written), 4000.0) as audio:
        audio._progress.get_time = clock
        audio.name("train-00000000")
        for _ in range(100):
            clock.now += 1.0
            audio.advance(40.0)
    assert written.getvalue().splitlines() == [
        "train-00000000: 1200/4000 s of audio, 40.0x, 0:01:10 left",
        "train-00000000: 2400/4000 s of audio, 40.0x, 0:00:40 left",
        "train-00000000: 3600/4000 s of audio, 40.0x, 0:00:10 left",
    ]


def test_scan_and_prepare_print_their_progress(
    slow_world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_sound(tmp_path / "music" / f"{number}.wav", 1.0, seed=number)
    music, manifest = str(tmp_path / "music"), str(tmp_path / "m.parquet")
    assert main(["data", "scan", music, "--workers", "1", "--out", manifest]) == 0
    looking, nothing, *lines, last = capsys.readouterr().out.splitlines()
    assert looking == f"looking for music in {music}"
    assert nothing == "measured 0/3 tracks, 0 bytes of 576.1 kB"
    assert lines[-1] == "measured 3/3 tracks, 576.1 kB of 576.1 kB"
    assert last.startswith("manifest: ")

    out = str(tmp_path / "out")
    assert main(["data", "prepare", manifest, "--out", out, "--format", "flac", "--workers", "1"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines] == [f"{n}/3 s of audio" for n in (1, 2, 3)]
    assert last.startswith("prepared: ")


def test_build_prints_its_progress(
    slow_world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    apt_get(tmp_path / "bin", write_debs(tmp_path / "served"), tmp_path / "apt.log")
    fluidsynth(tmp_path / "bin", tmp_path / "log")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["data", "build", "freedoom", "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "looking for music" in lines
    assert any(line.startswith("downloading freedoom") for line in lines)
    assert any(line.startswith("rendering, 0.0/0.0 min of music") for line in lines)
    assert lines[-1].startswith("built: ")


def test_short_commands_print_few_lines(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sound(tmp_path / "music" / "a.wav", 1.0)
    manifest = str(tmp_path / "m.parquet")
    assert main(["data", "scan", str(tmp_path / "music"), "--workers", "1", "--out", manifest]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    out = str(tmp_path / "out")
    assert main(["data", "prepare", manifest, "--out", out, "--format", "flac", "--workers", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
