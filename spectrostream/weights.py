"""Load and save the weights of codecs: our own files, the official release, a hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spectrostream.added_keys import identity_of
from spectrostream.codec import SpectroStream
from spectrostream.errors import WeightsError
from spectrostream.interface import TrainableCodec
from spectrostream.registry import build_codec, config_from_plain
from spectrostream.weight_files.official_files import write_official
from spectrostream.weight_files.official_weights import official_weights
from spectrostream.weight_files.safetensors_file import read_weights, weights_digest, write_weights

__all__ = [
    "WeightsError",
    "codec_fingerprint",
    "from_official",
    "load_codec",
    "load_pretrained",
    "save_codec",
    "save_official",
]


def load_pretrained(
    source: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> SpectroStream:
    """Load a trained SpectroStream in evaluation mode from a path or, if nothing has this path, from a hub.

    `google/magenta-realtime-2` is the official release; its sizes and SHA-256 are checked. Those weights are licensed
    CC-BY-4.0: if you share them, or work made from them, you must name their authors.

    Args:
        source: Our own `codec.safetensors`, a folder that holds one (a run's folder), a folder with the three official
            files, or the folder above their `resources/spectrostream`. Or a hub id `owner/name`, also with a folder in
            it: `owner/name/folder`. A `Path` is never a hub id.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where the hub's files are kept (default: where huggingface_hub keeps them).
        local_files_only: Use only files that are already there.

    Raises:
        WeightsError: The weights are missing, damaged or of another kind.
    """
    return SpectroStream.from_pretrained(
        source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )


def from_official(params: Mapping[str, np.ndarray]) -> SpectroStream:
    """Build a codec from the official parameters; its configuration is inferred from their shapes.

    A codec without any parameter of the encoder, or of the decoder, keeps the random initialisation of that half.

    Args:
        params: Official path -> array, for instance `decoder/decoder_0/conv2d_3x3/conv/kernel`.

    Raises:
        ValueError: A half is incomplete, or shapes do not fit together.
    """
    return SpectroStream.from_weights(official_weights(params))


def save_official(codec: SpectroStream, folder: Path) -> None:
    """Write the codec in the layout of the official release, for the official code and for `load_pretrained`.

    Raises:
        WeightsError: The layout has no room for the codec: another front-end than the STFT, channel groups, "never".
    """
    write_official(folder, codec.config, codec.state_dict())


def save_codec(codec: TrainableCodec, path: Path) -> None:
    """Write the codec's tensors, its configuration and their SHA-256 to a file that appears complete or not at all."""
    write_weights(path, identity_of(codec.config), codec.state_dict())


def load_codec(path: Path) -> TrainableCodec:
    """Load a codec from a file of `save_codec`, in evaluation mode.

    Raises:
        WeightsError: The file is missing, damaged or of another kind.
    """
    codec = read_weights(path, config_from_plain).load_into(build_codec)
    codec.adopt_codebooks()
    return codec.eval()


def codec_fingerprint(codec: TrainableCodec) -> bytes:
    """Return 8 bytes that identify the codec, because only the codec that made codes can decode them.

    They are the first 8 bytes of the SHA-256 that `save_codec` writes, of configuration and tensors.
    """
    return weights_digest(identity_of(codec.config), codec.state_dict())[:8]
