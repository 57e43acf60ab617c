"""Find widths at which one SpectroStream costs as much as another, so that an ablation compares equal costs.

A front-end, a fusion or a split point changes the cost of a codec. The encoder and the decoder are each made wider or
narrower until they cost as much as those of the reference. Costs are counted on the meta device, without computing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spectrostream.codec import SAMPLE_RATE, SpectroStream
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.errors import UserError
from spectrostream.frontends import SAMPLES_PER_TOKEN
from spectrostream.quantizer import QuantizerConfig

TOKENS_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_TOKEN
# Largest difference of a cost from the reference's. A cost grows with the square of the width, so its steps are coarse.
TOLERANCE = 0.1
# The costs that can be matched, and their units.
COSTS = {"macs": "multiply-accumulates per second", "parameters": "parameters"}
_counted: dict[str, int] = {}  # a study needs the baseline's cost for each variant and seed


class MatchError(UserError):
    """Two codecs that cannot be matched; the message gives the nearest cost."""


class HalfCosts(NamedTuple):
    """The separate costs of encoder and decoder: parameters, or multiply-accumulates per second."""

    encoder: int
    decoder: int


class HalfMatch(NamedTuple):
    """The matched encoder or decoder: its width, its cost, and the reference's cost."""

    width: int
    cost: int
    reference: int

    @property
    def excess(self) -> float:
        """Difference from the reference's cost, as a fraction of it; negative if this one is cheaper."""
        return self.cost / self.reference - 1


class WidthMatch(NamedTuple):
    """The variant with matched widths, the matched cost ("macs" or "parameters"), and the match of each half."""

    config: SpectroStreamConfig
    by: str
    encoder: HalfMatch
    decoder: HalfMatch


def encoder_and_decoder_parameters(config: SpectroStreamConfig) -> HalfCosts:
    """Count the weights and biases of each half; codebooks belong to neither."""
    return HalfCosts(*(_cost(config, half, "parameters") for half in HalfCosts._fields))


def encoder_and_decoder_macs(config: SpectroStreamConfig) -> HalfCosts:
    """Count the multiply-accumulates of each half for one second of all channels: half of FlopCounterMode's count.

    Only convolutions count, with the zeros at the edges. Front-end, quantizer and element-wise operations do not.
    """
    return HalfCosts(*(_cost(config, half, "macs") for half in HalfCosts._fields))


def matched_widths(
    variant: SpectroStreamConfig, reference: SpectroStreamConfig, by: str = "macs", *, tolerance: float = TOLERANCE
) -> WidthMatch:
    """Find the `encoder_width` and the `decoder_width` of the variant whose costs are nearest to the reference's.

    Args:
        variant: The configuration whose widths change.
        reference: The configuration whose costs are matched.
        by: The cost, one of `COSTS`.
        tolerance: The largest allowed difference, as a fraction of the reference's cost.

    Raises:
        MatchError: There is no such cost, or no width is within the tolerance.
    """
    if by not in COSTS:
        raise MatchError(f"match = {by!r} is not known; allowed: {', '.join(COSTS)}")
    found = WidthMatch(variant, by, *(_matched_half(variant, reference, half, by) for half in HalfCosts._fields))
    for half in HalfCosts._fields:
        _require_near(getattr(found, half), half, by, tolerance)
    config = dataclasses.replace(variant, encoder_width=found.encoder.width, decoder_width=found.decoder.width)
    return found._replace(config=config)


def _matched_half(variant: SpectroStreamConfig, reference: SpectroStreamConfig, half: str, by: str) -> HalfMatch:
    target = _cost(reference, half, by)
    start = reference.encoder_width if half == "encoder" else reference.decoder_width
    width = _nearest_width(lambda width: _cost(_with_width(variant, half, width), half, by), target, start)
    return HalfMatch(width, _cost(_with_width(variant, half, width), half, by), target)


def _with_width(config: SpectroStreamConfig, half: str, width: int) -> SpectroStreamConfig:
    if half == "encoder":
        return dataclasses.replace(config, encoder_width=width)
    return dataclasses.replace(config, decoder_width=width)


def _nearest_width(cost: Callable[[int], int], target: int, start: int) -> int:
    """Return the width 1, 2, .. whose cost is nearest to the target; the cost grows with the width."""
    # A layer between two layers of width w has w^2 products, so this guess is rarely wrong by more than 1.
    low = max(1, round(start * math.sqrt(target / cost(start))))
    high, step = low + 1, 1
    while low > 1 and cost(low) > target:
        low, high, step = max(1, low - step), low, 2 * step
    while cost(high) < target:
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) > target else (middle, high)
    return min((low, high), key=lambda width: abs(cost(width) - target))


def _require_near(match: HalfMatch, half: str, by: str, tolerance: float) -> None:
    if abs(match.excess) > tolerance:
        raise MatchError(
            f"match = {by!r}: the nearest model.{half}_width, {match.width}, makes the {half} cost {match.cost:,} "
            f"{COSTS[by]}, {match.excess:+.0%} of the reference's {match.reference:,}; allowed: {tolerance:.0%} either "
            f"way. A narrow model's steps are coarse: give the reference a larger model.{half}_width, or set both "
            "widths of the variant without match"
        )


def _cost(config: SpectroStreamConfig, half: str, by: str) -> int:
    key = f"{by} of the {half} of {config}"
    if key not in _counted:
        module, one_second = _half_without_memory(config, half)
        _counted[key] = _parameters(module) if by == "parameters" else _macs(module, one_second)
    return _counted[key]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(module: nn.Module, one_second: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(one_second)
    return counter.get_total_flops() // 2


def _half_without_memory(config: SpectroStreamConfig, half: str) -> tuple[nn.Module, Tensor]:
    """Build the encoder or the decoder on the meta device, and one second of its input."""
    # The smallest codebooks, because they are built fastest and do not count.
    smallest = QuantizerConfig(levels=config.token_groups, codebook_size=2, initial_vectors=2)
    with torch.device("meta"):
        codec = SpectroStream(dataclasses.replace(config, quantizer=smallest))
        if half == "decoder":
            return codec.decoder, torch.empty(1, config.embedding_dim * config.token_groups, TOKENS_PER_SECOND)
        layout, features = codec.frontend.layout, codec.frontend.features_per_channel * config.channels
        return codec.encoder, torch.empty(1, features, TOKENS_PER_SECOND * layout.frames_per_token, layout.bins)
