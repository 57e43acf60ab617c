"""Read and write our weight file: safetensors with the codec's configuration and a checksum. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from spectrostream.atomic_files import whole_file
from spectrostream.errors import WeightsError

FORMAT = "spectrostream-codec"
VERSION = "2"
# The state of codebook learning belongs to training checkpoints.
_ONLY_FOR_TRAINING = "quantizer.learning."
# The errors of a missing configuration and of one that builds no codec.
_UNUSABLE = (KeyError, TypeError, ValueError, RuntimeError)

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class StoredWeights(Generic[C]):
    """The content of a file.

    Attributes:
        path: The file, for messages.
        config: The codec's configuration.
        state: Name in the codec's `state_dict()` -> tensor.
    """

    path: Path
    config: C
    state: dict[str, Tensor]

    def load_into(self, build: Callable[[C], M]) -> M:
        """Build a codec and load the tensors.

        Args:
            build: Makes the codec from its configuration.

        Raises:
            WeightsError: `build` fails, or the codec has other tensors.
        """
        try:
            module = build(self.config)
        except _UNUSABLE as error:
            raise _unusable(self.path, error) from error
        self._require_fit({name: value for name, value in module.state_dict().items() if _is_deployed(name)})
        module.load_state_dict(self.state, strict=False)
        return module

    def _require_fit(self, expected: Mapping[str, Tensor]) -> None:
        misfit = f"{self.path} does not fit its own configuration"
        if expected.keys() != self.state.keys():
            name = min(expected.keys() ^ self.state.keys())
            raise WeightsError(f"{misfit}: {'missing' if name in expected else 'unknown'} tensor {name}")
        for name, value in self.state.items():
            if value.shape != expected[name].shape:
                wanted = list(expected[name].shape)
                raise WeightsError(f"{misfit}: size mismatch of {name}, {list(value.shape)} instead of {wanted}")


def read_weights(path: Path, configuration: Callable[[Any], C]) -> StoredWeights[C]:
    """Read a file and verify its checksum.

    Args:
        path: The file.
        configuration: Makes the configuration from plain keys and values, or raises ValueError.

    Raises:
        WeightsError: The file is missing, damaged or no weight file of ours, or its configuration cannot be used.
    """
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
    try:
        return StoredWeights(path, configuration(json.loads(metadata["config"])), state)
    except _UNUSABLE as error:
        raise _unusable(path, error) from error


def write_weights(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a configuration, a codec's state and the SHA-256 of both; the file appears at `path` when it is complete.

    Args:
        path: The file.
        config: The configuration's plain keys and values.
        state: The codec's `state_dict()`; what only training needs is left out.
    """
    # The format refuses tensors that share memory.
    tensors = {name: value.clone() for name, value in _deployed(state).items()}
    text, digest = _text(config), weights_digest(config, state)
    metadata = {"format": FORMAT, "version": VERSION, "config": text, "sha256": digest.hex()}
    # Not safetensors' own `save_file`: only the owner can read its files, whatever the umask.
    with whole_file(path) as file:
        file.write(save(tensors, metadata=metadata))


def weights_digest(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 that `write_weights` stores."""
    return _content_digest(_text(config), _deployed(state))


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


def _unusable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} has an unusable configuration: {error}")


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _is_deployed(name: str) -> bool:
    return not name.startswith(_ONLY_FOR_TRAINING)


def _deployed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items() if _is_deployed(name)}


def _content_digest(config: str, state: Mapping[str, Tensor]) -> bytes:
    """Hash the configuration's text and each tensor's name, type, shape and bytes, sorted by name."""
    digest = hashlib.sha256(config.encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
