"""The run's list `unreadable.txt`: what could not be read while training, one line for each file and process."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from datamodules.audio.opening import AudioFileError

FAILURE_LIST = "unreadable.txt"
"""Its name in the folder of a run."""

# Most messages begin with the file, as Python writes a string; else it is the whole message.
_LINE = re.compile(r"""^\S+ process \d+: (?P<file>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|.*)""")


def list_failure(path: Path | None, error: AudioFileError) -> None:
    """Add a line to the list, if there is one; the training continues even if the disk is full."""
    if path is None:
        return
    line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} process {os.getpid()}: {error}".replace("\n", " ")
    # Processes may append short lines at the same time; they do not mix.
    with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(line + "\n")


def listed_files(path: Path) -> set[str]:
    """Return the different files in the list, of all processes and all starts of the run; none without a list."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
        return {match["file"] for line in lines if (match := _LINE.match(line))}
    return set()


def replaced_in_words(path: Path) -> str | None:
    """Return one line that says how many files of the run were replaced by others; None if none."""
    count = len(listed_files(path))
    if not count:
        return None
    # A line may mean all music of a shard, or of a folder that hangs.
    files, were = ("1 file, shard or folder", "was") if count == 1 else (f"{count} files, shards or folders", "were")
    return f"{files} could not be read in this run (over all its starts) and {were} replaced by others: {path}"
