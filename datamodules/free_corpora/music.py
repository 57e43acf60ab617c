"""The places of music in packages: lumps in Doom's WAD files, files in a folder, members of a zip archive."""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import ClassVar

from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.packages import matching
from datamodules.free_corpora.wad import midi_lumps
from spectrostream.atomic_files import copy_whole, write_whole

# No track is larger; an archive with a larger member is broken or meant to fill the disk.
_LARGEST_MEMBER = 2**30


@dataclass(frozen=True)
class MidiLumps:
    """MIDI lumps of the `wanted` WAD files, the same notes only once; they become `WAD/LUMP.flac`."""

    wanted: tuple[str, ...]
    is_notes: ClassVar[bool] = True

    def sources(self, root: Path, work: Path) -> dict[str, Path]:
        """Write the lumps to `work`; RecipeError if a WAD is missing or broken."""
        found = {}
        seen = set()
        for wad in self.wanted:
            for lump, content in midi_lumps(root / wad).items():
                digest = hashlib.sha256(content).digest()
                if digest not in seen:
                    seen.add(digest)
                    stem = Path(wad).stem
                    found[f"{stem}/{lump}.flac"] = work / stem / f"{lump}.mid"
                    write_whole(work / stem / f"{lump}.mid", content)
        return found


@dataclass(frozen=True)
class AudioFiles:
    """Audio files of a package's folder, by pattern below it; they keep their names."""

    folder: str
    patterns: tuple[str, ...] = ("*.ogg",)
    is_notes: ClassVar[bool] = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """The patterns below the package."""
        return tuple(f"{self.folder}/{pattern}" for pattern in self.patterns)

    def sources(self, root: Path, work: Path) -> dict[str, Path]:
        """Find the files in the package."""
        del work
        return {path.relative_to(root / self.folder).as_posix(): path for path in matching(root, self.wanted)}


@dataclass(frozen=True)
class ZippedAudio:
    """Members of a zip archive (pk3 is one), by pattern below a folder in it; they keep their names."""

    archive: str
    folder: str
    pattern: str = "*.ogg"
    is_notes: ClassVar[bool] = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """The archive's path."""
        return (self.archive,)

    def sources(self, root: Path, work: Path) -> dict[str, Path]:
        """Extract the members to `work`; RecipeError if the archive is missing, broken, or would write elsewhere."""
        path = root / self.archive
        try:
            with zipfile.ZipFile(path) as archive:
                members = {name: member for member in archive.infolist() if (name := self._name(member.filename))}
                return {name: _extracted(archive, members[name], work / name) for name in sorted(members)}
        except FileNotFoundError as error:
            raise RecipeError(f"The archive {str(path)!r} is missing; unpack the package again") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise RecipeError(f"The archive {str(path)!r} is broken ({error}); unpack the package again") from error

    def _name(self, member: str) -> str:
        """The track's name; "" for a member that is no track."""
        folder = f"{self.folder}/"
        name = member.removeprefix(folder)
        return name if member.startswith(folder) and fnmatchcase(name, self.pattern) else ""


def _extracted(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path:
    name = PurePosixPath(member.filename)
    is_plain = not stat.S_ISLNK(member.external_attr >> 16) and not member.is_dir()
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or not is_plain:
        raise RecipeError(
            f"The archive {archive.filename!r} has the member {member.filename!r}, which is no plain file"
        )
    if member.file_size > _LARGEST_MEMBER:
        raise RecipeError(
            f"The archive {archive.filename!r} has the member {member.filename!r} of {member.file_size} bytes, allowed "
            f"are {_LARGEST_MEMBER}"
        )
    if not (target.is_file() and target.stat().st_size == member.file_size):
        with archive.open(member) as source:
            copy_whole(source, target)
    return target
