"""A stream into a file that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

from spectrostream.unfinished import open_beside


def copy_stream(source: IO[bytes], target: Path) -> int:
    """Everything from `source` to a file beside `target`, which then takes its name; returns the number of bytes.

    Raises OSError: no room, no permission.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_beside(target) as file:
        beside = Path(file.name)
        try:
            shutil.copyfileobj(source, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    return size
