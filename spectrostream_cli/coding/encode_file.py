"""Encodes an audio file block by block, so that memory does not grow with its length."""

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
    """The sizes of one or several coded files."""

    seconds: float
    """Length of the audio."""
    file_bytes: int
    saved_bits: int = 0
    """Bits that entropy coding saved."""

    @property
    def kbps(self) -> float:
        """The rate with headers and checksums."""
        return self.file_bytes * 8 / self.seconds / 1000

    @classmethod
    def total(cls, parts: list[Coded]) -> Coded:
        """Return the sum over several files."""
        return cls(*(sum(column) for column in zip(*parts, strict=True))) if parts else cls(0.0, 0)


class FileEncoder:
    """Encodes files with one codec at one rate.

    Args:
        loaded: The codec.
        levels: Quantizer levels to encode.
        entropy_coding: Fit tables to the codes of each file. All codes of a file are in memory then (46 MB for an hour
            of 64 levels). A file that would become larger is written without tables.
    """

    def __init__(self, loaded: LoadedCodec, levels: int, *, entropy_coding: bool) -> None:
        codec = loaded.codec
        self._codec = codec
        self._levels = levels
        self._entropy_coding = entropy_coding
        bits = (codec.codebook_size - 1).bit_length()
        self._header = StreamHeader(loaded.fingerprint, codec.sample_rate, codec.channels, levels, bits)

    def encode(self, source: Path, target: Path | BinaryIO, advance: Callable[[float], None]) -> Coded:
        """Encode one file.

        Args:
            source: An audio file.
            target: A stream, or a path that gets the complete file or stays unchanged.
            advance: Called with the seconds of audio of each block.

        Raises:
            AudioFileError: The source cannot be read.
            BitstreamError: The codes cannot be written.
        """
        with AudioReader(source, sample_rate=self._codec.sample_rate, channels=self._codec.channels) as reader:
            blocks = self._codes(reader, advance)
            tables, saved_bits = None, 0
            if self._entropy_coding:
                blocks, tables, saved_bits = self._fitted(blocks)
            with BitstreamWriter(target, self._header, tables=tables) as writer:
                for codes in blocks:
                    writer.write(codes)
                writer.close(samples=reader.samples)
        packed = Header(**vars(self._header), samples=reader.samples, frames=writer.frames).file_bytes
        return Coded(reader.samples / self._codec.sample_rate, packed - saved_bits // 8, saved_bits)

    def _codes(self, reader: AudioReader, advance: Callable[[float], None]) -> Iterator[Tensor]:
        """Yield the file's codes block by block, int64 `[levels, frames]`."""
        stream = EncoderStream(self._codec, self._levels)
        for audio in reader.blocks(PIECE_SAMPLES):
            yield stream.push(audio[None])[0]
            advance(audio.shape[-1] / self._codec.sample_rate)
        yield stream.finish()[0]

    def _fitted(self, blocks: Iterator[Tensor]) -> tuple[Iterator[Tensor], FrequencyTables | None, int]:
        """Return the codes, the tables fitted to them, and the bits that these save; None and 0 if they save none."""
        codes = torch.cat(list(blocks), dim=1)
        bits = self._header.bits_per_index
        tables = FrequencyTables.fit(codes, bits)
        saved = coded_size(codes, bits, tables).saved
        return iter((codes,)), *((tables, saved) if saved > 0 else (None, 0))

    def has_made(self, source: Path, target: Path) -> bool:
        """Return True if `target` is a complete file of this codec, at this rate, as long as `source`.

        Raises:
            UserError: One of the files cannot be read.
        """
        header = read_header(target)
        info = probe(source)
        samples = info.resampler(self._codec.sample_rate).length(info.frames)
        return vars(header) == {**vars(self._header), "samples": samples, "frames": -(-samples // SAMPLES_PER_TOKEN)}
