"""Layers for inference on a CPU: the codec's convolutions as matrix products on frames that stay in the cache.

Tensors are `[T, rows, F, C]`, contiguous: time outermost, `rows` the examples' channel groups, the features innermost.
A convolution with frequency stride s is one without stride on bins taken s at a time (C * s features), a transposed one
gives s bins at a time; both are a view of the same memory. What is left are dense causal convolutions. They are done by
Winograd's algorithm along time where a token has four frames, and as a product of gathered windows where it has fewer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream import winograd
from spectrostream.convolution import Convolution, Pair, TransposedConvolution, frequency_padding
from spectrostream.streaming import StreamState


def elu_into(x: Tensor, out: Tensor, state: StreamState) -> None:
    """Writes ELU(x) = max(x, exp(min(x, 0)) - 1): the same function, at half the time of the library's expm1."""
    negative = torch.clamp(x, max=0, out=state.scratch("negative", tuple(x.shape), x))
    torch.maximum(x, negative.exp_().sub_(1), out=out)


class MatrixProduct(nn.Module):
    """`x @ weight + bias` for x `[..., K]`, weight given as `[K, N]`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """`[..., K]` to `[..., N]` in the scratch memory of that role."""
        y = state.scratch(role, (*x.shape[:-1], len(self.bias)), x)
        rows, result = x.reshape(-1, x.shape[-1]), y.view(-1, len(self.bias))
        if len(rows) < _FEW_ROWS:
            torch.add(torch.mm(self.weight, rows.T).T, self.bias, out=result)
        else:
            torch.addmm(self.bias, rows, self.weight.T, out=result)
        return y


# A product of few rows is a walk through the weights. Written as weight @ x.T, the library does not first copy them to
# another order: half the time for a streaming step's largest layers (9216 x 1024, 12 rows: 6 ms against 15).
_FEW_ROWS = 64


class DenseConvolution(nn.Module):
    """A causal convolution of windows of gathered bins; the ELU before it included. Subclasses say how it is computed.

    kernel: `[kt, kf, C, C']`, oldest frame and lowest bin first. below, above: zero bins around each row; those above
    are the next row's below. gathered: bins that make one position. time_stride: of the windows. past: earlier frames
    seen.
    """

    def __init__(
        self,
        kernel: Tensor,
        *,
        below: int,
        above: int,
        gathered: int,
        time_stride: int,
        past: int,
        activate: bool,
    ) -> None:
        super().__init__()
        self.kernel_size: Pair = (kernel.shape[0], kernel.shape[1])
        self.outputs = kernel.shape[3]
        self.below = below
        self.padding = max(below, above)
        self.gathered = gathered
        self.time_stride = time_stride
        self.frames_multiple = time_stride
        self.past_frames = past
        self.activate = activate

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """`[T, rows, F, C]` to `[ceil(T / time_stride), rows, positions, C']`; frames after the end are zeros.

        role: of the scratch memory that the result lies in.
        """
        frames, rows, bins, features = x.shape
        whole = -(-frames // self.frames_multiple) * self.frames_multiple
        width = -(-(bins + self.padding) // self.gathered) * self.gathered
        # The last row has no next one; its windows end in zeros of their own.
        tail = (self.kernel_size[1] - 1) * self.gathered
        buffer = state.buffer(self, self.past_frames, whole, (rows * width + tail, features), x)
        inside = buffer[self.past_frames :, : rows * width].unflatten(1, (rows, width))
        if whole > frames:
            inside[frames:] = 0
        inside = inside[:frames, :, self.below : self.below + bins]
        if self.activate:
            elu_into(x, inside, state)
        else:
            inside.copy_(x)
        positions = rows * width // self.gathered
        dense = buffer.view(len(buffer), -1, self.gathered * features)
        y = self.products(dense, positions, state, role)
        return y[: -(-frames // self.time_stride)].unflatten(1, (rows, positions // rows))

    def products(self, dense: Tensor, positions: int, state: StreamState, role: str) -> Tensor:
        """`[past + T, positions + kf - 1, C]` to `[T / time_stride, positions, C']`."""
        raise NotImplementedError


class GatheredConvolution(DenseConvolution):
    """Windows copied side by side and multiplied at once: best where weights outweigh frames."""

    def __init__(self, kernel: Tensor, bias: Tensor, **arguments: Any) -> None:
        super().__init__(kernel, **arguments)
        self.product = MatrixProduct(kernel.flatten(0, 2), bias)

    def products(self, dense: Tensor, positions: int, state: StreamState, role: str) -> Tensor:
        """See `DenseConvolution.products`."""
        frames = (len(dense) - self.past_frames) // self.time_stride
        time, position, feature = dense.stride()
        windows = dense.as_strided(
            (frames, positions, *self.kernel_size, dense.shape[2]),
            (self.time_stride * time, position, time, position, feature),
            dense.storage_offset(),
        )
        gathered = state.scratch("windows", tuple(windows.shape), dense).copy_(windows)
        return self.product(gathered.flatten(2), state, role)


class WinogradConvolution(DenseConvolution):
    """Three taps in time, four frames at a time, with fewer products (`spectrostream.winograd`)."""

    kernel: Tensor
    bias: Tensor
    input_matrix: Tensor
    output_matrix: Tensor

    def __init__(self, kernel: Tensor, bias: Tensor, **arguments: Any) -> None:
        super().__init__(kernel, **arguments)
        self.frames_multiple = winograd.TILE
        # [kf, points, C, C']
        points = torch.einsum("pt,tfio->fpio", winograd.filter_matrix(), kernel.double())
        self.register_buffer("kernel", points.to(kernel).contiguous())
        self.register_buffer("bias", bias)
        self.register_buffer("input_matrix", winograd.input_matrix().to(kernel))
        self.register_buffer("output_matrix", winograd.output_matrix().to(kernel))

    def products(self, dense: Tensor, positions: int, state: StreamState, role: str) -> Tensor:
        """See `DenseConvolution.products`; T a multiple of four."""
        tiles = (len(dense) - self.past_frames) // winograd.TILE
        points = state.scratch("points", (winograd.POINTS, tiles, dense[0].numel()), dense)
        for tile in range(tiles):
            frames = dense[winograd.TILE * tile : winograd.TILE * tile + winograd.POINTS]
            torch.mm(self.input_matrix, frames.flatten(1), out=points[:, tile])
        # [points, tiles * (positions + kf - 1), C]; windows across two tiles are computed and never read
        points = points.view(winograd.POINTS, -1, dense.shape[2])
        windows = points.shape[1] - self.kernel_size[1] + 1
        products = state.scratch("products", (winograd.POINTS, windows, self.outputs), dense)
        torch.bmm(points[:, :windows], self.kernel[0], out=products)
        for tap in range(1, self.kernel_size[1]):
            products.baddbmm_(points[:, tap : tap + windows], self.kernel[tap])
        products[winograd.BIAS_POINT] += self.bias
        y = state.scratch(role, (tiles, winograd.TILE, positions * self.outputs), dense)
        for tile in range(tiles):
            start = tile * dense.shape[1]
            torch.mm(self.output_matrix, products[:, start : start + positions].flatten(1), out=y[tile])
        return y.view(tiles * winograd.TILE, positions, self.outputs)


class DirectConvolution(DenseConvolution):
    """The library's own convolution: best where the input has few features. No time stride."""

    kernel: Tensor
    bias: Tensor

    def __init__(self, kernel: Tensor, bias: Tensor, **arguments: Any) -> None:
        super().__init__(kernel, **arguments)
        self.register_buffer("kernel", self._weight(kernel).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)

    def _weight(self, kernel: Tensor) -> Tensor:
        return kernel.permute(3, 2, 0, 1)

    def products(self, dense: Tensor, positions: int, state: StreamState, role: str) -> Tensor:
        """See `DenseConvolution.products`."""
        return self._convolved(dense, self.bias)

    def _convolved(self, dense: Tensor, bias: Tensor | None) -> Tensor:
        # Time and position are the two axes of one picture, its features already innermost.
        picture = dense.permute(2, 0, 1).unsqueeze(0)
        return F.conv2d(picture, self.kernel, bias).squeeze(0).permute(1, 2, 0)


class ThinConvolution(DirectConvolution):
    """For few outputs: every tap along frequency is an output of its own, added up afterwards. No time stride."""

    def _weight(self, kernel: Tensor) -> Tensor:
        # [kf * C', C, kt, 1]
        return kernel.permute(1, 3, 2, 0).flatten(0, 1).unsqueeze(-1)

    def products(self, dense: Tensor, positions: int, state: StreamState, role: str) -> Tensor:
        """See `DenseConvolution.products`."""
        taps = self._convolved(dense, None).contiguous()  # [T, positions + kf - 1, kf * C']
        frame, row, _ = taps.stride()
        # Output position p is the sum over taps k of column k at position p + k: a walk along the diagonal.
        diagonal = taps.as_strided(
            (len(taps), positions, self.kernel_size[1], self.outputs), (frame, row, row + self.outputs, 1)
        )
        return diagonal.sum(2) + self.bias


class FastConvolution(nn.Module):
    """A `Convolution` or `TransposedConvolution` of the codec, ELU first if asked, on `[T, rows, F, C]`.

    full_rate: the input has a whole token's frames at once, four or a multiple.
    """

    def __init__(self, layer: Convolution | TransposedConvolution, *, full_rate: bool, activate: bool = True) -> None:
        super().__init__()
        self.stride = layer.stride
        self.is_transposed = isinstance(layer, TransposedConvolution)
        kernel, bias = (_transposed_kernel if self.is_transposed else _kernel)(layer)
        below, above = frequency_padding(layer.weight.shape[3], layer.stride[1])
        # A transposed layer's output starts this many bins before its first input.
        self.crop = below if self.is_transposed and layer.stride[1] > 1 else 0
        kind = _kind(kernel, full_rate=full_rate, is_strided=layer.stride != (1, 1))
        self.dense = kind(
            kernel,
            bias,
            below=1 if self.is_transposed else below,
            above=1 if self.is_transposed else above,
            gathered=1 if self.is_transposed else layer.stride[1],
            time_stride=1 if self.is_transposed else layer.stride[0],
            past=layer.past_frames,
            activate=activate,
        )

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """`[T, rows, F, C]` to what the layer gives, in the same order of axes."""
        bins = x.shape[2]
        y = self.dense(x, state, role)
        if not self.is_transposed:
            return y[:, :, : bins // self.stride[1]]
        time, frequency = self.stride
        # [T, rows, positions, st * sf * C] -> [T * st, rows, positions * sf, C]
        y = y.unflatten(3, (time, frequency, -1)).permute(0, 3, 1, 2, 4, 5)
        y = y.reshape(y.shape[0] * time, y.shape[2], y.shape[3] * frequency, y.shape[5])
        return y[:, :, self.crop : self.crop + bins * frequency]


_FEW = 8  # features; a matrix product needs more to fill its registers


def _kind(
    kernel: Tensor, *, full_rate: bool, is_strided: bool
) -> type[GatheredConvolution] | type[WinogradConvolution] | type[DirectConvolution]:
    """The fastest way for a dense kernel `[kt, kf, C, C']`."""
    if full_rate and kernel.shape[0] == winograd.TAPS:
        return WinogradConvolution
    if not is_strided and kernel.shape[3] < _FEW:
        return ThinConvolution
    if not is_strided and kernel.shape[2] < _FEW:
        return DirectConvolution
    return GatheredConvolution


def _kernel(layer: Convolution | TransposedConvolution) -> tuple[Tensor, Tensor]:
    """Weight `[C', C, kt, kf]` to `[kt, kf / s, s * C, C']`: windows of s gathered bins."""
    weight = layer.weight.detach().permute(2, 3, 1, 0)
    gathered = layer.stride[1]
    return weight.reshape(weight.shape[0], -1, gathered * weight.shape[2], weight.shape[3]), layer.bias.detach().clone()


def _transposed_kernel(layer: Convolution | TransposedConvolution) -> tuple[Tensor, Tensor]:
    """Weight `[C, C', kt, kf]` to `[kt / st, kf / sf, C, st * sf * C']`: each window gives st x sf outputs.

    Full output st * n + u takes input n - q with the weight's tap st * q + u, in frequency likewise; the window's
    oldest input has the highest q.
    """
    time, frequency = layer.stride
    weight = layer.weight.detach().unflatten(3, (-1, frequency)).unflatten(2, (-1, time))
    # [C, C', q_t, u_t, q_f, u_f]
    weight = weight.flip(2, 4).permute(2, 4, 0, 3, 5, 1)
    return weight.flatten(3), layer.bias.detach().repeat(time * frequency)
