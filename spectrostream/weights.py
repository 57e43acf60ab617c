"""Codecs out of weights and back: our own files, the official release, a hub."""

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
    """A trained SpectroStream in evaluation mode, from a path or, where nothing has that path, from a hub.

    source: our own `codec.safetensors`; a folder that holds one (a run's); a folder with the three officially released
        files, or the one above their `resources/spectrostream`; or a hub id `owner/name`, optionally with a folder in
        it: `owner/name/folder`. A `Path` is never a hub id.
    revision, cache_dir, local_files_only: of the hub; branch, tag or commit, where its files are kept (default: where
        huggingface_hub keeps them), and whether to do without a connection.

    `google/magenta-realtime-2` is the official release; its sizes and SHA-256 are checked. Those weights are licensed
    CC-BY-4.0: whoever passes them on, or work made of them, must name their authors. Raises WeightsError.
    """
    return SpectroStream.from_pretrained(
        source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )


def from_official(params: Mapping[str, np.ndarray]) -> SpectroStream:
    """A codec with the official parameters; widths, channels, fusion and split point, levels inferred from the shapes.

    params: official path to array, for instance `decoder/decoder_0/conv2d_3x3/conv/kernel`. A half that is missing
    altogether (an encoder-only set) stays at its random initialisation. Raises ValueError for an incomplete half and
    for shapes that do not fit together.
    """
    return SpectroStream.from_weights(official_weights(params))


def save_official(codec: SpectroStream, folder: Path) -> None:
    """Writes the codec as the official release is laid out, for the official code and for `load_pretrained`.

    Raises WeightsError for a codec that this layout cannot express: another front-end than the STFT, channel groups,
    "never".
    """
    write_official(folder, codec.config, codec.state_dict())


def save_codec(codec: TrainableCodec, path: Path) -> None:
    """Writes the codec's tensors, configuration and their SHA-256 to `path`, beside and then renamed."""
    write_weights(path, identity_of(codec.config), codec.state_dict())


def load_codec(path: Path) -> TrainableCodec:
    """The codec saved at `path`, in evaluation mode. Raises WeightsError for a missing, foreign or damaged file."""
    codec = read_weights(path, config_from_plain).load_into(build_codec)
    codec.adopt_codebooks()
    return codec.eval()


def codec_fingerprint(codec: TrainableCodec) -> bytes:
    """8 bytes that name the configuration and the weights: codes mean something to this codec only.

    They are the first 8 of the SHA-256 that `save_codec` writes.
    """
    return weights_digest(identity_of(codec.config), codec.state_dict())[:8]
