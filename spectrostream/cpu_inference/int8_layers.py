"""Layers for inference on a CPU in 8-bit integers: a quarter of the weights to read, and four times the products.

Weights are int8 with a scale for each output. Frames become 0..254 by a step and a zero of their own for every *cell*:
the windows of a few neighbouring positions, in one token. Spectra fall by 60 dB and more from the lowest bins to the
highest, so one step for all bins would silence the high ones. Cells need no calibration, and none reaches across tokens
or examples, so that pieces give bit by bit what the whole gives, and an example what it gives alone: sums of products
are exact in 32 bits, and everything else is done element by element.
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

_WEIGHT_STEPS = 127
_STEPS = 254  # one fewer than a byte has: the zero is moved up to a whole step
_SMALLEST_STEP = 1e-30  # silence has no range to divide
_TO_LOWEST_BYTE = 1.5 * 2**23  # added to a float32 in 0..255, it leaves that, rounded, in the lowest byte
_CELL_POSITIONS = range(5, 9)  # at full rate: with fewer, more neighbours are copied; with more, steps are coarser
_BYTE = torch.empty(0, dtype=torch.uint8)


class Int8UnavailableError(UserError):
    """8-bit products are not possible: with this build of PyTorch, on this device, or for this codec."""


class PackedWeights:
    """Int8 weights `[N, K]` in the order that the library's product wants; made once, never changed.

    Without VNNI the library adds two products of bytes in 16 bits and cuts what does not fit: 2 x 255 x 127 does not.
    There the weights are two terms of 7 bits, `halves`, whose products fit and are added; elsewhere they are one.

    Raises Int8UnavailableError where there is no such product.
    """

    def __init__(self, weight: Tensor) -> None:
        half = torch.div(weight, 2, rounding_mode="floor")
        self.halves = [_prepacked(term) for term in ([weight] if _adds_in_32_bits() else [half, weight - half])]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def product(self, codes: Tensor, scale: Tensor, no_zero: Tensor) -> Tensor:
        """uint8 `[M, K]` times the weights, each output times its scale: float32 `[M, N]`."""
        first, *rest = (_product(codes, half, scale, no_zero) for half in self.halves)
        return first.add_(rest[0]) if rest else first


def _prepacked(weight: Tensor) -> Tensor:
    try:
        blocks: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        torch.ops.onednn.qlinear_pointwise  # noqa: B018  (looked up: a build may have one without the other)
    except (AttributeError, RuntimeError) as error:
        raise Int8UnavailableError(
            f"precision = 'int8' is not possible with PyTorch {torch.__version__} on {weight.device.type} here: it "
            f"needs the oneDNN products of PyTorch's x86 CPU builds, 2.11 to 2.13 "
            f"({str(error).splitlines()[0]}); use float32"
        ) from error
    return blocks


def _product(codes: Tensor, blocks: Tensor, scale: Tensor, no_zero: Tensor) -> Tensor:
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, blocks, scale, no_zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return result


@functools.cache
def _adds_in_32_bits() -> bool:
    """Whether the largest products keep their value."""
    codes, weight = torch.full((1, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    result = _product(codes, _prepacked(weight), torch.ones(16), torch.zeros(16, dtype=torch.int64))
    return bool((result == 64 * 255 * 127).all())


class Int8Weights(nn.Module):
    """`x @ weight + bias` for x in steps; weight `[K, N]`, in 127 steps to either side of zero in each column."""

    scale: Tensor
    no_zero: Tensor
    minus_sums: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.inputs, self.outputs = weight.shape
        scale = (weight.abs().amax(0) / _WEIGHT_STEPS).clamp_(min=_SMALLEST_STEP)
        rounded = (weight / scale).round_()
        self.packed = PackedWeights(rounded.T.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("no_zero", torch.zeros(len(scale), dtype=torch.int64, device=weight.device))
        # What a zero of x that stands at 1 adds to the product, with the opposite sign.
        self.register_buffer("minus_sums", (-scale.double() * rounded.double().sum(0)).float())
        self.register_buffer("bias", bias)

    def product(self, codes: Tensor) -> Tensor:
        """uint8 `[M, K]` times the weights: float32 `[M, N]`, without bias."""
        return self.packed.product(codes, self.scale, self.no_zero)


class Steps:
    """Step and zero of every cell: codes = round(x / step) + zero, in 0..255; zero is a whole number of steps, so that
    0 is exact. Memory is taken once.

    inverse, shift: `[*cells]`, to codes; step: `[*cells]` and constant: `[*cells, N]`, from products to values.
    """

    def __init__(self, weights: Int8Weights, cells: tuple[int, ...], state: StreamState, like: Tensor) -> None:
        self._weights = weights
        memory = state.scratch("steps", (7, *cells), like)
        self.reach = memory[:2]  # a cell's highest value, and the opposite of its lowest
        self.step, self.inverse, self.shift, self._zero, self._offset = memory[2:]
        self._highest, self._minus_lowest = self.reach
        self._offset_at = self._offset.unsqueeze(-1)
        self.constant = state.scratch("constants", (*cells, weights.outputs), like)

    def fit(self) -> None:
        """Derives all from `reach`."""
        self.reach.clamp_(min=0)
        torch.add(self._highest, self._minus_lowest, out=self.step).mul_(1 / _STEPS).clamp_(min=_SMALLEST_STEP)
        torch.reciprocal(self.step, out=self.inverse)
        torch.mul(self._minus_lowest, self.inverse, out=self._zero).ceil_()
        torch.add(self._zero, _TO_LOWEST_BYTE, out=self.shift)
        torch.mul(self._zero, self.step, out=self._offset)
        torch.addcmul(self._weights.bias, self._offset_at, self._weights.minus_sums, out=self.constant)


class StepViews(NamedTuple):
    """Of `Steps` what fits the values, inverse and shift, and what fits the outputs, step and constant."""

    inverse: Tensor
    shift: Tensor
    step: Tensor
    constant: Tensor


def product_in_steps(
    weights: Int8Weights, steps: StepViews, values: Tensor, windows: Callable[[Tensor], Tensor], y: Tensor,
    state: StreamState,
) -> Callable[[Tensor], None]:  # fmt: skip
    """What writes the layer's outputs y for any values of this shape, once the steps are fitted to them.

    windows: from the codes of the values to a view `[..., K]`, a row for each output position.
    """
    shape = tuple(values.shape)
    scaled, codes = state.scratch("scaled", shape, values), state.scratch("codes", shape, _BYTE)
    bits, seen = scaled.view(torch.int32), windows(codes)
    gathered = codes if seen is codes else state.scratch("byte windows", tuple(seen.shape), codes)
    matrix = gathered.view(-1, weights.inputs)

    def write(values: Tensor) -> None:
        torch.mul(values, steps.inverse, out=scaled)
        scaled.add_(steps.shift)
        codes.copy_(bits)
        if gathered is not codes:
            gathered.copy_(seen)
        torch.addcmul(steps.constant, weights.product(matrix).view(y.shape), steps.step, out=y)

    return write


def reach_into(x: Tensor, highest: Tensor, minus_lowest: Tensor) -> None:
    """Along x's last axis."""
    torch.amax(x, -1, out=highest)
    torch.amin(x, -1, out=minus_lowest).neg_()


class Int8MatrixProduct(nn.Module):
    """`MatrixProduct` in 8 bits: every row of x is a cell."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights = Int8Weights(weight, bias)

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """`[..., K]` to `[..., N]` in the scratch memory of that role."""
        rows = x.reshape(-1, self.weights.inputs)
        step, y = state.prepared(self, (rows.shape, role), lambda: self._step(rows, state, role))
        step(rows)
        return y.view(*x.shape[:-1], -1)

    def _step(self, rows: Tensor, state: StreamState, role: str) -> tuple[Callable[[Tensor], None], Tensor]:
        """What is done for every x of this shape, and the memory of the result."""
        y = state.scratch(role, (len(rows), self.weights.outputs), rows)
        steps = Steps(self.weights, (len(rows),), state, rows)
        by_row = StepViews(steps.inverse[:, None], steps.shift[:, None], steps.step[:, None], steps.constant)
        write = product_in_steps(self.weights, by_row, rows, lambda codes: codes, y, state)
        highest, minus_lowest = steps.reach

        def step(x: Tensor) -> None:
            reach_into(x, highest, minus_lowest)
            steps.fit()
            write(x)

        return step, y


class Int8Convolution(DenseConvolution):
    """Windows in 8 bits, copied side by side and multiplied at once; each cell has a copy of all that its windows see.

    cell_frames: input frames of a cell. cell_positions: of a cell; None: a number that suits the width.
    """

    def __init__(
        self, kernel: Tensor, bias: Tensor, *, cell_frames: int, cell_positions: int | None, **arguments: Any
    ) -> None:
        super().__init__(kernel, **arguments)
        self.frames_multiple = max(cell_frames, self.time_stride)
        self.cell_positions = cell_positions
        self.weights = Int8Weights(kernel.flatten(0, 2), bias)

    def row_layout(self, bins: int) -> Pair:
        """See `DenseConvolution.row_layout`: whole cells, and no zeros shared with the next row."""
        positions = (self.below + bins + self.above) // self.gathered - self.kernel_size[1] + 1
        size = self._positions_in_cell(positions)
        return (-(-positions // size) * size + self.kernel_size[1] - 1) * self.gathered, 0

    def _positions_in_cell(self, positions: int) -> int:
        """Those that leave the fewest over at a row's end, rather more than fewer; all, where the row is short."""
        if self.cell_positions is not None or positions <= _CELL_POSITIONS[0]:
            return self.cell_positions or positions
        return min(_CELL_POSITIONS, key=lambda size: (-positions % size, -size))

    def products(self, dense: Tensor, rows: int, positions: int, state: StreamState, role: str) -> Callable[[], Tensor]:
        """See `DenseConvolution.products`."""
        by_frame, cells = self._cells(dense, rows, positions)
        tokens, _, _, row_cells, length = cells.shape
        reach = state.scratch("reach", (2, *by_frame.shape[:3]), dense)
        highest, minus_lowest = reach
        side, frame, *others = reach.stride()
        reach_in_cells = reach.as_strided((2, *cells.shape[:4]), (side, self.frames_multiple * frame, frame, *others))
        steps = Steps(self.weights, (tokens, rows, row_cells), state, dense)
        size = length // dense.shape[2] - self.kernel_size[1] + 1
        given = self.frames_multiple // self.time_stride
        y = state.scratch(role, (tokens, given, rows, row_cells, size, self.outputs), dense)
        result = y.view(tokens * given, -1, self.outputs)
        views = StepViews(
            inverse=steps.inverse[:, None, ..., None],
            shift=steps.shift[:, None, ..., None],
            step=steps.step[:, None, ..., None, None],
            constant=steps.constant[:, None, ..., None, :],
        )
        windows = functools.partial(self._windows, features=dense.shape[2])
        write = product_in_steps(self.weights, views, cells, windows, y, state)

        def products() -> Tensor:
            reach_into(by_frame, highest, minus_lowest)
            torch.amax(reach_in_cells, 2, out=steps.reach)
            steps.fit()
            write(cells)
            return result

        return products

    def _cells(self, dense: Tensor, rows: int, positions: int) -> tuple[Tensor, Tensor]:
        """Views of the frames: `[past + T, rows, cells of a row, bytes]`; `[tokens, past + frames, ...]` likewise."""
        row, neighbours, features = positions // rows, self.kernel_size[1] - 1, dense.shape[2]
        size = self._positions_in_cell(row - neighbours)  # divides it: `row_layout` made whole cells
        shape = rows, (row - neighbours) // size, (size + neighbours) * features
        time, position, _ = dense.stride()
        strides = time, row * position, size * position, 1
        start, frames = dense.storage_offset(), self.frames_multiple
        tokens = (len(dense) - self.past_frames) // frames
        return (
            dense.as_strided((len(dense), *shape), strides, start),
            dense.as_strided((tokens, self.past_frames + frames, *shape), (frames * time, *strides), start),
        )

    def _windows(self, codes: Tensor, features: int) -> Tensor:
        """View of `[tokens, frames, rows, cells of a row, bytes]` as `[tokens, T', rows, cells, size, kt, kf * C]`."""
        tokens, _, rows, row_cells, length = codes.shape
        whole, frame, row, cell, _ = codes.stride()
        frames, taps = self.kernel_size
        given = self.frames_multiple // self.time_stride
        size = length // features - taps + 1
        return codes.as_strided(
            (tokens, given, rows, row_cells, size, frames, taps * features),
            (whole, self.time_stride * frame, row, cell, features, frame, 1),
        )


def int8_kind(kernel: Tensor, *, full_rate: bool, is_strided: bool) -> Callable[..., DenseConvolution]:
    """See `ConvolutionKind`: in 8 bits what float32 would not leave to the library."""
    kind = float32_kind(kernel, full_rate=full_rate, is_strided=is_strided)
    if kind is WinogradConvolution:
        return functools.partial(Int8Convolution, cell_frames=winograd.TILE, cell_positions=None)
    if kind is GatheredConvolution:
        return functools.partial(Int8Convolution, cell_frames=1, cell_positions=1)
    return kind
