"""Transcode one track to pieces: sum its parts, resample, scale if it would clip, read back and compare.

The memory is that of a block of 10 s, for tracks of any length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from datamodules.audio.blocks import AudioReader, summed
from datamodules.audio.opening import AudioFileError
from datamodules.scanning.measuring import content_hash
from datamodules.shards.encodings import Encoding, PieceWriter, samples_digest
from spectrostream.errors import UserError

_BLOCK_SECONDS = 10
_SCAN_AGAIN = "run `spectrostream data scan` again"


class ReadBackError(UserError):
    """The disk returned other bytes than were written."""


@dataclass(frozen=True)
class Source:
    """The files whose sum is a track, and their columns in the manifest; None or "" if the manifest lacks one."""

    paths: tuple[Path, ...]
    frames: int | None = None
    sample_rate: int | None = None
    size_bytes: int | None = None
    modified_ns: int | None = None
    content_hash: str = ""


@dataclass(frozen=True)
class Transcoded:
    """A transcoded track.

    Attributes:
        channels: 1 if all its files are mono.
        lengths: Samples of each piece.
        peak: Largest written sample.
        gain_db: Gain of the whole track, 0 or less.
    """

    sample_rate: int
    channels: int
    lengths: tuple[int, ...]
    peak: float
    gain_db: float


@dataclass(frozen=True)
class _Mix:
    """The sum of a track's files: mono if all are, as long as the longest, in blocks `[channels, samples]`."""

    channels: int
    samples: int
    blocks: Iterator[Tensor]


@contextmanager
def _mixed(source: Source, sample_rate: int, channels: int) -> Iterator[_Mix]:
    """Open the sum of the files; AudioFileError if one is unreadable or has another header than its manifest."""
    with ExitStack() as stack:
        readers = [
            stack.enter_context(AudioReader(path, sample_rate=sample_rate, channels=channels)) for path in source.paths
        ]
        _require_unchanged(source, readers)
        mixed_channels = max(reader.info.channels for reader in readers)
        samples = max(reader.samples for reader in readers)
        yield _Mix(mixed_channels, samples, summed(readers, _BLOCK_SECONDS * sample_rate))


def transcode(
    source: Source,
    encoding: Encoding,
    new_file: Callable[[], BinaryIO],
    *,
    sample_rate: int,
    channels: int,
    longest_seconds: float = math.inf,
) -> tuple[Transcoded, list[BinaryIO]]:
    """Write the track as one or more pieces of about equal length, each to its own file.

    A file with another size or time of change than in the manifest is used if the hash of its samples is the same. So
    copies with other times or tags can be used.

    Integers cannot hold samples beyond full scale (decoded Vorbis, resampled square waves). A track with such samples
    is written a second time, scaled down as a whole.

    Args:
        source: The files.
        encoding: Of the pieces.
        new_file: Opens an empty file for writing and reading; the caller closes it.
        sample_rate: Of the pieces, in Hz.
        channels: Of the pieces; mono stays mono, other numbers are errors.
        longest_seconds: Of a piece.

    Raises:
        AudioFileError: A file cannot be used, changed since its scan, or changes meanwhile.
        ReadBackError: A piece reads differently from what was written.
        OSError: No room.
    """
    states = _states(source)
    _require_as_scanned(source, states)
    with _mixed(source, sample_rate, channels) as mix:
        lengths = even_lengths(mix.samples, longest_seconds * sample_rate)
        files = [new_file() for _ in lengths]
        layout = _Layout(encoding, sample_rate, mix.channels, lengths)
        peak, digests = _write(mix.blocks, layout, files, gain=1.0)
    gain = 1.0
    if encoding.bits and peak > 1:
        gain = 1 / peak
        for file in files:
            file.seek(0)
            file.truncate()
        with _mixed(source, sample_rate, channels) as mix:
            peak, digests = _write(mix.blocks, layout, files, gain)
    for file, digest in zip(files, digests, strict=True):
        if samples_digest(file, encoding) != digest:
            raise ReadBackError(f"{str(source.paths[0])!r}: what was written reads differently; is the disk failing?")
    if _states(source) != states:
        raise AudioFileError.of(source.paths[0], f"{_changed(source)} while it was read; {_SCAN_AGAIN}")
    return Transcoded(sample_rate, layout.channels, lengths, peak, 20 * math.log10(gain)), files


def even_lengths(samples: int, longest: float) -> tuple[int, ...]:
    """Divide `samples` into the fewest pieces of at most `longest`; their lengths differ by at most 1."""
    pieces = max(1, math.ceil(samples / longest))
    edges = [samples * piece // pieces for piece in range(pieces + 1)]
    return tuple(stop - start for start, stop in itertools.pairwise(edges))


@dataclass(frozen=True)
class _Layout:
    encoding: Encoding
    sample_rate: int
    channels: int
    lengths: tuple[int, ...]


def _write(
    blocks: Iterator[Tensor], layout: _Layout, files: Sequence[BinaryIO], gain: float
) -> tuple[float, list[str]]:
    """Write the pieces; return the largest sample, and the digest of each piece."""
    peak = 0.0
    digests: list[str] = []
    cut = _cut(blocks, layout.lengths)
    for file, length in zip(files, layout.lengths, strict=True):
        writer = PieceWriter(
            file, layout.encoding, sample_rate=layout.sample_rate, channels=layout.channels, samples=length
        )
        written = 0
        while written < length:
            audio = next(cut) * gain if gain != 1 else next(cut)
            peak = max(peak, float(audio.abs().max()))
            writer.write(audio)
            written += audio.shape[1]
        digests.append(writer.close())
    return peak, digests


def _cut(blocks: Iterator[Tensor], lengths: Sequence[int]) -> Iterator[Tensor]:
    """Yield the blocks, cut at the ends of the pieces."""
    room, rest = lengths[0], iter(lengths[1:])
    for block in blocks:
        while block.shape[1]:
            yield block[:, :room]
            taken = min(room, block.shape[1])
            block, room = block[:, taken:], room - taken
            if not room:
                room = next(rest, 0)


def _require_unchanged(source: Source, readers: Sequence[AudioReader]) -> None:
    if len(readers) > 1:  # the manifest has the numbers of the sum of the parts
        return
    info = readers[0].info
    known = (source.frames or info.frames, source.sample_rate or info.sample_rate)
    if known != (info.frames, info.sample_rate):
        reason = (
            f"{_changed(source)} since it was scanned ({known[0]} frames at {known[1]} Hz, now {info.frames} at "
            f"{info.sample_rate}); {_SCAN_AGAIN}"
        )
        raise AudioFileError.of(info.path, reason)


def _states(source: Source) -> list[tuple[int, int]]:
    """Return size in bytes and time of change in nanoseconds of each file."""
    states = []
    for path in source.paths:
        try:
            status = path.stat()
        except OSError as error:
            raise AudioFileError.of(path, f"cannot be opened: {error.strerror}") from error
        states.append((status.st_size, status.st_mtime_ns))
    return states


def _require_as_scanned(source: Source, states: Sequence[tuple[int, int]]) -> None:
    size, modified = sum(size for size, _ in states), max(modified for _, modified in states)
    same_size = source.size_bytes in (None, size)
    if same_size and source.modified_ns in (None, modified):
        return
    if source.content_hash:
        if content_hash(source.paths) == source.content_hash:
            return
    elif same_size:  # the samples were never measured; `_mixed` compares the header
        return
    difference = "other samples in as many bytes" if same_size else f"{source.size_bytes} bytes, now {size}"
    reason = f"{_changed(source)} since it was scanned ({difference}); {_SCAN_AGAIN}"
    raise AudioFileError.of(source.paths[0], reason)


def _changed(source: Source) -> str:
    return "has changed" if len(source.paths) == 1 else "has a part that changed"
