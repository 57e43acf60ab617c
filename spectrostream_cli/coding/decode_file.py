"""Decodes a coded stream chunk by chunk, so that memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datamodules.audio.blocks import AudioWriter
from datamodules.audio.files import probe
from spectrostream.bitstream.files import BitstreamError, BitstreamReader, Loss, StreamHeader, read_header
from spectrostream.codec import SAMPLE_RATE
from spectrostream.codec_stream import DecoderStream
from spectrostream.errors import UserError
from spectrostream.frontends import SAMPLES_PER_TOKEN
from spectrostream_cli.coding.load_codec import LoadedCodec


class Decoded(NamedTuple):
    """What is known of a decoded stream."""

    seconds: float
    """Length of the audio."""
    clipped: int
    """Samples beyond full scale."""
    lost: list[Loss]
    """The damaged parts, which were concealed."""
    is_truncated: bool
    """True if the stream had no end record."""

    @property
    def lost_frames(self) -> int:
        """Number of concealed frames."""
        return sum(loss.frames for loss in self.lost)

    def damage(self) -> str:
        """Return the losses and their places in one line; "" if there are none."""
        places = [
            f"{loss.frames} frames at {loss.position * SAMPLES_PER_TOKEN / SAMPLE_RATE:.2f} s ({loss.reason})"
            for loss in self.lost
            if loss.frames
        ]
        if self.is_truncated:
            places.append(f"the end after {self.seconds:.2f} s is missing ({self.lost[-1].reason})")
        return "; ".join(places)


class FileDecoder:
    """Decodes files of one codec.

    Args:
        loaded: The codec.
        conceal: Decode damaged frames without codes, and leave a missing end out. If False, damage is an error.
    """

    def __init__(self, loaded: LoadedCodec, *, conceal: bool) -> None:
        self._loaded = loaded
        self._conceal = conceal

    def decode(self, source: Path | BinaryIO, target: Path, advance: Callable[[float], None]) -> Decoded:
        """Decode one stream.

        Args:
            source: A stream, or the path of a coded file.
            target: Gets the complete file or stays unchanged.
            advance: Called with the seconds of audio of each chunk.

        Raises:
            AudioFileError: The target cannot be written.
            BitstreamError: The stream is damaged.
            UserError: Another codec encoded the stream.
        """
        codec = self._loaded.codec
        with _naming(source), BitstreamReader(source, conceal=self._conceal) as reader:
            self._require_codec(reader.header, source)
            with AudioWriter(target, sample_rate=codec.sample_rate, channels=codec.channels) as writer:
                stream = DecoderStream(codec)
                for codes in reader:
                    audio = stream.push(codes[None])[0]
                    writer.write(audio)
                    advance(audio.shape[-1] / codec.sample_rate)
                length = reader.end.samples if reader.end else None
                writer.write(stream.finish(length)[0])
                writer.close()
        return Decoded(writer.samples / codec.sample_rate, writer.clipped, reader.lost, reader.end is None)

    def _require_codec(self, header: StreamHeader, source: Path | BinaryIO) -> None:
        codec, fingerprint, weights = self._loaded
        if fingerprint != header.configuration_hash:
            raise UserError(
                f"{_name(source)} was encoded by another codec than {weights}; give the weights it was encoded with"
            )
        if (header.sample_rate, header.channels) != (codec.sample_rate, codec.channels):
            raise BitstreamError(
                f"byte 16: the file claims {header.sample_rate} Hz and {header.channels} channels; "
                f"its codec has {codec.sample_rate} Hz and {codec.channels}"
            )

    def has_made(self, source: Path, target: Path) -> bool:
        """Return True if `target` has the length, rate and channels that `source` records.

        Raises:
            UserError: One of the files cannot be read.
        """
        codec, header, info = self._loaded.codec, read_header(source), probe(target)
        expected = (header.samples, codec.sample_rate, codec.channels)
        return (info.frames, info.sample_rate, info.channels) == expected


@contextmanager
def _naming(source: Path | BinaryIO) -> Iterator[None]:
    """Put the stream's name before the messages of errors in its bytes and codes."""
    try:
        yield
    except ValueError as error:  # BitstreamError, or codes and samples that contradict the codec or each other
        raise BitstreamError(f"{_name(source)}: {error}") from error


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the standard input"
