import subprocess
import sys
import time

import pytest

from benchmarks.official import client
from benchmarks.official.client import OfficialWorker, OfficialWorkerError, official_python
from spectrostream.errors import UserError

pytestmark = pytest.mark.processes

SERVER = """
import sys
from benchmarks.official.protocol import serve
def fail(): raise KeyError("no such layout")
def die():
    print("out of memory, say", file=sys.stderr, flush=True)
    raise SystemExit(7)
serve({"add": lambda a, b: {"sum": a + b}, "fail": fail, "die": die}, sys.stdin, sys.stdout)
"""
DEAF = "import time; print('not json', flush=True); time.sleep(60)"


def worker(program: str = SERVER) -> OfficialWorker:
    return OfficialWorker([sys.executable, "-c", program])


def test_answers_come_in_order_and_an_error_does_not_end_the_worker():
    with worker() as running:
        assert [running.ask("add", a=n, b=1) for n in range(3)] == [{"sum": 1}, {"sum": 2}, {"sum": 3}]
        with pytest.raises(OfficialWorkerError, match="fail: KeyError: 'no such layout'"):
            running.ask("fail")
        with pytest.raises(OfficialWorkerError, match="'subtract' is not known; allowed: add, fail, die"):
            running.ask("subtract")
        assert running.ask("add", a=2, b=2) == {"sum": 4}
    assert running._process.returncode == 0


def test_the_error_of_a_dead_worker_quotes_its_last_output():
    with worker() as running:
        with pytest.raises(OfficialWorkerError, match=r"ended during 'die'.*exit code 7\n.*out of memory, say"):
            running.ask("die")
        with pytest.raises(OfficialWorkerError, match="ended during 'add'"):
            running.ask("add", a=1, b=1)


def test_a_worker_with_another_protocol_is_refused_and_ended(monkeypatch):
    monkeypatch.setattr(client, "CLOSING_SECONDS", 0.2)
    start = time.monotonic()
    with worker(DEAF) as running, pytest.raises(OfficialWorkerError, match="not json"):
        running.ask("add", a=1, b=1)
    assert running._process.returncode != 0
    assert time.monotonic() - start < 30


def test_a_missing_environment_says_what_to_type(tmp_path):
    with pytest.raises(UserError, match="type: make official-environment"):
        OfficialWorker.start(threads=1, environment=tmp_path / "nowhere")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert official_python(tmp_path) == tmp_path / "bin" / "python"


def test_the_worker_itself_reports_a_missing_official_package(tmp_path):
    # This interpreter has no magenta-rt: the worker starts, fails at its import and the reason reaches the user.
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "python"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I -c "import magenta_rt" "$@"\n')
    launcher.chmod(0o755)
    with (
        OfficialWorker.start(threads=1, environment=tmp_path) as running,
        pytest.raises(OfficialWorkerError, match="No module named 'magenta_rt'"),
    ):
        running.ask("versions")


def test_the_targets_that_errors_name_are_in_the_makefile():
    makefile = (client.REPOSITORY / "Makefile").read_text()
    for target in ("official-environment", "interop", "bench-official", "bench"):
        assert f"\n{target}:" in makefile
    assert client.ENVIRONMENT.name in makefile


def test_the_environment_is_ignored_by_git_and_pinned():
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", client.ENVIRONMENT.name + "/bin/python"],
        cwd=client.REPOSITORY,
        capture_output=True,
        check=False,
    )
    assert ignored.returncode == 0
    lines = (client.REPOSITORY / "benchmarks" / "requirements-official.txt").read_text().splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if not line.startswith("#")]
    assert all(pin.count("==") == 1 for pin in pins)
    assert {"magenta-rt==2.0.3", "jax==0.10.2", "flax==0.12.8", "jaxtyping==0.3.11", "typeguard==2.13.3"} <= set(pins)
