"""The judges that can be built from a configuration, by their `kind`."""

from __future__ import annotations

from spectrostream.adversarial.dac_discriminator import DacDiscriminator, DacDiscriminatorConfig
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig, MultiScaleSTFTDiscriminator

Discriminator = MultiScaleSTFTDiscriminator | DacDiscriminator
DiscriminatorConfig = MultiScaleSTFTConfig | DacDiscriminatorConfig
DISCRIMINATORS: dict[str, type[MultiScaleSTFTConfig] | type[DacDiscriminatorConfig]] = {
    "multi_scale_stft": MultiScaleSTFTConfig,
    "dac": DacDiscriminatorConfig,
}


def build_discriminator(config: DiscriminatorConfig, channels: int) -> Discriminator:
    """A judge with random weights for audio of so many channels; it works at any sample rate."""
    if isinstance(config, DacDiscriminatorConfig):
        return DacDiscriminator(config, channels)
    return MultiScaleSTFTDiscriminator(config, channels)
