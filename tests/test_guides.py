"""The guides in `docs/` do what they say: their blocks are run in order, as they stand."""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from reports.metrics.catalog import METRICS
from spectrostream.frontends import FRONT_ENDS
from spectrostream.registry import CODECS
from spectrostream_cli import main

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("add_*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


TABLES = (METRICS, FRONT_ENDS, CODECS)


@pytest.fixture
def _restored_tables() -> Iterator[None]:
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.usefixtures("_restored_tables")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_runs_as_written(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Dataclasses and pickle look classes up in their module.
    module = types.ModuleType(guide.stem)
    monkeypatch.setitem(sys.modules, guide.stem, module)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", guide.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert {"python", "yaml", "bash"} >= {language for language, _ in blocks}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, guide.name, "exec"), module.__dict__)
        elif language == "yaml":
            Path(block.split()[1]).write_text(block, encoding="utf-8")  # "# NAME.yaml" is the first line
        else:
            assert main(shlex.split(block)[1:]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
