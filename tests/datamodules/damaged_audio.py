"""Real music of half a second in eight formats, and damage done to it: by hypothesis, or by a number.

    python damaged_audio.py FOLDER FIRST LAST

reads the files of so many numbers within little memory and little time, and ends with 0 where each one was audio or an
`AudioFileError`. FOLDER is for the damaged files; the last line of the output is what was being read.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch

from datamodules.audio.blocks import AudioReader
from datamodules.audio.files import read_audio, verify_ends
from datamodules.audio.opening import AudioFileError
from datamodules.corpora.folder_corpus import demo_corpus_root
from datamodules.scanning.measuring import measure

# name: (libsndfile's format, subtype)
FORMATS = {
    "wav16": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wavfloat": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
}
KINDS = ("flip", "cut off", "cut out", "insert", "number", "overwrite", "swap")
# What breaks arithmetic: the edges of whole numbers of 1, 2, 4 and 8 bytes.
NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)
_HEADER_BYTES = 256
_LONGEST_SECONDS = 20
_MEMORY_BYTES = 400 * 2**20
_PIECE = 9000


class Edit(NamedTuple):
    """One damage.

    place: from 0 to 1; of the header where `in_header`, else of the file. size: bytes. content: new ones. number,
    width, order: what a number field becomes. other: second place of a swap.
    """

    kind: str
    in_header: bool
    place: float
    size: int
    content: bytes
    number: int
    width: int
    order: str
    other: float


@cache
def music(name: str) -> bytes:
    """Half a second of the demo corpus, coded."""
    frames, rate = soundfile.read(
        demo_corpus_root() / "finalstep_saber.flac", frames=24000, start=48000, dtype="float32", always_2d=True
    )
    file = BytesIO()
    container, subtype = FORMATS[name]
    soundfile.write(file, frames, rate, format=container, subtype=subtype)
    return file.getvalue()


def damaged(content: bytes, edits: Sequence[Edit]) -> bytes:
    """The content with all the damage."""
    buffer = bytearray(content)
    for edit in edits:
        _apply(buffer, edit)
    return bytes(buffer)


def _apply(buffer: bytearray, edit: Edit) -> None:
    if not buffer:
        return
    reach = min(_HEADER_BYTES, len(buffer)) if edit.in_header else len(buffer)
    at = int(edit.place * (reach - 1))
    match edit.kind:
        case "flip":
            buffer[at] ^= 1 << edit.size % 8
        case "cut off":
            del buffer[at:]
        case "cut out":
            del buffer[at : at + edit.size]
        case "insert":
            buffer[at:at] = edit.content
        case "number":
            field = (edit.number % 2 ** (8 * edit.width)).to_bytes(edit.width, edit.order)  # type: ignore[arg-type]
            buffer[at : at + edit.width] = field
        case "overwrite":
            buffer[at : at + len(edit.content)] = edit.content
        case "swap":
            there = int(edit.other * (len(buffer) - 1))
            one, two = bytes(buffer[at : at + edit.size]), bytes(buffer[there : there + edit.size])
            buffer[at : at + len(two)] = two
            buffer[there : there + len(one)] = one


def with_ogg_checksums(content: bytes) -> bytes:
    """Every Ogg page with the checksum of what it now holds; without it nearly all damage is refused unseen."""
    buffer = bytearray(content)
    at = buffer.find(b"OggS")
    while at >= 0 and at + 27 <= len(buffer):
        segments = buffer[at + 26]
        end = at + 27 + segments + sum(buffer[at + 27 : at + 27 + segments])
        buffer[at + 22 : at + 26] = bytes(4)
        buffer[at + 22 : at + 26] = _ogg_checksum(buffer[at:end]).to_bytes(4, "little")
        at = buffer.find(b"OggS", at + 27)
    return bytes(buffer)


def _ogg_checksum(page: bytes) -> int:
    checksum = 0
    for byte in page:
        checksum = (checksum << 8 & 0xFFFFFFFF) ^ _checksums()[checksum >> 24 ^ byte]
    return checksum


@cache
def _checksums() -> tuple[int, ...]:
    """Of single bytes: polynomial 0x04C11DB7, highest bit first (RFC 3533)."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) & 0xFFFFFFFF ^ (0x04C11DB7 if value & 2**31 else 0)
        table.append(value)
    return tuple(table)


def outcomes(path: Path) -> tuple[str, ...]:
    """What becomes of a file in all four readers, "audio" or why not; AssertionError where a promise is not kept."""
    return tuple(_outcome(read, path) for read in (_ends, _whole, _in_pieces, _measured))


def _outcome(read: Callable[[Path], None], path: Path) -> str:
    try:
        read(path)
    except AudioFileError as error:
        return error.reason
    return "audio"


def _ends(path: Path) -> None:
    info = verify_ends(path)
    assert info.frames > 0
    assert info.sample_rate > 0


def _whole(path: Path) -> None:
    audio = read_audio(path)
    info = verify_ends(path)
    assert audio.shape == (2, -(-info.frames * 48000 // info.sample_rate))
    assert audio.isfinite().all()
    _require_part(path, audio)


def _require_part(path: Path, audio: torch.Tensor) -> None:
    start, length = audio.shape[1] // 3, audio.shape[1] // 2
    if length:
        part = read_audio(path, start_seconds=start / 48000, duration_seconds=length / 48000)
        assert part.shape == (2, length)


def _in_pieces(path: Path) -> None:
    with AudioReader(path) as reader:
        pieces = list(reader.blocks(_PIECE))
        assert all(piece.shape == (2, _PIECE) for piece in pieces[:-1])
        assert sum(piece.shape[1] for piece in pieces) == reader.samples
    whole = read_audio(path)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5 * max(1.0, float(whole.abs().max())), rtol=0)


def _measured(path: Path) -> None:
    measurement = measure([path])
    assert measurement.frames == verify_ends(path).frames
    assert len(measurement.content_hash) == 32


# ---- by a number, within limits


def edits_of(number: int) -> tuple[str, list[Edit]]:
    """A format and one to four edits, the same ones for the same number."""
    chance = random.Random(number)
    return chance.choice(list(FORMATS)), [_random_edit(chance) for _ in range(chance.randint(1, 4))]


def _random_edit(chance: random.Random) -> Edit:
    return Edit(
        kind=chance.choice(KINDS),
        in_header=chance.random() < 0.6,
        place=chance.random(),
        size=chance.randint(1, 2000),
        content=chance.randbytes(chance.randint(1, 40)),
        number=chance.choice(NUMBERS),
        width=chance.choice((1, 2, 4, 8)),
        order=chance.choice(("little", "big")),
        other=chance.random(),
    )


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(folder: Path, first: int, last: int) -> None:
    """Ends with a traceback, or by a signal, where the promise does not hold."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    path = folder / "music.wav"
    path.write_bytes(music("wav16"))
    assert set(outcomes(path)) == {"audio"}  # and all libraries are loaded
    contents = {name: music(name) for name in FORMATS}
    _limit_memory()
    for number in range(first, last):
        name, edits = edits_of(number)
        content = damaged(contents[name], edits)
        path.write_bytes(with_ogg_checksums(content) if name == "ogg" and number % 2 else content)
        print(number, name, edits, flush=True)  # noqa: T201
        signal.alarm(_LONGEST_SECONDS)
        outcomes(path)
    signal.alarm(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
