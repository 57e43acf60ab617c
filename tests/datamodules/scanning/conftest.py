from __future__ import annotations

from pathlib import Path

import pytest
from scanned_folder import Scanner


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    (tmp_path / "music").mkdir()
    return Scanner(tmp_path / "music", tmp_path / "journal")
