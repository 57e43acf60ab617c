"""The official parameter names and layouts onto ours, and the configuration that their shapes belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from spectrostream.codec import SpectroStream, SpectroStreamConfig
from spectrostream.quantizer import QuantizerConfig

_BOTTLENECK = 7  # index of the encoder block after the seven strided ones
# Official module path -> ours; the leaves conv/kernel and conv/bias become weight and bias.
_RENAMED = (
    (r"encoder/base_conv_first", "encoder.first"),
    (r"encoder/encoder_(\d+)/conv2d_3x3", r"encoder.blocks.\1.convolution"),
    (r"encoder/encoder_(\d+)/conv2d_\dx\d_a", r"encoder.blocks.\1.resampling"),
    (r"encoder/encoder_(\d+)/shortcut_layer/conv1x1", r"encoder.blocks.\1.shortcut"),
    (r"encoder/bottleneck/conv2d_3x3", f"encoder.blocks.{_BOTTLENECK}.convolution"),
    (r"encoder/bottleneck/conv2d_3x3_a", f"encoder.blocks.{_BOTTLENECK}.resampling"),
    (r"encoder/bottleneck/shortcut_layer/conv1x1", f"encoder.blocks.{_BOTTLENECK}.shortcut"),
    (r"encoder/output_convs/conv1x1_last", "encoder.projection.skip"),
    (r"encoder/output_convs/shortcut_layer/conv1x1_b1", "encoder.projection.first"),
    (r"encoder/output_convs/shortcut_layer/conv1x1_b2", "encoder.projection.second"),
    (r"decoder/input_layer/conv1x1_first", "decoder.projection.skip"),
    (r"decoder/input_layer/shortcut_layer/conv1x1_b1", "decoder.projection.first"),
    (r"decoder/input_layer/shortcut_layer/conv1x1_b2", "decoder.projection.second"),
    (r"decoder/input_layers_residual_unit/conv2d_3x3_a", "decoder.blocks.0.resampling"),
    (r"decoder/input_layers_residual_unit/conv2d_3x3", "decoder.blocks.0.convolution"),
    (r"decoder/input_layers_residual_unit/shortcut_layer/conv1x1", "decoder.blocks.0.shortcut"),
    (r"decoder/decoder_(\d+)/conv2dtranspose_\dx\d", "decoder.blocks.{next}.resampling"),
    (r"decoder/decoder_(\d+)/conv2d_3x3", "decoder.blocks.{next}.convolution"),
    (r"decoder/decoder_(\d+)/shortcut_layer/conv1x1", "decoder.blocks.{next}.shortcut"),
    (r"decoder/output_layer/base_conv_last", "decoder.last"),
)
_CODEBOOKS = ("quantizer/embedding", "soundstream/quantizer/embedding")


def official_state(params: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Official paths and arrays (HWIO kernels) to entries of `SpectroStream.state_dict()`.

    Paths may start with `params/`. Raises ValueError naming a path that is not the official codec's.
    """
    state = {}
    for path, array in params.items():
        path = path.removeprefix("params/")
        value = torch.from_numpy(np.array(array, dtype=np.float32))
        if path in _CODEBOOKS:
            state["quantizer.codebooks"] = value
            continue
        module, separator, leaf = path.partition("/conv/")
        name = _our_module(module) if separator and leaf in ("kernel", "bias") else None
        if name is None:
            raise ValueError(f"{path!r} is not a parameter of the official SpectroStream")
        if leaf == "bias":
            state[f"{name}.bias"] = value
        elif "conv2dtranspose" in module:
            # Official transposed kernels correlate over the zero-dilated input.
            state[f"{name}.weight"] = value.permute(2, 3, 0, 1).flip(2, 3).contiguous()
        else:
            state[f"{name}.weight"] = value.permute(3, 2, 0, 1).contiguous()
    return state


def _our_module(path: str) -> str | None:
    for pattern, replacement in _RENAMED:
        match = re.fullmatch(pattern, path)
        if match:
            if "{next}" in replacement:  # decoder block 0 is the mirrored bottleneck
                return replacement.format(next=int(match[1]) + 1)
            return match.expand(replacement)
    return None


def official_config(state: Mapping[str, Tensor]) -> SpectroStreamConfig:
    """The configuration that the shapes of `official_state(...)` belong to.

    An encoder without a decoder is enough; the missing half gets the released width and the same point.
    """
    levels, codebook_size, embedding_dim = state["quantizer.codebooks"].shape
    fusion, channels = _encoder_fusion(state)
    split = _decoder_split(state, fusion)
    return SpectroStreamConfig(
        channels=channels,
        encoder_width=state["encoder.first.weight"].shape[0],
        decoder_width=state["decoder.last.weight"].shape[1] if "decoder.last.weight" in state else 64,
        embedding_dim=embedding_dim,
        fusion=fusion,
        split=split,
        quantizer=QuantizerConfig(levels=levels, codebook_size=codebook_size, initial_vectors=max(4096, codebook_size)),
    )


def _encoder_fusion(state: Mapping[str, Tensor]) -> tuple[int | str, int]:
    """Fusion point and channels: the block whose input is a multiple of the previous output."""
    before = state["encoder.first.weight"].shape[0]
    for index in range(_BOTTLENECK + 1):
        width = state[f"encoder.blocks.{index}.convolution.weight"].shape[1]
        if width != before:
            return index, width // before
        before = state[f"encoder.blocks.{index}.resampling.weight"].shape[0]
    return "input", state["encoder.first.weight"].shape[1] // 2  # real and imaginary part of every channel


def _decoder_split(state: Mapping[str, Tensor], fusion: int | str) -> int | str:
    """Split point: the block whose output is a multiple of the next one's input."""
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
    # The first block's is a plain convolution [out, in, ..], the others' transposed ones [in, out, ..].
    return weight.shape[1 if index == 0 else 0]


def from_official(params: Mapping[str, np.ndarray]) -> SpectroStream:
    """A codec with the official parameters; widths, channels, fusion and split point, levels inferred from the shapes.

    params: official path to array, for instance `decoder/decoder_0/conv2d_3x3/conv/kernel`. A half that is missing
    altogether (an encoder-only set) stays at its random initialisation; an incomplete half raises ValueError.
    """
    state = official_state(params)
    try:
        codec = SpectroStream(official_config(state))
    except KeyError as error:
        raise ValueError(f"the parameters are incomplete: nothing maps onto {error.args[0]}") from None
    for half in ("encoder", "decoder"):
        own = {name.removeprefix(f"{half}."): value for name, value in state.items() if name.startswith(f"{half}.")}
        if own:
            _load_half(getattr(codec, half), half, own)
    codec.quantizer.codebooks.copy_(state["quantizer.codebooks"])
    codec.quantizer.learning.adopt(codec.quantizer.codebooks)
    return codec


def _load_half(module: nn.Module, half: str, state: dict[str, Tensor]) -> None:
    missing = module.state_dict().keys() - state.keys()
    if missing:
        raise ValueError(f"the parameters are incomplete: nothing maps onto {half}.{min(missing)}")
    module.load_state_dict(state)
