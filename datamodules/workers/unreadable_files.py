"""The list of a run, `unreadable.txt`: what could not be read while training, a line for each file and process."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from datamodules.audio.opening import AudioFileError

FAILURE_LIST = "unreadable.txt"
"""Its name in the folder of a run."""

# The file as Python writes a text, with which most messages begin; else all that is said.
_LINE = re.compile(r"""^\S+ process \d+: (?P<file>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|.*)""")


def list_failure(path: Path | None, error: AudioFileError) -> None:
    """Adds a line to the list, if there is one. The training can go on, so it does, even on a full disk."""
    if path is None:
        return
    line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} process {os.getpid()}: {error}".replace("\n", " ")
    # Short lines of several processes do not mix.
    with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(line + "\n")


def listed_files(path: Path) -> set[str]:
    """The different files of the list, of all processes and all starts of the run; none where there is no list."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
        return {match["file"] for line in lines if (match := _LINE.match(line))}
    return set()


def replaced_in_words(path: Path) -> str | None:
    """How many files were replaced by others since the run was begun, in one line; None if there were none."""
    count = len(listed_files(path))
    if not count:
        return None
    # A line may stand for all music of a shard, or below a folder that hangs.
    files, were = ("1 file, shard or folder", "was") if count == 1 else (f"{count} files, shards or folders", "were")
    return f"{files} could not be read in this run (over all its starts) and {were} replaced by others: {path}"
