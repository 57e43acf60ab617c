"""What every codec can do, so that training, evaluation and reports never ask which one they hold.

`AudioCodec` is all that evaluation needs. `TrainableCodec` adds what training needs. A new codec enters the table
`spectrostream.registry.CODECS` with one line.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import Field
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from spectrostream.codebook_learning import CodebookStatistics

PARTS = ("encoder", "codebooks", "decoder")
"""The parts of a codec that can be frozen."""


class Reconstruction(NamedTuple):
    """What a codec returns in training.

    audio: `[batch, channels, samples]`, the same length as the input and aligned with it.
    commitment_loss: scalar; for DAC its commitment and codebook losses with their own weights. `loss.commitment` weighs
    it.
    """

    audio: Tensor
    commitment_loss: Tensor


@runtime_checkable
class AudioCodec(Protocol):
    """A lossy codec: audio `[batch, channels, samples]` in [-1, 1] at `sample_rate` to codes, and back to its length.

    `codes` is what the codec likes (an int64 tensor `[batch, levels, frames]` for SpectroStream); whoever holds it only
    hands it back to `decode` and asks for its `bits`. `levels` selects the rate: 1 (lowest) .. `codec.levels`.
    """

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Hz."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Audio channels of the input and of the output."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """The highest number of quantizer levels."""

    @property
    @abstractmethod
    def is_causal(self) -> bool:
        """True if it can stream."""

    @property
    @abstractmethod
    def latency_samples(self) -> int | None:
        """Delay from a sample's arrival to its output when streaming; None if the codec cannot stream."""

    @abstractmethod
    def encode(self, audio: Tensor, *, levels: int | None = None) -> Any:
        """`[batch, channels, samples]` to codes of `levels` (default: all) levels."""

    @abstractmethod
    def decode(self, codes: Any, *, length: int) -> Tensor:
        """Codes to `[batch, channels, length]`, aligned to the sample with what was encoded."""

    @abstractmethod
    def kbps(self, levels: int) -> float:
        """Nominal rate of all channels together, kilobits per second."""

    @abstractmethod
    def bits(self, codes: Any) -> int:
        """Bits that the codes of one example occupy."""


class CodecConfig(Protocol):
    """What a codec is built from: a frozen dataclass whose field `kind` names the codec in the table of codecs."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def kind(self) -> str:
        """The codec's name in `spectrostream.registry.CODECS`; the default of the field."""

    @property
    def channels(self) -> int:
        """Audio channels of the input and of the output."""

    @property
    def levels(self) -> int:
        """Quantizer levels that are trained."""


class TrainableCodec(nn.Module, AudioCodec):
    """An `AudioCodec` that can be trained, saved and resumed.

    Calling it with audio `[batch, channels, samples]` is one training pass. The methods that are not abstract have the
    answer of a codec without the peculiarity they ask for.
    """

    config: CodecConfig

    @abstractmethod
    def forward(self, audio: Tensor) -> Reconstruction:
        """One training pass: `[batch, channels, samples]`, coded and decoded, and its commitment loss."""

    @abstractmethod
    def freeze_part(self, part: str) -> None:
        """Takes gradients from one of `PARTS`, in place; frozen codebooks quantize as they do in training."""

    @property
    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """The convolutional stacks; `trainer.compile` compiles them."""

    @property
    @abstractmethod
    def network_parameters(self) -> int:
        """Numbers in the networks, without the codebooks."""

    @property
    @abstractmethod
    def codebook_parameters(self) -> int:
        """Numbers in all codebooks, whether they are parameters or buffers."""

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Entries per level."""

    @property
    def channels(self) -> int:
        """Audio channels."""
        return self.config.channels

    @property
    def levels(self) -> int:
        """Trained quantizer levels."""
        return self.config.levels

    @property
    def inner_sample_rate(self) -> int:
        """Rate in Hz that the networks work at; another than `sample_rate` for a codec that resamples."""
        return self.sample_rate

    @property
    def draws_for_all_processes(self) -> bool:
        """Whether each process of a distributed run draws random numbers for the examples of all processes.

        If so, all processes are seeded alike, and a batch is the same, however many processes share it.
        """
        return False

    @property
    def takes_zero_levels(self) -> bool:
        """Whether it encodes to 0 levels, and decodes what it knows without any code."""
        return False

    @property
    def recomputed_blocks(self) -> Iterable[nn.Module]:
        """The blocks that `trainer.checkpoint_activations` runs a second time in the backward pass."""
        return ()

    def freeze(self, parts: Iterable[str]) -> None:
        """Freezes some `PARTS`, in place. Codes change no more once encoder and codebooks are frozen.

        Raises:
            ValueError: for a part that does not exist, and if nothing that learns by gradients is left.
        """
        chosen = tuple(parts)
        unknown = [part for part in chosen if part not in PARTS]
        if unknown:
            raise ValueError(f"a codec has no part {unknown[0]!r} to freeze; allowed: {', '.join(PARTS)}")
        for part in chosen:
            self.freeze_part(part)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(f"with {', '.join(chosen)} frozen nothing is left that learns; leave one of them out")

    def adopt_codebooks(self) -> None:
        """Lets the codebooks learn from where they are; called after weights are loaded."""

    def codebook_statistics(self) -> CodebookStatistics | None:
        """How the entries are used; None for codebooks that do not count it or have not started."""
        return None

    def deployed(self) -> Self:
        """The codec in the form for use and timing, changed in place; it is not trained any more."""
        return self
