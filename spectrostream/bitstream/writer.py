"""Writing a coded stream frame by frame, to a path or a pipe, without knowing its length."""

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
    """Writes the header at once, a chunk whenever it is full, and the end record when it is closed.

        with BitstreamWriter(path, header, chunk_frames=25) as writer:
            writer.write(codes)  # as often as there are codes
            writer.close(samples=samples)

    target: a path, or a binary stream that is open for writing and stays open. A path gets the complete file or stays
        as it was: the file is written beside it and renamed by `close`. A stream is flushed after every chunk; if the
        block is left by an exception it has no end record, and readers say that it is truncated.
    header: of a `Header` only what a `StreamHeader` has is used; the end record holds what was really written.
    chunk_frames: 1..250. A chunk costs 22 bytes, so 1 is for the shortest delay and 250 (10 s) for files.
    tables: entropy coding with these tables, where it makes a chunk smaller.
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
        self.frames = 0  # received so far
        self._chunk_frames = chunk_frames
        self._tables = tables
        self._pending: list[NDArray[np.int32]] = []  # [frames, levels], fewer than a chunk of them between calls
        self._pending_frames = 0
        self._is_closed = False
        self._output = _FileOutput(Path(target)) if isinstance(target, (str, Path)) else _StreamOutput(target)
        try:
            self._output.put(header.opening_bytes(has_tables=tables is not None))
            if tables is not None:
                self._output.put(with_checksum(tables.to_bytes()))
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
        """Add codes, int64 `[levels, frames]`, of any number of frames.

        A frame whose codes are all -1 is lost: it takes no bytes, and reading it needs `conceal=True`. BitstreamError
        if the codes do not fit the header; nothing of them is then written.
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
        for run in np.split(np.arange(len(indices)), borders):
            if is_lost[run[0]]:
                self.flush()
                self.frames += len(run)
            else:
                self._add(indices[run])

    def flush(self) -> None:
        """Write the frames that wait for their chunk to fill as a shorter chunk."""
        self._refuse_if_closed()
        if self._pending:
            waiting = np.concatenate(self._pending)
            self._pending, self._pending_frames = [], 0
            self._write_chunk(waiting, self.frames - len(waiting))

    def close(self, samples: int) -> None:
        """Write what waits and the end record. samples: length of the audio, per channel."""
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
            part = indices[: self._chunk_frames - self._pending_frames]
            indices = indices[len(part) :]
            self._pending.append(part)
            self._pending_frames += len(part)
            self.frames += len(part)
            if self._pending_frames == self._chunk_frames:
                self.flush()

    def _write_chunk(self, indices: NDArray[np.int32], position: int) -> None:
        is_coded, payload = chunk_payload(indices, self.header, self._tables)
        opening = ChunkOpening(is_coded, position, len(indices), len(payload))
        self._output.put(with_checksum(opening.to_bytes() + payload))


def chunk_payload(
    indices: NDArray[np.int32], header: StreamHeader, tables: FrequencyTables | None
) -> tuple[bool, bytes]:
    """Is it entropy-coded, and the payload of one chunk's indices `[frames, levels]`."""
    packed_bytes = header.payload_bytes(len(indices))
    if tables is not None:
        coded = tables.encode(indices)
        # A payload too small for its frames looks like an attack to a reader.
        if smallest_coded_payload(packed_bytes) <= len(coded) < packed_bytes:
            return True, coded
    return False, pack_indices(indices, header.bits_per_index)


def check_codes(header: StreamHeader, codes: Tensor) -> NDArray[np.bool_]:
    """Which frames are lost, bool `[frames]`; BitstreamError for codes that do not fit the header."""
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
    """BitstreamError for frequency tables that do not fit the header."""
    given = (tables.levels, tables.bits_per_index)
    if given != (header.levels, header.bits_per_index):
        raise BitstreamError(
            f"the frequency tables are for {given[0]} levels of {given[1]} bits; expected {header.levels} levels of "
            f"{header.bits_per_index} bits; fit tables to such codes"
        )
    check_table_size(header)


class _StreamOutput:
    """Somebody else's stream; every record goes out at once, for a listener may wait for it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def put(self, content: bytes) -> None:
        remaining = memoryview(content)
        while remaining:
            # An unbuffered stream may take less than it was given.
            taken = self.stream.write(remaining)
            if taken is None:
                raise UserError("the target does not block and is full for the moment; give a stream that blocks")
            remaining = remaining[taken:]
        self.stream.flush()

    def finish(self) -> None:
        """Nothing is left to do."""

    def discard(self) -> None:
        """What was sent cannot be taken back."""


class _FileOutput:
    """A file beside the target that takes its name when it is complete."""

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
