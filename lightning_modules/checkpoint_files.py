"""Checkpoint files: written beside, synced, renamed, with a SHA-256 beside; the newest one that is what was written.

A folder holds `step-00001000.ckpt` for some steps, `best-step-00000500.ckpt`, and each one's `.sha256`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"step-(\d+)\.ckpt")
_BEST = re.compile(r"best-step-(\d+)\.ckpt")
_OURS = re.compile(r"(best-)?step-\d+\.(partial|ckpt\.partial-checksum|ckpt\.sha256)")


def numbered_path(folder: Path, step: int) -> Path:
    """Of the checkpoint of generator update `step`."""
    return folder / f"step-{step:08d}.ckpt"


def best_path(folder: Path, step: int) -> Path:
    """Of the best checkpoint, if it is that of `step`."""
    return folder / f"best-step-{step:08d}.ckpt"


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files, in the order of the steps; damaged ones are among them."""
    return _matching(folder, _NUMBERED)


def best_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """As above: one, or two if a process was killed between writing the new one and removing the old."""
    return _matching(folder, _BEST)


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """The newest numbered checkpoint whose checksum holds, or else the best one; damaged ones are warned of by name."""
    for _, path in [*reversed(numbered_checkpoints(folder)), *reversed(best_checkpoints(folder))]:
        if is_intact(path):
            return path
        logger.warning(
            "checkpoint %s is damaged (its SHA-256 differs or is missing); falling back to an older one", path
        )
    return None


def is_intact(path: Path) -> bool:
    """True if the file is what was written."""
    checksum = _checksum_path(path)
    return checksum.exists() and checksum.read_text().split()[:1] == [_sha256(path)]


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """The file and its checksum, on the disk when this returns.

    Raises OSError (no space, no permission) or RuntimeError (torch's writer); nothing unfinished is left then, and what
    stood at `path` before stands there still.
    """
    partial, checksum = path.with_suffix(".partial"), _checksum_path(path)
    partial_checksum = checksum.with_suffix(".partial-checksum")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _write_synced(content, partial)
        with partial_checksum.open("w") as file:
            file.write(f"{digest}  {path.name}\n")
            file.flush()
            os.fsync(file.fileno())
        # The checksum goes first: a checkpoint without one counts as damaged, the reverse does no harm.
        partial_checksum.replace(checksum)
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        remove([partial, partial_checksum])
        if not path.exists():
            remove([checksum])
        raise


def remove_checkpoints(paths: Iterable[Path]) -> None:
    """With their checksums."""
    for path in paths:
        # In this order a process killed in between leaves a checksum alone, which the next start removes.
        remove([path, _checksum_path(path)])


def remove_unfinished(folder: Path) -> None:
    """What a killed process left: files half written, checksums without a checkpoint. Nobody else may be writing."""
    for path in folder.glob("*step-*"):
        if _OURS.fullmatch(path.name) and not (path.suffix == ".sha256" and path.with_suffix("").exists()):
            remove([path])


def remove(paths: Iterable[Path]) -> None:
    """A file that cannot be removed is warned of and stays: it does no harm, and other processes wait for this one."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror or error)


def _matching(folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    matches = ((name.fullmatch(path.name), path) for path in folder.glob("*step-*.ckpt"))
    return sorted((int(match[1]), path) for match, path in matches if match)


class _HashedFile:
    """What torch's writer needs of a file, hashed on its way: the checksum is of what was meant."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error  # torch goes on to complain of positions
            raise

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write_synced(content: dict[str, Any], path: Path) -> str:
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        try:
            torch.save(content, hashed)  # type: ignore[arg-type]  # it needs these two methods
        except RuntimeError:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return hashed.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
