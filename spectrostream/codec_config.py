"""What makes one SpectroStream: front-end, widths, fusion and split point, quantizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from spectrostream.frontends import FRONT_ENDS
from spectrostream.quantizer import QuantizerConfig


@dataclass(frozen=True)
class SpectroStreamConfig:
    """Everything that makes one SpectroStream; the defaults are the released layout.

    frontend: "stft" (complex spectrogram), "waveform", "mdct", or "power_stft" (moduli to the power of 0.3).
    channels: audio channels of input and output.
    channel_groups: which channels are seen together from the first convolution on, as lists of channel indices of one
        size, for instance [[0, 1], [2, 3], [4, 5]] for the pairs of 5.1. Empty: each channel is a group of its own.
        Fusion joins the groups, the split separates them; weights are shared among groups.
    encoder_width, decoder_width: features of the outermost block.
    embedding_dim: features of a token.
    fusion: encoder block 0..7 before which the groups are joined (7: the bottleneck block); "input": the first
        convolution sees all channels (the official "no split"); "never": each group has tokens of its own, which share
        the levels, so that the rate is the same.
    split: the decoder's mirror image: 0..7, "output" or "never".
    """

    kind: str = "spectrostream"
    frontend: str = "stft"
    channels: int = 2
    channel_groups: tuple[tuple[int, ...], ...] = ()
    encoder_width: int = 32
    decoder_width: int = 64
    embedding_dim: int = 256
    fusion: int | str = 6
    split: int | str = 6
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.frontend not in FRONT_ENDS:
            raise ValueError(f"model.frontend = {self.frontend!r} is not known; allowed: {', '.join(FRONT_ENDS)}")
        for key in ("channels", "encoder_width", "decoder_width", "embedding_dim"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} = {getattr(self, key)} is not possible; allowed: 1 or more")
        self._require_groups()
        # Lists, as files have them, would make two equal configurations differ.
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
        if not all(type(channel) is int for channel in members):  # True is no channel, though it equals one
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
    def groups(self) -> list[list[int]]:
        """The channel groups, spelled out."""
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
        """Tokens in a frame: one for each group where they are never joined."""
        return self.encoder_groups if self.fusion == "never" else 1

    def block_index(self, position: int | str) -> int:
        """`fusion` or `split` as a block's index, counted as the encoder's; one after the last block for "never"."""
        if isinstance(position, int):
            return position
        return self._last_block + 1 if position == "never" else 0


def _lists(value: object) -> object:
    """As one types it."""
    return [_lists(part) for part in value] if isinstance(value, list | tuple) else value
