from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_study import (
    Remembers,
    finished_study,
    process_that_runs,
    write_config,
    write_music,
    write_study,
)

from ablations.commands import study_tasks
from ablations.provenance import read_json
from ablations.run import locked
from ablations.runner import Task, run_tasks
from ablations.signature import signature
from ablations.study import load_study
from reports.records import read_card, read_records
from spectrostream_cli import main

pytestmark = pytest.mark.slow


@pytest.fixture
def music(tmp_path: Path) -> Path:
    return write_music(tmp_path / "music", tracks=1)


def files(folder: Path, *patterns: str) -> dict[Path, tuple[int, int]]:
    """Identity and time of each file."""
    found = [path for pattern in patterns for path in folder.rglob(pattern)]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def tasks_of(tmp_path: Path, music: Path, steps: int) -> list[Task]:
    """The baseline alone."""
    study = load_study(str(write_study(tmp_path, variants=None, peers=None, axes=None)))
    return study_tasks(study, [f"data.root={music}", f"training.max_steps={steps}"], tmp_path / "out")


def test_finished_runs_are_not_repeated(tmp_path_factory: pytest.TempPathFactory) -> None:
    _, tasks, display = finished_study(tmp_path_factory.getbasetemp())
    assert sorted(display.names) == ["baseline", "dac", "fusion-3"]
    assert display.reasons == dict.fromkeys(display.names)
    for name in display.names:
        steps = [step for one, phase, step in display.progress if one == name and phase == "training"]
        assert steps == [0, 1, 2, 3]
        assert (name, "evaluating", 3) in display.progress
    before = [files(task.folder, "DONE.json", "*.ckpt", "records.csv", "codec.safetensors") for task in tasks]
    assert all(len(one) == 5 for one in before)
    again = Remembers()
    started = time.monotonic()
    assert run_tasks(tasks, jobs=2, display=again) == {}
    assert time.monotonic() - started < 2
    assert again.names == []
    assert [files(task.folder, "DONE.json", "*.ckpt", "records.csv", "codec.safetensors") for task in tasks] == before


def test_a_finished_run_has_its_records_and_facts(tmp_path_factory: pytest.TempPathFactory) -> None:
    _, tasks, _ = finished_study(tmp_path_factory.getbasetemp())
    for task in tasks:
        run = read_json(task.folder / "run.json")
        card = read_card(task.folder / f"card-{task.run.name}.json")
        assert card.signature == signature(task.run.config, run["data_fingerprint"])
        assert task.folder.name == f"{card.name}-{card.signature}"
        assert (card.steps, card.audio_seconds_seen, card.seed) == (3, pytest.approx(3 * 2 * 0.3), 0)
        records = read_records(task.folder / "records.csv")
        own = records[records["system"] == card.name]
        assert tuple(sorted(own["levels"].unique())) == task.run.config.evaluation.levels
    checks = sorted(path.name for path in tasks[0].folder.glob("card-*@*.json"))
    assert checks == ["card-baseline@step0.json", "card-baseline@zero-codes.json"]


def test_another_evaluation_does_not_train_again(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Here with ViSQOL; and the baseline's checks are made again where the study compares now."""
    _, tasks, _ = finished_study(tmp_path_factory.getbasetemp())
    done = tasks[0]
    folder = Path(shutil.copytree(done.folder, tmp_path / "run"))
    config = replace(done.run.config, evaluation=replace(done.run.config.evaluation, visqol=True, levels=(2,)))
    task = Task(replace(done.run, config=config, compared_at=2), folder)
    before = files(folder, "*.ckpt", "codec.safetensors")
    assert run_tasks([task], jobs=1, display=Remembers()) == {}
    assert files(folder, "*.ckpt", "codec.safetensors") == before
    records = read_records(folder / "records.csv")
    assert set(records["levels"]) == {2}
    scores = records[(records["metric"] == "visqol_lr") & (records["system"] == "baseline")]["value"]
    assert scores.between(1, 5).all()
    moved = Task(replace(done.run, compared_at=2), done.folder)
    again = Remembers(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # it is not done, and the stop leaves no process behind
        run_tasks([Task(moved.run, Path(shutil.copytree(done.folder, tmp_path / "moved")))], jobs=1, display=again)
    assert again.names == ["baseline"]


def test_a_failed_run_is_a_row_and_only_it_is_retried(
    tmp_path: Path, music: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"wild": {"title": "wild rate", "set": {"training.generator.learning_rate": 1e30}}}
    path = write_study(tmp_path, variants=wild, peers=None, axes=None)
    words = ["ablate", f"study={path}", f"data.root={music}", f"out={tmp_path / 'out'}", "jobs=2"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: 1 runs failed, see ")
    assert "Traceback" not in said.err
    assert "wild: FAILED: TrainingDivergedError: the gradient of the" in said.out
    (failed,) = (tmp_path / "out").rglob("failed.json")
    assert "not finite at step" in read_json(failed)["reason"]
    assert "Traceback" in read_json(failed)["traceback"]
    page = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "wild rate" in page
    assert "TrainingDivergedError" in page
    (done,) = (tmp_path / "out").rglob("DONE.json")
    before = files(done.parent, "DONE.json", "*.ckpt")
    assert main(words) == 1
    assert "2 runs, 1 done before" in capsys.readouterr().out
    assert files(done.parent, "DONE.json", "*.ckpt") == before


def test_killed_runs_are_reported_and_resume_to_the_same_weights(tmp_path: Path, music: Path) -> None:
    (straight,) = tasks_of(tmp_path, music, steps=6)
    names = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM}
    stopped = [Task(replace(straight.run, name=name), tmp_path / name) for name in names]

    def stop(task: Task, phase: str, step: int) -> None:
        if task.run.name in names and phase == "training" and step == 2:
            os.kill(int((task.folder / "lock").read_text()), names[task.run.name])

    failures = run_tasks([straight, *stopped], jobs=3, display=Remembers(stop))
    assert failures == {"killed": "killed by signal 9", "terminated": failures["terminated"]}
    assert failures["terminated"].startswith("PreemptedError: asked to make room at step")
    assert all(read_json(task.folder / "failed.json")["reason"] == failures[task.run.name] for task in stopped)
    again = Remembers()
    assert run_tasks([straight, *stopped], jobs=3, display=again) == {}
    assert sorted(again.names) == ["killed", "terminated"]
    expected = load_file(straight.folder / "codec.safetensors")
    for task in stopped:
        steps = [step for one, phase, step in again.progress if one == task.run.name and phase == "training" and step]
        assert steps[0] > 1
        assert steps[-1] == 6
        assert (task.folder / "logs" / "attempt-001" / "metrics.csv").exists()
        assert not (task.folder / "failed.json").exists()
        weights = load_file(task.folder / "codec.safetensors")
        assert weights.keys() == expected.keys()
        assert all(bool((weights[name] == expected[name]).all()) for name in expected)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_runs_end_when_their_parent_is_killed(tmp_path: Path, music: Path) -> None:
    tasks = tasks_of(tmp_path, music, steps=8)
    folder = tasks[0].folder
    parent = process_that_runs(tasks)
    wait_until(lambda: list(folder.glob("checkpoints/*.ckpt")), 60)
    child = int((folder / "lock").read_text())
    assert is_alive(child)
    parent.kill()
    parent.join()
    wait_until(lambda: not is_alive(child), 10)
    assert not (folder / "DONE.json").exists()
    display = Remembers()
    assert run_tasks(tasks, jobs=1, display=display) == {}
    assert min(step for _, phase, step in display.progress if phase == "training" and step) > 1
    assert read_json(folder / "DONE.json")["steps"] == 8


def test_a_folder_in_use_is_an_error(tmp_path: Path, music: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (task,) = tasks_of(tmp_path, music, steps=1)
    with locked(task.folder):
        failures = run_tasks([task], jobs=1, display=Remembers())
    assert failures["baseline"].startswith("RunBusyError: ")
    assert failures["baseline"].endswith("is in use by another process; wait for it or stop it")
    assert not (task.folder / "checkpoints").exists()
    with locked(tmp_path / "run"):
        assert main(["train", f"config={write_config(tmp_path)}", f"data.root={music}", f"out={tmp_path / 'run'}"]) == 1
    assert "is in use by another process" in capsys.readouterr().err
