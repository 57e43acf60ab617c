"""Weights of a codec in one safetensors file, its configuration inside; nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spectrostream.codec import SpectroStream
from spectrostream.errors import UserError
from spectrostream.official_weights import from_official
from spectrostream.registry import Codec, build_codec, config_from_plain

__all__ = ["WeightsError", "codec_fingerprint", "from_official", "load_codec", "save_codec"]

FORMAT = "spectrostream-codec"
VERSION = "1"
# How the codebooks learn is a matter of training checkpoints.
_ONLY_FOR_TRAINING = "quantizer.learning."


class WeightsError(UserError):
    """A file that holds no codec of ours; the message says what is wrong with it."""


def save_codec(codec: Codec, path: Path) -> None:
    """Writes the codec's tensors and configuration to `path`, beside and then renamed."""
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in codec.state_dict().items()
        if not name.startswith(_ONLY_FOR_TRAINING)
    }
    config = json.dumps(dataclasses.asdict(codec.config))
    partial = path.with_name(path.name + ".partial")
    save_file(state, partial, metadata={"format": FORMAT, "version": VERSION, "config": config})
    partial.replace(path)


def load_codec(path: Path) -> Codec:
    """The codec saved at `path`, in evaluation mode. Raises WeightsError for a missing, foreign or damaged file."""
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    codec = _random_codec(path, metadata)
    expected = {name for name in codec.state_dict() if not name.startswith(_ONLY_FOR_TRAINING)}
    if expected != state.keys():
        odd = min(expected ^ state.keys())
        kind = "missing" if odd in expected else "foreign"
        raise WeightsError(f"{path} does not fit its own configuration: {kind} tensor {odd}")
    try:
        codec.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its own configuration: {error}") from error
    if isinstance(codec, SpectroStream):
        codec.quantizer.learning.adopt(codec.quantizer.codebooks)
    return codec.eval()


def codec_fingerprint(codec: Codec) -> bytes:
    """8 bytes that name the configuration and the weights: codes mean something to this codec only."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(codec.config), sort_keys=True).encode())
    for name, value in sorted(codec.state_dict().items()):
        if not name.startswith(_ONLY_FOR_TRAINING):
            digest.update(name.encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.digest()[:8]


def _random_codec(path: Path, metadata: dict[str, str]) -> Codec:
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} holds no codec of this project (its format is {metadata.get('format')!r}, not {FORMAT!r})"
        )
    if metadata.get("version") != VERSION:
        raise WeightsError(f"{path} is of format version {metadata.get('version')!r}; this version reads {VERSION!r}")
    try:
        return build_codec(config_from_plain(json.loads(metadata["config"])))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} has an unusable configuration: {error}") from error
