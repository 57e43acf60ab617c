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
from pebble import ProcessExpired

from datamodules.workers import processes as module
from datamodules.workers.processes import WorkersError, worker_processes

pytestmark = pytest.mark.processes


def test_jobs_are_done_in_other_processes_and_these_are_gone_afterwards() -> None:
    with worker_processes(2, "datamodules.workers.processes") as pool:
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
        worker_processes(1, "datamodules.workers.processes") as pool,
    ):
        pool.schedule(os.getpid).result(timeout=60)


def _end_by(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_worker_but_not_its_server(number: signal.Signals) -> None:
    """The same for the processes of runs: ablations/test_runner.py."""
    with worker_processes(1, "datamodules.workers.processes") as pool:
        with pytest.raises(ProcessExpired):
            pool.schedule(_end_by, [number]).result(timeout=30)
        assert pool.schedule(abs, [-1]).result(timeout=30) == 1


# Those names that are not there on Windows are gone, also in the processes that it starts.
_WITHOUT_A_FORK_SERVER = """
    import multiprocessing, os, signal
    from multiprocessing import context
    for name in ("ForkContext", "ForkServerContext", "ForkProcess", "ForkServerProcess"):
        delattr(context, name)
    del signal.pthread_sigmask, signal.SIGUSR1
    context._concrete_contexts = {"spawn": context.SpawnContext()}
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    from datamodules.workers.processes import worker_processes
    if __name__ == "__main__":
        with worker_processes(1, "datamodules.workers.processes") as pool:
            assert pool.schedule(os.getpid).result() != os.getpid()
"""


@pytest.mark.slow
def test_jobs_are_done_where_processes_can_only_be_spawned(tmp_path: Path) -> None:
    assert _errors_of(_WITHOUT_A_FORK_SERVER, tmp_path) == ""


def _errors_of(program: str, folder: Path) -> str:
    """What a program that ends well, in a session of its own, wrote to its standard error."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(program))
    words = [sys.executable, str(script)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


# Its worker stands still for longer than the 5 seconds after which torch looks whether it is still there.
_TOLD_TO_MAKE_ROOM = """
    import itertools, multiprocessing, os, signal, threading
    from datamodules.stereo_music import DataConfig, StereoMusicDataModule
    if __name__ == "__main__":
        batches = iter(StereoMusicDataModule(DataConfig(num_workers=1)).train_dataloader())
        next(batches)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
            os.killpg(0, number)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(7, os.kill, (worker.pid, signal.SIGCONT)).start()
        assert len(list(itertools.islice(batches, 8))) == 8  # more than had been prepared
"""


@pytest.mark.slow
def test_a_loader_goes_on_when_every_process_of_the_job_is_told_to_make_room(tmp_path: Path) -> None:
    """Also those that multiprocessing started: the server of the workers, and the tracker of their semaphores."""
    assert _errors_of(_TOLD_TO_MAKE_ROOM, tmp_path) == ""


# Each prints the numbers of its helpers and stays.
PARENTS = {
    "a pool": """
        import os, time
        from datamodules.workers.processes import worker_processes
        if __name__ == "__main__":
            with worker_processes(1, "datamodules.workers.processes") as pool:
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
        # Until nobody holds its standard output any more; the server did.
        parent.communicate(timeout=30)
    assert workers
    deadline = time.monotonic() + 30
    while any(map(_is_there, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
