"""The drills of `benchmarks/fault_drills.py` that need processes of their own, two ranks among them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import fault_drills
from benchmarks.fault_drills import DrillError, Drills, first_difference
from lightning_modules import cluster
from lightning_modules import rank_cleanup as orphans
from lightning_modules.cluster import cluster_plugins

pytestmark = pytest.mark.processes

SLURM_TASK = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}


@pytest.fixture(scope="module")
def drills(tmp_path_factory: pytest.TempPathFactory) -> Drills:
    return Drills(tmp_path_factory.mktemp("drills"))


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(drills: Drills) -> None:
    """SIGTERM to the first alone: one checkpoint of both, exit code 75, the rest bit for bit."""
    assert drills.terminate("TERM", "update", 2) == "exit code 75 at step 5"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_process_ends_the_other(drills: Drills, rank: int) -> None:
    assert drills.lose_rank(rank).startswith("all ended, code ")


@pytest.mark.slow
def test_a_full_disk(drills: Drills) -> None:
    assert drills.fill_disk()


def test_a_failed_drill_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> str:
        raise DrillError("something differs")

    monkeypatch.setattr(fault_drills, "all_drills", lambda _: [("good", lambda: "fine"), ("bad", fails)])
    assert fault_drills.main([]) == 1
    assert fault_drills.main(["--only", "good"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in said] == [
        "same bits; fine",
        "FAILED: something differs",
        "same bits; fine",
    ]


def test_states_are_compared_to_the_last_bit() -> None:
    def state(weight: float = 1.0, step: object = 3) -> dict[str, object]:
        return {"state_dict": {"w": torch.tensor([0.0, weight])}, "loops": [{"step": step}]}

    assert first_difference(state(), state()) is None
    assert first_difference(state(), state(weight=1 + 2**-23)) == ".state_dict.w"
    assert first_difference(state(), state(step=4)) == ".loops[0].step"
    assert first_difference(state(), state(step=3.0)) == ".loops[0].step"
    assert first_difference(state(), {**state(), "more": 1}) == ""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, True),
    ],
)
def test_ranks_are_known_by_their_environment(environment: dict[str, str], expected: bool) -> None:
    """The first process of Lightning's launcher belongs to its shell and must survive it, as `nohup` asks."""
    assert orphans.is_rank(environment) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent has gone")
def test_a_rank_ends_when_its_launcher_is_killed() -> None:
    rank = (
        "import os, time; from lightning_modules.rank_cleanup import _end_with_parent;"
        "_end_with_parent(str(os.getppid())); print(os.getpid(), flush=True); time.sleep(60)"
    )
    launcher = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {rank!r}]); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline()) not in (os.getpid(), process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    assert process.stdout.read() == ""  # returns when the last writer, the rank, has ended
    assert time.monotonic() - began < 10
    process.stdout.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent has gone")
def test_a_rank_ends_if_its_launcher_ended_before() -> None:
    code = "from lightning_modules.rank_cleanup import _end_with_parent; _end_with_parent('1234567'); print('alive')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_the_launcher_waits_for_its_ranks_and_ends_those_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_PATIENCE_SECONDS", 0.5)
    quick, hangs = (subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({s})"]) for s in (0, 60))
    orphans._outlive([quick, hangs])
    assert quick.returncode in (0, -signal.SIGKILL)
    assert hangs.returncode == -signal.SIGKILL


def test_lightning_does_not_requeue_slurm_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert cluster_plugins() == []
    for name, value in SLURM_TASK.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (environment,) = cluster_plugins()
    assert isinstance(environment, cluster.SLURMEnvironment)
    assert not environment.auto_requeue
    assert environment.world_size() == 2
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # a shell in an allocation
    assert cluster_plugins() == []
