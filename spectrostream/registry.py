"""The codecs that can be built from a configuration, by their `kind`. A new codec is one line in `CODECS`."""

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
    """One kind of codec.

    Attributes:
        config: The configuration, a frozen dataclass with the properties of `CodecConfig`.
        codec: Builds the codec from its configuration.
        find_trained: Loads a trained codec from other places than our own files, or raises `WeightsError`.
        match_widths: Finds the widths at which one configuration costs as much as another; see `matched_widths`.
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
    """Build a codec with random weights."""
    return CODECS[config.kind].codec(config)


def config_from_plain(plain: Any) -> CodecConfig:
    """Build a codec's configuration from a dictionary; see `config_of`.

    Raises:
        ValueError: The kind or a key is unknown, or a value is not allowed.
    """
    kind = kind_of(plain)
    if not isinstance(kind, str) or kind not in CODECS:
        raise ValueError(f"kind = {kind!r} is not a known codec; allowed: {', '.join(CODECS)}")
    config: CodecConfig = config_of(CODECS[kind].config, plain)
    return config
