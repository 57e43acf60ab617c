"""The interface of every codec. Training, evaluation and reports do not depend on which codec they use.

`AudioCodec` is all that evaluation needs. `TrainableCodec` adds what training needs. A new codec is one line in the
table `spectrostream.registry.CODECS`.
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

    Attributes:
        audio: `[batch, channels, samples]`, of the same length as the input and aligned with it.
        commitment_loss: A scalar, to be weighted by `loss.commitment`. DAC's contains its codebook loss too, with its
            own weights.
    """

    audio: Tensor
    commitment_loss: Tensor


@runtime_checkable
class AudioCodec(Protocol):
    """A lossy codec: audio to codes, and codes to audio of the same length.

    Each codec has its own type of codes, for instance an int64 tensor `[batch, levels, frames]`. Other code only passes
    codes to `decode` and `bits`.
    """

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Sample rate of the audio, in Hz."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Audio channels of the input and of the output."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """Highest number of quantizer levels."""

    @property
    @abstractmethod
    def is_causal(self) -> bool:
        """True if the codec can stream."""

    @property
    @abstractmethod
    def latency_samples(self) -> int | None:
        """Delay from a sample's arrival to its output when streaming, in samples; None if the codec cannot stream."""

    @abstractmethod
    def encode(self, audio: Tensor, *, levels: int | None = None) -> Any:
        """Encode audio.

        Args:
            audio: `[batch, channels, samples]` in [-1, 1].
            levels: 1 (the lowest rate) .. `codec.levels` (default).
        """

    @abstractmethod
    def decode(self, codes: Any, *, length: int) -> Tensor:
        """Decode codes to audio `[batch, channels, length]`, aligned with the encoded audio to the sample."""

    @abstractmethod
    def kbps(self, levels: int) -> float:
        """Return the nominal rate of all channels together, in kilobits per second."""

    @abstractmethod
    def bits(self, codes: Any) -> int:
        """Return the bits that the codes of one example take."""


class CodecConfig(Protocol):
    """What a codec is built from: a frozen dataclass whose field `kind` names the codec in the table of codecs."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def kind(self) -> str:
        """The codec's name in `spectrostream.registry.CODECS`, which is the default of the field."""

    @property
    def channels(self) -> int:
        """Audio channels of the input and of the output."""

    @property
    def levels(self) -> int:
        """Quantizer levels that are trained."""


class TrainableCodec(nn.Module, AudioCodec):
    """An `AudioCodec` that can be trained, saved and resumed.

    Calling it with audio is one training pass. The methods that are not abstract are right for a simple codec.
    """

    config: CodecConfig

    @abstractmethod
    def forward(self, audio: Tensor) -> Reconstruction:
        """Encode and decode audio `[batch, channels, samples]` with gradients: one training pass."""

    @abstractmethod
    def freeze_part(self, part: str) -> None:
        """Freeze one of `PARTS`, in place: it learns no more. Frozen codebooks still quantize as in training."""

    @property
    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """The convolutional stacks; `trainer.compile` compiles them."""

    @property
    @abstractmethod
    def network_parameters(self) -> int:
        """Number of parameters in the networks, without the codebooks."""

    @property
    @abstractmethod
    def codebook_parameters(self) -> int:
        """Number of values in all codebooks, whether they are parameters or buffers."""

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Entries per level."""

    @property
    def channels(self) -> int:
        """Audio channels of the input and of the output."""
        return self.config.channels

    @property
    def levels(self) -> int:
        """Number of trained quantizer levels."""
        return self.config.levels

    @property
    def inner_sample_rate(self) -> int:
        """Sample rate of the networks, in Hz; it differs from `sample_rate` if the codec resamples."""
        return self.sample_rate

    @property
    def draws_for_all_processes(self) -> bool:
        """True if each process of a distributed run draws random numbers for the examples of all processes.

        Then all processes have the same seed, and the draws for a batch do not depend on the number of processes.
        """
        return False

    @property
    def takes_zero_levels(self) -> bool:
        """True if the codec can encode to 0 levels, and decode without any code."""
        return False

    @property
    def recomputed_blocks(self) -> Iterable[nn.Module]:
        """The blocks that `trainer.checkpoint_activations` runs a second time in the backward pass."""
        return ()

    def freeze(self, parts: Iterable[str]) -> None:
        """Freeze some of `PARTS`, in place. With encoder and codebooks frozen, the codes do not change.

        Raises:
            ValueError: A part does not exist, or nothing is left that learns by gradients.
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
        """Start the codebooks' learning from their present entries; called after weights are loaded."""

    def codebook_statistics(self) -> CodebookStatistics | None:
        """Return how the entries are used; None if the codec does not count it or its codebooks have not started."""
        return None

    def deployed(self) -> Self:
        """Return the codec in its form for use and timing. It is changed in place and cannot be trained any more."""
        return self
