"""Weights of a codec in one safetensors file, its configuration inside; nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrostream.codec import SpectroStream
from spectrostream.hub import OWN_NAME, HubSource
from spectrostream.official_files import (
    OFFICIAL_FOLDER,
    OFFICIAL_NAMES,
    WeightsError,
    load_official,
    require_released,
    warn_if_not_released,
)
from spectrostream.official_weights import from_official
from spectrostream.registry import Codec, build_codec, config_from_plain

__all__ = ["WeightsError", "codec_fingerprint", "from_official", "load_codec", "load_pretrained", "save_codec"]

FORMAT = "spectrostream-codec"
VERSION = "2"
# How the codebooks learn is a matter of training checkpoints.
_ONLY_FOR_TRAINING = "quantizer.learning."


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
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise WeightsError(
                f"revision = {revision!r} belongs to a hub, but {source} is on this machine; leave it out"
            )
        return _load_local(path)
    if isinstance(source, Path) or not HubSource.accepts(source):
        raise WeightsError(
            f"there is no file or folder {source}; allowed: a codec.safetensors, a folder with one, a folder with "
            f"{', '.join(OFFICIAL_NAMES)}, or a hub id such as google/magenta-realtime-2"
        )
    hub = HubSource(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
    fetched = hub.fetch()
    if hub.is_official:
        require_released(fetched, origin=source)
    return _load_local(fetched)


def _load_local(path: Path) -> SpectroStream:
    if path.is_file():
        if path.name in OFFICIAL_NAMES:
            raise WeightsError(f"{path} is one of three official files; type their folder: {path.parent}")
        return _load_spectrostream(path)
    own = path / OWN_NAME
    official = [folder for folder in (path, path / OFFICIAL_FOLDER) if _has_official_file(folder)]
    if own.is_file() and official:
        raise WeightsError(f"{path} holds two codecs, {OWN_NAME} and official files; type {own}, or move one of them")
    if own.is_file():
        return _load_spectrostream(own)
    if not official:
        raise WeightsError(f"{path} holds no weights: neither {OWN_NAME} nor {', '.join(OFFICIAL_NAMES)}")
    codec = load_official(official[0])
    warn_if_not_released(official[0])
    return codec


def _has_official_file(folder: Path) -> bool:
    return any((folder / name).is_file() for name in OFFICIAL_NAMES)


def _load_spectrostream(path: Path) -> SpectroStream:
    codec = load_codec(path)
    if not isinstance(codec, SpectroStream):
        raise WeightsError(f"{path} holds a codec of kind {codec.config.kind!r}, not a SpectroStream")
    return codec


def save_codec(codec: Codec, path: Path) -> None:
    """Writes the codec's tensors, configuration and their SHA-256 to `path`, beside and then renamed."""
    state = {name: value.clone() for name, value in _deployed_state(codec).items()}
    config = _config_json(codec)
    metadata = {"format": FORMAT, "version": VERSION, "config": config, "sha256": _content_digest(config, state).hex()}
    partial = path.with_name(path.name + ".partial")
    save_file(state, partial, metadata=metadata)
    partial.replace(path)


def load_codec(path: Path) -> Codec:
    """The codec saved at `path`, in evaluation mode. Raises WeightsError for a missing, foreign or damaged file."""
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _require_format(path, metadata)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    _require_intact(path, metadata, state)
    codec = _random_codec(path, metadata)
    _require_fit(path, _deployed(codec.state_dict()), state)
    codec.load_state_dict(state, strict=False)
    if isinstance(codec, SpectroStream):
        codec.quantizer.learning.adopt(codec.quantizer.codebooks)
    return codec.eval()


def _require_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} holds no codec of this project (its format is {metadata.get('format')!r}, not {FORMAT!r})"
        )
    if metadata.get("version") != VERSION:
        raise WeightsError(f"{path} is of format version {metadata.get('version')!r}; this version reads {VERSION!r}")


def _require_intact(path: Path, metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    digest = _content_digest(metadata.get("config", ""), state).hex()
    if metadata.get("sha256") != digest:
        raise WeightsError(
            f"{path} is damaged: the SHA-256 of its content is {digest}, not {metadata.get('sha256')}; "
            "copy or train it again"
        )


def _random_codec(path: Path, metadata: Mapping[str, str]) -> Codec:
    try:
        return build_codec(config_from_plain(json.loads(metadata["config"])))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} has an unusable configuration: {error}") from error


def _require_fit(path: Path, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    misfit = f"{path} does not fit its own configuration"
    if expected.keys() != state.keys():
        odd = min(expected.keys() ^ state.keys())
        raise WeightsError(f"{misfit}: {'missing' if odd in expected else 'foreign'} tensor {odd}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            wanted = list(expected[name].shape)
            raise WeightsError(f"{misfit}: size mismatch of {name}, {list(value.shape)} instead of {wanted}")


def codec_fingerprint(codec: Codec) -> bytes:
    """8 bytes that name the configuration and the weights: codes mean something to this codec only.

    They are the first 8 of the SHA-256 that `save_codec` writes.
    """
    return _content_digest(_config_json(codec), _deployed_state(codec))[:8]


def _config_json(codec: Codec) -> str:
    return json.dumps(dataclasses.asdict(codec.config), sort_keys=True)


def _deployed_state(codec: Codec) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in _deployed(codec.state_dict()).items()}


def _deployed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(_ONLY_FOR_TRAINING)}


def _content_digest(config: str, state: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over the configuration's text and each tensor's name, type, shape and bytes, sorted by name."""
    digest = hashlib.sha256(config.encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
