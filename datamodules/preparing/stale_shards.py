"""Shards that were made before and that the index names no more: their music stands in others, or in none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from datamodules.preparing.jobs import MadeFile, is_as_made

# The log is a file that anybody can write: it may name nothing outside of the folder, plainly or escaped.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")


def remove_stale_shards(out: Path, logged: Iterable[MadeFile], named: Iterable[str]) -> int:
    """Removes what the log knows and the index does not name; to be called once the new index is written.

    Args:
        out: folder of the shards.
        logged: all files that the log says were made in this folder.
        named: those of the new index, which stay.

    Returns how many were removed. A tar file with another content than was made is somebody else's, and stays.
    Raises OSError where the folder does not allow it.
    """
    kept = set(named)
    removed = 0
    for file in logged:
        if not _SHARD_NAME.fullmatch(file.name) or file.name in kept:
            continue
        if is_as_made(out, file, by_hash=False):
            (out / file.name).unlink()
            removed += 1
    return removed
