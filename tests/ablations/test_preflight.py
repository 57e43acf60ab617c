"""What is refused before anything is written: devices, music, folders, disks; and how runs share devices."""

from __future__ import annotations

import logging
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from small_study import MINUTE, write_config, write_music, write_study

from ablations import runner
from ablations.assembly import training_module
from ablations.commands import cuda_devices, default_jobs
from ablations.compose import ConfigError, compose, overrides_layer
from ablations.preflight import (
    NoRoomError,
    checkpoint_bytes,
    chosen_accelerator,
    require_devices,
    require_music,
    require_writable,
    usable_cores,
)
from ablations.runner import Task, least_used
from ablations.schema import ExperimentConfig
from lightning_modules.trainer_config import TrainerConfig
from spectrostream_cli import main

pytestmark = pytest.mark.processes

CPU_ONLY = {"cuda": 0, "mps": 0, "cpu": 2}
FOUR_GPUS = {"cuda": 4, "mps": 0, "cpu": 8}
LAPTOP = {"cuda": 0, "mps": 1, "cpu": 8}


def minute(*words: str) -> ExperimentConfig:
    return compose(OmegaConf.create(MINUTE), overrides_layer(words))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "counts", "chosen"),
    [
        ("auto", CPU_ONLY, "cpu"),
        ("auto", FOUR_GPUS, "cuda"),
        ("auto", LAPTOP, "mps"),
        ("gpu", FOUR_GPUS, "cuda"),
        ("gpu", LAPTOP, "mps"),
        ("cuda", FOUR_GPUS, "cuda"),
        ("cpu", FOUR_GPUS, "cpu"),
    ],
)
def test_the_accelerator_is_chosen_from_the_machines_devices(name: str, counts: dict[str, int], chosen: str) -> None:
    assert chosen_accelerator(name, counts) == chosen


@pytest.mark.parametrize(
    ("changes", "counts", "message"),
    [
        ({"accelerator": "cuda"}, CPU_ONLY, "trainer.accelerator = 'cuda' is not possible.*allowed here: auto, cpu;"),
        ({"accelerator": "mps"}, FOUR_GPUS, "'mps' is not possible.*allowed here: auto, cuda, cpu; type trainer.acc"),
        ({"accelerator": "hpu"}, FOUR_GPUS, "'hpu' is not known; allowed: auto, cpu, gpu, cuda, mps"),
        (
            {"devices": 5},
            FOUR_GPUS,
            "devices = 5 is not possible: this machine has 4 of kind cuda; allowed: 1..4; type",
        ),
        ({"accelerator": "mps", "devices": 2}, LAPTOP, "has 1 of kind mps"),
    ],
)
def test_missing_devices_are_refused(changes: dict[str, Any], counts: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_devices(TrainerConfig(**changes), counts)


def test_more_cpu_processes_than_cores_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    require_devices(TrainerConfig(accelerator="cpu", devices=2), CPU_ONLY)
    require_devices(TrainerConfig(devices=4), FOUR_GPUS)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        require_devices(TrainerConfig(accelerator="cpu", devices=3), CPU_ONLY)
    assert "trainer.devices = 3 processes share 2 cores" in caplog.text


def test_an_update_with_more_music_than_the_corpus_is_refused() -> None:
    # 2 crops of 0.3 s, 4 batches, 2 devices on 3 nodes: 14.4 s
    config = minute("training.accumulate=4", "trainer.devices=2", "trainer.num_nodes=3")
    require_music(config, 14.4)
    with pytest.raises(ConfigError) as caught:
        require_music(config, 14.3)
    assert str(caught.value) == (
        "data.batch_size = 2 x trainer.devices = 2 x trainer.num_nodes = 3 x training.accumulate = 4 crops of 0.3 s "
        "are 14.4 s of music in one update, and the corpus has 14.3 s to train on; type data.batch_size=1, or give "
        "more music with data.root=FOLDER"
    )
    with pytest.raises(ConfigError, match=r"type data.crop_seconds=0\.25 or less"):
        require_music(config, 6.0)


def test_the_suggested_values_are_accepted() -> None:
    require_music(minute("training.accumulate=4", "data.batch_size=1"), 1.2)
    require_music(minute("training.accumulate=4", "data.batch_size=1", "data.crop_seconds=0.25"), 1.0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = tmp_path_factory.mktemp("shop")
    write_music(shop / "music", tracks=1)
    write_config(shop)
    return shop


def train(shop: Path, out: Path, *words: str) -> int:
    return main(["train", f"config={shop / 'minute.yaml'}", f"data.root={shop / 'music'}", f"out={out}", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.accelerator=cuda"], "trainer.accelerator = 'cuda' is not possible: this machine has none"),
        (["data.batch_size=100"], "data.batch_size = 100 crops of 0.3 s are 30.0 s of music in one update"),
        (["model.kind=dac", "model.strides=[3]", "evaluation.levels=[1]"], "model.strides = (3,) is not possible"),
    ],
)
def test_an_impossible_run_writes_nothing(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(shop, tmp_path / "out", *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_has_the_same_checks_as_a_run(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path)
    for word, message in (("data.batch_size=100", "30.0 s of music in one"), ("trainer.accelerator=cuda", "has none")):
        words = [f"study={study}", f"data.root={shop / 'music'}", f"out={tmp_path / 'out'}", word]
        assert main(["ablate", *words]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(NoRoomError, match=r"file is a file; type out=FOLDER"):
            require_writable(out)
    require_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_may_not_be_written_is_refused(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root everything may be written, so the system's answer is given here."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert train(shop, tmp_path / "out") == 1
    assert f"no files may be written in {tmp_path}; choose another folder with out=FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_for_the_checkpoints_is_refused(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = 3 * checkpoint_bytes(training_module(minute()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed, 1, needed - 1))
    assert train(shop, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "MB are free on its disk, and the checkpoints of this run need" in error
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed, 0, needed))
    assert train(shop, tmp_path / "out") == 0


def test_the_estimate_bounds_a_real_checkpoint(shop: Path, tmp_path: Path) -> None:
    assert train(shop, tmp_path / "out") == 0
    (_, newest) = sorted((tmp_path / "out" / "checkpoints").glob("step-*.ckpt"))
    estimated, real = checkpoint_bytes(training_module(minute())), newest.stat().st_size
    # A file has names and alignment beside its numbers, which count in one so small.
    assert 0.2 * real < estimated < 1.5 * real


def task_with(**trainer: Any) -> list[Task]:
    config = minute()
    config = replace(config, trainer=replace(config.trainer, **trainer))
    return [SimpleNamespace(run=SimpleNamespace(config=config))]  # type: ignore[list-item]


def test_as_many_jobs_as_there_are_accelerators() -> None:
    assert default_jobs(task_with(accelerator="auto"), FOUR_GPUS) == 4
    assert default_jobs(task_with(accelerator="gpu"), {**FOUR_GPUS, "cuda": 1}) == 1
    assert default_jobs(task_with(accelerator="cpu", threads=1), FOUR_GPUS) == usable_cores()
    assert default_jobs(task_with(accelerator="auto", threads=0), CPU_ONLY) == 1
    assert default_jobs(task_with(accelerator="cpu", threads=1000), CPU_ONLY) == 1


def test_the_devices_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = task_with(accelerator="auto")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert cuda_devices(tasks, FOUR_GPUS) == ["0", "1", "2", "3"]
    assert cuda_devices(tasks, CPU_ONLY) == []
    assert cuda_devices(task_with(accelerator="cpu"), FOUR_GPUS) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5f")
    assert cuda_devices(tasks, {**FOUR_GPUS, "cuda": 2}) == ["2", "GPU-5f"]


def test_a_free_device_comes_first_and_then_the_least_used() -> None:
    devices, running = ["0", "1", "2"], []
    for _ in range(7):
        running.append(least_used(devices, running))
    assert running == ["0", "1", "2", "0", "1", "2", "0"]
    assert least_used(devices, ["0", "2"]) == "1"
    assert least_used([], [None]) is None


class StartedError(Exception):
    """Instead of the work of a run."""


def test_a_run_sees_its_own_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StartedError(os.environ["CUDA_VISIBLE_DEVICES"])

    written: dict[Path, Any] = {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(runner, "train_and_evaluate", refuse)
    monkeypatch.setattr(runner.signal, "signal", lambda *_: None)
    monkeypatch.setattr(runner, "_end_with_parent", lambda _connection: None)
    monkeypatch.setattr(runner, "write_json", lambda value, path: written.update({path: value["reason"]}))
    for device, expected in (("1", "1"), ("GPU-5f", "GPU-5f"), (None, "0,1,2")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
        with pytest.raises(SystemExit):
            runner._work(Task(None, Path("run")), None, device)  # type: ignore[arg-type]
        assert written[Path("run") / "failed.json"] == f"StartedError: {expected}"
