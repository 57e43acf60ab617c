"""Write a coded stream frame by frame, to a path or a pipe. Its length need not be known."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrostream.atomic_files import discard, open_beside, take_name
from spectrostream.bitstream.entropy_coding import FrequencyTables
from spectrostream.bitstream.format import (
    CHUNK_FRAMES,
    MAX_FRAMES,
    MAX_SAMPLES,
    BitstreamError,
    ChunkOpening,
    End,
    StreamHeader,
    check_table_size,
    pack_indices,
    smallest_coded_payload,
    with_checksum,
)
from spectrostream.errors import UserError

LOST = -1


class BitstreamWriter:
    """A writer of one coded stream: the header at once, each full chunk, and the end record on `close`.

        with BitstreamWriter(path, header, chunk_frames=25) as writer:
            writer.write(codes)  # as often as there are codes
            writer.close(samples=samples)

    A file is written beside its path; `close` renames it. Without `close`, the path keeps its old content. A stream is
    flushed after every chunk. If an exception leaves the `with` block, the stream has no end record and is truncated.

    Args:
        target: A path, or a binary stream that is open for writing and stays open.
        header: Describes the codes. If it is a `Header`, its samples and frames are ignored: the end record contains
            the real numbers.
        chunk_frames: 1..250. A chunk costs 22 bytes: 1 has the shortest delay, 250 (10 s) suits files.
        tables: Turns entropy coding on, for the chunks that it makes smaller.

    Attributes:
        frames: Frames that were given to `write`.

    Raises:
        BitstreamError: An argument is wrong, or the path cannot be written.
    """

    def __init__(
        self,
        target: Path | str | BinaryIO,
        header: StreamHeader,
        *,
        chunk_frames: int = CHUNK_FRAMES,
        tables: FrequencyTables | None = None,
    ) -> None:
        if not 1 <= chunk_frames <= CHUNK_FRAMES:
            raise BitstreamError(f"chunk_frames is {chunk_frames}; expected 1..{CHUNK_FRAMES}")
        if tables is not None:
            check_tables(header, tables)
        self.header = header
        self.frames = 0
        self._chunk_frames = chunk_frames
        self._tables = tables
        self._pending: list[NDArray[np.int32]] = []  # [frames, levels]; less than a chunk between calls
        self._pending_frames = 0
        self._is_closed = False
        self._output = _FileOutput(Path(target)) if isinstance(target, (str, Path)) else _StreamOutput(target)
        self._write_header()

    def _write_header(self) -> None:
        try:
            self._output.put(self.header.opening_bytes(has_tables=self._tables is not None))
            if self._tables is not None:
                self._output.put(with_checksum(self._tables.to_bytes()))
        except BaseException:
            self._output.discard()
            raise

    def __enter__(self) -> BitstreamWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._output.discard()
        if kind is None:
            raise BitstreamError("the stream was not closed; call close(samples=...) with the audio's length")

    def write(self, codes: Tensor) -> None:
        """Add frames.

        A frame whose codes are all -1 is lost. It has no bytes, and reading the stream needs `conceal=True`.

        Args:
            codes: int64 `[levels, frames]`, any number of frames.

        Raises:
            BitstreamError: The codes do not fit the header; then none of them is written.
        """
        self._refuse_if_closed()
        is_lost = check_codes(self.header, codes)
        if self.frames + codes.shape[1] > MAX_FRAMES:
            raise BitstreamError(f"{self.frames + codes.shape[1]} frames are too many; allowed: {MAX_FRAMES}")
        indices = codes.detach().cpu().numpy().T.astype(np.int32)  # [frames, levels]
        if not is_lost.any():
            self._add(indices)
            return
        borders = np.flatnonzero(np.diff(is_lost)) + 1
        for frames in np.split(np.arange(len(indices)), borders):
            if is_lost[frames[0]]:
                self.flush()
                self.frames += len(frames)
            else:
                self._add(indices[frames])

    def flush(self) -> None:
        """Write the frames of the unfinished chunk now, as a shorter chunk."""
        self._refuse_if_closed()
        if self._pending:
            indices = np.concatenate(self._pending)
            self._pending, self._pending_frames = [], 0
            self._write_chunk(indices, self.frames - len(indices))

    def close(self, samples: int) -> None:
        """Write the unfinished chunk and the end record, and complete the file.

        Args:
            samples: Length of the audio, per channel.
        """
        self._refuse_if_closed()
        if not 0 <= samples <= MAX_SAMPLES:
            raise BitstreamError(f"samples is {samples}; expected 0..{MAX_SAMPLES}")
        self.flush()
        self._output.put(End(self.frames, samples).to_bytes())
        self._is_closed = True
        self._output.finish()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise BitstreamError("the stream is closed; open a new BitstreamWriter")

    def _add(self, indices: NDArray[np.int32]) -> None:
        while len(indices):
            fitting = indices[: self._chunk_frames - self._pending_frames]
            indices = indices[len(fitting) :]
            self._pending.append(fitting)
            self._pending_frames += len(fitting)
            self.frames += len(fitting)
            if self._pending_frames == self._chunk_frames:
                self.flush()

    def _write_chunk(self, indices: NDArray[np.int32], position: int) -> None:
        is_coded, payload = chunk_payload(indices, self.header, self._tables)
        opening = ChunkOpening(is_coded, position, len(indices), len(payload))
        self._output.put(with_checksum(opening.to_bytes() + payload))


def chunk_payload(
    indices: NDArray[np.int32], header: StreamHeader, tables: FrequencyTables | None
) -> tuple[bool, bytes]:
    """Code the indices of one chunk in the smaller of both ways.

    Args:
        indices: `[frames, levels]`.
        header: The stream's header.
        tables: None for a stream without entropy coding.

    Returns:
        Whether the payload is entropy-coded, and the payload.
    """
    packed_bytes = header.payload_bytes(len(indices))
    if tables is not None:
        coded = tables.encode(indices)
        # A reader refuses a payload that is too small for its frames.
        if smallest_coded_payload(packed_bytes) <= len(coded) < packed_bytes:
            return True, coded
    return False, pack_indices(indices, header.bits_per_index)


def check_codes(header: StreamHeader, codes: Tensor) -> NDArray[np.bool_]:
    """Check that codes fit the header.

    Args:
        header: The stream's header.
        codes: int64 `[levels, frames]`.

    Returns:
        Bool `[frames]`: which frames are lost.

    Raises:
        BitstreamError: The codes have another type, shape or range.
    """
    if codes.dtype != torch.int64 or codes.ndim != 2 or len(codes) != header.levels:
        raise BitstreamError(
            f"codes are {codes.dtype} {list(codes.shape)}; the header expects torch.int64 [{header.levels}, frames]"
        )
    values = codes.detach().cpu().numpy()
    is_lost = (values == LOST).all(axis=0)
    highest = 2**header.bits_per_index - 1
    if values.size and (values.min() < 0 or values.max() > highest):
        is_wrong = ((values < 0) & ~is_lost) | (values > highest)
        for level, frame in np.argwhere(is_wrong)[:1].tolist():
            raise BitstreamError(
                f"codes[{level}, {frame}] is {values[level, frame]}; expected 0..{highest} ({header.bits_per_index} "
                "bits per index), or -1 in every level of a lost frame"
            )
    return is_lost


def check_tables(header: StreamHeader, tables: FrequencyTables) -> None:
    """Check that frequency tables fit the header.

    Raises:
        BitstreamError: They are for other levels or codebooks, or too large.
    """
    given = (tables.levels, tables.bits_per_index)
    if given != (header.levels, header.bits_per_index):
        raise BitstreamError(
            f"the frequency tables are for {given[0]} levels of {given[1]} bits; expected {header.levels} levels of "
            f"{header.bits_per_index} bits; fit tables to such codes"
        )
    check_table_size(header)


class _StreamOutput:
    """The caller's stream. Every record is sent at once, because a listener may wait for it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def put(self, content: bytes) -> None:
        remaining = memoryview(content)
        while remaining:
            # An unbuffered stream may write only a part.
            taken = self.stream.write(remaining)
            if taken is None:
                raise UserError("the target does not block and is full for the moment; give a stream that blocks")
            remaining = remaining[taken:]
        self.stream.flush()

    def finish(self) -> None:
        """Do nothing: everything is sent already."""

    def discard(self) -> None:
        """Do nothing: sent bytes cannot be taken back."""


class _FileOutput:
    """A file beside the target; it is renamed to the target when it is complete."""

    def __init__(self, target: Path) -> None:
        self.target = target
        try:
            self.stream = open_beside(target)
        except OSError as error:
            raise BitstreamError(f"{target} cannot be written: {error.strerror}") from error

    def put(self, content: bytes) -> None:
        self.stream.write(content)

    def finish(self) -> None:
        try:
            take_name(self.stream, self.target)
        finally:
            self.discard()

    def discard(self) -> None:
        discard(self.stream)
