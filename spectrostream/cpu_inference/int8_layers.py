"""Layers for inference on a CPU in 8-bit integers: a quarter of the weights to read, and four times the products.

Weights are int8 with a scale for each output. Frames are quantized to 0..254 with a scale and a zero point for every
*cell*: the windows of a few neighbouring positions in one token. Spectra fall by 60 dB and more from the lowest bins to
the highest, so one scale for all bins would silence the high ones.

Cells need no calibration, and each belongs to one token of one example. So a chunk gives bit by bit what the whole
signal gives, and an example what it gives alone: sums of products are exact in 32 bits, all else is element by element.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from spectrostream.convolution import Pair
from spectrostream.cpu_inference import winograd
from spectrostream.cpu_inference.layers import DenseConvolution, GatheredConvolution, WinogradConvolution, float32_kind
from spectrostream.errors import UserError
from spectrostream.streaming import StreamState

_WEIGHT_RANGE = 127
_RANGE = 254  # one less than a byte has, because the zero point is rounded up
_SMALLEST_SCALE = 1e-30  # silence has the range 0
_TO_LOWEST_BYTE = 1.5 * 2**23  # adding it to a float32 in 0..255 rounds the value into the lowest byte
_CELL_POSITIONS = range(5, 9)  # at full rate: fewer copy more neighbours, more have a coarser scale
_BYTE = torch.empty(0, dtype=torch.uint8)


class Int8UnavailableError(UserError):
    """8-bit products are not possible with this build of PyTorch, on this device, or for this codec."""


class PackedWeights:
    """Int8 weights in the order that the library's product needs; they never change.

    Without VNNI, the library adds two products of bytes in 16 bits and clips the sum: 2 x 255 x 127 is too large. On
    such a processor the weights are the sum of two terms of 7 bits, `halves`, whose products fit. Elsewhere there is
    one term.

    Args:
        weight: int8 `[N, K]`.

    Raises:
        Int8UnavailableError: The library has no such product.
    """

    def __init__(self, weight: Tensor) -> None:
        half = torch.div(weight, 2, rounding_mode="floor")
        self.halves = [_prepacked(term) for term in ([weight] if _adds_in_32_bits() else [half, weight - half])]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def product(self, quantized: Tensor, scale: Tensor, zero_points: Tensor) -> Tensor:
        """Multiply by the weights.

        Args:
            quantized: uint8 `[M, K]`.
            scale: The factor of each output, `[N]`.
            zero_points: int64 zeros `[N]`.

        Returns:
            float32 `[M, N]`.
        """
        first, *rest = (_product(quantized, half, scale, zero_points) for half in self.halves)
        return first.add_(rest[0]) if rest else first


def _prepacked(weight: Tensor) -> Tensor:
    try:
        blocks: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        torch.ops.onednn.qlinear_pointwise  # noqa: B018  (a build may have only one of the two operators)
    except (AttributeError, RuntimeError) as error:
        raise Int8UnavailableError(
            f"precision = 'int8' is not possible with PyTorch {torch.__version__} on {weight.device.type} here: it "
            f"needs the oneDNN products of PyTorch's x86 CPU builds, 2.11 to 2.13 "
            f"({str(error).splitlines()[0]}); use float32"
        ) from error
    return blocks


def _product(quantized: Tensor, blocks: Tensor, scale: Tensor, zero_points: Tensor) -> Tensor:
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        quantized, 1.0, 0, blocks, scale, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return result


@functools.cache
def _adds_in_32_bits() -> bool:
    """Return True if the largest products are exact."""
    quantized, weight = torch.full((1, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    result = _product(quantized, _prepacked(weight), torch.ones(16), torch.zeros(16, dtype=torch.int64))
    return bool((result == 64 * 255 * 127).all())


class Int8Weights(nn.Module):
    """The weights of `x @ weight + bias` for a quantized x.

    Args:
        weight: float32 `[K, N]`; each column is quantized to -127..127 with a scale of its own.
        bias: `[N]`.
    """

    scale: Tensor
    zero_points: Tensor
    minus_sums: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.inputs, self.outputs = weight.shape
        scale = (weight.abs().amax(0) / _WEIGHT_RANGE).clamp_(min=_SMALLEST_SCALE)
        rounded = (weight / scale).round_()
        self.packed = PackedWeights(rounded.T.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_points", torch.zeros(len(scale), dtype=torch.int64, device=weight.device))
        # What must be added to the product if the zero point of x is 1.
        self.register_buffer("minus_sums", (-scale.double() * rounded.double().sum(0)).float())
        self.register_buffer("bias", bias)

    def product(self, quantized: Tensor) -> Tensor:
        """Multiply uint8 `[M, K]` by the weights: float32 `[M, N]`, without bias."""
        return self.packed.product(quantized, self.scale, self.zero_points)


class CellScales:
    """The scale and the zero point of every cell, in memory that is allocated once.

    A value becomes round(x / scale) + zero point, in 0..255. The zero point is a whole number, so that 0 is exact.

    Args:
        weights: Those that the cells' values are multiplied by.
        cells: Shape of the cells.
        state: Gives the memory.
        like: A tensor of the type and device.

    Attributes:
        extremes: `[2, *cells]`, each cell's highest value and its negated lowest; `fit` reads them.
        inverse: `[*cells]`, 1 / scale.
        shift: `[*cells]`, what is added after multiplying by `inverse`.
        scale: `[*cells]`, the factor of the products.
        constant: `[*cells, N]`, what is added to the scaled products.
    """

    def __init__(self, weights: Int8Weights, cells: tuple[int, ...], state: StreamState, like: Tensor) -> None:
        self._weights = weights
        memory = state.scratch("cell scales", (7, *cells), like)
        self.extremes = memory[:2]
        self.scale, self.inverse, self.shift, self._zero_point, self._offset = memory[2:]
        self._highest, self._minus_lowest = self.extremes
        self._offset_column = self._offset.unsqueeze(-1)
        self.constant = state.scratch("constants", (*cells, weights.outputs), like)

    def fit(self) -> None:
        """Compute everything from `extremes`."""
        self.extremes.clamp_(min=0)
        torch.add(self._highest, self._minus_lowest, out=self.scale).mul_(1 / _RANGE).clamp_(min=_SMALLEST_SCALE)
        torch.reciprocal(self.scale, out=self.inverse)
        torch.mul(self._minus_lowest, self.inverse, out=self._zero_point).ceil_()
        torch.add(self._zero_point, _TO_LOWEST_BYTE, out=self.shift)
        torch.mul(self._zero_point, self.scale, out=self._offset)
        torch.addcmul(self._weights.bias, self._offset_column, self._weights.minus_sums, out=self.constant)


class ScaleViews(NamedTuple):
    """Views of `CellScales` that broadcast: inverse and shift to the values, scale and constant to the outputs."""

    inverse: Tensor
    shift: Tensor
    scale: Tensor
    constant: Tensor


def prepare_product(
    weights: Int8Weights, scales: ScaleViews, values: Tensor, windows: Callable[[Tensor], Tensor], y: Tensor,
    state: StreamState,
) -> Callable[[Tensor], None]:  # fmt: skip
    """Prepare a layer's product for values of one shape.

    Args:
        weights: The layer's weights.
        scales: Fitted to the values before each call of the result.
        values: An example of the values.
        windows: Maps the quantized values to a view `[..., K]`, a row for each output position.
        y: Memory of the layer's outputs.
        state: Gives the memory of intermediate results.

    Returns:
        A function that takes values and writes the outputs to `y`.
    """
    shape = tuple(values.shape)
    scaled, quantized = state.scratch("scaled", shape, values), state.scratch("quantized", shape, _BYTE)
    bits, view = scaled.view(torch.int32), windows(quantized)
    gathered = quantized if view is quantized else state.scratch("byte windows", tuple(view.shape), quantized)
    matrix = gathered.view(-1, weights.inputs)

    def write(values: Tensor) -> None:
        torch.mul(values, scales.inverse, out=scaled)
        scaled.add_(scales.shift)
        quantized.copy_(bits)
        if gathered is not quantized:
            gathered.copy_(view)
        torch.addcmul(scales.constant, weights.product(matrix).view(y.shape), scales.scale, out=y)

    return write


def write_extremes(x: Tensor, highest: Tensor, minus_lowest: Tensor) -> None:
    """Write the highest and the negated lowest value along x's last axis."""
    torch.amax(x, -1, out=highest)
    torch.amin(x, -1, out=minus_lowest).neg_()


class Int8MatrixProduct(nn.Module):
    """`MatrixProduct` in 8 bits; every row of x is a cell."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights = Int8Weights(weight, bias)

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """See `MatrixProduct.forward`."""
        rows = x.reshape(-1, self.weights.inputs)
        compute, y = state.prepared(self, (rows.shape, role), lambda: self._prepare(rows, state, role))
        compute(rows)
        return y.view(*x.shape[:-1], -1)

    def _prepare(self, rows: Tensor, state: StreamState, role: str) -> tuple[Callable[[Tensor], None], Tensor]:
        """Return a function that computes the product for rows of this shape, and the memory of its result."""
        y = state.scratch(role, (len(rows), self.weights.outputs), rows)
        scales = CellScales(self.weights, (len(rows),), state, rows)
        by_row = ScaleViews(scales.inverse[:, None], scales.shift[:, None], scales.scale[:, None], scales.constant)
        write = prepare_product(self.weights, by_row, rows, lambda quantized: quantized, y, state)
        highest, minus_lowest = scales.extremes

        def compute(x: Tensor) -> None:
            write_extremes(x, highest, minus_lowest)
            scales.fit()
            write(x)

        return compute, y


class Int8Convolution(DenseConvolution):
    """Windows in 8 bits, copied side by side and multiplied at once; each cell has a copy of its windows' whole input.

    Args:
        kernel: As for `DenseConvolution`.
        bias: `[C']`.
        cell_frames: New input frames of a cell.
        cell_positions: Positions of a cell; None chooses a number that suits the width.
        arguments: Those of `DenseConvolution`.
    """

    def __init__(
        self, kernel: Tensor, bias: Tensor, *, cell_frames: int, cell_positions: int | None, **arguments: Any
    ) -> None:
        super().__init__(kernel, **arguments)
        self.frames_multiple = max(cell_frames, self.time_stride)
        self.cell_positions = cell_positions
        self.weights = Int8Weights(kernel.flatten(0, 2), bias)

    def row_layout(self, bins: int) -> Pair:
        """See `DenseConvolution.row_layout`: here a row has whole cells and shares no zeros with the next row."""
        positions = (self.below + bins + self.above) // self.gathered - self.kernel_size[1] + 1
        size = self._positions_in_cell(positions)
        return (-(-positions // size) * size + self.kernel_size[1] - 1) * self.gathered, 0

    def _positions_in_cell(self, positions: int) -> int:
        """Return the size that leaves the fewest unused at a row's end, rather larger; all positions of a short row."""
        if self.cell_positions is not None or positions <= _CELL_POSITIONS[0]:
            return self.cell_positions or positions
        return min(_CELL_POSITIONS, key=lambda size: (-positions % size, -size))

    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """See `DenseConvolution.products`."""
        by_frame, cells = self._cells(dense, rows, positions)
        scales, fit = self._scales(by_frame, cells, state)
        tokens, _, _, row_cells, length = cells.shape
        size = length // dense.shape[2] - self.kernel_size[1] + 1
        frames = self.frames_multiple // self.time_stride
        y = state.scratch(role, (tokens, frames, rows, row_cells, size, self.outputs), dense)
        result = y.view(tokens * frames, -1, self.outputs)
        windows = functools.partial(self._windows, features=dense.shape[2])
        write = prepare_product(self.weights, scales, cells, windows, y, state)

        def products() -> Tensor:
            fit()
            write(cells)
            return result

        return products

    def _scales(self, by_frame: Tensor, cells: Tensor, state: StreamState) -> tuple[ScaleViews, Callable[[], None]]:
        """Return the scales of all cells, and a function that fits them to the present content of the cells."""
        tokens, _, rows, row_cells, _ = cells.shape
        extremes = state.scratch("extremes", (2, *by_frame.shape[:3]), by_frame)
        highest, minus_lowest = extremes
        side, frame, *others = extremes.stride()
        in_cells = extremes.as_strided((2, *cells.shape[:4]), (side, self.frames_multiple * frame, frame, *others))
        scales = CellScales(self.weights, (tokens, rows, row_cells), state, by_frame)
        views = ScaleViews(
            inverse=scales.inverse[:, None, ..., None],
            shift=scales.shift[:, None, ..., None],
            scale=scales.scale[:, None, ..., None, None],
            constant=scales.constant[:, None, ..., None, :],
        )

        def fit() -> None:
            write_extremes(by_frame, highest, minus_lowest)
            torch.amax(in_cells, 2, out=scales.extremes)
            scales.fit()

        return views, fit

    def _cells(self, dense: Tensor, rows: int, positions: int) -> tuple[Tensor, Tensor]:
        """View the frames as cells.

        Returns:
            `[past + T, rows, cells of a row, values]`, and `[tokens, past + frames, rows, cells of a row, values]`.
        """
        row, neighbours, features = positions // rows, self.kernel_size[1] - 1, dense.shape[2]
        size = self._positions_in_cell(row - neighbours)  # no rest: `row_layout` made whole cells
        shape = rows, (row - neighbours) // size, (size + neighbours) * features
        time, position, _ = dense.stride()
        strides = time, row * position, size * position, 1
        start, frames = dense.storage_offset(), self.frames_multiple
        tokens = (len(dense) - self.past_frames) // frames
        return (
            dense.as_strided((len(dense), *shape), strides, start),
            dense.as_strided((tokens, self.past_frames + frames, *shape), (frames * time, *strides), start),
        )

    def _windows(self, quantized: Tensor, features: int) -> Tensor:
        """View `[tokens, frames, rows, cells of a row, bytes]` as `[tokens, T', rows, cells, size, kt, kf * C]`."""
        tokens, _, rows, row_cells, length = quantized.shape
        token, frame, row, cell, _ = quantized.stride()
        frames, taps = self.kernel_size
        output_frames = self.frames_multiple // self.time_stride
        size = length // features - taps + 1
        return quantized.as_strided(
            (tokens, output_frames, rows, row_cells, size, frames, taps * features),
            (token, self.time_stride * frame, row, cell, features, frame, 1),
        )


def int8_kind(kernel: Tensor, *, full_rate: bool, is_strided: bool) -> Callable[..., DenseConvolution]:
    """See `ConvolutionKind`: choose 8 bits, except where `float32_kind` chooses the library's convolution."""
    kind = float32_kind(kernel, full_rate=full_rate, is_strided=is_strided)
    if kind is WinogradConvolution:
        return functools.partial(Int8Convolution, cell_frames=winograd.TILE, cell_positions=None)
    if kind is GatheredConvolution:
        return functools.partial(Int8Convolution, cell_frames=1, cell_positions=1)
    return kind
