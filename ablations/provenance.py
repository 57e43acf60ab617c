"""What a result was made with: git revision and the versions of the packages that matter."""

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
    """Short revision of the repository this code lies in, with "-modified" if files differ; "" outside a repository."""
    repository = Path(__file__).parent.parent
    top = _git(repository, "rev-parse", "--show-toplevel")
    # An installed copy may lie inside somebody else's repository.
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
    """Python and the installed ones of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_json(value: Any, path: Path) -> None:
    """Writes a JSON file that appears whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
