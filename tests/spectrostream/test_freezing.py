"""Parts that do not learn: their tensors stay as they are, whatever the rest does."""

import pytest
import torch
from tiny_codec import tiny_config
from torch import Tensor

from spectrostream import SpectroStream
from spectrostream.frontends import SAMPLES_PER_TOKEN as TOKEN
from spectrostream.interface import PARTS
from spectrostream.other_codecs.dac import Dac, DacConfig

AUDIO_TOKENS = 6


def codec_with(*frozen: str) -> SpectroStream:
    torch.manual_seed(0)
    codec = SpectroStream(tiny_config())
    codec.quantizer.learning.adopt(codec.quantizer.codebooks)
    codec.freeze(frozen)
    return codec


def audio(seed: int) -> Tensor:
    return 0.1 * torch.randn(4, 2, AUDIO_TOKENS * TOKEN, generator=torch.Generator().manual_seed(seed))


def trained(codec: SpectroStream | Dac, steps: int = 3) -> dict[str, Tensor]:
    """Its state before; the codec itself has learnt afterwards."""
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    optimizer = torch.optim.Adam([one for one in codec.parameters() if one.requires_grad], lr=1e-2)
    for step in range(steps):
        given = audio(step)
        result = codec(given)
        (((result.audio - given).square().mean()) + result.commitment_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return before


def moved(codec: SpectroStream | Dac, before: dict[str, Tensor]) -> set[str]:
    """The first words of the names of tensors that changed."""
    after = codec.state_dict()
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {name.removeprefix("model.").split(".")[0] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "learning"),
    [
        ((), {"encoder", "quantizer", "decoder"}),
        (("encoder",), {"quantizer", "decoder"}),
        (("codebooks",), {"encoder", "decoder"}),
        (("encoder", "codebooks"), {"decoder"}),
        (("decoder",), {"encoder", "quantizer"}),
    ],
)
def test_what_is_frozen_stays_bit_by_bit_and_the_rest_learns(frozen, learning):
    codec = codec_with(*frozen)
    assert moved(codec, trained(codec)) == learning


@pytest.mark.slow
def test_with_encoder_and_codebooks_frozen_codes_are_as_they_were_and_need_no_graph():
    codec = codec_with("encoder", "codebooks")
    expected = codec.encode(audio(9))
    trained(codec)
    assert torch.equal(codec.encode(audio(9)), expected)
    assert not codec.embed(audio(9)).requires_grad
    assert codec(audio(9)).audio.requires_grad


def test_frozen_codebooks_quantize_in_training_as_learning_ones_do():
    outputs = []
    for frozen in ((), ("codebooks",)):
        codec = codec_with(*frozen)
        torch.manual_seed(3)
        outputs.append(codec.quantizer(codec.embed(audio(1))))
    learning, standing = outputs
    assert standing.is_started
    assert torch.equal(learning.codes, standing.codes)
    assert torch.equal(learning.embeddings, standing.embeddings)
    assert torch.equal(learning.commitment_loss, standing.commitment_loss)


def test_codebooks_that_have_not_begun_are_taken_as_they_are():
    torch.manual_seed(0)
    codec = SpectroStream(tiny_config())
    before = codec.quantizer.codebooks.clone()
    codec.freeze(["codebooks"])
    assert codec.quantizer(codec.embed(audio(0))).is_started
    assert torch.equal(codec.quantizer.codebooks, before)


@pytest.mark.slow
def test_frozen_codebooks_stay_frozen_in_a_resumed_run():
    straight = codec_with("codebooks")
    trained(straight)
    resumed = codec_with("codebooks")
    resumed.load_state_dict(straight.state_dict())
    before = resumed.quantizer.state_dict()["codebooks"].clone()
    trained(resumed)
    assert torch.equal(resumed.quantizer.codebooks, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "learning"),
    [(("encoder", "codebooks"), {"decoder"}), (("decoder",), {"encoder", "quantizer"})],
)
def test_parts_of_a_dac(frozen, learning):
    torch.manual_seed(0)
    codec = Dac(DacConfig(encoder_width=2, decoder_width=16, levels=2, codebook_size=16, codebook_dim=2))
    codec.freeze(frozen)
    assert moved(codec, trained(codec, steps=1)) == learning


def test_another_part_and_nothing_left_are_refused():
    with pytest.raises(ValueError, match="no part 'head' to freeze; allowed: encoder, codebooks, decoder"):
        codec_with("head")
    with pytest.raises(ValueError, match="encoder, decoder frozen nothing is left that learns"):
        codec_with("encoder", "decoder")
    assert PARTS == ("encoder", "codebooks", "decoder")
