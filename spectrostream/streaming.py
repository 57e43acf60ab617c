"""The streaming contract: a layer sees a signal whole or piece by piece, and computes the same.

Every layer with a memory takes an optional `StreamState`. Without one its input is a whole signal, and the time before
it is silence (zeros). With one its input is the next piece, as long as a multiple of the layer's stride unless it is
the last, and the time before it is what the state kept. One forward path serves both.

A layer also knows its own arithmetic: `input_span(first, last)` says which input frames the output frames first..last
can depend on. Whoever composes layers chains the spans, last layer first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Span = tuple[int, int]


class StreamState:
    """What the layers of a stream (or of a batch of streams in lockstep) keep between two pieces; empty at first."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, Tensor] = {}

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
