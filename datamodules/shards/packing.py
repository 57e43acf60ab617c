"""Writes shards: tar files that WebDataset reads, with the same bytes for the same members.

Each piece of music has two members, `KEY.json` and `KEY.wav` or `KEY.flac`. KEY consists of the track's name, a hash of
it and the number of the piece. It has letters, digits, dashes and underscores only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

from spectrostream.atomic_files import discard, open_beside, take_name

# Most bytes of a piece besides its audio: two headers, the notes, the padding.
PIECE_OVERHEAD_BYTES = 4096
# Size of the end of a tar file.
END_BYTES = tarfile.RECORDSIZE


class ShardPacker:
    """Packs pieces into `NAME.tar`, and when it is full into `NAME-001.tar`, and so on. Use it as a context.

    The files appear in `finish`, or stay as they were.

    Args:
        folder: Folder of the shards.
        name: Of the first shard, without extension.
        shard_bytes: A member that would make a shard larger begins the next one.
        extension: Of the audio members, with the dot.
    """

    def __init__(self, folder: Path, name: str, shard_bytes: int, extension: str) -> None:
        self._folder = folder
        self._name = name
        self._shard_bytes = shard_bytes
        self._extension = extension
        self._tar: tarfile.TarFile | None = None
        # Open until the end, so that no other command takes them for the rest of a killed one.
        self._unfinished: dict[str, BinaryIO] = {}
        self._shard = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._unfinished.values():
            discard(file)

    def add(self, track: str, piece: int, audio: IO[bytes], notes: Mapping[str, Any]) -> dict[str, Any]:
        """Pack one piece; return the columns of the index that say where it is."""
        size = audio.seek(0, os.SEEK_END)
        audio.seek(0)
        tar = self._tar
        if tar is None or tar.offset + size + PIECE_OVERHEAD_BYTES + END_BYTES > self._shard_bytes:
            tar = self._tar = self._next_shard()
        key = member_key(track, piece)
        text = json.dumps(notes, sort_keys=True, ensure_ascii=True).encode()
        tar.addfile(_member(f"{key}.json", len(text)), BytesIO(text))
        offset = tar.offset + tarfile.BLOCKSIZE
        tar.addfile(_member(f"{key}{self._extension}", size), audio)
        return {"shard": self._shard, "member": f"{key}{self._extension}", "offset": offset, "member_bytes": size}

    def finish(self) -> list[str]:
        """Complete the shards, which take their names; return these."""
        self._close_shard()
        for name, file in self._unfinished.items():
            take_name(file, self._folder / name)
        return list(self._unfinished)

    def _next_shard(self) -> tarfile.TarFile:
        self._close_shard()
        number = len(self._unfinished)
        self._shard = f"{self._name}.tar" if not number else f"{self._name}-{number:03d}.tar"
        file = self._unfinished[self._shard] = open_beside(self._folder / self._shard)
        # The oldest format holds no access times, owners and the like.
        return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def _close_shard(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def member_key(track: str, piece: int) -> str:
    """Return WebDataset's key of a piece: unique, and without dots, because WebDataset would cut it there."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", track)[-40:]
    digest = hashlib.sha256(track.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{readable}-{digest[:12]}-{piece:04d}"


def _member(name: str, size: int) -> tarfile.TarInfo:
    # A new TarInfo has time 0, owner 0 and no names of users.
    member = tarfile.TarInfo(name)
    member.size = size
    return member
