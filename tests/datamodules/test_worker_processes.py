"""Worker processes: they start, say when they cannot, and end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from datamodules import worker_processes as module
from datamodules.worker_processes import WorkersError, worker_processes


def test_jobs_are_done_in_other_processes_and_these_are_gone_afterwards() -> None:
    with worker_processes(2, "datamodules.worker_processes") as pool:
        ids = {pool.schedule(os.getpid).result(timeout=60) for _ in range(8)}
    assert os.getpid() not in ids
    assert not any(map(_is_there, ids))


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _end_at_once() -> None:
    os._exit(1)


def test_processes_that_end_before_they_begin_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_begin", _end_at_once)
    with (
        pytest.raises(WorkersError, match=r"is there enough memory.*with fewer --workers"),
        worker_processes(1, "datamodules.worker_processes") as pool,
    ):
        pool.schedule(os.getpid).result(timeout=60)


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = """
        import os, sys, time
        from pathlib import Path
        from datamodules.worker_processes import worker_processes
        if __name__ == "__main__":
            with worker_processes(1, "datamodules.worker_processes") as pool:
                Path(sys.argv[1]).write_text(str(pool.schedule(os.getpid).result()))
                pool.schedule(time.sleep, [600])
                time.sleep(600)
    """
    script, note = tmp_path / "program.py", tmp_path / "worker"
    script.write_text(textwrap.dedent(program))
    with subprocess.Popen([sys.executable, str(script), str(note)]) as parent:
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text()):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    while _is_there(int(note.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
