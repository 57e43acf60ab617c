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

from spectrostream.bitstream import (
    CHUNK_FRAMES,
    BitstreamError,
    Header,
    read_bitstream,
    read_header,
    write_bitstream,
)

HEADER_BYTES = 45


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


def written(codes: Tensor, bits: int = 10) -> bytes:
    stream = io.BytesIO()
    write_bitstream(stream, header_for(codes, bits), codes)
    return stream.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    levels=st.integers(1, 64),
    frames=st.integers(0, 50),
    bits=st.integers(1, 16),
    seed=st.integers(0, 2**31),
)
def test_codes_and_header_come_back(levels: int, frames: int, bits: int, seed: int) -> None:
    codes = random_codes(levels, frames, bits, seed)
    content = written(codes, bits)
    header, read = read_bitstream(io.BytesIO(content))
    assert header == header_for(codes, bits)
    assert read.dtype == torch.int64
    assert torch.equal(read, codes)
    assert len(content) == header.file_bytes


@pytest.mark.parametrize("frames", [0, 1, CHUNK_FRAMES - 1, CHUNK_FRAMES, CHUNK_FRAMES + 1, 2 * CHUNK_FRAMES, 777])
def test_the_size_formula_holds_around_chunk_borders(frames: int) -> None:
    codes = random_codes(3, frames, bits=7)
    content = written(codes, bits=7)
    assert len(content) == header_for(codes, bits=7).file_bytes
    assert torch.equal(read_bitstream(io.BytesIO(content))[1], codes)


def test_ten_seconds_at_16_levels_cost_4_kbps_and_51_bytes() -> None:
    # 25 tokens/s * 16 levels * 10 bits = 4 kbps = 5000 bytes; 45 bytes of header, 6 of chunk framing
    assert header_for(random_codes(16, 250)).file_bytes == 5000 + HEADER_BYTES + 6


def test_indices_are_frame_major_least_significant_bit_first() -> None:
    # frames (1, 2), (3, 0) of 4 bits: nibbles 1, 2, 3, 0
    content = written(torch.tensor([[1, 3], [2, 0]]), bits=4)
    assert content[HEADER_BYTES : HEADER_BYTES + 4] == b"\x02\x00\x21\x03"


def test_the_header_has_its_documented_bytes() -> None:
    content = written(torch.tensor([[5, 6, 7]]))
    assert content[:8] == b"SPS1" + (1).to_bytes(2, "little") + (45).to_bytes(2, "little")
    assert content[8:16] == bytes.fromhex("0123456789abcdef")
    numbers = [(16, 4, 48000), (20, 2, 2), (22, 8, 5760), (30, 2, 1), (32, 1, 10), (33, 8, 3)]
    for offset, size, value in numbers:
        assert int.from_bytes(content[offset : offset + size], "little") == value


def test_every_flipped_bit_is_detected() -> None:
    content = written(random_codes(3, 5))
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF" + bytes(100), "byte 0: magic is b'RIFF'; expected b'SPS1'"),
        (b"SPS1\x02\x00\x2d\x00" + bytes(100), "byte 4: format version is 2; expected 1"),
        (b"SPS1\x01\x00\xff\xff" + bytes(100), "byte 6: header length is 65535; expected 45..4096"),
        (b"SPS1\x01\x00\x00\x00" + bytes(100), "byte 6: header length is 0; expected 45..4096"),
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


def test_a_hostile_header_with_a_valid_checksum_allocates_nothing() -> None:
    claim = replace(header_for(random_codes(1, 1)), levels=1024, bits_per_index=16, frames=2**62, samples=2**62)
    # The writer refuses such a header; take the one it makes for fewer frames and exchange the count.
    stream = io.BytesIO()
    empty = replace(claim, frames=0)
    write_bitstream(stream, empty, torch.zeros(1024, 0, dtype=torch.int64))
    content = with_valid_checksum(stream.getvalue()[:33] + claim.frames.to_bytes(8, "little"))
    hostile = CountingStream(content + b"\xfa\x00" + bytes(1000))
    with pytest.raises(BitstreamError, match=r"the data end here; expected 512000 bytes of indices from byte 47 on"):
        read_bitstream(hostile)
    assert hostile.largest <= 512_000
    assert read_header(io.BytesIO(content)) == claim


def with_valid_checksum(header: bytes) -> bytes:
    return header + zlib.crc32(header).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("offset", "size", "value", "message"),
    [
        (16, 4, 0, "byte 16: sample_rate is 0; expected 1..1000000"),
        (20, 2, 0, "byte 20: channels is 0"),
        (22, 8, 2**64 - 1, "byte 22: samples is 18446744073709551615"),
        (30, 2, 65535, "byte 30: levels is 65535; expected 1..1024"),
        (32, 1, 17, "byte 32: bits_per_index is 17; expected 1..16"),
        (33, 8, 2**63, "byte 33: frames is 9223372036854775808"),
    ],
)
def test_a_header_field_out_of_range_is_named_even_if_the_checksum_is_right(
    offset: int, size: int, value: int, message: str
) -> None:
    content = written(random_codes(1, 1))[: HEADER_BYTES - 4]
    changed = content[:offset] + value.to_bytes(size, "little") + content[offset + size :]
    with pytest.raises(BitstreamError, match=message):
        read_header(io.BytesIO(with_valid_checksum(changed)))


@pytest.mark.parametrize("frames", [0, 6, 251])
def test_a_chunk_that_claims_no_frame_or_too_many_is_an_error(frames: int) -> None:
    content = bytearray(written(random_codes(1, 5)))
    content[HEADER_BYTES : HEADER_BYTES + 2] = frames.to_bytes(2, "little")
    with pytest.raises(BitstreamError, match=f"byte 45: the chunk claims {frames} frames; expected 1..5"):
        read_bitstream(io.BytesIO(content))


def test_a_longer_header_of_the_same_version_is_read() -> None:
    codes = random_codes(2, 4)
    content = written(codes)
    longer = content[:6] + (HEADER_BYTES + 3).to_bytes(2, "little") + content[8 : HEADER_BYTES - 4] + b"new"
    header, read = read_bitstream(io.BytesIO(with_valid_checksum(longer) + content[HEADER_BYTES:]))
    assert header == header_for(codes)
    assert torch.equal(read, codes)


@pytest.mark.parametrize("index", [-1, 1024])
def test_an_index_out_of_range_is_named_and_nothing_is_written(tmp_path: Path, index: int) -> None:
    codes = random_codes(2, 4)
    codes[1, 2] = index
    with pytest.raises(BitstreamError, match=rf"codes\[1, 2\] is {index}; expected 0\.\.1023 \(10 bits per index\)"):
        write_bitstream(tmp_path / "song.sps", header_for(codes), codes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codes", [torch.zeros(3, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int32)])
def test_codes_that_do_not_fit_the_header_are_refused(codes: Tensor) -> None:
    header = header_for(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(BitstreamError, match=r"the header expects torch.int64 \[2, 4\]"):
        write_bitstream(io.BytesIO(), header, codes)


def test_a_configuration_hash_of_another_length_is_refused() -> None:
    with pytest.raises(BitstreamError, match="configuration_hash has 3 bytes; expected 8"):
        replace(header_for(random_codes(1, 1)), configuration_hash=b"abc")


def test_files_round_trip_and_must_end_after_the_last_chunk(tmp_path: Path) -> None:
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
