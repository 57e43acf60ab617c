import io
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream.bitstream.files import (
    BitstreamError,
    BitstreamReader,
    BitstreamWriter,
    FrequencyTables,
    StreamHeader,
    coded_size,
    read_bitstream,
    repack,
)
from spectrostream.bitstream.format import with_checksum

HEADER_BYTES = 30
HEADER = StreamHeader(bytes(8), sample_rate=48000, channels=2, levels=3, bits_per_index=6)


def skewed_codes(levels: int, frames: int, bits: int, seed: int = 0, power: float = 3.0) -> Tensor:
    """Low indices are frequent; the higher the power, the more."""
    uniform = torch.rand(levels, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (uniform**power * 2**bits).long()


def coded(codes: Tensor, bits: int, tables: FrequencyTables | None, chunk_frames: int = 250) -> bytes:
    stream = io.BytesIO()
    header = replace(HEADER, levels=len(codes), bits_per_index=bits)
    with BitstreamWriter(stream, header, chunk_frames=chunk_frames, tables=tables) as writer:
        writer.write(codes)
        writer.close(samples=0)
    return stream.getvalue()


def read(content: bytes) -> Tensor:
    return read_bitstream(io.BytesIO(content))[1]


@st.composite
def tables_and_indices(draw: st.DrawFn) -> tuple[FrequencyTables, np.ndarray]:
    levels, bits = draw(st.integers(1, 8)), draw(st.integers(1, 10))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = generator.integers(0, 16, (levels, 2**bits), dtype=np.uint8)
    if draw(st.booleans()):
        steps[draw(st.integers(0, levels - 1))] = draw(st.integers(0, 15))
    frames = draw(st.integers(1, 60))
    return FrequencyTables(steps), generator.integers(0, 2**bits, (frames, levels), dtype=np.int32)


@settings(max_examples=150, deadline=None)
@given(tables_and_indices())
def test_any_indices_come_back_under_any_table(case: tuple[FrequencyTables, np.ndarray]) -> None:
    tables, indices = case
    payload = tables.encode(indices)
    decoded = tables.decode(payload, len(indices))
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, indices)


@settings(max_examples=100, deadline=None)
@given(tables_and_indices())
def test_tables_come_back_from_their_bytes(case: tuple[FrequencyTables, np.ndarray]) -> None:
    tables, indices = case
    content = tables.to_bytes()
    flag_bytes = FrequencyTables.flag_bytes(tables.levels)
    flags, pairs = content[:flag_bytes], content[flag_bytes:]
    assert len(pairs) == FrequencyTables.step_bytes(flags, tables.levels, tables.bits_per_index)
    read_back = FrequencyTables.from_bytes(flags, pairs, tables.levels, tables.bits_per_index)
    assert np.array_equal(read_back.steps, tables.steps)
    assert read_back.encode(indices) == tables.encode(indices)


def test_the_payload_is_as_documented() -> None:
    """One level of two entries, worked out with the formula in whole numbers.

    2^5 slots; each entry has one, the other 30 are shared 8192 : 64, so entry 0 has 1 + 29 = 30 and entry 1 has 2.
    """
    tables = FrequencyTables(np.array([[15, 1]], np.uint8))
    state = 1 << 16
    words: list[int] = []
    for index in reversed([0, 1, 1, 1, 1, 1, 0]):
        frequency, start = [(30, 0), (2, 30)][index]
        if Fraction(state, frequency) >= 1 << 27:
            words.insert(0, state % 65536)
            state //= 65536
        state = (state // frequency) * 32 + state % frequency + start
    expected = state.to_bytes(4, "little") + b"".join(word.to_bytes(2, "little") for word in words)
    assert words
    assert tables.encode(np.array([[0, 1, 1, 1, 1, 1, 0]], np.int32).T) == expected


def test_the_size_is_the_information_and_at_most_four_bytes_and_a_word() -> None:
    tables = FrequencyTables(np.array([[15, 1], [7, 9]], np.uint8))
    # slots of 32: level 0 as above 30 and 2; level 1 has weights 512 : 1024, so 1 + 10 and 21
    shares = [[30 / 32, 2 / 32], [11 / 32, 21 / 32]]
    indices = np.random.default_rng(0).integers(0, 2, (2000, 2), dtype=np.int32)
    information = -sum(math.log2(shares[level][index]) for row in indices.tolist() for level, index in enumerate(row))
    size = 8 * len(tables.encode(indices))
    assert information <= size <= information * 1.001 + 48


def test_fitted_tables_come_close_to_the_entropy() -> None:
    codes = skewed_codes(4, 20_000, bits=8)
    size = coded_size(codes, 8, FrequencyTables.fit(codes, 8))
    entropy = 0.0
    for indices in codes:
        shares = indices.bincount(minlength=256).double() / codes.shape[1]
        entropy -= float((shares * shares.clamp_min(1e-12).log2()).sum()) * codes.shape[1]
    assert size.packed == codes.numel() * 8
    assert entropy <= size.coded <= 1.005 * entropy
    assert size.tables == 8 * (1 + 4 * 128 + 4)
    assert size.saved == size.packed - size.coded - size.tables > 0.12 * size.packed


def test_the_counted_size_is_the_size_of_the_file() -> None:
    codes = skewed_codes(3, 777, bits=6)
    tables = FrequencyTables.fit(codes, 6)
    size = coded_size(codes, 6, tables, chunk_frames=100)
    packed = coded(codes, 6, None, chunk_frames=100)
    assert 8 * (len(packed) - len(coded(codes, 6, tables, chunk_frames=100))) == size.saved > 0


def test_lost_frames_take_no_bits() -> None:
    codes = skewed_codes(3, 400, bits=6)
    tables = FrequencyTables.fit(codes, 6)
    torn = torch.cat([codes[:, :250], torch.full((3, 90), -1), codes[:, 250:]], dim=1)
    assert coded_size(torn, 6, tables) == coded_size(codes, 6, tables)


def test_a_size_needs_tables_for_these_codes() -> None:
    with pytest.raises(BitstreamError, match="are for 2 levels of 6 bits; expected 3 levels of 6 bits"):
        coded_size(skewed_codes(3, 9, bits=6), 6, FrequencyTables(np.ones((2, 64), np.uint8)))


def test_a_level_gets_a_table_only_where_it_pays() -> None:
    uniform = torch.arange(1024).repeat(4)[None]
    few = skewed_codes(1, 4096, bits=10, power=8.0)
    tables = FrequencyTables.fit(torch.cat([uniform, few]), 10)
    assert (tables.steps[0] == 1).all()
    assert (tables.steps[1] != 1).any()
    # The same skewed level for so short a time that its table would cost more than it saves.
    assert (FrequencyTables.fit(few[:, :100], 10).steps == 1).all()


def test_lost_frames_are_not_counted() -> None:
    codes = skewed_codes(3, 2000, bits=6)
    torn = torch.cat([codes, torch.full((3, 5000), -1)], dim=1)
    assert np.array_equal(FrequencyTables.fit(torn, 6).steps, FrequencyTables.fit(codes, 6).steps)


def test_codes_beyond_the_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codes\[1\] reach 64; allowed: 0\.\.63"):
        FrequencyTables.fit(torch.tensor([[63], [64]]), 6)


@settings(max_examples=40, deadline=None)
@given(
    levels=st.integers(1, 8),
    frames=st.integers(0, 120),
    bits=st.integers(1, 10),
    chunk_frames=st.integers(1, 100),
    power=st.sampled_from([1.0, 3.0, 10.0]),
)
def test_streams_of_all_kinds_of_codes_come_back_and_never_grow_by_more_than_the_tables(
    levels: int, frames: int, bits: int, chunk_frames: int, power: float
) -> None:
    codes = skewed_codes(levels, frames, bits, power=power)
    tables = FrequencyTables.fit(codes.repeat(1, 200), bits)
    content = coded(codes, bits, tables, chunk_frames)
    assert torch.equal(read(content), codes)
    packed = coded(codes, bits, None, chunk_frames)
    assert len(content) <= len(packed) + len(tables.to_bytes()) + 4


def test_constant_codes_stay_within_the_expansion_that_readers_accept() -> None:
    codes = torch.zeros(3, 500, dtype=torch.int64)
    tables = FrequencyTables.fit(codes, 6)
    assert torch.equal(read(coded(codes, 6, tables)), codes)


def test_repacking_keeps_the_tables_of_the_levels_kept() -> None:
    codes = skewed_codes(8, 600, bits=6)
    tables = FrequencyTables.fit(codes, 6)
    target = io.BytesIO()
    repack(io.BytesIO(coded(codes, 6, tables)), target, levels=3)
    assert target.getvalue() == coded(codes[:3], 6, tables.first(3))


def test_tables_for_other_codes_are_refused() -> None:
    tables = FrequencyTables(np.ones((3, 32), np.uint8))
    with pytest.raises(BitstreamError, match="are for 3 levels of 5 bits; expected 3 levels of 6 bits"):
        BitstreamWriter(io.BytesIO(), HEADER, tables=tables)


@pytest.mark.parametrize("steps", [np.full((1, 4), 16, np.uint8), np.ones((1, 3), np.uint8), np.ones((1, 4), np.int64)])
def test_steps_that_are_no_table_are_refused(steps: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 0\.\.15, 2\^n entries per level"):
        FrequencyTables(steps)


CODES = skewed_codes(3, 60, bits=6, power=6.0)
TABLES = FrequencyTables.fit(CODES.repeat(1, 200), 6)
CONTENT = coded(CODES, 6, TABLES, chunk_frames=20)
TABLE_BYTES = len(TABLES.to_bytes()) + 4


def with_header(levels: int, bits: int, content: bytes = b"") -> bytes:
    return StreamHeader(bytes(8), 48000, 2, levels, bits).opening_bytes(has_tables=True) + content


def test_every_flipped_bit_is_detected_and_costs_one_chunk_after_the_tables() -> None:
    for position in range(HEADER_BYTES, len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(BitstreamError, match=r"^byte \d+: "):
            read(bytes(damaged))
        if position >= HEADER_BYTES + TABLE_BYTES and position < len(CONTENT) - 18:
            _, codes = read_bitstream(io.BytesIO(damaged), conceal=True)
            assert torch.equal(codes[codes >= 0], CODES[codes >= 0])
            assert int((codes[0] < 0).sum()) == 20
        elif position < HEADER_BYTES + TABLE_BYTES:
            with pytest.raises(BitstreamError, match=r"frequency tables"):
                BitstreamReader(io.BytesIO(damaged), conceal=True)


def test_tables_too_large_for_a_reader_are_refused_before_they_are_read() -> None:
    with pytest.raises(BitstreamError, match="byte 25: 1024 levels of 16 bits have 67108864 table entries"):
        BitstreamReader(io.BytesIO(with_header(1024, 16, bytes(1000))))
    with pytest.raises(BitstreamError, match="entropy coding allows 262144: write them packed"):
        BitstreamWriter(
            io.BytesIO(),
            replace(HEADER, levels=9, bits_per_index=15),
            tables=FrequencyTables(np.ones((9, 2**15), "u1")),
        )


def test_truncated_tables_are_named() -> None:
    with pytest.raises(BitstreamError, match="byte 43: the data end here; expected 131072 bytes of frequency tables"):
        BitstreamReader(io.BytesIO(with_header(64, 12, b"\xff" * 8 + bytes(5))))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (bytes(10), "the state is 0; expected 65536 or more"),
        (b"\xff" * 10, r"the words end before index \d+|the state ends at"),
        (b"\xff" * 9, "9 bytes; expected a state of 4, then words of 2"),
        (
            TABLES.encode(CODES[:, :20].numpy().T.astype(np.int32)) + b"\0\0",
            "with 1 words left; expected 65536 with none",
        ),
    ],
)
def test_hostile_payloads_with_valid_checksums_are_refused(payload: bytes, message: str) -> None:
    opening = b"\xa5R" + bytes(4) + (20).to_bytes(4, "little") + len(payload).to_bytes(4, "little")
    start = HEADER_BYTES + TABLE_BYTES
    content = CONTENT[:start] + with_checksum(with_checksum(opening) + payload)
    with pytest.raises(BitstreamError, match=f"byte {start + 18}: the entropy-coded indices are wrong: .*({message})"):
        read(content)


@pytest.mark.parametrize("size", [2, 45, 46])
def test_a_payload_too_small_or_too_large_for_its_frames_is_refused_unread(size: int) -> None:
    # 20 frames of 3 levels of 6 bits are 45 bytes packed
    opening = b"\xa5R" + bytes(4) + (20).to_bytes(4, "little") + size.to_bytes(4, "little")
    start = HEADER_BYTES + TABLE_BYTES
    with pytest.raises(BitstreamError, match=rf"byte {start + 10}: .* {size} bytes of indices; expected 3\.\.44"):
        read(CONTENT[:start] + with_checksum(opening) + bytes(100))


def test_an_entropy_coded_chunk_without_tables_is_refused() -> None:
    content = HEADER.opening_bytes(has_tables=False) + CONTENT[HEADER_BYTES + TABLE_BYTES :]
    with pytest.raises(
        BitstreamError, match="byte 30: the chunk is entropy-coded, but the file has no frequency tables"
    ):
        read(content)
