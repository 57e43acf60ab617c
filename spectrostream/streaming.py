"""The streaming contract: a layer sees a signal whole or piece by piece, and computes the same.

Every layer with a memory takes an optional `StreamState`. Without one its input is a whole signal, and the time before
it is silence (zeros). With one its input is the next piece, as long as a multiple of the layer's stride unless it is
the last, and the time before it is what the state kept. One forward path serves both.

A layer also knows its own arithmetic: `input_span(first, last)` says which input frames the output frames first..last
can depend on. Whoever composes layers chains the spans, last layer first.
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
    """What the layers of a stream (or of a batch of streams in lockstep) keep between two pieces; empty at first."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, Tensor] = {}
        self._buffers: dict[nn.Module, Tensor] = {}
        self._prepared: dict[nn.Module, dict[Hashable, Any]] = {}
        self._scratch: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._memory: dict[str, Tensor] = {}

    def prepend(self, layer: nn.Module, x: Tensor, frames: int) -> Tensor:
        """`[batch, C, T, F]` with the `frames` frames before it, `[batch, C, frames + T, F]`; keeps its last ones.

        Frames before the start are zeros, as the padding of a whole signal.
        """
        if frames == 0:
            return x
        past = self._kept.get(layer)
        if past is None:
            past = x.new_zeros(*x.shape[:2], frames, x.shape[3])
        joined = torch.cat((past, x), dim=2)
        # A copy, so that the state does not hold on to the whole piece.
        self._kept[layer] = joined[:, :, joined.shape[2] - frames :].clone()
        return joined

    def prepared(self, layer: nn.Module, key: Hashable, prepare: Callable[[], Prepared]) -> Prepared:
        """What `prepare()` gave the layer for this key: views of its memory that every call of one shape uses again."""
        known: dict[Hashable, Prepared] = self._prepared.setdefault(layer, {})
        if key in known:
            return known[key]
        value = prepare()
        # Preparing may have moved the layer's buffer, and what was known with the old one.
        self._prepared.setdefault(layer, {})[key] = value
        return value

    def buffer(self, layer: nn.Module, past: int, frames: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """`[past + frames, *shape]`: the layer's last `past` frames, which it writes there itself, and room for more.

        At the start all of it is zero; what the layer does not write keeps its value from call to call.
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
        """Memory for an intermediate result, its content undefined; the next caller with this role gets the same.

        Fresh memory for every intermediate result costs more than the arithmetic in it: each new page is a fault.
        """
        view = self._scratch.get((role, shape))
        if view is None:
            size = math.prod(shape)
            memory = self._memory.get(role)
            if memory is None or len(memory) < size:
                memory = self._memory[role] = like.new_empty(size)
            view = self._scratch[role, shape] = memory[:size].view(shape)
        return view
