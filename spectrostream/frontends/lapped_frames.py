"""Frames of 960 samples that overlap by half, for the spectral front-ends."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.frontends.contract import Layout
from spectrostream.streaming import Span, StreamState

HOP_LENGTH = 480
SPECTRAL_LAYOUT = Layout(
    bins=480,
    strides=((1, 2), (1, 2), (1, 3), (1, 2), (1, 2), (2, 2), (2, 1)),
    multipliers=(2, 1, 2, 1, 1, 2, 1),
    kernel=(3, 3),
    outer_kernel=(7, 7),
)


def lapped_frames(audio: Tensor) -> Tensor:
    """Map `[batch, channels, samples]` to float32 frames `[batch, channels, ceil(samples / 480), 960]`.

    Frame k holds samples 480k .. 480k + 959; zeros follow after the end.
    """
    samples = audio.shape[-1]
    frames = -(-samples // HOP_LENGTH)
    padded = F.pad(audio.float(), (0, (frames + 1) * HOP_LENGTH - samples))
    return padded.unfold(-1, 2 * HOP_LENGTH, HOP_LENGTH)


def overlap_add(windowed: Tensor, layer: nn.Module, state: StreamState | None) -> Tensor:
    """Add up overlapping frames, without the second half of the last frame.

    Args:
        windowed: `[batch, channels, frames, 960]`.
        layer: The front-end for which the state keeps the second half of the last frame.
        state: The state of a stream, or None.

    Returns:
        `[batch, channels, 480 * frames]`.
    """
    first, second = windowed.split(HOP_LENGTH, dim=-1)
    # Block k is the first half of frame k plus the second half of frame k - 1.
    tails = F.pad(second, (0, 0, 1, 0)) if state is None else state.prepend(layer, second, 1)
    return (first + tails[..., :-1, :]).flatten(-2)


def frames_over(first: int, last: int) -> Span:
    """Return the first and last frame that contain samples first..last."""
    return first // HOP_LENGTH - 1, last // HOP_LENGTH
