"""Parts of a codec that do not learn while the others do."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from spectrostream.other_codecs.dac import Dac
from spectrostream.registry import Codec

PARTS = ("encoder", "codebooks", "decoder")


def freeze(codec: Codec, parts: Iterable[str]) -> None:
    """Takes gradients from the parameters of some `PARTS`, in place; codebooks go on quantizing as in training.

    The codebooks of a SpectroStream stand still at once. DAC's learn by gradients, together with the projections around
    them; both stand still. Codes change no more once encoder and codebooks are frozen.
    Raises ValueError for another part, and if nothing that learns by gradients is left.
    """
    chosen = tuple(parts)
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise ValueError(f"a codec has no part {unknown[0]!r} to freeze; allowed: {', '.join(PARTS)}")
    for part in chosen:
        if part == "codebooks" and not isinstance(codec, Dac):
            codec.quantizer.learning.freeze(codec.quantizer.codebooks)
        else:
            _part(codec, part).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in codec.parameters()):
        raise ValueError(f"with {', '.join(chosen)} frozen nothing is left that learns; leave one of them out")


def _part(codec: Codec, name: str) -> nn.Module:
    holder = codec.model if isinstance(codec, Dac) else codec
    part: nn.Module = getattr(holder, "quantizer" if name == "codebooks" else name)
    return part
