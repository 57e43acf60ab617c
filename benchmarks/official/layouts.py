"""Full-size configurations that both implementations can build."""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """fusion: encoder block before which the channels are joined, mirrored by the split; None: never apart.

    The official code raises for a point at the bottleneck (7).
    """

    channels: int
    fusion: int | None


LAYOUTS = {
    "released": Layout(channels=2, fusion=6),
    **{f"fusion-{block}": Layout(channels=2, fusion=block) for block in range(6)},
    "no-split": Layout(channels=2, fusion=None),
    "mono": Layout(channels=1, fusion=None),
}
