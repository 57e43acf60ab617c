"""Find convolutions that this CPU computes wrongly in a 16-bit format, and run those in float32.

oneDNN's bfloat16 convolutions for processors with AMX give wrong results for some shapes, without an error
(docs/bfloat16.md has the table). So each shape is compared with float32 once, before it is used.
"""

from __future__ import annotations

import copy
import logging
import math
import types
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrostream.convolution import Convolution, TransposedConvolution

logger = logging.getLogger(__name__)

TOLERANCE = 0.03
"""Largest relative error that rounding explains: bfloat16 gives at most 0.009, a wrong kernel 0.4 and more, or NaN."""

_CONVOLUTIONS = (Convolution, TransposedConvolution, nn.modules.conv._ConvNd)
# oneDNN chooses a kernel by features, kernel size, stride, the last axis, and whether there are few output positions.
_FRAMES = 16  # of the output
_BLOCK = 16  # a long last axis is shortened by whole blocks of so many bins
# A kernel that reads uninitialised memory may be right once by chance.
_REPETITIONS = 2
_known_errors: dict[tuple[object, ...], float] = {}


class WrongConvolution(NamedTuple):
    """A convolution that runs in float32 because the 16-bit format is wrong for its shape.

    Attributes:
        name: Name of the layer in its module.
        error: Relative error; infinite if the result is not finite.
    """

    name: str
    error: float


def run_wrong_convolutions_in_float32(
    module: nn.Module, run: Callable[[], object], *, dtype: torch.dtype, gradients: bool
) -> list[WrongConvolution]:
    """Compare each convolution of `module` in `dtype` with float32, and run the wrong ones in float32 from now on.

    The error of a shape is measured once per process. The random state of the caller does not change.

    Args:
        module: A module on the CPU. Its wrong layers are changed in place; names and parameters stay, and deep copies
            work.
        run: A forward pass of any length. It is called once, without gradients, to see which shapes the layers get.
        dtype: `torch.bfloat16` or `torch.float16`.
        gradients: Compare the gradients of input and parameters too.

    Returns:
        The wrong convolutions. One warning lists their number and the worst.
    """
    with torch.random.fork_rng(devices=[]):
        examples = _example_inputs(module, run, streams=not gradients)
        errors = {
            name: max(_error(layer, example, dtype, gradients=gradients) for example in examples[layer])
            for name, layer in module.named_modules()
            if layer in examples
        }
    wrong = [WrongConvolution(name, error) for name, error in errors.items() if error > TOLERANCE]
    for name, _ in wrong:
        layer = module.get_submodule(name).float()
        # A bound method: a deep copy of the layer then computes with its own weights.
        layer.forward = types.MethodType(_forward_in_float32, layer)
    if wrong:
        _warn(wrong, len(errors), dtype)
    return wrong


def _warn(wrong: list[WrongConvolution], convolutions: int, dtype: torch.dtype) -> None:
    worst = max(wrong, key=lambda one: one.error)
    logger.warning(
        "this processor computes %d of %d convolutions wrongly in %s, for instance %s (relative error %.2g); "
        "they run in float32. See docs/bfloat16.md",
        len(wrong), convolutions, str(dtype).removeprefix("torch."), worst.name, worst.error,
    )  # fmt: skip


def _forward_in_float32(self: nn.Module, x: Tensor, *state: Any) -> Tensor:
    is_cast = torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):
        y: Tensor = type(self).forward(self, x.float(), *state)
    return y.to(torch.get_autocast_dtype("cpu") if is_cast else x.dtype)


def _example_inputs(module: nn.Module, run: Callable[[], object], *, streams: bool) -> dict[nn.Module, list[Tensor]]:
    """Return a small uninitialised input for each memory layout that each convolution gets.

    With `streams`, inputs for one and three output frames are added, which a stream of few tokens has.
    """
    found: dict[nn.Module, dict[tuple[int, ...], Tensor]] = {}

    def add_inputs(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        is_transposed = isinstance(layer, TransposedConvolution | nn.modules.conv._ConvTransposeNd)
        assert isinstance(layer, _CONVOLUTIONS)
        stride = layer.stride[0]
        frames = [_FRAMES if is_transposed else _FRAMES * stride]
        if streams and isinstance(layer, Convolution):
            frames += [stride, 3 * stride]
        for example in (_small_input_like(x, count) for count in frames):
            found.setdefault(layer, {})[example.shape + example.stride()] = example

    with ExitStack() as hooks, torch.no_grad(), torch.autocast("cpu", enabled=False):
        for layer in module.modules():
            if isinstance(layer, _CONVOLUTIONS):
                hooks.enter_context(layer.register_forward_pre_hook(add_inputs))
        run()
    return {layer: list(inputs.values()) for layer, inputs in found.items()}


def _small_input_like(x: Tensor, frames: int) -> Tensor:
    """Return an input `[1, C, frames]` or `[1, C, frames, F]` in x's memory layout; many bins are shortened."""
    axes = [frames, *x.shape[3:]]
    if len(axes) == 2 and axes[1] >= 2 * _BLOCK:
        axes[1] = _BLOCK + axes[1] % _BLOCK
    is_last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty((1, x.shape[1], *axes), memory_format=layout)


def _error(layer: nn.Module, example: Tensor, dtype: torch.dtype, *, gradients: bool) -> float:
    key = _signature(layer), example.shape, example.stride(), dtype, gradients, torch.get_num_threads()
    if key not in _known_errors:
        probe = copy.deepcopy(layer).float().requires_grad_(gradients)
        _known_errors[key] = _measured_error(probe, torch.randn_like(example), dtype)
    return _known_errors[key]


def _signature(layer: nn.Module) -> tuple[object, ...]:
    assert isinstance(layer, _CONVOLUTIONS)
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    return type(layer).forward, layer.weight.shape, *(getattr(layer, name, None) for name in names)


def _measured_error(probe: nn.Module, x: Tensor, dtype: torch.dtype) -> float:
    """Return the largest relative error of the output, and of the gradients if the parameters require them."""
    # The rounding of the input must not count as an error.
    x = x.to(dtype).float()
    exact = _results(probe, x, None)
    rounded = [_results(probe, x, dtype) for _ in range(_REPETITIONS)]
    pairs = [pair for results in rounded for pair in zip(exact, results, strict=True)]
    errors = [float((one - other).norm() / one.norm().clamp(min=1e-30)) for one, other in pairs]
    return max(error if math.isfinite(error) else math.inf for error in errors)


def _results(probe: nn.Module, x: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Return the output, and the gradients if the parameters require them; `dtype` is autocast's, None for none."""
    parameters = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    x = x.detach().requires_grad_(bool(parameters))
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        # The class's method, because an earlier check may have replaced the layer's own.
        y = type(probe).forward(probe, x)
    # bfloat16 can represent these values. They are positive, so that sums over them do not cancel.
    weights = torch.randint(1, 256, y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype) / 256
    gradients = torch.autograd.grad(y, [x, *parameters], weights) if parameters else ()
    return [result.detach().float() for result in (y, *gradients)]
