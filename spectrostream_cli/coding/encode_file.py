"""One audio file to one coded stream, in pieces, so that its length does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from datamodules.audio.blocks import AudioReader
from datamodules.audio.files import probe
from spectrostream.bitstream.files import (
    BitstreamWriter,
    FrequencyTables,
    Header,
    StreamHeader,
    coded_size,
    read_header,
)
from spectrostream.codec import CHUNK_TOKENS
from spectrostream.codec_stream import EncoderStream
from spectrostream.frontends import SAMPLES_PER_TOKEN
from spectrostream_cli.coding.load_codec import LoadedCodec

PIECE_SAMPLES = CHUNK_TOKENS * SAMPLES_PER_TOKEN


class Coded(NamedTuple):
    """seconds: of audio. file_bytes: of the coded file. saved_bits: by entropy coding."""

    seconds: float
    file_bytes: int
    saved_bits: int = 0

    @property
    def kbps(self) -> float:
        """Rate with headers and checksums."""
        return self.file_bytes * 8 / self.seconds / 1000

    @classmethod
    def total(cls, parts: list[Coded]) -> Coded:
        """Of several files."""
        return cls(*(sum(column) for column in zip(*parts, strict=True))) if parts else cls(0.0, 0)


class FileEncoder:
    """Encodes files with one codec at one rate.

    entropy_coding: with tables fitted to all codes of each file, which are kept until then (46 MB for an hour of 64
        levels); a file that would grow by it is written without.
    """

    def __init__(self, loaded: LoadedCodec, levels: int, *, entropy_coding: bool) -> None:
        codec = loaded.codec
        self._codec = codec
        self._levels = levels
        self._entropy_coding = entropy_coding
        bits = (codec.codebook_size - 1).bit_length()
        self._header = StreamHeader(loaded.fingerprint, codec.sample_rate, codec.channels, levels, bits)

    def encode(self, source: Path, target: Path | BinaryIO, advance: Callable[[float], None]) -> Coded:
        """`source` to `target`; a path gets the complete file or stays as it was. advance: seconds done.

        Raises AudioFileError, BitstreamError.
        """
        with AudioReader(source, sample_rate=self._codec.sample_rate, channels=self._codec.channels) as reader:
            pieces = self._codes(reader, advance)
            tables, saved_bits = None, 0
            if self._entropy_coding:
                pieces, tables, saved_bits = self._fitted(pieces)
            with BitstreamWriter(target, self._header, tables=tables) as writer:
                for codes in pieces:
                    writer.write(codes)
                writer.close(samples=reader.samples)
        packed = Header(**vars(self._header), samples=reader.samples, frames=writer.frames).file_bytes
        return Coded(reader.samples / self._codec.sample_rate, packed - saved_bits // 8, saved_bits)

    def _codes(self, reader: AudioReader, advance: Callable[[float], None]) -> Iterator[Tensor]:
        """The file's codes, int64 `[levels, frames]` at a time."""
        stream = EncoderStream(self._codec, self._levels)
        for audio in reader.pieces(PIECE_SAMPLES):
            yield stream.push(audio[None])[0]
            advance(audio.shape[-1] / self._codec.sample_rate)
        yield stream.finish()[0]

    def _fitted(self, pieces: Iterator[Tensor]) -> tuple[Iterator[Tensor], FrequencyTables | None, int]:
        """The same codes, the tables that suit them, and the bits these save; no tables where they save none."""
        codes = torch.cat(list(pieces), dim=1)
        bits = self._header.bits_per_index
        tables = FrequencyTables.fit(codes, bits)
        saved = coded_size(codes, bits, tables).saved
        return iter((codes,)), *((tables, saved) if saved > 0 else (None, 0))

    def has_made(self, source: Path, target: Path) -> bool:
        """Whether `target` is a complete file of this codec, at this rate, as long as `source`. Raises UserError."""
        header = read_header(target)
        info = probe(source)
        samples = info.resampler(self._codec.sample_rate).length(info.frames)
        return vars(header) == {**vars(self._header), "samples": samples, "frames": -(-samples // SAMPLES_PER_TOKEN)}
