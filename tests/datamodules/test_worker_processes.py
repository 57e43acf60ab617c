"""Worker processes: they start, say when they cannot, and end with whoever started them."""

from __future__ import annotations

import os
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


# Each prints the numbers of its helpers and stays.
PARENTS = {
    "a pool": """
        import os, time
        from datamodules.worker_processes import worker_processes
        if __name__ == "__main__":
            with worker_processes(1, "datamodules.worker_processes") as pool:
                print(pool.schedule(os.getpid).result(), flush=True)
                pool.schedule(time.sleep, [600])
                time.sleep(600)
    """,
    "a training": """
        import multiprocessing, time
        from datamodules.stereo_music import DataConfig, StereoMusicDataModule
        if __name__ == "__main__":
            batches = iter(StereoMusicDataModule(DataConfig(num_workers=2)).train_dataloader())
            next(batches)
            print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
            time.sleep(600)
    """,
}


def test_a_program_that_ends_with_a_loader_at_work_ends(tmp_path: Path) -> None:
    """At the end of a program multiprocessing tells its processes to end, which they ignore, and waits for them."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PARENTS["a training"]).replace("time.sleep(600)", "pass"))
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr == ""
    workers = [int(word) for word in ended.stdout.split()]
    assert len(workers) == 2
    assert not any(map(_is_there, workers))


@pytest.mark.parametrize("kind", list(PARENTS))
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PARENTS[kind]))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        workers = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert workers
    deadline = time.monotonic() + 30
    while any(map(_is_there, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
