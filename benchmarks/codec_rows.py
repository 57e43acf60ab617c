"""The codecs of `benchmarks.codec_speed`: name, constructor and precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from spectrostream.codec import SpectroStream
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.interface import AudioCodec

RELEASED = "SpectroStream, eager"
COMPILED = "SpectroStream, compiled"  # takes minutes to compile, so it is not among the defaults


@dataclass(frozen=True)
class CodecRow:
    """One codec of the table."""

    build: Callable[[], AudioCodec]
    """Builds the codec for inference, at full size with random weights."""
    precision: str = "float32"
    """The precision of its products, float32, bfloat16 or int8; the peak is measured in the same precision."""
    arithmetic_of: str | None = None
    """The row whose multiply-accumulates count for this row, because torch cannot count those here. None: count here.
    """


def _released() -> AudioCodec:
    return SpectroStream(SpectroStreamConfig()).eval()


def _inference() -> AudioCodec:
    return SpectroStream(SpectroStreamConfig()).for_inference()


def _bfloat16() -> AudioCodec:
    return SpectroStream(SpectroStreamConfig()).for_inference(precision="bfloat16")


def _int8() -> AudioCodec:
    return SpectroStream(SpectroStreamConfig()).for_inference(precision="int8")


def _compiled() -> AudioCodec:
    return SpectroStream(SpectroStreamConfig()).for_inference(compile=True)


def _waveform() -> AudioCodec:
    return SpectroStream(SpectroStreamConfig(frontend="waveform")).eval()


def _dac() -> AudioCodec:
    from spectrostream.other_codecs.dac import Dac, DacConfig

    return Dac(DacConfig()).eval().deployed()


def _encodec() -> AudioCodec:
    from spectrostream.other_codecs.encodec import Encodec
    from spectrostream.other_codecs.encodec_config import EncodecConfig

    return cast(AudioCodec, Encodec(EncodecConfig()).eval())  # its codes are an object of its own


CODEC_ROWS: dict[str, CodecRow] = {
    RELEASED: CodecRow(_released),
    "SpectroStream, for_inference()": CodecRow(_inference, arithmetic_of=RELEASED),
    "SpectroStream, bfloat16": CodecRow(_bfloat16, precision="bfloat16", arithmetic_of=RELEASED),
    "SpectroStream, int8": CodecRow(_int8, precision="int8", arithmetic_of=RELEASED),
    COMPILED: CodecRow(_compiled, arithmetic_of=RELEASED),
    "SpectroStream, waveform front-end": CodecRow(_waveform),
    "DAC 44.1 kHz, two passes": CodecRow(_dac),
    "EnCodec 48 kHz": CodecRow(_encodec),
}
