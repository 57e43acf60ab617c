"""Read a coded stream chunk by chunk, from a path or a pipe, and find the next chunk after damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from os import SEEK_END
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrostream.bitstream.entropy_coding import FrequencyTables
from spectrostream.bitstream.format import (
    CHECKSUM,
    CHUNK_FRAMES,
    MARKER,
    MAX_EXPANSION,
    OPENING,
    RECORD_BYTES,
    BitstreamError,
    ChunkOpening,
    End,
    Header,
    StreamHeader,
    check_checksum,
    parse_header_fields,
    parse_header_opening,
    parse_record,
    unpack_indices,
)
from spectrostream.errors import UserError


class Loss(NamedTuple):
    """Frames that are lost.

    Attributes:
        position: The first lost frame.
        frames: How many are lost; 0 if none is, or if the number cannot be known.
        reason: The first error.
    """

    position: int
    frames: int
    reason: str


class BitstreamReader:
    """A reader that yields each chunk of a coded stream once, as codes int64 `[levels, frames]` of 1..250 frames.

        with BitstreamReader(sys.stdin.buffer) as reader:
            for codes in reader:
                ...
            print(reader.complete_header().samples)

    Only one chunk (at most 512 KB of payload) is in memory at a time.

    With `conceal`, reading continues after damage. Lost frames have the code -1 in every level, which means "no level":
    they add nothing to the decoder's input. So every later frame keeps its position. `lost` lists the losses.
    - A damaged payload loses the frames of its chunk; they are yielded at once.
    - After a damaged opening the reader searches the next intact one, and then yields the frames between. If bytes were
      inserted or removed inside a chunk, the next chunk may be lost too.
    - Chunks that repeat frames are skipped.
    - If the data end before the end record, the iteration ends and `end` stays None.
    A damaged header and damaged frequency tables are still errors. So is a loss of more than `MAX_EXPANSION` times the
    frames that fit into the bytes read: a small file must not yield a huge number of frames.

    Args:
        source: A path, which must end after the end record, or a binary stream, which is read up to that record.
        conceal: Continue after damage.

    Attributes:
        header: The stream's header.
        tables: Frequency tables of an entropy-coded stream, else None.
        frames: Frames yielded until now.
        lost: Losses until now, in order; neighbours are joined.
        end: The end record, once it is read.

    Raises:
        BitstreamError: A byte is wrong or missing; the message says which. Iterating raises it too.
    """

    def __init__(self, source: Path | str | BinaryIO, *, conceal: bool = False) -> None:
        self._path = Path(source) if isinstance(source, (str, Path)) else None
        self._source = _ByteSource(_opened(source))
        self._conceal = conceal
        self.frames = 0
        self.lost: list[Loss] = []
        self._lost_frames = 0
        self.end: End | None = None
        self._is_exhausted = False
        self._reason = ""  # the first error of the loss whose frames are not counted yet
        try:
            self.header, has_tables = _read_header(self._source)
            self.tables = _read_tables(self._source, self.header) if has_tables else None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BitstreamReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file if this reader opened it."""
        if self._path:
            self._source.stream.close()

    def __iter__(self) -> Iterator[Tensor]:
        for indices in self.indices():
            yield torch.from_numpy(np.ascontiguousarray(indices.T, np.int64))

    def indices(self) -> Iterator[NDArray[np.int32]]:
        """Yield the same chunks as int32 arrays `[frames, levels]`, the order of the file."""
        while not self._is_exhausted:
            record = self._next_record()
            if record is None:
                self._is_exhausted = True
                self._add_loss(0)
                return
            yield from self._fill_gap(record)
            if isinstance(record, End):
                self._finish(record)
            else:
                yield from self._chunk(record)

    def complete_header(self) -> Header:
        """Return the header with samples and frames.

        Raises:
            BitstreamError: The end record was not read.
        """
        if self.end is None:
            state = "is truncated: its end record is missing" if self._is_exhausted else "was not read to its end"
            raise BitstreamError(f"byte {self._source.offset}: the stream {state}; samples are not known")
        return Header(**vars(self.header), samples=self.end.samples, frames=self.end.position)

    def seek_end_record(self) -> End:
        """Read the end record from the last bytes of a seekable source; do not iterate afterwards.

        Raises:
            BitstreamError: The source is not seekable, or has no end record at its end.
        """
        stream = self._source.stream
        if not stream.seekable():
            raise BitstreamError("the source cannot be searched for its end; iterate over the BitstreamReader instead")
        here = stream.tell()
        size = self._source.offset + stream.seek(0, SEEK_END) - here
        last = max(size - RECORD_BYTES, self._source.offset)
        stream.seek(here + last - self._source.offset)
        self._source.offset = last
        content = self._source.take(RECORD_BYTES, "the end record")
        try:
            record = self._parse(content, last)
        except BitstreamError as error:
            raise BitstreamError(f"{error}; the file is truncated or damaged at its end") from error
        if not isinstance(record, End):
            raise BitstreamError(f"byte {last}: the file ends with a chunk's opening; it is truncated")
        return record

    def _next_record(self) -> ChunkOpening | End | None:
        """Return the next record, or None if the data end; only concealment allows that."""
        start = self._source.offset
        content = b""
        try:
            content = self._source.take(RECORD_BYTES, "a chunk or the end record")
            record = self._parse(content, start)
            self._refuse_if_out_of_place(record, start)
        except BitstreamError as error:
            self._conceal_or_raise(error)
            return self._search(content)
        return record

    def _parse(self, content: bytes, offset: int) -> ChunkOpening | End:
        return parse_record(content, offset, self.header, has_tables=self.tables is not None)

    def _search(self, window: bytes) -> ChunkOpening | End | None:
        """Find the next intact record at a later frame, after the window's first byte; read nothing beyond it."""
        while True:
            found = window.find(MARKER, 1)
            window = window[found:] if found > 0 else b""
            window += self._source.read(RECORD_BYTES - len(window))
            if len(window) < RECORD_BYTES:
                return None
            with suppress(BitstreamError):
                record = self._parse(window, self._source.offset - len(window))
                if record.position >= self.frames:
                    return record

    def _refuse_if_out_of_place(self, record: ChunkOpening | End, offset: int) -> None:
        missing = record.position - self.frames
        what = "end record" if isinstance(record, End) else "chunk"
        if missing < 0:
            raise BitstreamError(
                f"byte {offset + 2}: the {what} claims {record.position} frames before it; expected {self.frames}"
            )
        if missing and not self._conceal:
            raise BitstreamError(
                f"byte {offset + 2}: the {what} claims {record.position} frames before it; expected {self.frames}: "
                f"{missing} frames are missing; read with conceal=True to get the others"
            )

    def _fill_gap(self, record: ChunkOpening | End) -> Iterator[NDArray[np.int32]]:
        missing = record.position - self.frames
        # Damage between two chunks loses no frames; it is listed as a loss of 0 frames.
        if missing or self._reason:
            yield from self._lost_chunks(missing)

    def _chunk(self, opening: ChunkOpening) -> Iterator[NDArray[np.int32]]:
        start = self._source.offset
        try:
            payload = self._source.take(opening.payload_bytes, "indices")
            checksum = self._source.take(CHECKSUM.size, "chunk checksum")
            check_checksum(opening.to_bytes() + payload, checksum, start + len(payload), "chunk")
            indices = self._decode_payload(opening, payload, start)
        except _TruncatedError as error:
            self._conceal_or_raise(error)
        except BitstreamError as error:
            self._conceal_or_raise(error)
            yield from self._lost_chunks(opening.frames)
        else:
            self.frames += opening.frames
            yield indices

    def _decode_payload(self, opening: ChunkOpening, payload: bytes, offset: int) -> NDArray[np.int32]:
        if not opening.is_coded or self.tables is None:
            return unpack_indices(payload, opening.frames, self.header.levels, self.header.bits_per_index)
        try:
            return self.tables.decode(payload, opening.frames)
        except ValueError as error:
            raise BitstreamError(f"byte {offset}: the entropy-coded indices are wrong: {error}") from error

    def _conceal_or_raise(self, error: BitstreamError) -> None:
        if not self._conceal:
            raise error
        self._reason = self._reason or str(error)

    def _lost_chunks(self, frames: int) -> Iterator[NDArray[np.int32]]:
        """List the loss and yield its frames as -1."""
        self._add_loss(frames)
        self._lost_frames += frames
        most = MAX_EXPANSION * 8 * self._source.offset // self.header.bits_per_frame
        if self._lost_frames > most:
            raise BitstreamError(
                f"byte {self._source.offset}: {frames} frames are missing after frame {self.frames}; no more than "
                f"{most} are concealed in so few bytes"
            )
        for first in range(0, frames, CHUNK_FRAMES):
            count = min(CHUNK_FRAMES, frames - first)
            self.frames += count
            yield np.full((count, self.header.levels), -1, np.int32)

    def _add_loss(self, frames: int) -> None:
        reason = self._reason or f"byte {self._source.offset}: the frames were not written"
        self._reason = ""
        if self.lost and self.lost[-1].position + self.lost[-1].frames == self.frames:
            last = self.lost.pop()
            self.lost.append(last._replace(frames=last.frames + frames))
        else:
            self.lost.append(Loss(self.frames, frames, reason))

    def _finish(self, end: End) -> None:
        # A file must end here. In a damaged one, what follows is part of the damage.
        if self._path and not self._conceal and self._source.stream.read(1):
            raise BitstreamError(
                f"byte {self._source.offset}: expected the end of the file after {end.position} frames"
            )
        self.end = end
        self._is_exhausted = True


class _TruncatedError(BitstreamError):
    """The data end too early."""


class _ByteSource:
    """A stream with exact reads and a count of the bytes read."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.offset = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end of the data. The caller limits `size`."""
        content = bytearray()
        # An unbuffered stream may return less than requested before its end.
        while len(content) < size:
            received = self.stream.read(size - len(content))
            if received is None:
                raise UserError("the source does not block and is empty for the moment; give a stream that blocks")
            if not received:
                break
            content += received
        self.offset += len(content)
        return bytes(content)

    def take(self, size: int, what: str) -> bytes:
        """Return the next `size` bytes; raise BitstreamError if there are fewer."""
        start = self.offset
        content = self.read(size)
        if len(content) < size:
            raise _TruncatedError(
                f"byte {self.offset}: the data end here; expected {size} bytes of {what} from byte {start} on"
            )
        return content


def _opened(source: Path | str | BinaryIO) -> BinaryIO:
    if not isinstance(source, (str, Path)):
        return source
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise BitstreamError(f"{source} cannot be read: {error.strerror}") from error


def _read_header(source: _ByteSource) -> tuple[StreamHeader, bool]:
    opening = source.take(OPENING.size, "header")
    length = parse_header_opening(opening)
    fields = source.take(length - len(opening) - CHECKSUM.size, "header")
    start = source.offset
    check_checksum(opening + fields, source.take(CHECKSUM.size, "header checksum"), start, "header")
    return parse_header_fields(fields)


def _read_tables(source: _ByteSource, header: StreamHeader) -> FrequencyTables:
    levels, bits = header.levels, header.bits_per_index
    flags = source.take(FrequencyTables.flag_bytes(levels), "frequency tables")
    steps = source.take(FrequencyTables.step_bytes(flags, levels, bits), "frequency tables")
    start = source.offset
    check_checksum(flags + steps, source.take(CHECKSUM.size, "tables checksum"), start, "frequency tables")
    return FrequencyTables.from_bytes(flags, steps, levels, bits)
