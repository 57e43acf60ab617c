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

from spectrostream.atomic_files import UNFINISHED, sync, whole_file, write_whole

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"step-(\d+)\.ckpt")
_BEST = re.compile(r"best-step-(\d+)\.ckpt")
# Earlier versions called files .partial and .partial-checksum while they wrote them.
_OURS = re.compile(
    r"(best-)?step-\d+\.(partial|ckpt\.partial-checksum|ckpt\.sha256)"
    rf"|\.(best-)?step-\d+\.ckpt(\.sha256)?{UNFINISHED}"
)


def numbered_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint of generator update `step`."""
    return folder / f"step-{step:08d}.ckpt"


def best_path(folder: Path, step: int) -> Path:
    """Path of the best checkpoint if it is that of generator update `step`."""
    return folder / f"best-step-{step:08d}.ckpt"


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of all numbered checkpoints, damaged ones too, in the order of the steps."""
    return _matching(folder, _NUMBERED)


def best_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of the best checkpoint: one, or two if a process was killed before it removed the old one."""
    return _matching(folder, _BEST)


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """The newest numbered checkpoint with a right checksum, or else the best one; each damaged one gives a warning."""
    for _, path in [*reversed(numbered_checkpoints(folder)), *reversed(best_checkpoints(folder))]:
        if is_intact(path):
            return path
        logger.warning(
            "checkpoint %s is damaged (its SHA-256 differs or is missing); falling back to an older one", path
        )
    return None


def is_intact(path: Path) -> bool:
    """True if the file's SHA-256 is the one that was written beside it."""
    checksum = _checksum_path(path)
    return checksum.exists() and checksum.read_text().split()[:1] == [_sha256(path)]


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """The file and its checksum, on the disk when this returns.

    Raises OSError (no space, no permission) or RuntimeError (torch's writer); nothing unfinished is left then, and what
    stood at `path` before stands there still.
    """
    checksum = _checksum_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            digest = _write_hashed(content, file)
            sync(file)
            # The checksum is first: a checkpoint without one counts as damaged, a checksum alone does no harm.
            write_whole(checksum, f"{digest}  {path.name}\n")
        _sync_folder(path.parent)
    except BaseException:
        if not path.exists():
            remove([checksum])
        raise


def remove_checkpoints(paths: Iterable[Path]) -> None:
    """Remove checkpoints and their checksums."""
    for path in paths:
        # In this order a process that is killed in between leaves only a checksum, which the next start removes.
        remove([path, _checksum_path(path)])


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left: half-written files, checksums without a checkpoint. Only one process may."""
    for path in folder.glob("*step-*"):
        if _OURS.fullmatch(path.name) and not (path.suffix == ".sha256" and path.with_suffix("").exists()):
            remove([path])


def remove(paths: Iterable[Path]) -> None:
    """Remove files; one that cannot be removed gives a warning and stays, because other processes wait for this one."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror or error)


def _matching(folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    matches = ((name.fullmatch(path.name), path) for path in folder.glob("*step-*.ckpt"))
    return sorted((int(match[1]), path) for match, path in matches if match)


class _HashedFile:
    """The part of a file that torch's writer needs; it hashes the data before they are written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error  # torch's own error is about positions
            raise

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write_hashed(content: dict[str, Any], file: BinaryIO) -> str:
    hashed = _HashedFile(file)
    try:
        torch.save(content, hashed)  # type: ignore[arg-type]  # it needs only these two methods
    except RuntimeError:
        if hashed.error is not None:
            raise hashed.error from None
        raise
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
