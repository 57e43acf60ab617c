"""Checks before a training writes into its folder: devices, music, space on the disk."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from ablations.compose import ConfigError
from ablations.run_folder import RunFolder
from ablations.schema import ExperimentConfig
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules.codec_training import CodecTraining
from lightning_modules.trainer_config import TrainerConfig
from spectrostream.errors import UserError

logger = logging.getLogger(__name__)

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
# The weights, Adam's two numbers for each weight, and the averaged weights.
_COPIES_OF_WEIGHTS = 4


class NoRoomError(UserError):
    """The folder cannot be written to, or its disk is full."""


def usable_cores() -> int:
    """Return the number of cores of this process; a container or a batch system may grant only some of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_counts() -> dict[str, int]:
    """Return the number of devices of this machine by kind."""
    return {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": usable_cores()}


def chosen_accelerator(name: str, counts: Mapping[str, int]) -> str:
    """Return the kind of device that `trainer.accelerator` means on this machine.

    Args:
        name: The value of `trainer.accelerator`.
        counts: Number of devices by kind.

    Raises:
        ConfigError: The name is not known, or the machine has no such device.
    """
    if name not in ACCELERATORS:
        raise ConfigError(f"trainer.accelerator = {name!r} is not known; allowed: {', '.join(ACCELERATORS)}")
    wanted = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(name, (name,))
    there = [kind for kind in wanted if counts[kind]]
    if not there:
        usable = ", ".join(kind for kind, count in counts.items() if count)
        raise ConfigError(
            f"trainer.accelerator = {name!r} is not possible: this machine has none that torch can use; "
            f"allowed here: auto, {usable}; type trainer.accelerator=cpu"
        )
    return there[0]


def require_devices(trainer: TrainerConfig, counts: Mapping[str, int] | None = None) -> None:
    """Check that the machine has the devices of `trainer`. More CPU processes than cores are a warning.

    Args:
        counts: Number of devices by kind; this machine's if None.

    Raises:
        ConfigError: There is no such accelerator, or there are too few devices.
    """
    counts = device_counts() if counts is None else counts
    kind = chosen_accelerator(trainer.accelerator, counts)
    if trainer.devices <= counts[kind]:
        return
    if kind == "cpu":
        logger.warning(
            "trainer.devices = %d processes share %d cores and will wait for each other", trainer.devices, counts[kind]
        )
        return
    raise ConfigError(
        f"trainer.devices = {trainer.devices} is not possible: this machine has {counts[kind]} of kind {kind}; "
        f"allowed: 1..{counts[kind]}; type trainer.devices={counts[kind]}"
    )


def require_music(config: ExperimentConfig, train_seconds: float) -> None:
    """Check that the corpus holds at least as much music as the crops of one update.

    Crops are drawn at random, so that a larger update would contain the same music several times.

    Args:
        train_seconds: Length of the corpus' training part.

    Raises:
        ConfigError: The corpus is shorter.
    """
    factors = {
        "data.batch_size": config.data.batch_size,
        "trainer.devices": config.trainer.devices,
        "trainer.num_nodes": config.trainer.num_nodes,
        "training.accumulate": config.training.accumulate,
    }
    others = factors["trainer.devices"] * factors["trainer.num_nodes"] * factors["training.accumulate"]
    crop = config.data.crop_seconds
    needed = factors["data.batch_size"] * others * crop
    if needed <= train_seconds:
        return
    product = " x ".join(f"{key} = {value}" for key, value in factors.items() if value > 1) or "data.batch_size = 1"
    fitting = int(train_seconds / (others * crop))
    remedy = f"data.batch_size={fitting}" if fitting else f"data.crop_seconds={train_seconds / others:.2f} or less"
    raise ConfigError(
        f"{product} crops of {crop:g} s are {needed:.1f} s of music in one update, and the corpus has "
        f"{train_seconds:.1f} s to train on; type {remedy}, or give more music with data.root=FOLDER"
    )


def require_segments(data: StereoMusicDataModule) -> None:
    """Check the table of evaluation segments against the music, without reading audio.

    Raises:
        SegmentsError: The music lacks segments of the table, or trains on them.
    """
    data.segment_places(limit=1)


def require_room(out: Path, module: CodecTraining, keep: int) -> None:
    """Check that `out` can be written and that its disk has space for the checkpoints.

    Args:
        keep: `trainer.keep_checkpoints`; one more is written before the oldest is removed.

    Raises:
        NoRoomError: Files cannot be written there, or the disk is too full.
    """
    require_writable(out)
    there = len(list(RunFolder(out).checkpoints.glob("step-*.ckpt"))) if out.is_dir() else 0
    needed = checkpoint_bytes(module) * max(1, keep + 1 - there)
    free = shutil.disk_usage(_nearest(out)).free
    if free < needed:
        raise NoRoomError(
            f"out = {out}: {free / 1e6:.0f} MB are free on its disk, and the checkpoints of this run need "
            f"{needed / 1e6:.0f} MB; make room, or choose another disk with out=FOLDER"
        )


def require_writable(out: Path) -> None:
    """Check that files can be written in `out`, or in the folder where it will be created.

    Raises:
        NoRoomError: They cannot.
    """
    nearest = _nearest(out)
    if not nearest.is_dir():
        raise NoRoomError(f"out = {out} is not possible: {nearest} is a file; type out=FOLDER")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise NoRoomError(
            f"out = {out} is not possible: no files may be written in {nearest}; choose another folder with out=FOLDER"
        )


def checkpoint_bytes(module: CodecTraining) -> int:
    """Return the largest size of one checkpoint: weights, their averages, optimizer states and buffers."""
    learnt = sum(one.numel() * one.element_size() for one in module.parameters() if one.requires_grad)
    state = sum(one.numel() * one.element_size() for one in module.state_dict().values())
    return state + (_COPIES_OF_WEIGHTS - 1) * learnt


def _nearest(path: Path) -> Path:
    """Return the path, or its first parent that exists."""
    path = path.absolute()
    return path if path.exists() or path.parent == path else _nearest(path.parent)
