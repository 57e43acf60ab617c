from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_ins import tones, wad

from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.wad import midi_lumps

SONG, OTHER = tones([69]), tones([60, 62])
quietly = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, content: bytes) -> Path:
    path = folder / "music.wad"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("magic", [b"IWAD", b"PWAD"])
def test_midi_lumps_come_by_name_and_nothing_else(tmp_path: Path, magic: bytes) -> None:
    lumps = [
        ("MAP01", b"xx"),
        ("D_ONE", SONG),
        ("D_MUS", b"MUS\x1a"),
        ("D_EMPTY", b""),
        ("SONG", SONG),
        ("D_TWO", OTHER),
    ]
    assert midi_lumps(written(tmp_path, wad(lumps, magic))) == {"D_ONE": SONG, "D_TWO": OTHER}


def test_the_later_of_two_lumps_with_one_name_counts(tmp_path: Path) -> None:
    assert midi_lumps(written(tmp_path, wad([("D_ONE", SONG), ("D_ONE", OTHER)]))) == {"D_ONE": OTHER}


def test_lumps_may_share_bytes(tmp_path: Path) -> None:
    content = bytearray(wad([("D_ONE", SONG), ("D_TWO", SONG)]))
    struct.pack_into("<I", content, len(content) - 16, 12)  # the second entry points at the first lump
    assert midi_lumps(written(tmp_path, bytes(content))) == {"D_ONE": SONG, "D_TWO": SONG}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (4, -1, "directory of -1 entries"),
        (4, 2**31 - 1, "directory of 2147483647 entries"),
        (4, 3, "directory of 3 entries"),
        (8, -16, "from byte -16"),
        (8, 10**6, "from byte 1000000"),
        (-32, 10**6, "lump 'D_ONE'"),
        (-32, -5, "lump 'D_ONE' of"),
        (-28, 2**31 - 1, "lump 'D_ONE' of 2147483647 bytes"),
        (-28, -1, "lump 'D_ONE' of -1 bytes"),
    ],
)
def test_what_points_outside_the_file_is_said(tmp_path: Path, place: int, value: int, said: str) -> None:
    content = bytearray(wad([("D_ONE", SONG), ("D_TWO", OTHER)]))
    struct.pack_into("<i", content, place % len(content), value)
    with pytest.raises(RecipeError, match=said):
        midi_lumps(written(tmp_path, bytes(content)))


def test_an_entry_that_is_not_music_may_be_broken(tmp_path: Path) -> None:
    content = bytearray(wad([("D_ONE", SONG), ("TEXTURE", b"x")]))
    struct.pack_into("<i", content, len(content) - 16, 10**6)
    assert midi_lumps(written(tmp_path, bytes(content))) == {"D_ONE": SONG}


@pytest.mark.parametrize("name", ["D_/../x", "D_..", "D_\\x", "D_ x"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be a file's name"):
        midi_lumps(written(tmp_path, wad([(name, SONG)])))


@pytest.mark.parametrize("content", [b"", b"IWAD", b"ZWAD" + bytes(8), b"\x7fELF" + bytes(100)])
def test_what_is_no_wad_is_said(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RecipeError, match="is no WAD file"):
        midi_lumps(written(tmp_path, content))


def test_a_missing_wad_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.wad.*No such file"):
        midi_lumps(tmp_path / "none.wad")


@quietly
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 10**6))
def test_mutated_wads_give_lumps_or_a_wad_error(tmp_path: Path, position: int, value: int, cut: int) -> None:
    content = bytearray(wad([("D_ONE", SONG), ("D_TWO", OTHER)]))
    directory = struct.unpack_from("<I", content, 8)[0]
    # In the header and the directory, where it matters.
    places = [*range(12), *range(directory, len(content))]
    content[places[position % len(places)]] = value
    path = written(tmp_path, bytes(content[: len(content) - (cut % 40 if cut % 3 == 0 else 0)]))
    with suppress(RecipeError):
        lumps = midi_lumps(path)
        assert all(lump.startswith(b"MThd") and lump in bytes(content) for lump in lumps.values())


@quietly
@given(content=st.binary(max_size=200))
def test_any_bytes_after_the_magic_give_lumps_or_a_wad_error(tmp_path: Path, content: bytes) -> None:
    with suppress(RecipeError):
        assert isinstance(midi_lumps(written(tmp_path, b"PWAD" + content)), dict)
