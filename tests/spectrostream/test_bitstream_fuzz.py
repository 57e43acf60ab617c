"""Thousands of mutated files; `python -m benchmarks.fuzz_bitstream` does a million with coverage guidance."""

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_bitstream import examine, seed_files, with_mended_checksums
from spectrostream.bitstream.files import BitstreamError, read_bitstream

SEEDS = seed_files()
INTERESTING = (
    b"\0",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xa5",
    b"\xa5P",
    b"\xa5R",
    b"\xa5E",
    b"\x01",
    b"\x80",
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One to four changes: overwrite, insert, delete, repeat, or cut off."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        size = chance.choice((1, 1, 2, 4, 18, 60))
        new = chance.choice((*INTERESTING, chance.randbytes(size)))
        content = chance.choice(
            (
                content[:at] + new + content[at + len(new) :],
                content[:at] + new + content[at + len(new) :],
                content[:at] + new + content[at:],
                content[:at] + content[at + size :],
                content[: at + size] + content[at:],
                content[:at],
            )
        )
    return content


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("is_mended", [False, True])
def test_mutated_files_are_read_or_refused(name: str, is_mended: bool) -> None:
    chance = random.Random(name)
    for _ in range(250):
        content = mutated(SEEDS[name], chance)
        examine(with_mended_checksums(content) if is_mended else content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_after_an_opening_are_read_or_refused(content: bytes, is_mended: bool) -> None:
    start = SEEDS["coded"][:30]
    examine(with_mended_checksums(start + content) if is_mended else start + content)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    examine(content)


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_are_valid_and_need_no_mending(name: str) -> None:
    content = SEEDS[name]
    assert with_mended_checksums(content) == content
    examine(content)
    conceal = "lost" in name
    header, codes = read_bitstream(io.BytesIO(content), conceal=conceal)
    assert list(codes.shape) == [header.levels, header.frames]
    assert (codes == -1).any() == conceal
    assert (b"\xa5R" in content) == name.startswith("coded")


@pytest.mark.parametrize("name", SEEDS)
def test_mending_makes_all_checksums_of_a_file_right_again(name: str) -> None:
    content = bytearray(SEEDS[name])
    content[8:16] = b"otherone"
    for place in range(8, 16):  # the hash alone, so that the file stays valid
        content[place] ^= 0x55
    with pytest.raises(BitstreamError, match="header checksum"):
        read_bitstream(io.BytesIO(content))
    mended = with_mended_checksums(bytes(content))
    header, _ = read_bitstream(io.BytesIO(mended), conceal=True)
    assert header.configuration_hash == bytes(content[8:16])


@pytest.mark.parametrize("fault", ["KeyError", "negative codes"])
def test_examination_notices_a_reader_that_fails(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def broken(payload: bytes, frames: int, levels: int, bits: int) -> object:
        if fault == "KeyError":
            raise KeyError(fault)
        return -original(payload, frames, levels, bits) - 1

    from spectrostream.bitstream import reader as bitstream_reader

    original = bitstream_reader.unpack_indices
    monkeypatch.setattr(bitstream_reader, "unpack_indices", broken)
    with pytest.raises((KeyError, AssertionError)):
        examine(SEEDS["packed"])
