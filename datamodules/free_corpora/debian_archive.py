"""Read Debian's package files (.deb) without dpkg: `ar` archives of two compressed tar archives."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, cast

from datamodules.free_corpora.contract import RecipeError

_MAGIC = b"!<arch>\n"
_HEADER = 60
# The compressions that Python knows; some distributions also use zstd.
_TAR_MODES = {"": "r|", ".gz": "r|gz", ".xz": "r|xz", ".bz2": "r|bz2"}
_BROKEN = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


@dataclass(frozen=True)
class Control:
    """Name and version in a package's control file."""

    package: str
    version: str


def read_control(path: Path) -> Control:
    """Read name and version; RecipeError if it is no package, or a damaged one."""
    with _opened(path, "control") as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).name == "control":
                return _control(path, archive.extractfile(member))
    raise _broken(path, "it has no control file")


def unpack(path: Path, folder: Path, wanted: tuple[str, ...], notice: Callable[[str], None]) -> None:
    """Unpack the regular files that match a pattern, and call `notice` with each name.

    Links, and names that lead out of the folder, are skipped.

    Raises:
        RecipeError: It is no package, or a damaged one.
    """
    with _opened(path, "data") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            inside = str(name)
            if not member.isfile() or name.is_absolute() or ".." in name.parts:
                continue
            if any(fnmatchcase(inside, pattern) for pattern in wanted):
                notice(name.name)
                _write(archive.extractfile(member), folder / inside)


def _control(path: Path, file: IO[bytes] | None) -> Control:
    text = file.read(2**20).decode("utf-8", "replace") if file else ""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
    if not fields.get("Package") or not fields.get("Version"):
        raise _broken(path, "its control file names no package and version")
    return Control(fields["Package"].strip(), fields["Version"].strip())


def _write(source: IO[bytes] | None, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        if source is not None:
            shutil.copyfileobj(source, file, 2**20)


@contextmanager
def _opened(path: Path, what: str) -> Iterator[tarfile.TarFile]:
    """Open the tar archive `control` or `data` as a stream."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise RecipeError(f"The package file {str(path)!r} cannot be opened: {error.strerror}") from error
    with file:
        compression, part = _part(path, file, what)
        if compression not in _TAR_MODES:
            with _through_dpkg(path, what, compression) as archive:
                yield archive
            return
        with _reporting_damage(path), tarfile.open(fileobj=part, mode=_TAR_MODES[compression]) as archive:  # type: ignore[call-overload]
            yield archive


def _part(path: Path, file: IO[bytes], what: str) -> tuple[str, IO[bytes]]:
    """Find a member of the outer archive; return its compression and its bytes."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise RecipeError(f"{str(path)!r} is not a Debian package (.deb)")
    while len(header := file.read(_HEADER)) == _HEADER:
        name = header[:16].decode("latin-1").strip().rstrip("/")
        try:
            size = int(header[48:58])
        except ValueError:
            break
        if size < 0:
            break
        if name.startswith(f"{what}.tar"):
            return name.removeprefix(f"{what}.tar"), cast(IO[bytes], _Window(file, size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise _broken(path, f"it has no {what}.tar")


class _Window(io.RawIOBase):
    """The next `size` bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        content = self._file.read(size)
        if len(content) < size:
            raise EOFError("the file ends early")
        self._left -= len(content)
        return content


@contextmanager
def _through_dpkg(path: Path, what: str, compression: str) -> Iterator[tarfile.TarFile]:
    if shutil.which("dpkg-deb") is None:
        raise RecipeError(
            f"{str(path)!r} is compressed as {compression}, which needs dpkg-deb; unpack it where there is one with "
            "`dpkg-deb -x FILE FOLDER` and type --source FOLDER"
        )
    option = "--ctrl-tarfile" if what == "control" else "--fsys-tarfile"
    with subprocess.Popen(
        ["dpkg-deb", option, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            with _reporting_damage(path), tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
        finally:
            process.kill()


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no room or no permission; the package is not damaged
        raise _broken(path, str(error)) from error


def _broken(path: Path, reason: str) -> RecipeError:
    return RecipeError(f"The package file {str(path)!r} is damaged or cut short ({reason}); copy or download it again")
