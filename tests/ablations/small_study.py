"""A study that runs in seconds, its music, and a display that remembers: for the tests of this room and of the CLI."""

from __future__ import annotations

import copy
import functools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from ablations.commands import study_tasks
from ablations.runner import Task, run_tasks
from ablations.study import Study, load_study

MINUTE: dict[str, Any] = {
    "model": {
        "kind": "spectrostream",
        "encoder_width": 2,
        "decoder_width": 2,
        "embedding_dim": 8,
        "quantizer": {"levels": 4, "codebook_size": 16, "initial_vectors": 32, "kmeans_iterations": 2},
    },
    "discriminator": {"windows": [256], "width": 2},
    "training": {"max_steps": 3},
    "trainer": {"accelerator": "cpu", "threads": 1, "validate_every": 0, "checkpoint_every": 1, "log_every": 1},
    "data": {"crop_seconds": 0.3, "batch_size": 2, "held_out_seconds": 2.0, "evaluation_segment_seconds": 2.0},
    "evaluation": {"levels": [2, 4], "visqol": False, "workers": 1},
}
TINY_DAC = {
    "kind": "dac",
    "encoder_width": 2,
    "decoder_width": 16,
    "levels": 2,
    "codebook_size": 16,
    "codebook_dim": 2,
}
STUDY: dict[str, Any] = {
    "title": "A minute's study",
    "question": "Does  it\nrun?",
    "axes": {"fusion point": "model.fusion"},
    "compared_at": 4,
    "baseline": {"title": "fusion six"},
    "variants": {
        "fusion-3": {
            "title": "fusion three",
            "change": "joined earlier",
            "axis": "fusion point",
            "set": {"model.fusion": 3},
        }
    },
    "peers": {"dac": {"title": "a tiny DAC", "set": {"model": TINY_DAC, "evaluation.levels": [1, 2]}}},
}


def write_yaml(content: Any, path: Path) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def write_config(folder: Path, **sections: dict[str, Any]) -> Path:
    """MINUTE with the keys of some sections changed."""
    changed = {name: {**section, **sections.get(name, {})} for name, section in MINUTE.items()}
    return write_yaml(changed, folder / "minute.yaml")


def write_study(folder: Path, **changes: Any) -> Path:
    """STUDY over MINUTE; a change of None leaves that key out."""
    content = {**copy.deepcopy(STUDY), "base": str(write_config(folder)), **changes}
    return write_yaml({key: value for key, value in content.items() if value is not None}, folder / "study.yaml")


def write_music(folder: Path, tracks: int = 2) -> Path:
    """Nine seconds each of two tones and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(9 * 48000) / 48000
    for number in range(tracks):
        noise = 0.02 * np.random.default_rng(number).standard_normal((len(time), 2))
        tones = [0.3 * np.sin(2 * np.pi * pitch * (number + 1) * time) for pitch in (220, 330)]
        soundfile.write(folder / f"track-{number}.flac", np.stack(tones, axis=1) + noise, 48000)
    return folder


class Remembers:
    """A display that records its calls; `during` is called at each progress."""

    def __init__(self, during: Callable[[Task, str, int], None] = lambda *_: None) -> None:
        self.names: list[str] = []
        self.progress: list[tuple[str, str, int]] = []
        self.reasons: dict[str, str | None] = {}
        self._during = during

    def started(self, task: Task) -> None:
        self.names.append(task.run.name)

    def progressed(self, task: Task, phase: str, step: int) -> None:
        assert task.run.name not in self.reasons, "a message after the end"
        self.progress.append((task.run.name, phase, step))
        self._during(task, phase, step)

    def ended(self, task: Task, reason: str | None, seconds: float) -> None:
        assert seconds > 0
        self.reasons[task.run.name] = reason


@functools.cache
def finished_study(base: Path) -> tuple[Study, list[Task], Remembers]:
    """The study with all its runs run, once for each process of the tests."""
    folder = base / "finished-study"
    folder.mkdir()
    study = load_study(str(write_study(folder)))
    tasks = study_tasks(study, [f"data.root={write_music(folder / 'music')}"], folder / "out")
    display = Remembers()
    assert run_tasks(tasks, jobs=2, display=display) == {}
    return study, tasks, display


def run_alone(tasks: list[Task]) -> None:
    run_tasks(tasks, jobs=1, display=Remembers())


def process_that_runs(tasks: list[Task]) -> Any:
    """A process of its own that runs the tasks in processes of their own."""
    process = multiprocessing.get_context("forkserver").Process(target=run_alone, args=(tasks,))
    process.start()
    return process
