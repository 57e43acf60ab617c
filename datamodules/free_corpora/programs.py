"""Runs the programs that packages and notes need."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def run_watched(
    command: Sequence[str], watch: Callable[[], None], *, seconds: float = 0.2, folder: Path | None = None
) -> tuple[int, bytes]:
    """Runs a program to its end.

    Args:
        command: its words.
        watch: called first and then every `seconds`; what it raises ends the program.
        seconds: between two calls.
        folder: that it runs in.

    Returns:
        Exit code, and all that it wrote to standard output and standard error.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        code = None
        try:
            while code is None:
                watch()
                try:
                    code = process.wait(timeout=seconds)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        return code, said.read()
