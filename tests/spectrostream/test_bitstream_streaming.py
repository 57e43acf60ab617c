import io
import os
import re
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

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
    Header,
    Loss,
    StreamHeader,
    read_bitstream,
    read_header,
    repack,
)
from spectrostream.errors import UserError

HEADER_BYTES = 30
CHUNK_OVERHEAD = 22
END_BYTES = 18
STEREO = StreamHeader(bytes(range(8)), sample_rate=48000, channels=2, levels=4, bits_per_index=10)


def random_codes(levels: int, frames: int, bits: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(2**bits, (levels, frames), generator=torch.Generator().manual_seed(seed))


def streamed(parts: list[Tensor], *, chunk_frames: int = 5, tables: FrequencyTables | None = None) -> bytes:
    stream = io.BytesIO()
    header = replace(STEREO, levels=len(parts[0]))
    with BitstreamWriter(stream, header, chunk_frames=chunk_frames, tables=tables) as writer:
        for part in parts:
            writer.write(part)
        writer.close(samples=1920 * sum(part.shape[1] for part in parts))
    return stream.getvalue()


def concealed(content: bytes) -> tuple[Tensor, list[Loss], bool]:
    """The codes, the losses, and whether the end record was found."""
    with BitstreamReader(io.BytesIO(content), conceal=True) as reader:
        codes = torch.cat([torch.zeros(reader.header.levels, 0, dtype=torch.int64), *reader], dim=1)
        assert codes.shape[1] == reader.frames
        return codes, reader.lost, reader.end is not None


def named_byte(message: str) -> int:
    found = re.match(r"byte (\d+): ", message)
    assert found, message
    return int(found[1])


def with_lost(codes: Tensor, first: int, last: int) -> Tensor:
    codes = codes.clone()
    codes[:, first:last] = -1
    return codes


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=6), chunk_frames=st.integers(1, 50))
def test_how_codes_are_handed_over_does_not_change_the_bytes(cuts: list[int], chunk_frames: int) -> None:
    codes = random_codes(4, 40)
    borders = [0, *sorted(cuts), 40]
    parts = [codes[:, first:last] for first, last in pairwise(borders)]
    assert streamed(parts, chunk_frames=chunk_frames) == streamed([codes], chunk_frames=chunk_frames)


def test_chunks_come_as_they_were_cut() -> None:
    codes = random_codes(4, 13)
    with BitstreamReader(io.BytesIO(streamed([codes]))) as reader:
        chunks = list(reader)
        assert [chunk.shape[1] for chunk in chunks] == [5, 5, 3]
        assert all(chunk.dtype == torch.int64 for chunk in chunks)
        assert reader.complete_header() == Header(**vars(STEREO), samples=13 * 1920, frames=13)
    assert torch.equal(torch.cat(chunks, dim=1), codes)


def test_flush_ends_a_chunk_early() -> None:
    stream = io.BytesIO()
    with BitstreamWriter(stream, STEREO) as writer:
        writer.write(random_codes(4, 2))
        writer.flush()
        assert len(stream.getvalue()) == HEADER_BYTES + CHUNK_OVERHEAD + 10
        writer.flush()  # nothing waits: nothing is written
        writer.write(random_codes(4, 3))
        writer.close(samples=1)
    stream.seek(0)
    assert [chunk.shape[1] for chunk in BitstreamReader(stream)] == [2, 3]


def test_a_frame_passes_a_pipe_before_the_next_one_is_written() -> None:
    reading, writing = os.pipe()
    codes = random_codes(4, 20)
    received: list[Tensor] = []
    has_arrived = threading.Semaphore(0)

    def listen() -> None:
        with open(reading, "rb", buffering=0) as source, BitstreamReader(source) as reader:  # noqa: PTH123
            for chunk in reader:
                received.append(chunk)
                has_arrived.release()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with open(writing, "wb", buffering=0) as target, BitstreamWriter(target, STEREO, chunk_frames=1) as writer:  # noqa: PTH123
        for frame in range(20):
            writer.write(codes[:, frame : frame + 1])
            assert has_arrived.acquire(timeout=10), f"frame {frame} did not arrive"
        writer.close(samples=20 * 1920)
    listener.join(timeout=10)
    assert not listener.is_alive()
    assert torch.equal(torch.cat(received, dim=1), codes)


def test_an_hour_is_written_repacked_and_read_in_bounded_memory(tmp_path: Path) -> None:
    long, short = tmp_path / "16kbps.sps", tmp_path / "4kbps.sps"
    header = replace(STEREO, levels=64)
    codes = random_codes(64, 250)
    tracemalloc.start()
    try:
        with BitstreamWriter(long, header) as writer:
            for _ in range(360):
                writer.write(codes)
            writer.close(samples=3600 * 48000)
        repack(long, short, levels=16)
        with BitstreamReader(short) as reader:
            for chunk in reader:
                assert torch.equal(chunk, codes[:16])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reader.frames == 90_000
    assert read_header(long).samples == read_header(short).samples == 3600 * 48000
    # 7.2 MB of codes; a chunk is 20 KB, and unpacked to single bits and int64 some ten times that
    assert peak < 3_000_000


def test_leaving_without_close_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(BitstreamError, match=r"not closed; call close\(samples=...\)"),
        BitstreamWriter(tmp_path / "song.sps", STEREO) as writer,
    ):
        writer.write(random_codes(4, 3))
    assert not list(tmp_path.iterdir())
    with pytest.raises(BitstreamError, match="closed; open a new BitstreamWriter"):
        writer.write(random_codes(4, 3))


def stop_in_the_middle(target: Path | io.BytesIO) -> None:
    with BitstreamWriter(target, STEREO, chunk_frames=1) as writer:
        writer.write(random_codes(4, 3))
        raise RuntimeError("microphone")


def test_an_exception_passes_and_leaves_a_truncated_stream_or_no_file(tmp_path: Path) -> None:
    stream = io.BytesIO()
    for target in (stream, tmp_path / "song.sps"):
        with pytest.raises(RuntimeError, match="microphone"):
            stop_in_the_middle(target)
    assert not list(tmp_path.iterdir())
    stream.seek(0)
    with pytest.raises(BitstreamError, match=f"byte {len(stream.getvalue())}: the data end here"):
        read_bitstream(stream)


class TrickleTarget(io.RawIOBase):
    """Takes three bytes at a time."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        taken = bytes(memoryview(content)[:3])  # type: ignore[arg-type]
        self.content += taken
        return len(taken)


def test_a_target_that_takes_little_at_a_time_gets_everything() -> None:
    codes = random_codes(4, 11)
    target = TrickleTarget()
    with BitstreamWriter(target, STEREO, chunk_frames=5) as writer:  # type: ignore[arg-type]
        writer.write(codes)
        writer.close(samples=11 * 1920)
    assert target.content == streamed([codes])


def test_streams_that_do_not_block_are_refused() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    with open(reading, "rb", buffering=0) as source, open(writing, "wb", buffering=0) as target:  # noqa: PTH123
        with pytest.raises(UserError, match="does not block and is empty"):
            BitstreamReader(source)
        writer = BitstreamWriter(target, replace(STEREO, levels=64))
        with pytest.raises(UserError, match="does not block and is full"):
            writer.write(random_codes(64, 25_000))  # 2 MB, more than a pipe holds


def test_the_header_of_a_pipe_cannot_be_completed_at_once() -> None:
    reading, writing = os.pipe()
    with open(writing, "wb") as target:  # noqa: PTH123
        target.write(streamed([random_codes(4, 2)]))
    with open(reading, "rb") as source, pytest.raises(BitstreamError, match="iterate over the BitstreamReader"):  # noqa: PTH123
        read_header(source)


def test_what_a_stream_is_not_known_to_hold_is_not_said() -> None:
    with BitstreamReader(io.BytesIO(streamed([random_codes(4, 9)]))) as reader:
        next(iter(reader))
        with pytest.raises(BitstreamError, match="was not read to its end; samples are not known"):
            reader.complete_header()


@pytest.mark.parametrize("chunk_frames", [0, 251])
def test_a_chunk_length_out_of_range_is_refused(chunk_frames: int) -> None:
    with pytest.raises(BitstreamError, match=rf"chunk_frames is {chunk_frames}; expected 1\.\.250"):
        BitstreamWriter(io.BytesIO(), STEREO, chunk_frames=chunk_frames)


def test_a_length_out_of_range_is_refused() -> None:
    with (
        pytest.raises(BitstreamError, match=r"samples is -1; expected 0\.\."),
        BitstreamWriter(io.BytesIO(), STEREO) as writer,
    ):
        writer.close(samples=-1)


# Damage. Four levels of 10 bits: a chunk of 5 frames has 25 bytes of payload, 47 in all.
CODES = random_codes(4, 20, seed=3)
CONTENT = streamed([CODES])
CHUNK = 47
STARTS = [HEADER_BYTES + CHUNK * n for n in range(4)]


@pytest.mark.parametrize("chunk", range(4))
def test_any_damaged_byte_costs_its_chunk_alone(chunk: int) -> None:
    for place in range(STARTS[chunk], STARTS[chunk] + CHUNK):
        damaged = bytearray(CONTENT)
        damaged[place] ^= 0x10
        codes, lost, is_complete = concealed(bytes(damaged))
        assert torch.equal(codes, with_lost(CODES, 5 * chunk, 5 * chunk + 5))
        assert [(loss.position, loss.frames) for loss in lost] == [(5 * chunk, 5)]
        assert STARTS[chunk] <= named_byte(lost[0].reason) < STARTS[chunk] + CHUNK
        assert is_complete


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 3), (3, 4), (0, 3)])
def test_chunks_that_never_arrived_are_told(first: int, last: int) -> None:
    torn = CONTENT[: STARTS[first]] + CONTENT[STARTS[first] + CHUNK * (last - first) :]
    codes, lost, _ = concealed(torn)
    assert torch.equal(codes, with_lost(CODES, 5 * first, 5 * last))
    assert [(loss.position, loss.frames) for loss in lost] == [(5 * first, 5 * (last - first))]
    with pytest.raises(BitstreamError, match=r"are missing; read with conceal=True"):
        read_bitstream(io.BytesIO(torn))


@pytest.mark.parametrize(
    "inserted", [b"x", b"\xa5", b"\xa5P", b"\xa5P" * 40, bytes(1000), CONTENT[STARTS[0] : STARTS[1]]]
)
@pytest.mark.parametrize("chunk", range(1, 4))
def test_foreign_bytes_between_chunks_cost_nothing(inserted: bytes, chunk: int) -> None:
    damaged = CONTENT[: STARTS[chunk]] + inserted + CONTENT[STARTS[chunk] :]
    codes, lost, is_complete = concealed(damaged)
    assert torch.equal(codes, CODES)
    assert [(loss.position, loss.frames) for loss in lost] == [(5 * chunk, 0)]
    assert is_complete
    with pytest.raises(BitstreamError) as error:
        read_bitstream(io.BytesIO(damaged))
    assert STARTS[chunk] <= named_byte(str(error.value)) < STARTS[chunk] + 18


@settings(max_examples=200, deadline=None)
@given(start=st.integers(HEADER_BYTES, len(CONTENT) - END_BYTES - 1), size=st.integers(1, 60), insert=st.booleans())
def test_bytes_lost_or_added_cost_the_chunks_they_touch_and_at_most_one_more(
    start: int, size: int, insert: bool
) -> None:
    size = size if insert else min(size, len(CONTENT) - END_BYTES - start)
    damaged = CONTENT[:start] + (b"\x00" * size + CONTENT[start:] if insert else CONTENT[start + size :])
    codes, _, is_complete = concealed(damaged)
    first = (start - HEADER_BYTES) // CHUNK
    last = first if insert else (start + size - 1 - HEADER_BYTES) // CHUNK
    kept = [n for n in range(4) if not first <= n <= last + 1]
    for chunk in kept:
        frames = slice(5 * chunk, 5 * chunk + 5)
        assert torch.equal(codes[:, frames], CODES[:, frames])
    # A payload cut short swallows bytes of what follows, at the very end the end record itself.
    assert is_complete or (not insert and last == 3)


def test_concealment_ends_where_the_data_end() -> None:
    for length in range(STARTS[2], len(CONTENT)):
        codes, lost, is_complete = concealed(CONTENT[:length])
        whole = 5 * ((length - HEADER_BYTES) // CHUNK)
        assert torch.equal(codes, CODES[:, :whole])
        assert [(loss.position, loss.frames) for loss in lost] == [(whole, 0)]
        assert f"byte {length}: the data end here" in lost[0].reason
        assert not is_complete
        with pytest.raises(BitstreamError, match="its end record is missing; samples are not known"):
            read_bitstream(io.BytesIO(CONTENT[:length]), conceal=True)


def test_an_undamaged_stream_conceals_nothing_and_is_left_after_its_end() -> None:
    stream = io.BytesIO(b"\xa5" + CONTENT + b"more")
    stream.read(1)
    assert torch.equal(read_bitstream(stream, conceal=True)[1], CODES)
    assert stream.read() == b"more"
    # The search for the next chunk does not read beyond the end record either.
    damaged = bytearray(CONTENT + b"more")
    damaged[STARTS[3]] ^= 1
    stream = io.BytesIO(damaged)
    assert torch.equal(read_bitstream(stream, conceal=True)[1], with_lost(CODES, 15, 20))
    assert stream.read() == b"more"


def test_header_damage_cannot_be_concealed() -> None:
    for place in range(HEADER_BYTES):
        damaged = bytearray(CONTENT)
        damaged[place] ^= 1
        with pytest.raises(BitstreamError, match=r"^byte \d+"):
            BitstreamReader(io.BytesIO(damaged), conceal=True)


def test_lost_frames_can_be_written_and_come_back() -> None:
    codes = with_lost(with_lost(CODES, 3, 9), 18, 20)
    content = streamed([codes])
    read, lost, is_complete = concealed(content)
    assert torch.equal(read, codes)
    assert [(loss.position, loss.frames) for loss in lost] == [(3, 6), (18, 2)]
    assert "the frames were not written" in lost[0].reason
    assert is_complete


def test_a_search_through_markers_takes_time_in_proportion() -> None:
    # 40,000 candidates; were each to read what it claims, this would take minutes
    opening = CONTENT[STARTS[0] : STARTS[0] + 18]
    damaged = CONTENT[: STARTS[1]] + opening * 40_000 + CONTENT[STARTS[1] :]
    codes, lost, is_complete = concealed(damaged)
    assert torch.equal(codes, CODES)
    assert len(lost) == 1
    assert is_complete


@settings(max_examples=60, deadline=None)
@given(levels=st.integers(1, 12), keep=st.integers(1, 12), frames=st.integers(0, 30), chunk_frames=st.integers(1, 9))
def test_repacking_keeps_a_prefix_of_the_levels_and_the_chunks(
    levels: int, keep: int, frames: int, chunk_frames: int
) -> None:
    keep = min(keep, levels)
    codes = random_codes(levels, frames)
    target = io.BytesIO()
    header = repack(io.BytesIO(streamed([codes], chunk_frames=chunk_frames)), target, levels=keep)
    assert target.getvalue() == streamed([codes[:keep]], chunk_frames=chunk_frames)
    assert header == read_header(io.BytesIO(target.getvalue()))


def test_repacking_twice_is_repacking_once_and_works_in_place(tmp_path: Path) -> None:
    path = tmp_path / "song.sps"
    codes = random_codes(64, 30)
    path.write_bytes(streamed([codes]))
    for levels in (32, 16):
        repack(path, path, levels=levels)
    assert path.read_bytes() == streamed([codes[:16]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.sps"]


@pytest.mark.parametrize("levels", [0, 5])
def test_levels_that_are_not_there_cannot_be_kept(tmp_path: Path, levels: int) -> None:
    with pytest.raises(BitstreamError, match=rf"levels = {levels} cannot be kept; the source has 4, so allowed: 1..4"):
        repack(io.BytesIO(CONTENT), tmp_path / "song.sps", levels=levels)
    assert not list(tmp_path.iterdir())


def test_repacking_a_damaged_file_needs_concealment_and_passes_the_loss_on(tmp_path: Path) -> None:
    damaged = bytearray(CONTENT)
    damaged[STARTS[1] + 20] ^= 1
    with pytest.raises(BitstreamError, match="chunk checksum"):
        repack(io.BytesIO(damaged), tmp_path / "song.sps", levels=2)
    assert not list(tmp_path.iterdir())
    repack(io.BytesIO(damaged), tmp_path / "song.sps", levels=2, conceal=True)
    header, codes = read_bitstream(tmp_path / "song.sps", conceal=True)
    assert torch.equal(codes, with_lost(CODES[:2], 5, 10))
    assert header.samples == 20 * 1920


def test_repacking_through_pipes_starts_before_the_source_ends() -> None:
    def source() -> Iterator[bytes]:
        yield CONTENT[: STARTS[1]]
        assert len(target.getvalue()) == HEADER_BYTES + CHUNK_OVERHEAD + 7  # 5 frames of one level
        yield CONTENT[STARTS[1] :]

    class Source(io.RawIOBase):
        parts = source()
        rest = b""

        def read(self, size: int = -1) -> bytes:
            self.rest = self.rest or next(self.parts, b"")
            part, self.rest = self.rest[:size], self.rest[size:]
            return part

    target = io.BytesIO()
    repack(Source(), target, levels=1)  # type: ignore[arg-type]
    assert target.getvalue() == streamed([CODES[:1]])
