"""Read, check and write the three files of the official release."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from spectrostream.atomic_files import whole_file
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.errors import WeightsError
from spectrostream.weight_files.official_weights import (
    CODEBOOK_PATHS,
    OfficialWeights,
    official_params,
    official_weights,
)

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)

OFFICIAL_FOLDER = "resources/spectrostream"  # where the official repository keeps the files


@dataclass(frozen=True)
class ReleasedFile:
    """A file of the release.

    Attributes:
        name: The file's name.
        size: In bytes.
        sha256: The checksum of the content; None if it is not known.
        prefixes: Every key starts with one of these.
    """

    name: str
    size: int
    sha256: str | None
    prefixes: tuple[str, ...]


RELEASED = (
    ReleasedFile(
        "encoder.safetensors",
        37_013_392,
        "f20c197ddcbb9cd43e1a97f9bee0d07d211f79966cd3862d9830a32885090f72",
        ("params/encoder/",),
    ),
    ReleasedFile("decoder.safetensors", 209_853_216, None, ("params/decoder/", f"params/{CODEBOOK_PATHS[0]}")),
    ReleasedFile(
        "quantizer.safetensors",
        67_108_984,
        "0ba89dcb85344bb14f4f34b8f597c0d6adaa560002d4fd88879a2944c98a20f0",
        (f"params/{CODEBOOK_PATHS[1]}",),
    ),
)
OFFICIAL_NAMES = tuple(file.name for file in RELEASED)


@dataclass(frozen=True)
class ReleasedWeights:
    """The weights of an official folder."""

    folder: Path
    weights: OfficialWeights

    def load_into(self, build: Callable[[SpectroStreamConfig], M]) -> M:
        """See `OfficialWeights.load_into`.

        Raises:
            WeightsError: The weights are incomplete or do not fit together; the message names the folder.
        """
        with _naming(self.folder):
            return self.weights.load_into(build)


def read_official(folder: Path) -> ReleasedWeights:
    """Read `encoder.safetensors`, `decoder.safetensors` and `quantizer.safetensors` of a folder.

    Widths, channels, fusion point and split point are derived from the shapes.

    Raises:
        WeightsError: A file is missing, damaged or no official one (the message names it), or decoder and quantizer
            hold different codebooks.
    """
    params: dict[str, np.ndarray] = {}
    for file in RELEASED:
        params |= _read(folder / file.name, file)
    decoder_codebooks, quantizer_codebooks = (params[f"params/{path}"] for path in CODEBOOK_PATHS)
    if not np.array_equal(decoder_codebooks, quantizer_codebooks):
        raise WeightsError(
            f"{folder} mixes two codecs: decoder.safetensors and quantizer.safetensors hold different codebooks; "
            "take all three files from one release"
        )
    with _naming(folder):
        return ReleasedWeights(folder, official_weights(params))


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise WeightsError(f"{folder} holds no official SpectroStream: {error}") from error


def _read(path: Path, file: ReleasedFile) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise WeightsError(f"there is no {path}; an official folder holds {', '.join(OFFICIAL_NAMES)}")
    try:
        with safe_open(path, framework="pt") as tensors:
            keys = tuple(tensors.keys())
            _require_keys(path, file, keys)
            params = {key: tensors.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    for key, value in params.items():
        if not value.is_floating_point():
            raise WeightsError(f"{path}: {key} is {value.dtype}; weights are floating-point numbers")
    return {key: value.float().numpy() for key, value in params.items()}


def _require_keys(path: Path, file: ReleasedFile, keys: tuple[str, ...]) -> None:
    unknown = [key for key in keys if not key.startswith(file.prefixes)]
    missing = [prefix for prefix in file.prefixes if not any(key.startswith(prefix) for key in keys)]
    if unknown or missing:
        problem = f"{min(unknown)!r} is in it" if unknown else f"nothing in it starts with {missing[0]!r}"
        raise WeightsError(f"{path} is not an official {file.name}: {problem}")


def require_released(folder: Path, origin: str) -> None:
    """Check that the files have the sizes and checksums of the release.

    Args:
        folder: Contains the three files.
        origin: Where the files come from, for the message.

    Raises:
        WeightsError: A file differs; the message names both values.
    """
    for file in RELEASED:
        problem = _difference(folder / file.name, file)
        if problem:
            raise WeightsError(
                f"{file.name} of {origin} is not the released one: {problem}. If you mean to use it, download the "
                "folder and type its path: local files are not compared with the release"
            )


def _difference(path: Path, file: ReleasedFile) -> str | None:
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size} bytes, the release {file.size}"
    digest = _sha256(path) if file.sha256 else None
    return f"its SHA-256 is {digest}, the release's {file.sha256}" if digest != file.sha256 else None


def warn_if_not_released(folder: Path) -> None:
    """Log a warning for each file that has the released size and another checksum."""
    for file in RELEASED:
        path = folder / file.name
        if file.sha256 and path.stat().st_size == file.size and _sha256(path) != file.sha256:
            logger.warning("%s is as long as the released file but not the same: other weights, or damaged", path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_official(folder: Path, config: SpectroStreamConfig, state: Mapping[str, Tensor]) -> None:
    """Write a codec's state in the layout of the release; see `spectrostream.weights.save_official`."""
    try:
        params = {f"params/{path}": value for path, value in official_params(config, state).items()}
    except ValueError as error:
        raise WeightsError(str(error)) from error
    params[f"params/{CODEBOOK_PATHS[1]}"] = params[f"params/{CODEBOOK_PATHS[0]}"]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as unfinished:  # all files are renamed at the end
        for file in RELEASED:
            target = unfinished.enter_context(whole_file(folder / file.name))
            # Not safetensors' own `save_file`: only the owner can read its files.
            target.write(save({key: value for key, value in params.items() if key.startswith(file.prefixes)}))
