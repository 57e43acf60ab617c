"""What a result was made with: the git revision and the versions of packages; and its JSON files."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from spectrostream.atomic_files import write_whole

_PACKAGES = ("torch", "torchaudio", "lightning", "transformers", "visqol-python", "numpy", "scipy", "pandas")


def git_revision() -> str:
    """Return the short revision of this code, with "-modified" if files differ; "" outside its repository."""
    repository = Path(__file__).parent.parent
    top = _git(repository, "rev-parse", "--show-toplevel")
    # An installed copy may be inside another repository.
    if not top or Path(top).resolve() != repository.resolve():
        return ""
    return _git(repository, "describe", "--always", "--abbrev=10", "--dirty=-modified", "--exclude=*")


def _git(folder: Path, *words: str) -> str:
    try:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file; it appears complete or not at all."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
