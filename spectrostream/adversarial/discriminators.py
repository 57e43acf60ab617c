"""The discriminators that a configuration can choose by `kind`. A new one is a file of its own and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from spectrostream.adversarial.contract import Discriminator, DiscriminatorConfig
from spectrostream.adversarial.dac_discriminator import DacDiscriminator, DacDiscriminatorConfig
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig, MultiScaleSTFTDiscriminator


class DiscriminatorKind(NamedTuple):
    """One kind of discriminator.

    Attributes:
        config: Its configuration, a frozen dataclass that is a `DiscriminatorConfig`.
        module: Builds the discriminator from such a configuration and a number of channels.
    """

    config: type[Any]
    module: Callable[[Any, int], Discriminator]


DISCRIMINATORS: dict[str, DiscriminatorKind] = {
    "multi_scale_stft": DiscriminatorKind(MultiScaleSTFTConfig, MultiScaleSTFTDiscriminator),
    "dac": DiscriminatorKind(DacDiscriminatorConfig, DacDiscriminator),
}


def build_discriminator(config: DiscriminatorConfig, channels: int) -> Discriminator:
    """Build a discriminator with random weights.

    Args:
        config: One of the configurations in `DISCRIMINATORS`.
        channels: Audio channels of its input. It works at any sample rate.
    """
    return DISCRIMINATORS[config.kind].module(config, channels)
