"""The SpectroStream codec in pure PyTorch; works without Lightning, OmegaConf, pandas and matplotlib."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectrostream.codec import SpectroStream
    from spectrostream.codec_config import SpectroStreamConfig
    from spectrostream.interface import AudioCodec, Reconstruction
    from spectrostream.quantizer import QuantizerConfig

__all__ = ["AudioCodec", "QuantizerConfig", "Reconstruction", "SpectroStream", "SpectroStreamConfig"]

_HOMES = {
    "AudioCodec": "interface",
    "QuantizerConfig": "quantizer",
    "Reconstruction": "interface",
    "SpectroStream": "codec",
    "SpectroStreamConfig": "codec_config",
}


def __getattr__(name: str) -> Any:
    # Torch is imported when a codec is asked for, so that the command line's --help answers at once.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
