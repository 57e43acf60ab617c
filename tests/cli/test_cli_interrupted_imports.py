"""Ctrl-C while a command or its worker processes still import: a line or nothing, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.corpora.folder_corpus import demo_corpus_root

pytestmark = pytest.mark.processes

_CONSOLE_SCRIPT = "import sys; from spectrostream_cli import main; sys.exit(main())"
_CTRL_C = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n"


def _ran(stubs: Path, *words: str) -> tuple[int, str]:
    """Exit code and standard error of Python, with modules of `stubs` in place of those called alike."""
    process = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(stubs)},
        capture_output=True,
        text=True,
        timeout=120,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return process.returncode, process.stderr


@pytest.mark.parametrize(
    ("module", "last_line"),
    [
        ("argparse", "stopped"),
        ("rich", "stopped; run the same command again to resume"),
        ("torch", "stopped; run the same command again to resume"),
    ],
)
@pytest.mark.parametrize("entry", [("-m", "spectrostream_cli"), ("-c", _CONSOLE_SCRIPT)])
def test_ctrl_c_during_the_imports_is_one_line(
    tmp_path: Path, module: str, last_line: str, entry: tuple[str, str]
) -> None:
    (tmp_path / f"{module}.py").write_text(_CTRL_C + "time.sleep(60)\n")
    words = ["data", "scan", str(demo_corpus_root()), "--out", str(tmp_path / "m.csv")]
    code, error = _ran(tmp_path, *entry, *words)
    assert (code, error) == (130, f"\n{last_line}\n")


_POOL = """
import os, sys
from datamodules.workers.processes import worker_processes
try:
    with worker_processes(1, "slow_module") as pool:
        pool.schedule(os.getpid).result()
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_while_worker_processes_import_reaches_none_of_them(tmp_path: Path) -> None:
    """On a terminal it goes to all; the first process decides."""
    (tmp_path / "slow_module.py").write_text(_CTRL_C)
    assert _ran(tmp_path, "-c", _POOL) == (0, "")


def test_worker_processes_whose_imports_end_after_their_parent_end_quietly(tmp_path: Path) -> None:
    """They may have been asked for before."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\n"
        "time.sleep(1)\n"  # in which the parent asks
        "parent = os.getppid()\n"
        "os.kill(parent, signal.SIGINT)\n"
        "while os.getppid() == parent:\n    time.sleep(0.01)\n"
    )
    assert _ran(tmp_path, "-c", _POOL) == (130, "")
