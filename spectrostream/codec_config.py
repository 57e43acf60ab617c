"""The configuration of a SpectroStream: front-end, widths, fusion and split point, quantizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from spectrostream.frontends import FRONT_ENDS
from spectrostream.quantizer import QuantizerConfig


@dataclass(frozen=True)
class SpectroStreamConfig:
    """The configuration of a SpectroStream; the defaults are those of the released weights."""

    kind: str = "spectrostream"
    """The tag that selects this codec. Allowed: spectrostream."""
    frontend: str = "stft"
    """Representation that the codec works on: the complex spectrogram, the waveform, the MDCT, or the complex
    spectrogram with its moduli to the power of 0.3. Allowed: stft, waveform, mdct, power_stft. Source: stft in the
    paper; the others are ablations."""
    channels: int = 2
    """Audio channels of input and output. Allowed: 1 or more."""
    channel_groups: tuple[tuple[int, ...], ...] = ()
    """Channels that the first convolution sees together: lists of channel indices, all of one size, for instance
    [[0, 1], [2, 3], [4, 5]] for the pairs of 5.1. Fusion joins the groups and the split separates them; they share
    weights. Allowed: each channel once, or [] for each channel alone."""
    encoder_width: int = 32
    """Features after the encoder's first convolution. Allowed: 1 or more. Source: official implementation."""
    decoder_width: int = 64
    """Features before the decoder's last convolution. Allowed: 1 or more. Source: official implementation."""
    embedding_dim: int = 256
    """Features of a token. Allowed: 1 or more. Source: official implementation."""
    fusion: int | str = 6
    """Encoder block before which the channel groups are joined; 7 is the bottleneck block. With "input" the first
    convolution sees all channels (the official "no split"). With "never" each group has tokens of its own; they divide
    the levels, so that the rate is the same. Allowed: 0 to 7, input, never. Source: official implementation."""
    split: int | str = 6
    """Decoder block at which the groups are separated, the mirror image of `fusion`. Allowed: 0 to 7, output, never.
    Source: official implementation."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """Residual vector quantizer. Allowed: the keys of the quantizer."""

    def __post_init__(self) -> None:
        if self.frontend not in FRONT_ENDS:
            raise ValueError(f"model.frontend = {self.frontend!r} is not known; allowed: {', '.join(FRONT_ENDS)}")
        for key in ("channels", "encoder_width", "decoder_width", "embedding_dim"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} = {getattr(self, key)} is not possible; allowed: 1 or more")
        self._require_groups()
        # Files have lists, and a list never equals a tuple.
        object.__setattr__(self, "channel_groups", tuple(tuple(group) for group in self.channel_groups))
        for key, outermost in (("fusion", "input"), ("split", "output")):
            self._require_position(key, outermost)

    def _require_groups(self) -> None:
        if not self._is_partition():
            raise ValueError(
                f"model.channel_groups = {_lists(self.channel_groups)!r} is not possible; allowed: each of the "
                f"channels 0..{self.channels - 1} once, in groups of one size, or [] for each channel alone"
            )

    def _is_partition(self) -> bool:
        groups = self.channel_groups
        if not isinstance(groups, list | tuple) or not all(isinstance(group, list | tuple) for group in groups):
            return False
        members = [channel for group in groups for channel in group]
        if not all(type(channel) is int for channel in members):  # True equals 1, but is not a channel
            return False
        is_even = len({len(group) for group in groups}) <= 1
        return not groups or (is_even and sorted(members) == list(range(self.channels)))

    def _require_position(self, key: str, outermost: str) -> None:
        value = getattr(self, key)
        last = self._last_block
        is_block = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last
        if value not in (outermost, "never") and not is_block:
            raise ValueError(
                f"model.{key} = {value!r} is not possible: the stack has the strided blocks 0..{last - 1} and the "
                f"bottleneck block {last}; allowed: 0..{last}, {outermost!r} or 'never'"
            )

    @property
    def _last_block(self) -> int:
        return len(FRONT_ENDS[self.frontend].layout.strides)

    @property
    def levels(self) -> int:
        """Trained quantizer levels."""
        return self.quantizer.levels

    @property
    def groups(self) -> list[list[int]]:
        """The channel groups; each channel alone if the configuration has none."""
        return [list(group) for group in self.channel_groups] or [[channel] for channel in range(self.channels)]

    @property
    def encoder_groups(self) -> int:
        """Groups that the encoder's first convolution sees apart."""
        return 1 if self.fusion == "input" else len(self.groups)

    @property
    def decoder_groups(self) -> int:
        """Groups that the decoder's last convolution sees apart."""
        return 1 if self.split == "output" else len(self.groups)

    @property
    def token_groups(self) -> int:
        """Tokens in a frame: one per group if the groups are never joined, else 1."""
        return self.encoder_groups if self.fusion == "never" else 1

    def block_index(self, position: int | str) -> int:
        """Return the index of the encoder block that `fusion` or `split` names; one after the last for "never"."""
        if isinstance(position, int):
            return position
        return self._last_block + 1 if position == "never" else 0


def _lists(value: object) -> object:
    """Return the value with lists instead of tuples, as users write it."""
    return [_lists(part) for part in value] if isinstance(value, list | tuple) else value
