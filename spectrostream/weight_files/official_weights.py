"""Map official parameter names and layouts to ours and back, and derive the configuration from their shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.config_from_plain import config_of

M = TypeVar("M", bound=nn.Module)

_BOTTLENECK = 7  # index of the encoder block after the seven strided ones
# Official module path, our module path. The official leaves conv/kernel and conv/bias are our weight and bias.
# {block}: 0..6. {next}: {block} + 1, because the decoder's block 0 is its bottleneck. {kernel}: time x frequency.
_RENAMED = (
    ("encoder/base_conv_first", "encoder.first"),
    ("encoder/bottleneck/conv2d_3x3", f"encoder.blocks.{_BOTTLENECK}.convolution"),
    ("encoder/bottleneck/conv2d_{kernel}_a", f"encoder.blocks.{_BOTTLENECK}.resampling"),
    ("encoder/bottleneck/shortcut_layer/conv1x1", f"encoder.blocks.{_BOTTLENECK}.shortcut"),
    ("encoder/encoder_{block}/conv2d_3x3", "encoder.blocks.{block}.convolution"),
    ("encoder/encoder_{block}/conv2d_{kernel}_a", "encoder.blocks.{block}.resampling"),
    ("encoder/encoder_{block}/shortcut_layer/conv1x1", "encoder.blocks.{block}.shortcut"),
    ("encoder/output_convs/conv1x1_last", "encoder.projection.skip"),
    ("encoder/output_convs/shortcut_layer/conv1x1_b1", "encoder.projection.first"),
    ("encoder/output_convs/shortcut_layer/conv1x1_b2", "encoder.projection.second"),
    ("decoder/input_layer/conv1x1_first", "decoder.projection.skip"),
    ("decoder/input_layer/shortcut_layer/conv1x1_b1", "decoder.projection.first"),
    ("decoder/input_layer/shortcut_layer/conv1x1_b2", "decoder.projection.second"),
    ("decoder/input_layers_residual_unit/conv2d_{kernel}_a", "decoder.blocks.0.resampling"),
    ("decoder/input_layers_residual_unit/conv2d_3x3", "decoder.blocks.0.convolution"),
    ("decoder/input_layers_residual_unit/shortcut_layer/conv1x1", "decoder.blocks.0.shortcut"),
    ("decoder/decoder_{block}/conv2dtranspose_{kernel}", "decoder.blocks.{next}.resampling"),
    ("decoder/decoder_{block}/conv2d_3x3", "decoder.blocks.{next}.convolution"),
    ("decoder/decoder_{block}/shortcut_layer/conv1x1", "decoder.blocks.{next}.shortcut"),
    ("decoder/output_layer/base_conv_last", "decoder.last"),
)
_PLACEHOLDERS = {
    "{block}": rf"(?P<block>[0-{_BOTTLENECK - 1}])",
    "{next}": rf"(?P<next>[1-{_BOTTLENECK}])",
    "{kernel}": r"\dx\d",
}
# The decoder's copy and the quantizer's own; they are equal in the released files.
CODEBOOK_PATHS = ("quantizer/embedding", "soundstream/quantizer/embedding")


def official_state(params: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Convert official parameters to entries of `SpectroStream.state_dict()`.

    Args:
        params: Official path, with or without `params/` -> array; kernels are HWIO.

    Raises:
        ValueError: A path is no official one, an array has the wrong number of axes or is empty, or two copies of the
            codebooks differ. The message names the path.
    """
    state: dict[str, Tensor] = {}
    for path, array in params.items():
        path = path.removeprefix("params/")
        value = torch.from_numpy(np.array(array, dtype=np.float32))
        name, axes = _our_name(path)
        if value.ndim != axes or value.numel() == 0:
            raise ValueError(
                f"{path!r} has the shape {list(value.shape)}; it must have {axes} axes, none of them empty"
            )
        if name == "quantizer.codebooks" and name in state and not torch.equal(state[name], value):
            raise ValueError(f"{' and '.join(CODEBOOK_PATHS)} are not the same codebooks")
        state[name] = _our_layout(path, value)
    return state


def _our_name(path: str) -> tuple[str, int]:
    """Return the entry of our state dict and its number of axes."""
    if path in CODEBOOK_PATHS:
        return "quantizer.codebooks", 3
    module, _, leaf = path.partition("/conv/")
    for official, ours in _RENAMED:
        match = re.fullmatch(_pattern(official), module)
        if match and leaf in ("kernel", "bias"):
            block = int(match.groupdict().get("block", 0))
            name = ours.format(block=block, next=block + 1)
            return (f"{name}.weight", 4) if leaf == "kernel" else (f"{name}.bias", 1)
    raise ValueError(f"{path!r} is not a parameter of the official SpectroStream")


def _our_layout(path: str, value: Tensor) -> Tensor:
    if not path.endswith("/conv/kernel"):
        return value
    if "conv2dtranspose" in path:
        # Official transposed kernels correlate over the zero-dilated input.
        return value.permute(2, 3, 0, 1).flip(2, 3).contiguous()
    return value.permute(3, 2, 0, 1).contiguous()


def official_params(config: SpectroStreamConfig, state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Convert a codec's state to official parameters; the inverse of `official_state`.

    Args:
        config: The codec's configuration.
        state: The codec's `state_dict()`.

    Returns:
        Official path without `params/` -> float32 array; kernels are HWIO. The codebooks are there once, as
        `quantizer/embedding`.

    Raises:
        ValueError: The official layout cannot express the codec.
    """
    _require_official_layout(config)
    params = {CODEBOOK_PATHS[0]: state["quantizer.codebooks"]}
    for half in ("encoder", "decoder"):
        for module in sorted({name.rpartition(".")[0] for name in state if name.startswith(f"{half}.")}):
            weight = state[f"{module}.weight"]
            path = _official_module(module, weight)
            params[f"{path}/conv/kernel"] = _official_kernel(path, weight)
            params[f"{path}/conv/bias"] = state[f"{module}.bias"]
    return {path: np.ascontiguousarray(value.detach().cpu().float().numpy()) for path, value in params.items()}


def _official_module(name: str, weight: Tensor) -> str:
    for official, ours in _RENAMED:
        match = re.fullmatch(_pattern(ours), name)
        if match:
            found = match.groupdict()
            block = int(found["next"]) - 1 if "next" in found else found.get("block")
            return official.format(block=block, kernel="x".join(str(size) for size in weight.shape[2:]))
    raise ValueError(f"the official SpectroStream has no {name}")


def _official_kernel(path: str, weight: Tensor) -> Tensor:
    if "conv2dtranspose" in path:
        return weight.flip(2, 3).permute(2, 3, 0, 1)
    return weight.permute(2, 3, 1, 0)


def _pattern(template: str) -> str:
    pattern = re.escape(template)
    for placeholder, expression in _PLACEHOLDERS.items():
        pattern = pattern.replace(re.escape(placeholder), expression)
    return pattern


def _require_official_layout(config: SpectroStreamConfig) -> None:
    problem = None
    if config.frontend != "stft":
        problem = f"model.frontend = {config.frontend!r}; it knows 'stft'"
    elif any(len(group) > 1 for group in config.groups):
        problem = f"model.channel_groups = {config.groups}; each of its channels is a group of its own"
    elif "never" in (config.fusion, config.split):
        problem = f"model.fusion = {config.fusion!r} with model.split = {config.split!r}; it always joins the channels"
    if problem:
        raise ValueError(f"the official layout cannot express {problem}")


def official_config(state: Mapping[str, Tensor]) -> SpectroStreamConfig:
    """Derive the configuration from the shapes of `official_state(...)`.

    The decoder may be missing. The configuration then has the released decoder width, and a split point that is the
    encoder's fusion point.
    """
    levels, codebook_size, embedding_dim = state["quantizer.codebooks"].shape
    fusion, channels = _encoder_fusion(state)
    split = _decoder_split(state, fusion)
    plain = {
        "channels": channels,
        "encoder_width": state["encoder.first.weight"].shape[0],
        "decoder_width": state["decoder.last.weight"].shape[1] if "decoder.last.weight" in state else 64,
        "embedding_dim": embedding_dim,
        "fusion": fusion,
        "split": split,
        "quantizer": {
            "levels": levels,
            "codebook_size": codebook_size,
            "initial_vectors": max(4096, codebook_size),
        },
    }
    # The release is older than every key that was added here, so `config_of` adds their neutral values.
    return config_of(SpectroStreamConfig, plain)


def _encoder_fusion(state: Mapping[str, Tensor]) -> tuple[int | str, int]:
    """Return the fusion point and the channels: at that block, the input is a multiple of the previous output."""
    before = state["encoder.first.weight"].shape[0]
    for index in range(_BOTTLENECK + 1):
        width = state[f"encoder.blocks.{index}.convolution.weight"].shape[1]
        if width != before:
            return index, width // before
        before = state[f"encoder.blocks.{index}.resampling.weight"].shape[0]
    return "input", state["encoder.first.weight"].shape[1] // 2  # real and imaginary part of every channel


def _decoder_split(state: Mapping[str, Tensor], fusion: int | str) -> int | str:
    """Return the split point: the block whose output is a multiple of the next one's input."""
    if "decoder.last.weight" not in state:
        return "output" if fusion == "input" else fusion
    inputs = [_input_width(state, index) for index in range(_BOTTLENECK + 1)]
    inputs.append(state["decoder.last.weight"].shape[1])
    for index in range(_BOTTLENECK + 1):
        if state[f"decoder.blocks.{index}.convolution.weight"].shape[0] != inputs[index + 1]:
            return _BOTTLENECK - index
    return "output"


def _input_width(state: Mapping[str, Tensor], index: int) -> int:
    weight = state[f"decoder.blocks.{index}.resampling.weight"]
    # The first block has a plain convolution [out, in, ..], the others a transposed one [in, out, ..].
    return weight.shape[1 if index == 0 else 0]


@dataclass(frozen=True)
class OfficialWeights:
    """Official parameters in our form.

    Attributes:
        config: The configuration that fits them.
        state: Entries of the codec's `state_dict()`. The whole encoder or decoder may be missing.
    """

    config: SpectroStreamConfig
    state: dict[str, Tensor]

    def load_into(self, build: Callable[[SpectroStreamConfig], M]) -> M:
        """Build a codec and load these parameters; a missing encoder or decoder keeps its initial weights.

        Args:
            build: Makes the codec from its configuration.

        Raises:
            ValueError: The encoder or decoder is incomplete, or shapes do not fit together.
        """
        module = build(self.config)
        expected = module.state_dict()
        self._require_shapes(expected)
        for half in ("encoder.", "decoder."):
            self._require_whole(half, expected)
        module.load_state_dict(self.state, strict=False)
        return module

    def _require_shapes(self, expected: Mapping[str, Tensor]) -> None:
        misfit = "the shapes of the parameters do not fit together"
        for name, value in self.state.items():
            if name not in expected:
                raise ValueError(f"{misfit}: {name} has no place in {self.config}")
            if value.shape != expected[name].shape:
                raise ValueError(
                    f"{misfit}: {name} is {list(value.shape)}, the others ask for {list(expected[name].shape)}"
                )

    def _require_whole(self, half: str, expected: Mapping[str, Tensor]) -> None:
        missing = [name for name in expected.keys() - self.state.keys() if name.startswith(half)]
        if missing and any(name.startswith(half) for name in self.state):
            raise ValueError(f"the parameters are incomplete: nothing maps onto {min(missing)}")


def official_weights(params: Mapping[str, np.ndarray]) -> OfficialWeights:
    """Convert official parameters to ours and derive the configuration.

    Args:
        params: As for `official_state`.

    Raises:
        ValueError: As `official_state` does, and if parameters are missing.
    """
    state = official_state(params)
    try:
        return OfficialWeights(official_config(state), state)
    except KeyError as error:
        raise ValueError(f"the parameters are incomplete: nothing maps onto {error.args[0]}") from None
