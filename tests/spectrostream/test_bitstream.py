import io
import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream.bitstream.files import (
    CHUNK_FRAMES,
    BitstreamError,
    Header,
    read_bitstream,
    read_header,
    write_bitstream,
)

HEADER_BYTES = 30
CHUNK_OPENING_BYTES = 18
END_BYTES = 18


def header_for(codes: Tensor, bits: int = 10) -> Header:
    levels, frames = codes.shape
    return Header(
        configuration_hash=b"\x01\x23\x45\x67\x89\xab\xcd\xef",
        sample_rate=48000,
        channels=2,
        samples=frames * 1920,
        levels=levels,
        bits_per_index=bits,
        frames=frames,
    )


def random_codes(levels: int, frames: int, bits: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(2**bits, (levels, frames), generator=torch.Generator().manual_seed(seed))


def written(codes: Tensor, bits: int = 10, chunk_frames: int = CHUNK_FRAMES) -> bytes:
    stream = io.BytesIO()
    write_bitstream(stream, header_for(codes, bits), codes, chunk_frames=chunk_frames)
    return stream.getvalue()


def with_valid_checksum(content: bytes) -> bytes:
    return content + zlib.crc32(content).to_bytes(4, "little")


def changed(content: bytes, start: int, end: int, offset: int, value: bytes) -> bytes:
    """`content` with `value` at `offset`, and the checksum in the last 4 bytes of start..end made right again."""
    content = content[:offset] + value + content[offset + len(value) :]
    return content[:start] + with_valid_checksum(content[start : end - 4]) + content[end:]


@settings(max_examples=60, deadline=None)
@given(
    levels=st.integers(1, 64),
    frames=st.integers(0, 50),
    bits=st.integers(1, 16),
    chunk_frames=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
def test_codes_and_header_come_back(levels: int, frames: int, bits: int, chunk_frames: int, seed: int) -> None:
    codes = random_codes(levels, frames, bits, seed)
    content = written(codes, bits, chunk_frames)
    header, read = read_bitstream(io.BytesIO(content))
    assert header == read_header(io.BytesIO(content)) == header_for(codes, bits)
    assert read.dtype == torch.int64
    assert torch.equal(read, codes)
    if chunk_frames >= frames:
        assert len(content) == header.file_bytes


@pytest.mark.parametrize("frames", [0, 1, CHUNK_FRAMES - 1, CHUNK_FRAMES, CHUNK_FRAMES + 1, 2 * CHUNK_FRAMES, 777])
def test_the_size_formula_holds_around_chunk_borders(frames: int) -> None:
    codes = random_codes(3, frames, bits=7)
    content = written(codes, bits=7)
    assert len(content) == header_for(codes, bits=7).file_bytes
    assert torch.equal(read_bitstream(io.BytesIO(content))[1], codes)


def test_ten_seconds_at_16_levels_cost_4_kbps_and_70_bytes() -> None:
    # 25 tokens/s * 16 levels * 10 bits = 4 kbps = 5000 bytes; header, one chunk's framing, end record
    assert header_for(random_codes(16, 250)).file_bytes == 5000 + HEADER_BYTES + CHUNK_OPENING_BYTES + 4 + END_BYTES


def test_every_byte_of_a_small_file_is_as_documented() -> None:
    # frames (1, 2), (3, 0) of 4 bits, frame-major, least significant bit first: nibbles 1, 2, 3, 0
    content = written(torch.tensor([[1, 3], [2, 0]]), bits=4)
    header = b"SPS1" + bytes.fromhex("0100 1e00 0123456789abcdef 80bb0000 0200 0200 04 00")
    opening = b"\xa5P" + bytes.fromhex("00000000 02000000 02000000")
    end = b"\xa5E" + bytes.fromhex("02000000 000f000000000000")
    chunk = with_valid_checksum(with_valid_checksum(opening) + b"\x21\x03")
    assert content == with_valid_checksum(header) + chunk + with_valid_checksum(end)


def test_every_flipped_bit_is_detected() -> None:
    content = written(random_codes(3, 5), chunk_frames=3)
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(BitstreamError, match=r"^byte \d+: "):
                read_bitstream(io.BytesIO(damaged))


def test_every_truncation_is_detected_and_the_message_names_the_end() -> None:
    content = written(random_codes(2, CHUNK_FRAMES + 3, bits=3), bits=3)
    for length in range(len(content)):
        with pytest.raises(BitstreamError, match=f"^byte {length}: the data end here"):
            read_bitstream(io.BytesIO(content[:length]))
        with pytest.raises(BitstreamError, match=r"the data end here|truncated"):
            read_header(io.BytesIO(content[:length]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF" + bytes(100), "byte 0: magic is b'RIFF'; expected b'SPS1'"),
        (b"SPS1\x02\x00\x2d\x00" + bytes(100), "byte 4: format version is 2; expected 1"),
        (b"SPS1\x01\x00\xff\xff" + bytes(100), "byte 6: header length is 65535; expected 30..4096"),
        (b"SPS1\x01\x00\x00\x00" + bytes(100), "byte 6: header length is 0; expected 30..4096"),
    ],
)
def test_a_foreign_file_is_named(content: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        read_header(io.BytesIO(content))


class CountingStream(io.BytesIO):
    """Remembers the largest number of bytes asked for at once."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0
        self.largest = max(self.largest, size)
        return super().read(size)


def test_a_hostile_file_with_valid_checksums_allocates_nothing() -> None:
    header = replace(header_for(random_codes(1, 1)), levels=1024, bits_per_index=16, frames=0)
    stream = io.BytesIO()
    write_bitstream(stream, header, torch.zeros(1024, 0, dtype=torch.int64))
    content = stream.getvalue()
    opening = b"\xa5P" + bytes(4) + (250).to_bytes(4, "little") + (512_000).to_bytes(4, "little")
    hostile = CountingStream(content[:HEADER_BYTES] + with_valid_checksum(opening) + bytes(1000))
    with pytest.raises(BitstreamError, match=r"the data end here; expected 512000 bytes of indices from byte 48 on"):
        read_bitstream(hostile)
    assert hostile.largest <= 512_000
    claim = changed(content, 30, 48, 32, (2**32 - 1).to_bytes(4, "little") + (2**62).to_bytes(8, "little"))
    assert read_header(io.BytesIO(claim)) == replace(header, frames=2**32 - 1, samples=2**62)
    with pytest.raises(BitstreamError, match="4294967295 frames are missing"):
        read_bitstream(io.BytesIO(claim))
    with pytest.raises(BitstreamError, match="no more than 0 are concealed"):
        read_bitstream(io.BytesIO(claim), conceal=True)


@pytest.mark.parametrize(
    ("offset", "size", "value", "message"),
    [
        (16, 4, 0, "byte 16: sample_rate is 0; expected 1..1000000"),
        (20, 2, 0, "byte 20: channels is 0"),
        (22, 2, 65535, "byte 22: levels is 65535; expected 1..1024"),
        (24, 1, 17, "byte 24: bits_per_index is 17; expected 1..16"),
        (25, 1, 2, "byte 25: flags are 2; expected 0 or 1"),
    ],
)
def test_a_header_field_out_of_range_is_named_even_if_the_checksum_is_right(
    offset: int, size: int, value: int, message: str
) -> None:
    content = changed(written(random_codes(1, 1)), 0, HEADER_BYTES, offset, value.to_bytes(size, "little"))
    with pytest.raises(BitstreamError, match=message):
        read_header(io.BytesIO(content))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (36, 0, "byte 36: the chunk claims 0 frames; expected 1..250"),
        (36, 251, "byte 36: the chunk claims 251 frames; expected 1..250"),
        (32, 2**32 - 3, r"byte 32: the chunk begins at frame 4294967293; allowed: 4294967290 with 5 frames"),
        (32, 1, "byte 32: the chunk claims 1 frames before it; expected 0: 1 frames are missing"),
        (40, 8, r"byte 40: the chunk claims 8 bytes of indices; expected 7\.\.7"),
        (40, 2**32 - 1, "byte 40: the chunk claims 4294967295 bytes of indices"),
    ],
)
def test_a_chunk_opening_out_of_range_is_named_even_if_its_checksum_is_right(
    offset: int, value: int, message: str
) -> None:
    content = changed(written(random_codes(1, 5)), 30, 48, offset, value.to_bytes(4, "little"))
    with pytest.raises(BitstreamError, match=message):
        read_bitstream(io.BytesIO(content))


def test_an_end_record_out_of_range_is_named() -> None:
    content = written(random_codes(1, 5))
    start = len(content) - END_BYTES
    endless = changed(content, start, len(content), start + 6, (2**63).to_bytes(8, "little"))
    for read in (read_header, read_bitstream):
        with pytest.raises(BitstreamError, match=f"byte {start + 6}: samples is 9223372036854775808"):
            read(io.BytesIO(endless))
    short = changed(content, start, len(content), start + 2, (3).to_bytes(4, "little"))
    with pytest.raises(BitstreamError, match=f"byte {start + 2}: the end record claims 3 frames before it; expected 5"):
        read_bitstream(io.BytesIO(short))


def test_a_payload_under_another_opening_is_detected() -> None:
    content = bytearray(written(random_codes(2, 6), chunk_frames=3))
    size = CHUNK_OPENING_BYTES + 8 + 4
    content[48:56], content[48 + size : 56 + size] = content[48 + size : 56 + size], content[48:56]
    with pytest.raises(BitstreamError, match="chunk checksum"):
        read_bitstream(io.BytesIO(content))


def test_a_longer_header_of_the_same_version_is_read() -> None:
    codes = random_codes(2, 4)
    content = written(codes)
    longer = content[:6] + (HEADER_BYTES + 3).to_bytes(2, "little") + content[8 : HEADER_BYTES - 4] + b"new"
    header, read = read_bitstream(io.BytesIO(with_valid_checksum(longer) + content[HEADER_BYTES:]))
    assert header == header_for(codes)
    assert torch.equal(read, codes)


@pytest.mark.parametrize("index", [-1, -2, 1024])
def test_an_index_out_of_range_is_named_and_nothing_is_written(tmp_path: Path, index: int) -> None:
    codes = random_codes(2, 4)
    codes[1, 2] = index
    with pytest.raises(BitstreamError, match=rf"codes\[1, 2\] is {index}; expected 0\.\.1023 \(10 bits per index\)"):
        write_bitstream(tmp_path / "song.sps", header_for(codes), codes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "codes", [torch.zeros(3, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2).long()]
)
def test_codes_that_do_not_fit_the_header_are_refused(codes: Tensor) -> None:
    header = header_for(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(BitstreamError, match=r"the header expects torch.int64 \[2, frames\]"):
        write_bitstream(io.BytesIO(), header, codes)


def test_fewer_frames_than_the_header_says_are_refused() -> None:
    header = header_for(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(BitstreamError, match=r"\[2, 3\]; the header expects torch.int64 \[2, 4\]"):
        write_bitstream(io.BytesIO(), header, torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("configuration_hash", b"abc", "configuration_hash has 3 bytes; expected 8"),
        ("levels", 0, r"levels is 0; expected 1\.\.1024"),
        ("samples", -1, "samples is -1; expected 0"),
        ("frames", 2**32, "frames is 4294967296; expected 0..4294967295"),
    ],
)
def test_a_header_that_no_file_can_hold_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        replace(header_for(random_codes(1, 1)), **{field: value})


def test_files_round_trip_and_must_end_after_the_end_record(tmp_path: Path) -> None:
    path = tmp_path / "song.sps"
    codes = random_codes(16, 60)
    write_bitstream(str(path), header_for(codes), codes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.sps"]
    assert read_header(path) == header_for(codes)
    assert torch.equal(read_bitstream(path)[1], codes)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BitstreamError, match=f"byte {size}: expected the end of the file after 60 frames"):
        read_bitstream(path)
    with pytest.raises(BitstreamError, match="truncated or damaged at its end"):
        read_header(path)


def test_paths_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    codes = random_codes(1, 1)
    with pytest.raises(BitstreamError, match=r"missing\.sps cannot be read: No such file"):
        read_bitstream(tmp_path / "missing.sps")
    with pytest.raises(BitstreamError, match=r"song\.sps cannot be written: No such file"):
        write_bitstream(tmp_path / "no-folder" / "song.sps", header_for(codes), codes)


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "song.sps"
    path.write_bytes(b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    codes = random_codes(1, 3)
    with pytest.raises(OSError, match="No space left"):
        write_bitstream(path, header_for(codes), codes)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.sps"]


def test_two_files_in_one_stream_are_read_one_after_the_other() -> None:
    first, second = random_codes(2, 3, seed=1), random_codes(5, 7, seed=2)
    stream = io.BytesIO(written(first) + written(second))
    assert torch.equal(read_bitstream(stream)[1], first)
    assert torch.equal(read_bitstream(stream)[1], second)


class OneByteAtATime(io.BytesIO):
    """An unbuffered source such as a socket."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 1))


def test_a_source_with_short_reads_is_read_whole() -> None:
    codes = random_codes(4, 9)
    assert torch.equal(read_bitstream(OneByteAtATime(written(codes)))[1], codes)
