"""What a discriminator takes and returns, so that training and losses never ask which one they hold."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class DiscriminatorOutput(NamedTuple):
    """What a discriminator returns for a batch of audio.

    Attributes:
        logits: One tensor `[examples, positions]` per scale; high means "original". An example is a crop, or one
            channel of a crop where the discriminator sees each channel alone.
        features: Per scale the outputs of the hidden layers, first to last; feature matching compares them.
    """

    logits: list[Tensor]
    features: list[list[Tensor]]

    def detach(self) -> DiscriminatorOutput:
        """The same numbers without their graph."""
        features = [[layer.detach() for layer in layers] for layers in self.features]
        return DiscriminatorOutput([logits.detach() for logits in self.logits], features)


class DiscriminatorConfig(Protocol):
    """What every discriminator's configuration has."""

    @property
    def kind(self) -> str:
        """The tag that selects the discriminator, a key of `DISCRIMINATORS`."""

    @property
    def shortest_audio(self) -> int:
        """Fewest samples that the discriminator takes."""


class Discriminator(nn.Module):
    """The interface of a discriminator: a network that tells original audio from decoded audio.

    Attributes:
        channels: Audio channels of its input.
        shortest_audio: Fewest samples that it takes.
    """

    channels: int
    shortest_audio: int

    @abstractmethod
    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        """Compute logits and features.

        Args:
            audio: `[batch, channels, samples]` at any sample rate.

        Raises:
            ValueError: The audio has another shape, or fewer samples than `shortest_audio`.
        """


def check_audio(audio: Tensor, channels: int) -> None:
    """Check the shape of a discriminator's input.

    Raises:
        ValueError: The audio is not `[batch, channels, samples]`.
    """
    if audio.dim() != 3 or audio.shape[1] != channels:
        expected = f"[batch, {channels}, samples]"
        raise ValueError(f"the discriminator got audio of shape {list(audio.shape)}; it expects {expected}")
