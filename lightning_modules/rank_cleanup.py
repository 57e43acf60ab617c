"""Ends the processes of a distributed run when the process that started them ends."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning

_LAUNCHER = "SPECTROSTREAM_LAUNCHER"
_PR_SET_PDEATHSIG = 1
# A rank that ends by itself needs moments; a rank that hangs is killed.
_PATIENCE_SECONDS = 10.0


def bind_ranks(trainer: lightning.Trainer) -> None:
    """Make ranks end with their launcher, and the launcher wait for its ranks.

    Every process must call it before training. Linux kills the ranks even if the launcher is killed by SIGKILL. On
    other systems they notice it when they next communicate. Under SLURM its own daemon does this.
    """
    if is_rank(os.environ):
        _end_with_parent(os.environ.get(_LAUNCHER))
        return
    os.environ[_LAUNCHER] = str(os.getpid())
    launched = getattr(trainer.strategy.launcher, "procs", None)
    if launched is not None:
        # Lightning fills a new list when it starts the ranks.
        atexit.register(lambda: _outlive(getattr(trainer.strategy.launcher, "procs", [])))


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether Lightning or torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in environment or int(environment.get("LOCAL_RANK", "0")) > 0


def _end_with_parent(launcher: str | None) -> None:
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The launcher may have ended before the line above.
    is_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if launcher is not None and not is_torchrun and os.getppid() != int(launcher):
        os._exit(1)


def _outlive(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.wait(_PATIENCE_SECONDS)
        if rank.poll() is None:
            rank.kill()
            rank.wait()
