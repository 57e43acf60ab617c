from __future__ import annotations

import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from training_setup import LIGHTNING_WARNINGS, Batches, cpu_config, is_same, load, noise, tiny_module, train

from lightning_modules.checkpoint_files import is_intact, latest_valid_checkpoint, remove_unfinished
from lightning_modules.checkpoints import BEST_METRIC, CheckpointError, RunCheckpoint
from lightning_modules.codec_training import CodecTraining
from lightning_modules.fit import build_trainer

pytestmark = [pytest.mark.processes, *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pairs(*steps: int) -> list[str]:
    return sorted(f"step-{step:08d}.ckpt{suffix}" for step in steps for suffix in ("", ".sha256"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("three")
    train(tiny_module(max_steps=3), Batches(), RunCheckpoint(folder, every=1, keep=3))
    return folder


@pytest.fixture
def folder(three: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three, tmp_path / "checkpoints")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    content[middle + 1] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lose_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").unlink()


def empty_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").write_text("")


DAMAGES = [flip, truncate, empty, zero, lose_checksum, empty_checksum]


def test_the_newest_is_chosen_by_its_number(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    newest = folder / "step-00000003.ckpt"
    assert latest_valid_checkpoint(folder) == newest
    # More digits than the name was padded to, older in time: the number counts.
    far = folder / "step-100000000.ckpt"
    for suffix in ("", ".sha256"):
        shutil.copy(f"{newest}{suffix}", f"{far}{suffix}")
        os.utime(f"{far}{suffix}", (0, 0))
    assert latest_valid_checkpoint(folder) == far
    assert not [record for record in caplog.records if record.name.startswith("lightning_modules")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    newest, older = folder / "step-00000003.ckpt", folder / "step-00000002.ckpt"
    assert is_intact(newest)
    damage(newest)
    assert not is_intact(newest)
    assert latest_valid_checkpoint(folder) == older
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(newest) in warning.getMessage()
    assert str(older) not in warning.getMessage()


def test_without_a_valid_checkpoint_there_is_none(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.ckpt"):
        truncate(path)
    assert latest_valid_checkpoint(folder) is None
    assert latest_valid_checkpoint(tmp_path / "nowhere") is None


def test_leftover_and_other_files_are_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("step-00000004.partial", "step-00000004.ckpt.sha256", "last.ckpt", "step-best.ckpt"):
        shutil.copy(folder / "step-00000003.ckpt", folder / name)
    assert latest_valid_checkpoint(folder) == folder / "step-00000003.ckpt"
    assert not caplog.records


def test_a_checkpoint_is_safe_to_load_and_complete(folder: Path) -> None:
    content = load(folder / "step-00000002.ckpt")
    assert content["global_step"] == 2
    assert len(content["optimizer_states"]) == 2
    # What codec and discriminator hold, and nothing that can be computed again.
    assert {name.split(".")[0] for name in content["state_dict"]} == {"codec", "discriminator"}
    assert "codec.quantizer.codebooks" in content["state_dict"]
    assert content["state_dict"].keys() == tiny_module().state_dict().keys()


@pytest.mark.parametrize(
    ("every", "keep", "steps", "left"), [(1, 2, 4, (3, 4)), (2, 2, 5, (4, 5)), (3, 1, 4, (4,)), (9, 2, 2, (2,))]
)
def test_the_newest_checkpoints_stay_and_include_the_last_step(
    tmp_path: Path, every: int, keep: int, steps: int, left: tuple[int, ...]
) -> None:
    folder = tmp_path / "new"
    train(tiny_module(max_steps=steps), Batches(), RunCheckpoint(folder, every=every, keep=keep))
    assert names(folder) == pairs(*left)
    assert all(map(is_intact, folder.glob("*.ckpt")))


def test_a_resumed_run_never_saves_within_an_update(tmp_path: Path) -> None:
    """A checkpoint lies between updates. Its own step returns after a resume until the first update is complete."""
    train(tiny_module(max_steps=2, accumulate=3), Batches(accumulate=3), RunCheckpoint(tmp_path, every=2, keep=9))
    path = tmp_path / "step-00000002.ckpt"
    before = path.read_bytes()
    resume(tiny_module(max_steps=3, accumulate=3), Batches(accumulate=3), RunCheckpoint(tmp_path, every=2, keep=9))
    assert names(tmp_path) == pairs(2, 3)
    assert path.read_bytes() == before


def resume(module: Any, data: lightning.LightningDataModule, checkpoint: RunCheckpoint) -> lightning.Trainer:
    trainer = build_trainer(module, cpu_config(), [checkpoint], [])
    trainer.fit(module, datamodule=data, ckpt_path=latest_valid_checkpoint(checkpoint.folder), weights_only=True)
    return trainer


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_checkpoint_does_not_replace_a_valid_one(folder: Path, keep: int) -> None:
    """Resumed from step 1 beside two damaged ones, a run must not count these among those that stay."""
    for step in (2, 3):
        truncate(folder / f"step-{step:08d}.ckpt")

    class StopsAfterOne(RunCheckpoint):
        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        resume(tiny_module(max_steps=9), Batches(), StopsAfterOne(folder, every=1, keep=keep))
    assert latest_valid_checkpoint(folder) == folder / "step-00000002.ckpt"
    assert (folder / "step-00000001.ckpt").exists() == (keep == 2)


def test_a_repaired_checkpoint_is_what_it_was(folder: Path, three: Path) -> None:
    """The damaged steps are trained again, written over, and equal bit for bit what they were."""
    for step in (2, 3):
        flip(folder / f"step-{step:08d}.ckpt")
    resume(tiny_module(max_steps=3), Batches(), RunCheckpoint(folder, every=1, keep=3))
    assert names(folder) == pairs(1, 2, 3)
    for step in (2, 3):
        again, was = (load(place / f"step-{step:08d}.ckpt") for place in (folder, three))
        for key in ("state_dict", "optimizer_states", "global_step", "loops"):
            assert is_same(again[key], was[key]), key


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_no_partial_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Whatever fails before the last rename, nothing wrong stands at a checkpoint's name and the older one is found."""

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, disk_full)
    message = (
        r"no checkpoint of step 4 .*: No space left .* MB free\); the last good one is step-00000003.ckpt; make room"
    )
    with pytest.raises(CheckpointError, match=message):
        resume(tiny_module(max_steps=4), Batches(), RunCheckpoint(folder, every=1, keep=1))
    assert names(folder) == pairs(1, 2, 3)
    assert latest_valid_checkpoint(folder) == folder / "step-00000003.ckpt"
    monkeypatch.undo()
    resume(tiny_module(max_steps=4), Batches(), RunCheckpoint(folder, every=1, keep=1))
    assert names(folder) == pairs(4)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel cuts every write that would go beyond `size` bytes, in torch's writer too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Limited(Callback):
    """In update `step` no file may become as large as a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.limit: Any = None

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            self.limit = largest_file(20_000)
            self.limit.__enter__()
        elif self.limit is not None:
            self.limit.__exit__(None, None, None)
            self.limit = None


def test_a_failed_save_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tiny_module(max_steps=3), Batches(), Limited(2), RunCheckpoint(tmp_path, every=1, keep=9))
    assert names(tmp_path) == pairs(1, 3)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "lightning_modules.checkpoints"]
    assert f"no checkpoint of step 2 could be written to {tmp_path}: File too large (" in warning
    assert warning.endswith("MB free); the last good one is step-00000001.ckpt; training goes on")


def test_a_folder_that_cannot_be_created_is_an_error_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2 .*file.*; there is no earlier one; make room"):
        train(tiny_module(max_steps=2), Batches(), RunCheckpoint(tmp_path / "file" / "checkpoints", every=9))


def test_partial_files_of_a_killed_process_are_removed(folder: Path) -> None:
    kept = ["last.ckpt", "notes.partial", "step-x.partial", *pairs(1, 2, 3)]
    unfinished = ["step-00000004.partial", "step-00000004.ckpt.partial-checksum", "step-00000009.ckpt.sha256"]
    for name in [*kept[:3], *unfinished, "best-step-00000004.partial", "best-step-00000004.ckpt.sha256"]:
        (folder / name).write_text("?")
    remove_unfinished(folder)
    assert names(folder) == sorted(kept)


class WithKnownLosses(CodecTraining):
    """Its validations have the losses of `LOSSES`; notes which steps were validated."""

    def on_validation_start(self) -> None:
        self.seen = [*getattr(self, "seen", []), self.global_step]

    def validation_step(self, batch: torch.Tensor, batch_index: int) -> None:
        self.log(BEST_METRIC, LOSSES[self.global_step], batch_size=1)


LOSSES = {1: 5.0, 2: 3.0, 3: 4.0, 4: float("nan"), 5: 2.0, 6: 2.0}


def validated(
    folder: Path, steps: int, *, keep: int = 2, stop_at: int | None = None
) -> tuple[RunCheckpoint, list[int]]:
    """A run with a validation at every step, perhaps started again; `stop_at`: ends between a save and a validation."""

    class Stops(Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == stop_at:
                raise KeyError("killed")

    checkpoint = RunCheckpoint(folder, every=1, keep=keep, keep_best=True)
    parts = tiny_module(max_steps=steps)
    module = WithKnownLosses(parts.codec, parts.discriminator, parts.config)
    trainer = build_trainer(module, cpu_config(validate_every=1), [checkpoint, Stops()], [])
    data = Batches(held_out=(noise(99),))
    with pytest.raises(KeyError, match="killed") if stop_at else nullcontext():
        trainer.fit(module, datamodule=data, ckpt_path=latest_valid_checkpoint(folder), weights_only=True)
    return checkpoint, module.seen


def best(*steps: int) -> list[str]:
    return [f"best-{name}" for name in pairs(*steps)]


def test_the_best_is_kept_beside_the_last(tmp_path: Path) -> None:
    """A loss that is not a number is not the best, nor is an equal one."""
    for steps, kept in ((1, 1), (4, 2), (6, 5)):
        checkpoint, _ = validated(tmp_path, steps)
        assert names(tmp_path) == best(kept) + pairs(*range(max(1, steps - 1), steps + 1))
        assert (checkpoint.best_step, checkpoint.best_loss) == (kept, LOSSES[kept])
    content = load(tmp_path / "best-step-00000005.ckpt")
    assert content["global_step"] == 5
    assert content["callbacks"]["RunCheckpoint"] == {"best_loss": 2.0, "best_step": 5, "validated_step": 5}


def test_a_best_checkpoint_after_the_resumed_step_is_not_used(tmp_path: Path) -> None:
    """A run that falls back knows the best of its own past, and finds the same again."""
    validated(tmp_path, 6, keep=9)
    for step in (5, 6):
        truncate(tmp_path / f"step-{step:08d}.ckpt")
    checkpoint, seen = validated(tmp_path, 5, keep=9)
    # The checkpoint of step 4 was written before step 4 was validated.
    assert seen == [4, 5]
    assert (checkpoint.best_step, checkpoint.best_loss) == (5, 2.0)
    assert [name for name in names(tmp_path) if name.startswith("best")] == best(5)


def test_a_resumed_run_makes_up_for_a_missed_validation(tmp_path: Path) -> None:
    """And nothing else changes by that, to the last counter."""
    for step in (2, 5):
        validated(tmp_path / "stopped", 6, keep=9, stop_at=step)
    checkpoint, seen = validated(tmp_path / "stopped", 6, keep=9)
    whole, all_seen = validated(tmp_path / "whole", 6, keep=9)
    assert (seen, all_seen) == ([5, 6], [1, 2, 3, 4, 5, 6])
    assert names(tmp_path / "stopped") == names(tmp_path / "whole")
    assert checkpoint.state_dict() == whole.state_dict()
    for name in ("step-00000006.ckpt", "best-step-00000005.ckpt"):
        one, other = (load(tmp_path / place / name) for place in ("stopped", "whole"))
        for key in ("state_dict", "optimizer_states", "global_step", "callbacks"):
            assert is_same(one[key], other[key]), (name, key)
    one, other = (load(tmp_path / place / "step-00000006.ckpt") for place in ("stopped", "whole"))
    assert is_same(one["loops"], other["loops"])


def test_a_run_resumes_from_the_best_checkpoint_if_there_is_no_other(tmp_path: Path) -> None:
    validated(tmp_path / "whole", 6)
    validated(tmp_path / "left", 3)
    for step in (2, 3):
        flip(tmp_path / "left" / f"step-{step:08d}.ckpt")
    assert latest_valid_checkpoint(tmp_path / "left") == tmp_path / "left" / "best-step-00000002.ckpt"
    _, seen = validated(tmp_path / "left", 6)
    assert seen == [3, 4, 5, 6]
    one, other = (load(tmp_path / place / "step-00000006.ckpt") for place in ("left", "whole"))
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert is_same(one[key], other[key]), key


def test_a_best_checkpoint_that_cannot_be_written_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    validated(tmp_path, 1)
    with largest_file(20_000), pytest.raises(CheckpointError, match="step 2"):
        validated(tmp_path, 2)
    assert names(tmp_path) == best(1) + pairs(1)
    assert sum("no checkpoint of step 2" in record.getMessage() for record in caplog.records) == 2
    checkpoint, _ = validated(tmp_path, 2)
    assert names(tmp_path) == best(2) + pairs(1, 2)
    assert checkpoint.best_step == 2
