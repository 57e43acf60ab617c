"""Layers for inference on a CPU: the codec's convolutions as matrix products on frames that stay in the cache.

Tensors are `[T, rows, F, C]`, contiguous: time is outermost, a row is a channel group of an example, the features are
innermost.

A convolution with frequency stride s equals one without stride if s bins are taken as one of s * C features. A
transposed convolution gives s bins at once. Both are views of the same memory. So all that is left are dense causal
convolutions. Where a token has four frames, they are computed by Winograd's algorithm along time. Where it has fewer,
they are products of gathered windows.
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
    """Write ELU(x) = max(x, exp(min(x, 0)) - 1) in half the time of the library's function, which uses expm1.

    Args:
        x: Any shape.
        out: Where the result is written.
        negative: Memory of x's shape for an intermediate result.
    """
    torch.clamp(x, max=0, out=negative)
    torch.maximum(x, negative.exp_().sub_(1), out=out)


class MatrixProduct(nn.Module):
    """`x @ weight + bias`.

    Args:
        weight: `[K, N]`.
        bias: `[N]`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.T.clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """Compute `[..., N]` from `[..., K]`; `role` names the scratch memory of the result."""
        outputs = self.bias.shape[0]
        y = state.scratch(role, (*x.shape[:-1], outputs), x)
        rows, result = x.reshape(-1, x.shape[-1]), y.view(-1, outputs)
        if rows.shape[0] < _FEW_ROWS:
            torch.add(torch.mm(self.weight, rows.T).T, self.bias, out=result)
        else:
            torch.addmm(self.bias, rows, self.weight.T, out=result)
        return y


# A product of few rows mostly reads weights. For weight @ x.T, the library does not first copy them to another order.
# This halves the time of a streaming step's largest layers (9216 x 1024, 12 rows: 6 ms against 15).
_FEW_ROWS = 64


class DenseConvolution(nn.Module, ABC):
    """A causal convolution of windows of gathered bins, with the ELU before it. Subclasses differ in how they compute.

    Args:
        kernel: `[kt, kf, C, C']`, oldest frame and lowest bin first.
        below: Zero bins below each row.
        above: Zero bins above each row; they are also the zeros below the next row.
        gathered: Bins that make one position.
        time_stride: Frames from one window to the next.
        past: Earlier frames that a window needs.
        activate: Whether an ELU comes first.
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
        """Compute the convolution; frames after the end are zeros.

        Args:
            x: `[T, rows, F, C]`.
            state: The stream's memory.
            role: Names the scratch memory of the result.

        Returns:
            `[ceil(T / time_stride), rows, positions, C']`.
        """
        compute = state.prepared(self, (x.shape, role), lambda: self._prepare(x, state, role))
        return compute(x)

    def _prepare(self, x: Tensor, state: StreamState, role: str) -> Callable[[Tensor], Tensor]:
        """Return the function for inputs of x's shape; its memory is looked up only once."""
        frames, rows, bins, features = x.shape
        whole = -(-frames // self.frames_multiple) * self.frames_multiple
        width, tail = self.row_layout(bins)
        buffer = state.buffer(self, self.past_frames, whole, (rows * width + tail, features), x)
        new_frames = buffer[self.past_frames :, : rows * width].unflatten(1, (rows, width))
        inside, after_the_end = new_frames[:frames, :, self.below : self.below + bins], new_frames[frames:]
        negative = state.scratch("negative", tuple(x.shape), x)
        positions = rows * width // self.gathered
        dense = buffer.view(len(buffer), -1, self.gathered * features)
        products = self.products(dense, rows, positions, state, role)
        output_frames = -(-frames // self.time_stride)
        moves = _moves(buffer, whole, self.past_frames)

        def compute(x: Tensor) -> Tensor:
            if self.activate:
                elu_into(x, inside, negative)
            else:
                inside.copy_(x)
            if whole > frames:
                after_the_end.zero_()
            y = products()
            for past, newest in moves:
                past.copy_(newest)
            return y[:output_frames].view(output_frames, rows, -1, self.outputs)

        return compute

    def row_layout(self, bins: int) -> Pair:
        """Return the bins of a row in memory, with its zeros, and the bins after the last row."""
        width = -(-(bins + max(self.below, self.above)) // self.gathered) * self.gathered
        # The last row has no next one, so it needs zeros of its own.
        return width, (self.kernel_size[1] - 1) * self.gathered

    @abstractmethod
    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """Prepare the products.

        Args:
            dense: The memory of the frames, `[past + T, positions + kf - 1, C]`.
            rows: Number of rows.
            positions: Of all rows together.
            state: Gives the memory of intermediate results.
            role: Names the scratch memory of the result.

        Returns:
            A function that computes `[T / time_stride, positions, C']` from the present content of `dense`.
        """


def _moves(frames: Tensor, steps: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return the copies (target, source) that move `count` frames to the front, from `steps` frames later.

    Their order is safe where target and source overlap.
    """
    size = max(min(steps, count), 1)
    starts = range(0, count, size)
    return [(frames[at : min(at + size, count)], frames[steps + at : steps + min(at + size, count)]) for at in starts]


class GatheredConvolution(DenseConvolution):
    """Windows copied side by side and multiplied at once: best where there are more weights than frames."""

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
    """Three taps in time and four frames at once, with fewer products (`spectrostream.cpu_inference.winograd`)."""

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
        """See `DenseConvolution.products`; T is a multiple of four."""
        tiles, input_positions = (len(dense) - self.past_frames) // winograd.TILE, dense.shape[1]
        frames = [dense[tile * winograd.TILE :][: winograd.POINTS].flatten(1) for tile in range(tiles)]
        at_points = state.scratch("points", (winograd.POINTS, tiles, dense[0].numel()), dense)
        # [points, tiles * (positions + kf - 1), C]; windows across two tiles are computed, but not used.
        joined = at_points.view(winograd.POINTS, -1, dense.shape[2])
        taps = self.kernel_size[1]
        windows = joined.shape[1] - taps + 1
        total = state.scratch("products", (winograd.POINTS, windows, self.outputs), dense)
        y = state.scratch(role, (tiles, winograd.TILE, positions * self.outputs), dense)
        result = y.view(tiles * winograd.TILE, positions, self.outputs)
        inputs = [(one, at_points[:, tile]) for tile, one in enumerate(frames)]
        factors = [(joined[:, tap : tap + windows], self.kernel[tap]) for tap in range(taps)]
        outputs = [(total[:, tile * input_positions :][:, :positions].flatten(1), y[tile]) for tile in range(tiles)]
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
        image = dense.permute(2, 0, 1).unsqueeze(0)  # [1, C, time, position], features innermost in memory
        return lambda: F.conv2d(image, self.kernel, self.bias)[0].permute(1, 2, 0)


class ThinConvolution(DirectConvolution):
    """For few outputs: every tap along frequency has an output of its own; a sum follows. No time stride."""

    def _weight(self, kernel: Tensor) -> Tensor:
        # [kf * C', C, kt, 1]
        return kernel.permute(1, 3, 2, 0).flatten(0, 1).unsqueeze(-1)

    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """See `DenseConvolution.products`."""
        image = dense.permute(2, 0, 1).unsqueeze(0)
        frames, input_positions, taps = len(dense) - self.past_frames, dense.shape[1], self.kernel_size[1]
        row = taps * self.outputs
        # Output position p is the sum over taps k of column k at position p + k, which is a diagonal.
        diagonal = (frames, positions, taps, self.outputs), (input_positions * row, row, row + self.outputs, 1)

        def products() -> Tensor:
            columns = F.conv2d(image, self.kernel)[0].permute(1, 2, 0).contiguous()
            return columns.as_strided(*diagonal).sum(2) + self.bias

        return products


class FastConvolution(nn.Module):
    """A convolution of the codec on `[T, rows, F, C]`.

    Args:
        layer: The codec's layer.
        full_rate: Whether every input has all frames of whole tokens, a multiple of four.
        activate: Whether an ELU comes first.
        kind: How it is computed; by default the fastest way in float32.
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
        # Bins that are cut off below: the output of a transposed layer starts before its first input.
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
        """Compute the layer's output from `[T, rows, F, C]`, with the same order of axes; see `DenseConvolution`."""
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
    """A function that chooses how a convolution is computed."""

    def __call__(self, kernel: Tensor, *, full_rate: bool, is_strided: bool) -> Callable[..., DenseConvolution]:
        """Choose a subclass of `DenseConvolution`.

        Args:
            kernel: `[kt, kf, C, C']`, see `DenseConvolution`.
            full_rate: As for `FastConvolution`.
            is_strided: Whether the layer has a stride along time or frequency.
        """


def float32_kind(kernel: Tensor, *, full_rate: bool, is_strided: bool) -> Callable[..., DenseConvolution]:
    """See `ConvolutionKind`: choose the fastest way in float32."""
    if full_rate and kernel.shape[0] == winograd.TAPS:
        return WinogradConvolution
    if not is_strided and kernel.shape[3] < _FEW:
        return ThinConvolution
    if not is_strided and kernel.shape[2] < _FEW:
        return DirectConvolution
    return GatheredConvolution


def _kernel(layer: Convolution | TransposedConvolution) -> tuple[Tensor, Tensor]:
    """Convert the weight `[C', C, kt, kf]` to `[kt, kf / s, s * C, C']`: windows of s gathered bins."""
    weight = layer.weight.detach().permute(2, 3, 1, 0)
    gathered = layer.stride[1]
    return weight.reshape(weight.shape[0], -1, gathered * weight.shape[2], weight.shape[3]), layer.bias.detach().clone()


def _transposed_kernel(layer: Convolution | TransposedConvolution) -> tuple[Tensor, Tensor]:
    """Convert the weight `[C, C', kt, kf]` to `[kt / st, kf / sf, C, st * sf * C']`: a window gives st x sf outputs.

    Output st * n + u is the sum over q of input n - q times tap st * q + u; frequency is the same. The oldest input of
    a window has the highest q.
    """
    time, frequency = layer.stride
    weight = layer.weight.detach().unflatten(3, (-1, frequency)).unflatten(2, (-1, time))
    # [C, C', q_t, u_t, q_f, u_f]
    weight = weight.flip(2, 4).permute(2, 4, 0, 3, 5, 1)
    return weight.flatten(3), layer.bias.detach().repeat(time * frequency)
