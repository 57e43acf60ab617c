"""A stream into a file that appears whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO

from spectrostream.atomic_files import whole_file


def copy_stream(source: IO[bytes], target: Path) -> int:
    """Everything from `source` to a file beside `target`, which then takes its name; returns the number of bytes.

    Raises OSError: no room, no permission.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        shutil.copyfileobj(source, file, 2**20)
        return file.tell()
