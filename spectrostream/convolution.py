"""Causal 2-D convolutions over `[batch, features, time, frequency]`, padded exactly as in the official implementation.

Time is "semicausal": a layer of kernel k and stride s pads max(k - s, 0) frames on the left and the rest of k - 1 on
the right. So output frame i sees no input after frame i*s + s - 1, and T frames become ceil(T/s). Frequency is padded
on both sides, so that F bins become F/s. A waveform has a single "bin" and kernels (k, 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.streaming import Span, StreamState

Pair = tuple[int, int]


def semicausal_padding(kernel: int, stride: int) -> Pair:
    """Return how many zero frames a convolution pads on the left and on the right."""
    left = max(kernel - stride, 0)
    return left, kernel - 1 - left


def frequency_padding(kernel: int, stride: int) -> Pair:
    """Return how many zero bins a convolution pads below and above; above has one more if the total is odd."""
    total = max(kernel - stride, 0)
    return total // 2, total - total // 2


def _lecun_normal_(weight: Tensor, fan_in: float) -> None:
    # Our choice, because there are no normalisation layers: it keeps the variance at 1. This is LeCun's normal,
    # truncated at two standard deviations and scaled to the same variance, as in flax.
    std = 1.0 / (0.8796256610342398 * math.sqrt(fan_in))
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class Convolution(nn.Module):
    """A semicausal convolution."""

    def __init__(self, in_features: int, out_features: int, kernel: Pair, stride: Pair = (1, 1)) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_features, in_features, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_features))
        _lecun_normal_(self.weight, in_features * kernel[0] * kernel[1])
        self.past_frames, self._future_frames = semicausal_padding(kernel[0], stride[0])
        self._frequency_padding = frequency_padding(kernel[1], stride[1])

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """Map `[batch, in, T, F]` to `[batch, out, ceil(T/stride_t), F/stride_f]`."""
        silence = self.past_frames
        if state is not None:
            x, silence = state.prepend(self, x, self.past_frames), 0
        # Only a last chunk that does not fill a whole stride reads the zeros after it.
        x = F.pad(x, (*self._frequency_padding, silence, self._future_frames))
        if x.shape[-1] == self.weight.shape[-1] == 1:
            # CPU kernels vectorise over the last axis, so it must be time. The result is the same.
            x, weight, stride = x.squeeze(-1), self.weight.squeeze(-1), self.stride[0]
            if x.shape[-1] < weight.shape[-1] + stride:
                # One output frame does not depend on the stride, but oneDNN's bfloat16 kernels for AMX are wrong with
                # it (docs/bfloat16.md).
                x, stride = x[..., : weight.shape[-1]], 1
            return F.conv1d(x, weight, self.bias, stride).unsqueeze(-1)
        return F.conv2d(x, self.weight, self.bias, self.stride)

    def input_span(self, first: int, last: int) -> Span:
        """Return the input frames that output frames first..last depend on."""
        return first * self.stride[0] - self.past_frames, (last + 1) * self.stride[0] - 1


class TransposedConvolution(nn.Module):
    """A causal transposed convolution.

    The full output is cut: in time to its first T*stride_t frames, in frequency on both sides.
    """

    def __init__(self, in_features: int, out_features: int, kernel: Pair, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(in_features, out_features, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_features))
        # Each output position receives kernel/stride taps per axis.
        _lecun_normal_(self.weight, in_features * kernel[0] * kernel[1] / (stride[0] * stride[1]))
        self._crop_below = frequency_padding(kernel[1], stride[1])[0]
        self.past_frames = -(-kernel[0] // stride[0]) - 1

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """Map `[batch, in, T, F]` to `[batch, out, T*stride_t, F*stride_f]`."""
        frames, bins = x.shape[-2] * self.stride[0], x.shape[-1] * self.stride[1]
        start = 0
        if state is not None:
            # Earlier frames also add to this chunk's output; their own output was returned before.
            x, start = state.prepend(self, x, self.past_frames), self.past_frames * self.stride[0]
        if x.shape[-1] == self.weight.shape[-1] == 1:
            y = F.conv_transpose1d(x.squeeze(-1), self.weight.squeeze(-1), self.bias, self.stride[0])
            return y[..., start : start + frames].unsqueeze(-1)
        y = F.conv_transpose2d(x, self.weight, self.bias, self.stride)
        return y[..., start : start + frames, self._crop_below : self._crop_below + bins]

    def input_span(self, first: int, last: int) -> Span:
        """Return the input frames that output frames first..last depend on."""
        kernel, stride = self.weight.shape[2], self.stride[0]
        return -((kernel - 1 - first) // stride), last // stride


def average_pool(x: Tensor, stride: Pair) -> Tensor:
    """Average over blocks of `stride`; zero frames complete the last block and count in its mean."""
    if stride == (1, 1):
        return x
    missing = -x.shape[-2] % stride[0]
    return F.avg_pool2d(F.pad(x, (0, 0, 0, missing)), stride)


def repeat_upsample(x: Tensor, stride: Pair) -> Tensor:
    """Repeat each frame and bin `stride` times."""
    if stride == (1, 1):
        return x
    return F.interpolate(x, size=(x.shape[-2] * stride[0], x.shape[-1] * stride[1]))


def resampling_kernel(kernel: Pair, stride: Pair) -> Pair:
    """Return a block's resampling kernel: twice the stride, at least 3 (1 along an axis of size 1)."""
    return max(min(kernel[0], 3), 2 * stride[0]), max(min(kernel[1], 3), 2 * stride[1] if stride[1] > 1 else 1)


def join_groups(x: Tensor, groups: int) -> Tensor:
    """Map `[batch * groups, C, ...]` to `[batch, groups * C, ...]`; the first (left) group's features come first."""
    return x.reshape(x.shape[0] // groups, groups * x.shape[1], *x.shape[2:])


def separate_groups(x: Tensor, groups: int) -> Tensor:
    """Map `[batch, groups * C, ...]` to `[batch * groups, C, ...]`; the inverse of `join_groups`."""
    return x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:])
