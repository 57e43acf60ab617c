"""The streaming contract: a layer gives the same result for a whole signal and for the signal in chunks.

Every layer with a memory takes an optional `StreamState`. Without a state, the input is a whole signal, and zeros come
before it. With a state, the input is the next chunk, and the frames that the state kept come before it. The length of
a chunk is a multiple of the layer's stride, except for the last. Both cases use the same forward path.

`input_span(first, last)` of a layer returns the first and the last input frame that output frames first..last can
depend on. For a stack of layers, the spans are chained, last layer first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Span = tuple[int, int]
Prepared = TypeVar("Prepared")


class StreamState:
    """What the layers of a stream (or of a batch of streams in lockstep) keep between chunks; empty at first."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, Tensor] = {}
        self._buffers: dict[nn.Module, Tensor] = {}
        self._prepared: dict[nn.Module, dict[Hashable, Any]] = {}
        self._scratch: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._memory: dict[str, Tensor] = {}

    def prepend(self, layer: nn.Module, x: Tensor, frames: int) -> Tensor:
        """Put the layer's `frames` last input frames before x, and keep the last ones of the result.

        Args:
            layer: The layer that keeps the frames.
            x: `[batch, C, T, F]`.
            frames: How many. Frames before the start are zeros, like the padding of a whole signal.

        Returns:
            `[batch, C, frames + T, F]`.
        """
        if frames == 0:
            return x
        past = self._kept.get(layer)
        if past is None:
            past = x.new_zeros(*x.shape[:2], frames, x.shape[3])
        joined = torch.cat((past, x), dim=2)
        # A copy, so that the state does not keep the whole chunk in memory.
        self._kept[layer] = joined[:, :, joined.shape[2] - frames :].clone()
        return joined

    def prepared(self, layer: nn.Module, key: Hashable, prepare: Callable[[], Prepared]) -> Prepared:
        """Return the result of `prepare()` for this layer and key; it is called once, until the layer's buffer moves.

        Layers prepare views of their memory, which all calls with the same shape use.
        """
        known: dict[Hashable, Prepared] = self._prepared.setdefault(layer, {})
        if key in known:
            return known[key]
        value = prepare()
        # `prepare` may replace the layer's buffer, which removes the dictionary `known`.
        self._prepared.setdefault(layer, {})[key] = value
        return value

    def buffer(self, layer: nn.Module, past: int, frames: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the layer's buffer `[past + frames, *shape]`: its last `past` frames, then room for new ones.

        The layer itself writes all frames. The buffer is zero at the start, and keeps its values from call to call.
        """
        buffer = self._buffers.get(layer)
        if buffer is None or len(buffer) < past + frames:
            larger = like.new_zeros(past + frames, *shape)
            if buffer is not None:
                larger[:past] = buffer[:past]
            self._prepared.pop(layer, None)
            buffer = self._buffers[layer] = larger
        return buffer[: past + frames]

    def scratch(self, role: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory for an intermediate result; all calls with the same role share the memory.

        New memory for each intermediate result would cost more time than the arithmetic, because of page faults.
        """
        view = self._scratch.get((role, shape))
        if view is None:
            size = math.prod(shape)
            memory = self._memory.get(role)
            if memory is None or len(memory) < size:
                memory = self._memory[role] = like.new_empty(size)
            view = self._scratch[role, shape] = memory[:size].view(shape)
        return view
