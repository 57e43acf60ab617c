"""The SpectroStream codec in pure PyTorch. It works without Lightning, OmegaConf, pandas and matplotlib."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectrostream.codec import SpectroStream
    from spectrostream.codec_config import SpectroStreamConfig
    from spectrostream.interface import AudioCodec, Reconstruction
    from spectrostream.quantizer import QuantizerConfig

__all__ = ["AudioCodec", "QuantizerConfig", "Reconstruction", "SpectroStream", "SpectroStreamConfig"]

_MODULES = {
    "AudioCodec": "interface",
    "QuantizerConfig": "quantizer",
    "Reconstruction": "interface",
    "SpectroStream": "codec",
    "SpectroStreamConfig": "codec_config",
}


def __getattr__(name: str) -> Any:
    # Torch is imported with the first codec, so that the command line's --help is fast.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
