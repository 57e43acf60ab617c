"""Doom's WAD files: the MIDI lumps by name."""

from __future__ import annotations

import struct
from fnmatch import fnmatchcase
from pathlib import Path

from datamodules.free_corpora.contract import RecipeError

_HEADER = struct.Struct("<4sii")  # magic, number of entries, offset of the directory
_ENTRY = struct.Struct("<ii8s")  # offset, size, name padded with zeros
_MAGICS = (b"IWAD", b"PWAD")
_MIDI = b"MThd"


class WadError(RecipeError):
    """Not a WAD file, or one whose directory points outside of it."""


def midi_lumps(path: Path, pattern: str = "D_*") -> dict[str, bytes]:
    """Standard MIDI files in a WAD by the lump's name, in the directory's order.

    pattern: of the names; other lumps, and lumps of another format, are passed over. Of two lumps with one name the
        later one counts, as in the game.

    Raises:
        WadError: no WAD, a directory or a chosen lump beyond the file, a name that cannot be a file's name.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WadError(f"The WAD file {str(path)!r} cannot be read: {error.strerror}") from error
    lumps = {}
    for offset, size, name in _directory(path, content):
        if fnmatchcase(name, pattern):
            lump = _lump(path, content, offset, size, name)
            if lump.startswith(_MIDI):
                lumps[_safe(path, name)] = lump
    return lumps


def _directory(path: Path, content: bytes) -> list[tuple[int, int, str]]:
    if len(content) < _HEADER.size or content[:4] not in _MAGICS:
        raise WadError(f"{str(path)!r} is no WAD file: it must begin with IWAD or PWAD and a header of 12 bytes")
    _, count, start = _HEADER.unpack_from(content)
    end = start + count * _ENTRY.size
    if count < 0 or start < 0 or end > len(content):
        raise WadError(
            f"The WAD file {str(path)!r} is damaged: its directory of {count} entries from byte {start} does not lie "
            f"within its {len(content)} bytes; copy it again"
        )
    entries = _ENTRY.iter_unpack(content[start:end])
    return [(offset, size, name.split(b"\0")[0].decode("latin-1")) for offset, size, name in entries]


def _lump(path: Path, content: bytes, offset: int, size: int, name: str) -> bytes:
    if offset < 0 or size < 0 or offset + size > len(content):
        raise WadError(
            f"The WAD file {str(path)!r} is damaged: its lump {name!r} of {size} bytes from byte {offset} does not lie "
            f"within its {len(content)} bytes; copy it again"
        )
    return content[offset : offset + size]


def _safe(path: Path, name: str) -> str:
    # Lump names are made of these; anything else could lead out of the folder that the pieces go to.
    if not all(character.isascii() and (character.isalnum() or character in "_-[]") for character in name):
        raise WadError(f"The WAD file {str(path)!r} has a lump named {name!r}, which cannot be a file's name")
    return name
