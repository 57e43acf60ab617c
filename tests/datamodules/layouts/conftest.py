from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from miniatures import MINIATURES


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From the name of a layout to its miniature, made once; to be read only."""
    return cache(lambda name: MINIATURES[name](tmp_path_factory.mktemp("miniatures") / name))


@pytest.fixture
def copied(untouched: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """From the name of a layout to a copy of its miniature that the test may change."""
    return lambda name: Path(shutil.copytree(untouched(name), tmp_path / name))
