"""Find trained weights in a file, in a folder or on a hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.config_from_plain import config_of, kind_of
from spectrostream.errors import WeightsError
from spectrostream.weight_files.hub import OWN_NAME, HubSource
from spectrostream.weight_files.official_files import (
    OFFICIAL_FOLDER,
    OFFICIAL_NAMES,
    read_official,
    require_released,
    warn_if_not_released,
)
from spectrostream.weight_files.safetensors_file import StoredWeights, read_weights

M = TypeVar("M", bound=nn.Module)


class LoadedWeights(Protocol):
    """A configuration and its tensors, before they are loaded into a codec."""

    def load_into(self, build: Callable[[SpectroStreamConfig], M]) -> M:
        """Build a codec from the configuration and load the tensors.

        Raises:
            WeightsError: The tensors do not fit.
        """


def find_weights(
    source: str | Path, *, revision: str | None, cache_dir: str | Path | None, local_files_only: bool
) -> LoadedWeights:
    """Read the weights at a path or, if nothing has this path, from a hub.

    See `spectrostream.weights.load_pretrained`.
    """
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise WeightsError(
                f"revision = {revision!r} belongs to a hub, but {source} is on this machine; leave it out"
            )
        return _local_weights(path)
    if isinstance(source, Path) or not HubSource.accepts(source):
        raise WeightsError(
            f"there is no file or folder {source}; allowed: a {OWN_NAME}, a folder with one, a folder with "
            f"{', '.join(OFFICIAL_NAMES)}, or a hub id such as google/magenta-realtime-2"
        )
    hub = HubSource(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
    fetched = hub.fetch()
    if hub.is_official:
        require_released(fetched, origin=source)
    return _local_weights(fetched)


def _local_weights(path: Path) -> LoadedWeights:
    if path.is_file():
        if path.name in OFFICIAL_NAMES:
            raise WeightsError(f"{path} is one of three official files; type their folder: {path.parent}")
        return _own_weights(path)
    own = path / OWN_NAME
    official = [folder for folder in (path, path / OFFICIAL_FOLDER) if _has_official_file(folder)]
    if own.is_file() and official:
        raise WeightsError(f"{path} holds two codecs, {OWN_NAME} and official files; type {own}, or move one of them")
    if own.is_file():
        return _own_weights(own)
    if not official:
        raise WeightsError(f"{path} holds no weights: neither {OWN_NAME} nor {', '.join(OFFICIAL_NAMES)}")
    weights = read_official(official[0])
    warn_if_not_released(official[0])
    return weights


def _has_official_file(folder: Path) -> bool:
    return any((folder / name).is_file() for name in OFFICIAL_NAMES)


def _own_weights(path: Path) -> StoredWeights[SpectroStreamConfig]:
    def configuration(plain: Any) -> SpectroStreamConfig:
        kind = kind_of(plain)
        if kind != SpectroStreamConfig.kind:
            raise WeightsError(f"{path} holds a codec of kind {kind!r}, not a SpectroStream")
        return config_of(SpectroStreamConfig, plain)

    return read_weights(path, configuration)
