"""The codecs that can be built from a configuration, by their `kind`."""

from __future__ import annotations

from typing import Any

from spectrostream.baselines.dac import Dac, DacConfig
from spectrostream.codec import SpectroStream
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.plain_config import config_of, kind_of

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
