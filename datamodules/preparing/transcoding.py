"""One track from the files of a corpus to prepared pieces: parts summed, resampled, scaled if it would clip, read back.

Memory is bounded by a block of 10 s, whatever the track's length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from torch import Tensor

from datamodules.audio.blocks import AudioReader, summed
from datamodules.audio.opening import AudioFileError
from datamodules.scanning.measuring import content_hash
from datamodules.shards.encodings import Encoding, PieceWriter, samples_digest
from spectrostream.errors import UserError

_BLOCK_SECONDS = 10
_SCAN_AGAIN = "run `spectrostream data scan` again"


class ReadBackError(UserError):
    """What was written is not what is read: a disk that cannot be trusted."""


@dataclass(frozen=True)
class Source:
    """The files whose sum is a track, and what its manifest says of them; None or "" where it says nothing.

    size_bytes: of all together. modified_ns: of the youngest. content_hash: of their samples, as a scan makes it.
    """

    paths: tuple[Path, ...]
    frames: int | None = None
    sample_rate: int | None = None
    size_bytes: int | None = None
    modified_ns: int | None = None
    content_hash: str = ""


@dataclass(frozen=True)
class Transcoded:
    """What became of a track.

    channels: 1 where all its files are mono. lengths: samples of each piece. peak: largest sample as it was written.
    gain_db: by how much the track was scaled, 0 or less.
    """

    sample_rate: int
    channels: int
    lengths: tuple[int, ...]
    peak: float
    gain_db: float


class Mix:
    """The sum of audio files, which begin together, as float32 `[channels, samples]` at one rate; use as a context.

    channels: 1 where all files are mono, else as asked; a mono file among others is repeated.
    samples: of the longest file; shorter ones end in silence.

    Raises AudioFileError as `AudioReader` does, and where the file is another than its manifest knows.
    """

    def __init__(self, source: Source, *, sample_rate: int, channels: int) -> None:
        self._open = ExitStack()
        with ExitStack() as opened:
            self._readers = [
                opened.enter_context(AudioReader(path, sample_rate=sample_rate, channels=channels))
                for path in source.paths
            ]
            _require_unchanged(source, self._readers)
            self._open = opened.pop_all()
        self.channels = max(reader.info.channels for reader in self._readers)
        self.samples = max(reader.samples for reader in self._readers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def blocks(self, samples: int) -> Iterator[Tensor]:
        """Blocks `[channels, samples]`, the last one shorter; once."""
        return summed(self._readers, samples)


def transcode(
    source: Source,
    encoding: Encoding,
    new_file: Callable[[], BinaryIO],
    *,
    sample_rate: int,
    channels: int,
    longest_seconds: float = math.inf,
) -> tuple[Transcoded, list[BinaryIO]]:
    """The track in one or more pieces of about equal length, each in a file of its own.

    What is read is what was scanned: a file of another size or time of change is compared by the hash of its samples,
    if its manifest has one, so that a copy without its times or with other tags is as good.

    Integers cannot hold what lies beyond full scale (decoded Vorbis, resampled square waves): such a track is written
    again, scaled down to it as a whole.

    Args:
        source: the files.
        encoding: of the pieces.
        new_file: opens an empty file for a piece, for writing and reading; closing it is up to the caller.
        sample_rate: of the pieces, in Hz.
        channels: of the pieces; mono stays mono, any other number is an error.
        longest_seconds: of a piece.

    Raises:
        AudioFileError: a file that cannot be used, or is another than was scanned, or changes meanwhile.
        ReadBackError: what was written reads differently.
        OSError: no room.
    """
    states = _states(source)
    _require_as_scanned(source, states)
    with Mix(source, sample_rate=sample_rate, channels=channels) as mix:
        lengths = even_lengths(mix.samples, longest_seconds * sample_rate)
        files = [new_file() for _ in lengths]
        layout = _Layout(encoding, sample_rate, mix.channels, lengths)
        peak, digests = _write(mix, layout, files, gain=1.0)
    gain = 1.0
    if encoding.bits and peak > 1:
        gain = 1 / peak
        for file in files:
            file.seek(0)
            file.truncate()
        with Mix(source, sample_rate=sample_rate, channels=channels) as mix:
            peak, digests = _write(mix, layout, files, gain)
    for file, digest in zip(files, digests, strict=True):
        if samples_digest(file, encoding) != digest:
            raise ReadBackError(f"{str(source.paths[0])!r}: what was written reads differently; is the disk failing?")
    if _states(source) != states:
        raise AudioFileError.of(source.paths[0], f"{_changed(source)} while it was read; {_SCAN_AGAIN}")
    return Transcoded(sample_rate, layout.channels, lengths, peak, 20 * math.log10(gain)), files


def even_lengths(samples: int, longest: float) -> tuple[int, ...]:
    """`samples` in the fewest pieces of at most `longest`, as equal as whole numbers can be."""
    pieces = max(1, math.ceil(samples / longest))
    edges = [samples * piece // pieces for piece in range(pieces + 1)]
    return tuple(stop - start for start, stop in itertools.pairwise(edges))


@dataclass(frozen=True)
class _Layout:
    encoding: Encoding
    sample_rate: int
    channels: int
    lengths: tuple[int, ...]


def _write(mix: Mix, layout: _Layout, files: Sequence[BinaryIO], gain: float) -> tuple[float, list[str]]:
    """Largest sample, and each piece's digest."""
    peak = 0.0
    digests: list[str] = []
    stretches = _stretches(mix.blocks(_BLOCK_SECONDS * layout.sample_rate), layout.lengths)
    for file, length in zip(files, layout.lengths, strict=True):
        writer = PieceWriter(
            file, layout.encoding, sample_rate=layout.sample_rate, channels=layout.channels, samples=length
        )
        written = 0
        while written < length:
            audio = next(stretches) * gain if gain != 1 else next(stretches)
            peak = max(peak, float(audio.abs().max()))
            writer.write(audio)
            written += audio.shape[1]
        digests.append(writer.close())
    return peak, digests


def _stretches(blocks: Iterator[Tensor], lengths: Sequence[int]) -> Iterator[Tensor]:
    """The blocks, cut where a piece ends."""
    room, rest = lengths[0], iter(lengths[1:])
    for block in blocks:
        while block.shape[1]:
            yield block[:, :room]
            taken = min(room, block.shape[1])
            block, room = block[:, taken:], room - taken
            if not room:
                room = next(rest, 0)


def _require_unchanged(source: Source, readers: Sequence[AudioReader]) -> None:
    if len(readers) > 1:  # of parts, the manifest's numbers are those of the sum
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
    """Size in bytes and time of change in nanoseconds of each file."""
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
    elif same_size:  # nothing was measured that could be untrue now; `Mix` compares the header
        return
    difference = "other samples in as many bytes" if same_size else f"{source.size_bytes} bytes, now {size}"
    reason = f"{_changed(source)} since it was scanned ({difference}); {_SCAN_AGAIN}"
    raise AudioFileError.of(source.paths[0], reason)


def _changed(source: Source) -> str:
    return "has changed" if len(source.paths) == 1 else "has a part that changed"
