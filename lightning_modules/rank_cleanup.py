"""No process of a distributed run outlives the one that started it."""

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
# A rank that ends by itself needs moments; one that hangs is ended.
_PATIENCE_SECONDS = 10.0


def bind_ranks(trainer: lightning.Trainer) -> None:
    """Called in every process before training: ranks end with their launcher, and the launcher waits for its ranks.

    Of a launcher that is killed even by SIGKILL Linux tells its children, whatever they are doing; on other systems
    they notice when they next communicate. Under SLURM its own daemon sees to it.
    """
    if is_rank(os.environ):
        _end_with_parent(os.environ.get(_LAUNCHER))
        return
    os.environ[_LAUNCHER] = str(os.getpid())
    launched = getattr(trainer.strategy.launcher, "procs", None)
    if launched is not None:
        # Lightning fills a new list when it starts them.
        atexit.register(lambda: _outlive(getattr(trainer.strategy.launcher, "procs", [])))


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether this process was started as one of several by Lightning or torchrun."""
    return "TORCHELASTIC_RUN_ID" in environment or int(environment.get("LOCAL_RANK", "0")) > 0


def _end_with_parent(launcher: str | None) -> None:
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have gone before it could be told of.
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
