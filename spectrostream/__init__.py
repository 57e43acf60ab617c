"""The SpectroStream codec in pure PyTorch; works without Lightning, OmegaConf, pandas and matplotlib."""

from spectrostream import torchaudio_functional as torchaudio_functional  # before any other library imports torchaudio
from spectrostream.codec import SpectroStream, SpectroStreamConfig
from spectrostream.interface import AudioCodec, Reconstruction
from spectrostream.quantizer import QuantizerConfig

__all__ = ["AudioCodec", "QuantizerConfig", "Reconstruction", "SpectroStream", "SpectroStreamConfig"]
