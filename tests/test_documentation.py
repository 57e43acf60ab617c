"""The pages under `docs/` that scripts write, or that list files, are current."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def configuration() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_configuration.py"))


def test_the_page_of_configuration_keys_is_current(configuration: dict[str, Any]) -> None:
    is_current = (DOCS / "configuration.md").read_text(encoding="utf-8") == configuration["page"]()
    assert is_current, "docs/configuration.md is out of date; run: python docs/make_configuration.py"


def test_every_configuration_key_is_documented_beneath_its_field(configuration: dict[str, Any]) -> None:
    for section, schemas in configuration["sections"]():
        for schema in schemas.values():
            for key in configuration["keys"](schema, section):
                example = 'for instance """Seconds of ... Allowed: above 0."""'
                assert key.description, f"{key.source} has no text beneath it; write one, {example}"
                assert key.allowed, f"the text beneath {key.source} does not say what is allowed; add it, {example}"


@pytest.fixture(scope="module")
def architecture() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_architecture.py"))


def test_the_architecture_page_lists_every_file_once(architecture: dict[str, Any]) -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    listed = []
    for folder, section in re.findall(r"^### `(\S+)/`(.*?)(?=^### |\Z)", page, flags=re.MULTILINE | re.DOTALL):
        listed += [
            f"{folder}/__init__.py",
            *(f"{folder}/{name}" for name in re.findall(r"^\| `(\S+)` \|", section, re.M)),
        ]
    root = DOCS.parent
    files = [path for package in architecture["PACKAGES"] for path in (root / package).rglob("*.py")]
    existing = {path.relative_to(root).as_posix() for path in files}
    assert existing - set(listed) == set(), "add these files to docs/architecture.md, a line each"
    assert set(listed) - existing == set(), "docs/architecture.md lists files that do not exist"
    assert len(set(listed)) == len(listed), "docs/architecture.md lists a file twice"


def test_the_architecture_drawing_is_current(architecture: dict[str, Any]) -> None:
    drawing = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    drawn = set(re.findall(r'id="([\w.]+)--([\w.]+)"', drawing))
    assert drawn == architecture["arrows"](), (
        "docs/architecture.svg is out of date; run: python docs/make_architecture.py"
    )
