"""Download package files with apt-get to a cache, and check them against the size and hash that apt-get prints."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from datamodules.free_corpora.contract import RecipeError, Report
from datamodules.free_corpora.programs import run_watched
from spectrostream.atomic_files import lock

_HASHES = {"SHA256": "sha256", "SHA512": "sha512"}
_OTHERWISE = "copy the file from a machine that has it and type --package-file FILE.deb, or --source FOLDER"


@dataclass(frozen=True)
class _Location:
    """What apt-get prints about a package file; `hash_name` is hashlib's name, "" if apt-get prints no safe hash."""

    file: str
    size: int
    hash_name: str
    digest: str

    def fits(self, path: Path) -> bool:
        """Whether this file exists and has the promised content."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        if not self.hash_name:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.hash_name).hexdigest() == self.digest


def downloaded(package: str, cache: Path, report: Report) -> Path:
    """Return the package file from the cache; download it if the cache has no whole one.

    Raises:
        RecipeError: No apt-get, an unknown package, no network, or a file that is not the promised one.
        OSError: The disk is full, or writing is not allowed.
    """
    if shutil.which("apt-get") is None:
        raise RecipeError(f"The package {package} is needed, and there is no apt-get here to download it; {_OTHERWISE}")
    report.doing(f"looking up {package}")
    location = _location(package)
    path = cache / location.file
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("wb") as file:
        lock(file)  # waits for other builds that download into this cache
        if not location.fits(path):
            _download(package, location, path, report)
    return path


def _location(package: str) -> _Location:
    """Ask apt-get, which prints 'URL' FILE SIZE HASH:DIGEST."""
    answer = subprocess.run(
        ["apt-get", "download", "--print-uris", package], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    for line in answer.stdout.decode("utf-8", "replace").splitlines():
        words = shlex.split(line)
        if len(words) >= 3 and words[1].endswith(".deb") and "/" not in words[1] and words[2].isdecimal():
            kind, _, digest = words[3].partition(":") if len(words) > 3 else ("", "", "")
            return _Location(words[1], int(words[2]), _HASHES.get(kind, ""), digest)
    raise RecipeError(
        f"apt-get does not know the package {package} ({_last_line(answer.stderr)}); type: apt-get update; "
        f"or {_OTHERWISE}"
    )


def _download(package: str, location: _Location, path: Path, report: Report) -> None:
    # A folder for each file, in which apt-get resumes an interrupted download.
    folder = path.with_name(f".{location.file}.unfinished")
    folder.mkdir(exist_ok=True)
    partial = folder / location.file

    def watch() -> None:
        done = partial.stat().st_size if partial.exists() else 0
        report.doing(f"downloading {package}: {done / 1e6:.0f} of {location.size / 1e6:.0f} MB")

    code, said = run_watched(["apt-get", "download", package], watch, seconds=0.3, folder=folder)
    if not location.fits(partial):
        reason = _last_line(said) if code else "it is not the file that was promised"
        partial.unlink(missing_ok=True)
        raise RecipeError(f"The package {package} could not be downloaded ({reason}); try again, or {_OTHERWISE}")
    partial.replace(path)
    shutil.rmtree(folder, ignore_errors=True)


def _last_line(said: bytes) -> str:
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    # apt-get warns about its sandbox after the error itself.
    errors = [line for line in lines if line.startswith("E:")] or lines
    return errors[-1].strip() if errors else "no word why"
