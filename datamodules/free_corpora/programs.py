"""Run the programs that packages and notes need."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def run_watched(
    command: Sequence[str], watch: Callable[[], None], *, seconds: float = 0.2, folder: Path | None = None
) -> tuple[int, bytes]:
    """Run a program to its end.

    Args:
        command: Its words.
        watch: Called first and then every `seconds`; an exception that it raises ends the program.
        seconds: Between two calls.
        folder: The program's working directory.

    Returns:
        Exit code, and all that it wrote to standard output and standard error.

    Raises:
        OSError: The program cannot be started.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
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
        output.seek(0)
        return code, output.read()
