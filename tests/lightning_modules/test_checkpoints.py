from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
from training_setup import LIGHTNING_WARNINGS, Batches, cpu_config, is_same, load, tiny_module, train

from lightning_modules.checkpoints import RunCheckpoint, is_intact, latest_valid_checkpoint
from lightning_modules.fitting import build_trainer

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS]


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


def test_leftovers_and_foreign_files_are_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("step-00000004.partial", "step-00000004.ckpt.sha256", "last.ckpt", "step-best.ckpt"):
        shutil.copy(folder / "step-00000003.ckpt", folder / name)
    assert latest_valid_checkpoint(folder) == folder / "step-00000003.ckpt"
    assert not caplog.records


def test_a_checkpoint_is_safe_to_load_and_complete(folder: Path) -> None:
    content = load(folder / "step-00000002.ckpt")
    assert content["global_step"] == 2
    assert len(content["optimizer_states"]) == 2
    # What the codec and the judge hold, and nothing that can be computed again.
    assert {name.split(".")[0] for name in content["state_dict"]} == {"codec", "discriminator"}
    assert "codec.quantizer.codebooks" in content["state_dict"]
    assert content["state_dict"].keys() == tiny_module().state_dict().keys()


@pytest.mark.parametrize(
    ("every", "keep", "steps", "left"), [(1, 2, 4, (3, 4)), (2, 2, 5, (4, 5)), (3, 1, 4, (4,)), (9, 2, 2, (2,))]
)
def test_the_last_few_stay_and_the_end_is_among_them(
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
def test_a_damaged_newer_one_takes_no_valid_one_s_place(folder: Path, keep: int) -> None:
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
def test_a_full_disk_spoils_no_name(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Whatever fails before the last rename, nothing wrong stands at a checkpoint's name and the older one is found."""

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, disk_full)
    with pytest.raises(OSError, match="No space left"):
        resume(tiny_module(max_steps=4), Batches(), RunCheckpoint(folder, every=1, keep=1))
    assert not (folder / "step-00000004.ckpt").exists()
    assert latest_valid_checkpoint(folder) == folder / "step-00000003.ckpt"
    monkeypatch.undo()
    resume(tiny_module(max_steps=4), Batches(), RunCheckpoint(folder, every=1, keep=1))
    assert [name for name in names(folder) if not name.endswith("-checksum")] == pairs(4)
