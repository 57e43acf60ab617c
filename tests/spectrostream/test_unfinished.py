"""Files beside their targets: a name of their own, and nothing piles up when processes are killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spectrostream.atomic_files import open_beside

pytestmark = pytest.mark.processes

_KILLED = """
import os, signal, sys
from pathlib import Path
from spectrostream.atomic_files import open_beside
open_beside(Path(sys.argv[1])).write(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed_while_writing(target: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_it_is_hidden_beside_its_target_and_writable(tmp_path):
    with open_beside(tmp_path / "out.sps") as file:
        file.write(b"content")
    path = Path(file.name)
    assert path.parent == tmp_path
    assert path.name.startswith(".out.sps.")
    assert path.read_bytes() == b"content"


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    target = tmp_path / "out.sps"
    killed_while_writing(target)
    (first,) = names(tmp_path)
    killed_while_writing(target)
    (second,) = names(tmp_path)
    assert first != second
    with open_beside(target) as file:
        assert names(tmp_path) == {Path(file.name).name}


def test_a_file_that_is_still_written_is_left_alone(tmp_path):
    target = tmp_path / "out.sps"
    with open_beside(target) as first:
        with open_beside(target) as second:
            assert names(tmp_path) == {Path(first.name).name, Path(second.name).name}
        first.write(b"whole")
    assert Path(first.name).read_bytes() == b"whole"


@pytest.mark.parametrize(
    "other", [".other.sps.0a1b2c3d.unfinished", ".out.sps.0a1b2c3d.part", "out.sps.0a1b2c3d.unfinished", ".out.sps"]
)
def test_only_leftovers_of_the_same_target_are_removed(other, tmp_path):
    (tmp_path / other).write_bytes(b"somebody's")
    open_beside(tmp_path / "out.sps").close()
    assert (tmp_path / other).read_bytes() == b"somebody's"


def test_letters_that_mean_something_to_a_shell_are_letters(tmp_path):
    (tmp_path / ".abc.0a1b2c3d.unfinished").write_bytes(b"")
    open_beside(tmp_path / "[a-z]*").close()
    assert ".abc.0a1b2c3d.unfinished" in names(tmp_path)


@pytest.mark.parametrize("name", ["a" * 251 + ".sps", "\N{GRINNING FACE}" * 62 + ".sps"])
def test_the_longest_names_are_possible(name, tmp_path):
    target = tmp_path / name
    killed_while_writing(target)
    with open_beside(target) as file:
        assert names(tmp_path) == {Path(file.name).name}
    Path(file.name).replace(target)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_beside(tmp_path / "missing" / "out.sps")
