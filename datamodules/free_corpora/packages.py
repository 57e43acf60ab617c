"""Debian packages as folders: given as folders or files, or downloaded with apt-get. Nothing is installed."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from datamodules.free_corpora.contract import RecipeError, Report
from datamodules.free_corpora.debian_archive import read_control, unpack
from datamodules.free_corpora.downloading import downloaded


@dataclass(frozen=True)
class Package:
    """An unpacked package. `root` has `usr` in it; `sha256` is "" for a folder that the user unpacked."""

    name: str
    version: str
    root: Path
    sha256: str = ""


@dataclass(frozen=True)
class Given:
    """What the user already has: unpacked packages (`/` if installed), package files (.deb), a cache of downloads."""

    folders: Sequence[Path]
    files: Sequence[Path]
    cache: Path


def found_packages(names: dict[str, tuple[str, ...]], given: Given, work: Path, report: Report) -> dict[str, Package]:
    """Find the packages in what the user has, or download them with apt-get.

    Args:
        names: Package -> patterns of the files that are needed.
        given: What the user already has.
        work: Folder to unpack to.
        report: Shows the progress.

    Raises:
        RecipeError: Something given is none of these packages, a package is damaged, or it cannot be downloaded.
    """
    files = _files_by_package(given.files, tuple(names))
    _require_useful(given.folders, tuple(names))
    packages = {}
    for name, wanted in names.items():
        root = next((folder for folder in given.folders if _copyright(folder, name).is_file()), None)
        if root is not None:
            packages[name] = Package(name, _version_of(root, name), root)
        else:
            file = files.get(name) or downloaded(name, given.cache, report)
            packages[name] = _unpacked(file, (*wanted, f"usr/share/doc/{name}/*"), work / name, report)
    return packages


def matching(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Find regular files below a package's folder, by pattern; only folders that a pattern names are searched."""
    found = set()
    for pattern in patterns:
        fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
        for path in (root / fixed).rglob("*"):
            if fnmatchcase(path.relative_to(root).as_posix(), pattern) and path.is_file():
                found.add(path)
    return sorted(found)


def _copyright(folder: Path, name: str) -> Path:
    return folder / "usr" / "share" / "doc" / name / "copyright"


def _files_by_package(files: Sequence[Path], names: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for path in files:
        package = read_control(path).package
        if package not in names:
            raise RecipeError(f"{str(path)!r} holds the package {package}; this recipe needs {' and '.join(names)}")
        found[package] = path
    return found


def _require_useful(folders: Sequence[Path], names: tuple[str, ...]) -> None:
    for folder in folders:
        if not any(_copyright(folder, name).is_file() for name in names):
            expected = _copyright(Path(), names[0])
            raise RecipeError(
                f"The folder {str(folder)!r} holds none of the packages {' and '.join(names)}: it has no {expected}; "
                "type the folder that `dpkg-deb -x FILE FOLDER` made, or / where they are installed"
            )


def _version_of(root: Path, name: str) -> str:
    """Read the version from the changelog, whose first line is `name (version) ...`; "unknown" without one."""
    for file in ("changelog.Debian.gz", "changelog.gz"):
        try:
            with gzip.open(_copyright(root, name).with_name(file)) as log:
                found = re.match(rb"\S+ \(([^)]+)\)", log.readline(10000))
        except (OSError, EOFError):
            continue
        if found:
            return found[1].decode("utf-8", "replace")
    return "unknown"


def _unpacked(file: Path, wanted: tuple[str, ...], target: Path, report: Report) -> Package:
    control = read_control(file)
    report.doing(f"unpacking {control.package}")
    sha256 = _sha256(file)
    # The name has the hash, so that the files of another version are not used by mistake.
    root = target.with_name(f"{target.name}-{sha256[:16]}")
    if not root.is_dir():
        unfinished = target.with_name(f"{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        unpack(file, unfinished, wanted, lambda name: report.doing(f"unpacking {control.package}: {name}"))
        unfinished.rename(root)
    return Package(control.package, control.version, root, sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
