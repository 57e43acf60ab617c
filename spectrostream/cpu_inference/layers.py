"""Layers for inference on a CPU: the codec's convolutions as matrix products on frames that stay in the cache.

Tensors are `[T, rows, F, C]`, contiguous: time outermost, `rows` the examples' channel groups, the features innermost.
A convolution with frequency stride s is one without stride on bins taken s at a time (C * s features), a transposed one
gives s bins at a time; both are a view of the same memory. What is left are dense causal convolutions. They are done by
Winograd's algorithm along time where a token has four frames, and as a product of gathered windows where it has fewer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.convolution import Convolution, Pair, TransposedConvolution, frequency_padding
from spectrostream.cpu_inference import winograd
from spectrostream.streaming import StreamState


def elu_into(x: Tensor, out: Tensor, negative: Tensor) -> None:
    """Writes ELU(x) = max(x, exp(min(x, 0)) - 1): the same function, at half the time of the library's expm1.

    negative: memory of x's shape.
    """
    torch.clamp(x, max=0, out=negative)
    torch.maximum(x, negative.exp_().sub_(1), out=out)


class MatrixProduct(nn.Module):
    """`x @ weight + bias` for x `[..., K]`, weight given as `[K, N]`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.T.clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """`[..., K]` to `[..., N]` in the scratch memory of that role."""
        outputs = self.bias.shape[0]
        y = state.scratch(role, (*x.shape[:-1], outputs), x)
        rows, result = x.reshape(-1, x.shape[-1]), y.view(-1, outputs)
        if rows.shape[0] < _FEW_ROWS:
            torch.add(torch.mm(self.weight, rows.T).T, self.bias, out=result)
        else:
            torch.addmm(self.bias, rows, self.weight.T, out=result)
        return y


# A product of few rows is a walk through the weights. Written as weight @ x.T, the library does not first copy them to
# another order: half the time for a streaming step's largest layers (9216 x 1024, 12 rows: 6 ms against 15).
_FEW_ROWS = 64


class DenseConvolution(nn.Module, ABC):
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
        self.below, self.above = below, above
        self.gathered = gathered
        self.time_stride = time_stride
        self.frames_multiple = time_stride
        self.past_frames = past
        self.activate = activate

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """`[T, rows, F, C]` to `[ceil(T / time_stride), rows, positions, C']`; frames after the end are zeros.

        role: of the scratch memory that the result lies in.
        """
        step = state.prepared(self, (x.shape, role), lambda: self._step(x, state, role))
        return step(x)

    def _step(self, x: Tensor, state: StreamState, role: str) -> Callable[[Tensor], Tensor]:
        """What is done for every piece of x's shape, on memory that is looked up once."""
        frames, rows, bins, features = x.shape
        whole = -(-frames // self.frames_multiple) * self.frames_multiple
        width, tail = self.row_layout(bins)
        buffer = state.buffer(self, self.past_frames, whole, (rows * width + tail, features), x)
        room = buffer[self.past_frames :, : rows * width].unflatten(1, (rows, width))
        inside, after_the_end = room[:frames, :, self.below : self.below + bins], room[frames:]
        negative = state.scratch("negative", tuple(x.shape), x)
        positions = rows * width // self.gathered
        dense = buffer.view(len(buffer), -1, self.gathered * features)
        products = self.products(dense, rows, positions, state, role)
        given = -(-frames // self.time_stride)
        kept = _moves(buffer, whole, self.past_frames)

        def step(x: Tensor) -> Tensor:
            if self.activate:
                elu_into(x, inside, negative)
            else:
                inside.copy_(x)
            if whole > frames:
                after_the_end.zero_()
            y = products()
            for past, newest in kept:
                past.copy_(newest)
            return y[:given].view(given, rows, -1, self.outputs)

        return step

    def row_layout(self, bins: int) -> Pair:
        """Bins that a row takes in memory, its zeros included, and bins after the last row."""
        width = -(-(bins + max(self.below, self.above)) // self.gathered) * self.gathered
        # The last row has no next one; its windows end in zeros of their own.
        return width, (self.kernel_size[1] - 1) * self.gathered

    @abstractmethod
    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """From `[past + T, positions + kf - 1, C]`, as it is when called, to `[T / time_stride, positions, C']`.

        positions: of all rows together.
        """


def _moves(frames: Tensor, steps: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Copies, to and from, that bring the `count` frames after the first `steps` to the front, in an order that is safe
    where they overlap.
    """
    size = max(min(steps, count), 1)
    starts = range(0, count, size)
    return [(frames[at : min(at + size, count)], frames[steps + at : steps + min(at + size, count)]) for at in starts]


class GatheredConvolution(DenseConvolution):
    """Windows copied side by side and multiplied at once: best where weights outweigh frames."""

    def __init__(self, kernel: Tensor, bias: Tensor, **arguments: Any) -> None:
        super().__init__(kernel, **arguments)
        self.product = MatrixProduct(kernel.flatten(0, 2), bias)

    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """See `DenseConvolution.products`."""
        frames = (len(dense) - self.past_frames) // self.time_stride
        time, position, feature = dense.stride()
        windows = dense.as_strided(
            (frames, positions, *self.kernel_size, dense.shape[2]),
            (self.time_stride * time, position, time, position, feature),
            dense.storage_offset(),
        )
        gathered = state.scratch("windows", tuple(windows.shape), dense)
        factors = gathered.flatten(2)

        def products() -> Tensor:
            gathered.copy_(windows)
            return self.product(factors, state, role)

        return products


class WinogradConvolution(DenseConvolution):
    """Three taps in time, four frames at a time, with fewer products (`spectrostream.cpu_inference.winograd`)."""

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

    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """See `DenseConvolution.products`; T a multiple of four."""
        tiles, seen = (len(dense) - self.past_frames) // winograd.TILE, dense.shape[1]
        frames = [dense[tile * winograd.TILE :][: winograd.POINTS].flatten(1) for tile in range(tiles)]
        at_points = state.scratch("points", (winograd.POINTS, tiles, dense[0].numel()), dense)
        # [points, tiles * (positions + kf - 1), C]; windows across two tiles are computed and never read
        joined = at_points.view(winograd.POINTS, -1, dense.shape[2])
        taps = self.kernel_size[1]
        windows = joined.shape[1] - taps + 1
        total = state.scratch("products", (winograd.POINTS, windows, self.outputs), dense)
        y = state.scratch(role, (tiles, winograd.TILE, positions * self.outputs), dense)
        result = y.view(tiles * winograd.TILE, positions, self.outputs)
        inputs = [(one, at_points[:, tile]) for tile, one in enumerate(frames)]
        factors = [(joined[:, tap : tap + windows], self.kernel[tap]) for tap in range(taps)]
        outputs = [(total[:, tile * seen :][:, :positions].flatten(1), y[tile]) for tile in range(tiles)]
        with_bias = total[winograd.BIAS_POINT]

        def products() -> Tensor:
            for frame, points in inputs:
                torch.mm(self.input_matrix, frame, out=points)
            torch.bmm(*factors[0], out=total)
            for factor, kernel in factors[1:]:
                total.baddbmm_(factor, kernel)
            with_bias.add_(self.bias)
            for points, tile in outputs:
                torch.mm(self.output_matrix, points, out=tile)
            return result

        return products


class DirectConvolution(DenseConvolution):
    """The library's own convolution: best where the input has few features. No time stride."""

    kernel: Tensor
    bias: Tensor

    def __init__(self, kernel: Tensor, bias: Tensor, **arguments: Any) -> None:
        super().__init__(kernel, **arguments)
        self.register_buffer("kernel", self._weight(kernel).clone(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)

    def _weight(self, kernel: Tensor) -> Tensor:
        return kernel.permute(3, 2, 0, 1)

    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """See `DenseConvolution.products`."""
        # Time and position are the two axes of one picture, its features already innermost.
        picture = dense.permute(2, 0, 1).unsqueeze(0)
        return lambda: F.conv2d(picture, self.kernel, self.bias)[0].permute(1, 2, 0)


class ThinConvolution(DirectConvolution):
    """For few outputs: every tap along frequency is an output of its own, added up afterwards. No time stride."""

    def _weight(self, kernel: Tensor) -> Tensor:
        # [kf * C', C, kt, 1]
        return kernel.permute(1, 3, 2, 0).flatten(0, 1).unsqueeze(-1)

    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """See `DenseConvolution.products`."""
        picture = dense.permute(2, 0, 1).unsqueeze(0)
        frames, seen, taps = len(dense) - self.past_frames, dense.shape[1], self.kernel_size[1]
        row = taps * self.outputs
        # Output position p is the sum over taps k of column k at position p + k: a walk along the diagonal.
        diagonal = (frames, positions, taps, self.outputs), (seen * row, row, row + self.outputs, 1)

        def products() -> Tensor:
            columns = F.conv2d(picture, self.kernel)[0].permute(1, 2, 0).contiguous()
            return columns.as_strided(*diagonal).sum(2) + self.bias

        return products


class FastConvolution(nn.Module):
    """A `Convolution` or `TransposedConvolution` of the codec, ELU first if asked, on `[T, rows, F, C]`.

    full_rate: the input has a whole token's frames at once, four or a multiple. kind: how it is computed.
    """

    def __init__(
        self,
        layer: Convolution | TransposedConvolution,
        *,
        full_rate: bool,
        activate: bool = True,
        kind: ConvolutionKind | None = None,
    ) -> None:
        super().__init__()
        self.stride = layer.stride
        self.is_transposed = isinstance(layer, TransposedConvolution)
        kernel, bias = (_transposed_kernel if self.is_transposed else _kernel)(layer)
        below, above = frequency_padding(layer.weight.shape[3], layer.stride[1])
        # A transposed layer's output starts this many bins before its first input.
        self.crop = below if self.is_transposed and layer.stride[1] > 1 else 0
        if self.is_transposed:
            below = above = min(1, kernel.shape[1] - 1)
        chosen = (kind or float32_kind)(kernel, full_rate=full_rate, is_strided=layer.stride != (1, 1))
        self.dense = chosen(
            kernel,
            bias,
            below=below,
            above=above,
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


class ConvolutionKind(Protocol):
    """Chooses a subclass of `DenseConvolution` for a dense kernel `[kt, kf, C, C']`."""

    def __call__(self, kernel: Tensor, *, full_rate: bool, is_strided: bool) -> Callable[..., DenseConvolution]:
        """full_rate: as for `FastConvolution`; is_strided: along time or frequency."""


def float32_kind(kernel: Tensor, *, full_rate: bool, is_strided: bool) -> Callable[..., DenseConvolution]:
    """The fastest way in float32."""
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
