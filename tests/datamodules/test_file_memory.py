from __future__ import annotations

import os
from pathlib import Path

import pytest

from datamodules.audio.file_cache import FileMemory


def _asked(memory: FileMemory[int], path: Path, number: int) -> int:
    return memory.value(path, path.stat(), lambda: number)


def test_a_file_is_looked_at_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("one")
    memory = FileMemory[int | None]()
    assert memory.value(path, path.stat(), lambda: None) is None
    assert memory.value(path, path.stat(), lambda: pytest.fail("was known")) is None
    path.write_text("longer")
    assert memory.value(path, path.stat(), lambda: 2) == 2
    os.utime(path, ns=(0, 12345))
    assert memory.value(path, path.stat(), lambda: 3) == 3


def test_only_the_files_used_last_are_remembered(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    memory = FileMemory[int](most_files=3)
    for number, path in enumerate(paths[:3]):
        path.touch()
        assert _asked(memory, path, number) == number
    assert _asked(memory, paths[0], 10) == 0
    for number, path in enumerate(paths[3:], 3):
        path.touch()
        assert _asked(memory, path, number) == number
    assert len(memory) == 3
    assert _asked(memory, paths[0], 10) == 0
    assert _asked(memory, paths[1], 11) == 11


def test_what_finds_nothing_out_is_asked_again(tmp_path: Path) -> None:
    memory = FileMemory[int]()

    def fails() -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        memory.value(tmp_path, tmp_path.stat(), fails)
    assert _asked(memory, tmp_path, 7) == 7
