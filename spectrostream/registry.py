"""The codecs that can be built from a configuration, by their `kind`."""

from __future__ import annotations

from typing import Any

from spectrostream.codec import SpectroStream
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.config_from_plain import config_of, kind_of
from spectrostream.other_codecs.dac import Dac, DacConfig

Codec = SpectroStream | Dac
CodecConfig = SpectroStreamConfig | DacConfig
CONFIGS: dict[str, type[SpectroStreamConfig] | type[DacConfig]] = {
    "spectrostream": SpectroStreamConfig,
    "dac": DacConfig,
}


def build_codec(config: CodecConfig) -> Codec:
    """A codec with random weights."""
    return SpectroStream(config) if isinstance(config, SpectroStreamConfig) else Dac(config)


def config_from_plain(plain: dict[str, Any]) -> CodecConfig:
    """Inverse of `dataclasses.asdict`. Raises ValueError for an unknown kind or key."""
    return config_of(CONFIGS[kind_of(plain)], plain)
