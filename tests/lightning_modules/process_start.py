"""Starts trainings in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(what: str, folder: Path, *further: str) -> subprocess.CompletedProcess[str]:
    """Runs `fit_process.py` to its end: a training in a process of its own."""
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(here / "fit_process.py"), what, str(folder), *further]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
