"""The codecs that can be built from a configuration, by their `kind`; a new codec enters `CODECS` with one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from spectrostream.codec import SpectroStream
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.config_from_plain import config_of, kind_of
from spectrostream.interface import CodecConfig, TrainableCodec
from spectrostream.other_codecs.dac import Dac, DacConfig
from spectrostream.width_matching import WidthMatch, matched_widths


class CodecKind(NamedTuple):
    """What is known of one kind of codec.

    config: a frozen dataclass, a `CodecConfig`. codec: built from it alone.
    find_trained: finds trained weights in more places than our own files; raises WeightsError.
    match_widths: widths of one configuration for the cost of another, as `matched_widths`; None if there are none.
    """

    config: type[Any]
    codec: Callable[[Any], TrainableCodec]
    find_trained: Callable[[str], TrainableCodec] | None = None
    match_widths: Callable[[Any, Any, str], WidthMatch] | None = None


CODECS: dict[str, CodecKind] = {
    "spectrostream": CodecKind(SpectroStreamConfig, SpectroStream, SpectroStream.from_pretrained, matched_widths),
    "dac": CodecKind(DacConfig, Dac),
}


def build_codec(config: CodecConfig) -> TrainableCodec:
    """A codec with random weights."""
    return CODECS[config.kind].codec(config)


def config_from_plain(plain: Any) -> CodecConfig:
    """Inverse of `dataclasses.asdict`. Raises ValueError for an unknown kind or key."""
    kind = kind_of(plain)
    if not isinstance(kind, str) or kind not in CODECS:
        raise ValueError(f"kind = {kind!r} is not a known codec; allowed: {', '.join(CODECS)}")
    config: CodecConfig = config_of(CODECS[kind].config, plain)
    return config
