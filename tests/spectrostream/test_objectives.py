"""Recipes: which losses belong together, in which number format, and what DAC's own loss already holds."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.training_config import TrainingConfig
from spectrostream.adversarial.contract import DiscriminatorOutput
from spectrostream.adversarial.loss_catalog import LossWeights
from spectrostream.adversarial.losses import MultiScaleMelLoss
from spectrostream.adversarial.objectives import RECIPES, Objective, UnknownRecipeError, build_objective
from spectrostream.errors import UserError
from spectrostream.other_codecs.dac import Dac, DacConfig

REAL = [torch.tensor([[2.0, 0.25]]), torch.tensor([[-1.0]])]
FAKE = [torch.tensor([[-3.0, 0.4]]), torch.tensor([[1.0]])]
REAL_FEATURES = [[torch.zeros(1, 2), torch.zeros(1, 4)], [torch.ones(3)]]
FAKE_FEATURES = [[torch.tensor([[1.0, -3.0]]), torch.ones(1, 4)], [torch.full((3,), 5.0)]]


@pytest.fixture(scope="module", params=list(RECIPES))
def objective(request: pytest.FixtureRequest) -> Objective:
    return build_objective(request.param, 48000)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("recipe", "discriminator", "codec", "features"),
    [
        # discriminator: hinges (0 + 0.75)/2 + (0 + 1.4)/2 and 2 + 2; codec: minus the means -1.3 and 1; means of two
        ("spectrostream", (1.075 + 4) / 2, 0.15, (1.5 + 4) / 2),
        # discriminator: (9 + 0.16)/2 + (1 + 0.5625)/2 and 1 + 4; codec: (16 + 0.36)/2 and 0; sums
        ("dac", 4.58 + 0.78125 + 5, 8.18, 2 + 1 + 4),
    ],
)
def test_known_answers_of_each_recipe(recipe: str, discriminator: float, codec: float, features: float) -> None:
    objective = build_objective(recipe, 48000)
    assert objective.discriminator_loss(REAL, FAKE).item() == pytest.approx(discriminator)
    real, fake = DiscriminatorOutput(REAL, REAL_FEATURES), DiscriminatorOutput(FAKE, FAKE_FEATURES)
    losses = objective.adversarial_losses(real, fake)
    assert losses["adversarial"].item() == pytest.approx(codec)
    assert losses["feature_matching"].item() == pytest.approx(features)


@pytest.mark.parametrize(
    # boundaries 0 and 0.5; each scale counts alike
    ("recipe", "right"),
    [("spectrostream", ((1 + 0) / 2, (0.5 + 0) / 2)), ("dac", ((0.5 + 0) / 2, (1 + 0) / 2))],
)
def test_accuracy_known_answers(recipe: str, right: tuple[float, float]) -> None:
    real = [logits.clone().requires_grad_() for logits in REAL]
    shares = build_objective(recipe, 48000).accuracy(real, FAKE)
    assert tuple(share.item() for share in shares) == right
    assert not any(share.requires_grad for share in shares)


def test_a_logit_on_the_boundary_is_right_for_nobody(objective: Objective) -> None:
    logits = [torch.full((2, 3), objective.recipe.boundary)]
    assert tuple(share.item() for share in objective.accuracy(logits, logits)) == (0, 0)


def test_a_discriminator_that_minimises_its_loss_is_always_right(objective: Objective) -> None:
    real, fake = ([torch.zeros(2, 8, requires_grad=True)] for _ in range(2))
    optimizer = torch.optim.SGD([*real, *fake], lr=2.0)
    for _ in range(20):
        optimizer.zero_grad()
        objective.discriminator_loss(real, fake).backward()
        optimizer.step()
        # one that is always 0 is right for no original
    assert tuple(share.item() for share in objective.accuracy(real, fake)) == (1, 1)


def test_reconstruction_loss_is_zero_for_the_original_alone(objective: Objective) -> None:
    audio = noise(1, 2, 2400)
    assert objective.reconstruction_losses(audio, audio.clone())["mel"].item() == 0
    assert objective.reconstruction_losses(noise(1, 2, 2400, seed=1), audio)["mel"].item() > 0.1


def test_the_paper_s_reconstruction_loss_is_both_parts_of_its_mel_loss() -> None:
    decoded, original = noise(1, 2, 2400, seed=1), noise(1, 2, 2400)
    expected = MultiScaleMelLoss(48000).parts(decoded, original).total
    losses = build_objective("spectrostream", 48000).reconstruction_losses(decoded, original)
    assert torch.equal(losses["mel"], expected)


AUDIO = noise(1, 2, 1200), noise(1, 2, 1200, seed=1)


def all_losses(objective: Objective, cast: Callable[[Tensor], Tensor] = torch.Tensor.clone) -> list[Tensor]:
    real, fake, (decoded, original) = ([cast(one) for one in side] for side in (REAL, FAKE, AUDIO))
    real_features, fake_features = (
        [[cast(one) for one in scale] for scale in side] for side in (REAL_FEATURES, FAKE_FEATURES)
    )
    return [
        objective.discriminator_loss(real, fake),
        *objective.adversarial_losses(
            DiscriminatorOutput(real, real_features), DiscriminatorOutput(fake, fake_features)
        ).values(),
        *objective.reconstruction_losses(decoded, original).values(),
        *objective.accuracy(real, fake),
    ]


def test_losses_are_float32_scalars_for_half_precision_and_under_autocast(objective: Objective) -> None:
    exact = all_losses(objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, all_losses(objective), exact))
        rounded = all_losses(objective, torch.Tensor.bfloat16)
    for loss, expected in zip(rounded, exact, strict=True):
        assert (loss.dtype, loss.shape) == (torch.float32, ())
        torch.testing.assert_close(loss, expected, rtol=2e-2, atol=1e-3)


@pytest.mark.slow
def test_losses_never_wait_for_the_device(objective: Objective) -> None:
    # whatever looks at a tensor's values breaks the graph, which is an error
    traced = torch.compile(all_losses, backend="eager", fullgraph=True)
    assert all(map(torch.equal, traced(objective), all_losses(objective)))


def test_gradients_reach_the_audio_from_every_loss(objective: Objective) -> None:
    audio = noise(1, 1, 1200).requires_grad_()
    real = DiscriminatorOutput([noise(1, 1200)], [[noise(1, 1200)]])
    losses = {
        **objective.adversarial_losses(real, DiscriminatorOutput([audio[0]], [[2 * audio[0]]])),
        **objective.reconstruction_losses(audio, noise(1, 1, 1200, seed=1)),
    }
    assert losses.keys() == {"adversarial", "feature_matching", "mel"}
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss, audio)
        assert gradient.isfinite().all()
        assert (gradient != 0).float().mean() > 0.99


def test_an_objective_has_nothing_to_learn_or_to_save(objective: Objective) -> None:
    assert objective.state_dict() == {}
    assert list(objective.parameters()) == []


def test_the_shortest_audio_is_the_shortest_that_is_compared() -> None:
    for name, recipe in RECIPES.items():
        objective, shortest = build_objective(name, 48000), recipe.shortest_audio(recipe.weights)
        assert objective.reconstruction_losses(noise(1, 1, shortest), noise(1, 1, shortest)) == {"mel": 0}
        with pytest.raises(ValueError, match=f"it needs {shortest} or more"):
            objective.reconstruction_losses(noise(1, 1, shortest - 1), noise(1, 1, shortest - 1))


def test_weights_are_the_published_ones() -> None:
    assert RECIPES["spectrostream"].weights == LossWeights()
    # 0.25 and 1 of commitment and codebook are in DAC's own loss: see below
    assert dataclasses.asdict(RECIPES["dac"].weights) == {
        "adversarial": 1.0,
        "feature_matching": 2.0,
        "mel": 15.0,
        "commitment": 1.0,
    }


def test_training_and_codec_know_the_same_recipes() -> None:
    assert TrainingConfig().recipe == next(iter(RECIPES))
    for name in RECIPES:
        assert TrainingConfig(recipe=name).recipe == name
    with pytest.raises(ValueError, match=r"training\.recipe = 'gan' is not possible; allowed: spectrostream, dac"):
        TrainingConfig(recipe="gan")


def test_an_unknown_recipe_is_the_user_s_to_mend() -> None:
    with pytest.raises(UnknownRecipeError, match=r"training\.recipe = 'gan' is not known; allowed: spectrostream, dac"):
        build_objective("gan", 48000)
    assert issubclass(UnknownRecipeError, UserError)


def quantizer_losses(dac: Dac, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Commitment and codebook loss by DAC's formulas: per level the mean square, summed over levels."""
    residual = dac.model.encoder(dac._inner_input(audio))
    commitment = codebook = torch.zeros(())
    for level in dac.model.quantizer.quantizers:
        latents = level.in_proj(residual)
        entries = level.codebook.weight
        # [batch, dim, frames] against [entries, dim]: the nearest in angle
        similar = torch.einsum("bdt,nd->bnt", F.normalize(latents, dim=1), F.normalize(entries, dim=1))
        chosen = entries[similar.argmax(dim=1)].transpose(1, 2)
        commitment = commitment + F.mse_loss(latents, chosen.detach())
        codebook = codebook + F.mse_loss(chosen, latents.detach())
        residual = residual - level.out_proj(latents + (chosen - latents).detach())
    return commitment, codebook


def test_dac_s_own_loss_is_weighted_inside_so_its_weight_is_one() -> None:
    config = DacConfig(encoder_width=4, decoder_width=32, levels=3, codebook_size=16, quantizer_dropout=0.0)
    dac = Dac(config).train()
    audio = 0.1 * noise(2, 2, 2400)
    loss = dac(audio).commitment_loss
    commitment, codebook = quantizer_losses(dac, audio)
    expected = 0.25 * commitment + 1.0 * codebook
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    # The two terms have the same value; their gradients tell them apart: one moves the encoder, one the codebooks.
    parameters = dict(dac.named_parameters())
    names = [name for name in parameters if name.startswith("model.encoder") or "codebook" in name]
    ends = [parameters[name] for name in names]
    for name, one, other in zip(
        names, torch.autograd.grad(loss, ends), torch.autograd.grad(expected, ends), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * other.abs().max().item(), msg=name)
