"""The codecs that can be built from a configuration, by their `kind`."""

from __future__ import annotations

import dataclasses
from typing import Any

from spectrostream.baselines.dac import Dac, DacConfig
from spectrostream.codec import SpectroStream, SpectroStreamConfig

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
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if kind not in CONFIGS:
        raise ValueError(f"kind = {kind!r} is not a known codec; allowed: {', '.join(CONFIGS)}")
    return _construct(CONFIGS[kind], plain)


def _construct(schema: type, plain: Any) -> Any:
    if not isinstance(plain, dict):
        raise ValueError(f"{schema.__name__} is made of keys and values, not of {plain!r}")
    known = {field.name: field for field in dataclasses.fields(schema)}
    unknown = sorted(plain.keys() - known.keys())
    if unknown:
        raise ValueError(f"{schema.__name__} has no {', '.join(unknown)}")
    values = {}
    for name, value in plain.items():
        factory = known[name].default_factory
        values[name] = _construct(factory, value) if dataclasses.is_dataclass(factory) else value
    return schema(**values)
