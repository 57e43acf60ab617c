"""Ctrl-C in `train`: the first one saves, the second one ends at once; with loader workers, and with two processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ablations"))
from small_study import write_config, write_music

from spectrostream_cli import main

pytestmark = pytest.mark.processes


class Terminal:
    """A command in a process group of its own, all of which gets Ctrl-C, as on a terminal."""

    def __init__(self, *command: str) -> None:
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )

    def wait_for(self, words: str, stream: str = "stdout") -> None:
        lines = []
        for line in getattr(self.process, stream):
            lines.append(line)
            if words in line:
                return
        raise AssertionError(f"{words!r} is not in {lines}, {self.process.communicate()}")

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """The exit code and what was left of the standard error; all its processes must have ended."""
        try:
            _, error = self.process.communicate(timeout=60)
            until = time.monotonic() + 10
            while time.monotonic() < until:
                try:
                    os.killpg(self.process.pid, 0)
                except ProcessLookupError:
                    return self.process.returncode, error
                time.sleep(0.05)
            raise AssertionError(f"processes are left; {error}")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def words_for_long_training(folder: Path, *words: str) -> list[str]:
    """No checkpoint comes by itself."""
    music = write_music(folder / "music", tracks=1)
    config = write_config(folder, trainer={"checkpoint_every": 10**6}, training={"max_steps": 10**6})
    given = ["train", f"config={config}", f"data.root={music}", f"out={folder / 'run'}", "data.num_workers=1"]
    return [*given, *words]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_saves_and_the_same_command_resumes(tmp_path: Path, devices: int) -> None:
    words = words_for_long_training(tmp_path, f"trainer.devices={devices}", "data.batch_size=1")
    terminal = Terminal("-m", "spectrostream_cli", *words)
    terminal.wait_for("step 1/")
    terminal.ctrl_c()
    code, error = terminal.end()
    assert code == 130, error
    *_, promise, last = filter(None, error.splitlines())
    assert "Ctrl-C once more ends at once, without saving" in promise
    said = re.fullmatch(r"stopped at step (\d+) of 1000000; all is saved, run the same command again to resume", last)
    assert said, error
    assert "Traceback" not in error
    step = int(said[1])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")] == [f"step-{step:08d}.ckpt"]
    if devices == 1:
        assert main([*words, f"training.max_steps={step + 1}", "--accept-changes"]) == 0
        metrics = pd.read_csv(tmp_path / "run" / "logs" / "attempt-001" / "metrics.csv")
        assert metrics["step"].min() >= step


def test_a_second_ctrl_c_ends_at_once_without_saving(tmp_path: Path) -> None:
    """In an update that takes a minute."""
    slow = (
        "import sys, time; from lightning_modules.preemption import Preemption; from spectrostream_cli import main\n"
        "def wait(*_): print('an update', flush=True); time.sleep(60)\n"
        "Preemption.on_train_batch_start = wait\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    terminal = Terminal("-c", slow, *words_for_long_training(tmp_path))
    terminal.wait_for("an update")
    terminal.ctrl_c()
    terminal.wait_for("Ctrl-C once more", "stderr")
    time.sleep(1.1)
    began = time.monotonic()
    terminal.ctrl_c()
    code, error = terminal.end()
    assert time.monotonic() - began < 20
    last = "stopped; run the same command again to resume from the last checkpoint, if there is one"
    assert (code, error.strip()) == (130, last)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
