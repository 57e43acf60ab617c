"""Doom's WAD files: the MIDI lumps by name."""

from __future__ import annotations

import re
import struct
from fnmatch import fnmatchcase
from pathlib import Path

from datamodules.free_corpora.contract import RecipeError

_HEADER = struct.Struct("<4sii")  # magic, number of entries, offset of the directory
_ENTRY = struct.Struct("<ii8s")  # offset, size, name padded with zeros
_MAGICS = (b"IWAD", b"PWAD")
_MIDI = b"MThd"
# Other characters could lead out of the folder of the tracks.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_\[\]-]*")


def midi_lumps(path: Path, pattern: str = "D_*") -> dict[str, bytes]:
    """Read the Standard MIDI files in a WAD.

    Args:
        path: The WAD file.
        pattern: Of the lumps' names. Other lumps, and lumps of another format, are left out.

    Returns:
        Name of the lump -> its content, in the directory's order. If two have one name, the later one counts, as in
        the game.

    Raises:
        RecipeError: It is no WAD, the directory or a chosen lump ends beyond the file, or a lump has an unsafe name.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"The WAD file {str(path)!r} cannot be read: {error.strerror}") from error
    lumps = {}
    for offset, size, name in _directory(path, content):
        if not fnmatchcase(name, pattern):
            continue
        if offset < 0 or size < 0 or offset + size > len(content):
            raise _damaged(path, f"lump {name!r} of {size} bytes from byte {offset}", content)
        lump = content[offset : offset + size]
        if lump.startswith(_MIDI):
            if not _SAFE_NAME.fullmatch(name):
                raise RecipeError(
                    f"The WAD file {str(path)!r} has a lump named {name!r}, which cannot be a file's name"
                )
            lumps[name] = lump
    return lumps


def _directory(path: Path, content: bytes) -> list[tuple[int, int, str]]:
    if len(content) < _HEADER.size or content[:4] not in _MAGICS:
        raise RecipeError(f"{str(path)!r} is no WAD file: it must begin with IWAD or PWAD and a header of 12 bytes")
    _, count, start = _HEADER.unpack_from(content)
    end = start + count * _ENTRY.size
    if count < 0 or start < 0 or end > len(content):
        raise _damaged(path, f"directory of {count} entries from byte {start}", content)
    entries = _ENTRY.iter_unpack(content[start:end])
    return [(offset, size, name.split(b"\0")[0].decode("latin-1")) for offset, size, name in entries]


def _damaged(path: Path, part: str, content: bytes) -> RecipeError:
    return RecipeError(
        f"The WAD file {str(path)!r} is damaged: its {part} does not lie within its {len(content)} bytes; copy it again"
    )
