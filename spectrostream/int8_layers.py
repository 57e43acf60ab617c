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
from typing import Any, Self

import torch
from torch import Tensor, nn

from spectrostream import winograd
from spectrostream.convolution import Pair
from spectrostream.errors import UserError
from spectrostream.fast_layers import DenseConvolution, GatheredConvolution, WinogradConvolution, float32_kind
from spectrostream.streaming import StreamState

_WEIGHT_STEPS = 127
_STEPS = 254  # one fewer than a byte has: the zero is moved up to a whole step
_SMALLEST_STEP = 1e-30  # silence has no range to divide
_TO_LOWEST_BYTE = 1.5 * 2**23  # added to a float32 in 0..255, it leaves that, rounded, in the lowest byte
_CELL_POSITIONS = range(5, 9)  # at full rate: with fewer, more neighbours are copied; with more, steps are coarser


class Int8UnavailableError(UserError):
    """This build of PyTorch, or this machine, has no 8-bit products."""


class PackedWeights:
    """Int8 weights `[N, K]` in the order that the library's product wants; made once, never changed.

    Raises Int8UnavailableError where there is no such product.
    """

    def __init__(self, weight: Tensor) -> None:
        try:
            self.blocks = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
            torch.ops.onednn.qlinear_pointwise  # noqa: B018  (looked up: a build may have one without the other)
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            raise Int8UnavailableError(
                f"precision = 'int8' is not possible with PyTorch {torch.__version__} on {weight.device.type} here: it "
                f"needs the oneDNN products of PyTorch's x86 CPU builds, 2.11 to 2.13 "
                f"({str(error).splitlines()[0]}); use float32"
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


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
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, self.packed.blocks, self.scale, self.no_zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result


class Steps:
    """Step and zero of every cell, and how values become codes by them and products become values.

    codes = round(x / step) + zero, in 0..255; zero: a whole number of steps, so that 0 is exact. Memory is taken once.
    cells: their axes' sizes. at_values, at_outputs: from `[*cells]` and `[*cells, N]` to views that fit the values and
    the products.
    """

    def __init__(
        self,
        weights: Int8Weights,
        cells: tuple[int, ...],
        at_values: Callable[[Tensor], Tensor],
        at_outputs: Callable[[Tensor], Tensor],
        state: StreamState,
        like: Tensor,
    ) -> None:
        self._weights = weights
        memory = state.scratch("steps", (7, *cells), like)
        self.reach = memory[:2]  # highest value, lowest's opposite; of the cell
        self._step, self._zero, self._inverse, self._shift, self._offset = memory[2:]
        self._constant = state.scratch("constants", (*cells, weights.outputs), like)
        self._inverse_at, self._shift_at = at_values(self._inverse), at_values(self._shift)
        self._step_at, self._constant_at = at_outputs(self._step.unsqueeze(-1)), at_outputs(self._constant)
        self._offset_at = self._offset.unsqueeze(-1)

    def fit(self) -> None:
        """Derives all from `reach`."""
        self.reach.clamp_(min=0)
        torch.add(self.reach[0], self.reach[1], out=self._step).mul_(1 / _STEPS).clamp_(min=_SMALLEST_STEP)
        torch.reciprocal(self._step, out=self._inverse)
        torch.mul(self.reach[1], self._inverse, out=self._zero).ceil_()
        torch.add(self._zero, _TO_LOWEST_BYTE, out=self._shift)
        torch.mul(self._zero, self._step, out=self._offset)
        torch.addcmul(self._weights.bias, self._offset_at, self._weights.minus_sums, out=self._constant)

    def round_into(self, x: Tensor, scaled: Tensor, scaled_bits: Tensor, codes: Tensor) -> None:
        """Writes uint8 codes of x. scaled: float32 memory of x's shape; scaled_bits: the same, seen as int32."""
        torch.mul(x, self._inverse_at, out=scaled)
        scaled.add_(self._shift_at)
        codes.copy_(scaled_bits)

    def products_into(self, codes: Tensor, out: Tensor) -> None:
        """uint8 `[M, K]` to the values `x @ weight + bias`."""
        torch.addcmul(self._constant_at, self._weights.product(codes).view(out.shape), self._step_at, out=out)


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
        y = state.scratch(role, (*x.shape[:-1], self.weights.outputs), x)
        step = state.prepared(self, (rows.shape, y.data_ptr()), lambda: self._step(rows, y, state))
        step(rows)
        return y

    def _step(self, x: Tensor, y: Tensor, state: StreamState) -> Callable[[Tensor], None]:
        """What is done for every x of this shape."""
        codes, scaled = _memory_of_codes(tuple(x.shape), state, x)
        bits, result = scaled.view(torch.int32), y.view(len(x), -1)
        steps = Steps(self.weights, (len(x),), lambda one: one.unsqueeze(-1), lambda one: one, state, x)
        highest, minus_lowest = steps.reach

        def step(x: Tensor) -> None:
            reach_into(x, highest, minus_lowest)
            steps.fit()
            steps.round_into(x, scaled, bits, codes)
            steps.products_into(codes, result)

        return step


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
        tokens, _, rows, row_cells, _ = cells.shape
        reach = state.scratch("reach", (2, *by_frame.shape[:3]), dense)
        highest, minus_lowest = reach
        side, frame, *others = reach.stride()
        reach_in_cells = reach.as_strided((2, *cells.shape[:4]), (side, self.frames_multiple * frame, frame, *others))
        codes, scaled = _memory_of_codes(tuple(cells.shape), state, dense)
        bits = scaled.view(torch.int32)
        windows = self._windows(codes, dense.shape[2])
        factors = state.scratch("byte windows", tuple(windows.shape), codes)
        matrix = factors.view(-1, self.weights.inputs)
        y = state.scratch(role, (*windows.shape[:5], self.outputs), dense)
        result = y.view(tokens * y.shape[1], -1, self.outputs)
        steps = Steps(
            self.weights,
            (tokens, rows, row_cells),
            lambda one: one[:, None, ..., None],
            lambda one: one[:, None, ..., None, :],
            state,
            dense,
        )

        def products() -> Tensor:
            reach_into(by_frame, highest, minus_lowest)
            torch.amax(reach_in_cells, 2, out=steps.reach)
            steps.fit()
            steps.round_into(cells, scaled, bits, codes)
            factors.copy_(windows)
            steps.products_into(matrix, y)
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


def _memory_of_codes(shape: tuple[int, ...], state: StreamState, like: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 and float32."""
    return state.scratch("codes", shape, like.new_empty(0, dtype=torch.uint8)), state.scratch("scaled", shape, like)


def int8_kind(kernel: Tensor, *, full_rate: bool, is_strided: bool) -> Callable[..., DenseConvolution]:
    """See `ConvolutionKind`: in 8 bits what float32 would not leave to the library."""
    kind = float32_kind(kernel, full_rate=full_rate, is_strided=is_strided)
    if kind is WinogradConvolution:
        return functools.partial(Int8Convolution, cell_frames=winograd.TILE, cell_positions=None)
    if kind is GatheredConvolution:
        return functools.partial(Int8Convolution, cell_frames=1, cell_positions=1)
    return kind
