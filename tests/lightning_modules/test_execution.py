from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F
from training_setup import LIGHTNING_WARNINGS, Batches, cpu_config, is_same, load, noise, tiny_module

from lightning_modules import execution
from lightning_modules.codec_training import CodecTraining
from lightning_modules.execution import Precision, checkpoint_activations
from lightning_modules.fit import build_trainer, fit
from spectrostream import precision_check
from spectrostream.adversarial.stft_discriminator import ResidualBlock2d, STFTDiscriminator
from spectrostream.encoder import EncoderBlock
from spectrostream.errors import UserError
from spectrostream.precision_check import WrongConvolution

pytestmark = [
    *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS),
    # torch's compiler looks at gradients that are not there.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are captured and differentiated as ever, and run without minutes of a C++ compiler for each."""
    monkeypatch.setattr(execution, "COMPILER", "aot_eager")


LOSSES = ("mel", "commitment", "adversarial", "feature_matching", "discriminator")


def losses_of_run(steps: int = 5, **trainer: Any) -> tuple[list[list[float]], CodecTraining]:
    """Each update's losses; the codebooks start in the second one."""
    module = tiny_module(max_steps=steps, initial_vectors=16)
    seen: list[list[float]] = []

    class Note(Callback):
        def on_train_batch_end(self, trainer: Any, *_: object, **__: object) -> None:
            seen.append([float(trainer.callback_metrics[f"train/{name}_loss"]) for name in LOSSES])

    build_trainer(module, cpu_config(**trainer), [Note()], []).fit(module, datamodule=Batches())
    return seen, module


@pytest.fixture(scope="module")
def plain() -> list[list[float]]:
    return losses_of_run()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "updates", "tolerance"),
    [
        # The fourth update sees codebooks: which vector starts an entry hangs on rounding.
        ({"channels_last": True}, 5, 5e-3),
        ({"checkpoint_activations": True}, 5, 1e-6),
        ({"precision": "bf16-mixed"}, 3, 0.05),
        ({"precision": "16-mixed"}, 3, 0.03),
        ({"compile": True}, 5, 5e-3),
    ],
    ids=str,
)
def test_the_losses_do_not_depend_on_how_it_is_executed(
    trainer: dict[str, Any], updates: int, tolerance: float, plain: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "INITIAL_SCALE", 128.0)  # the real one overflows at first and skips updates
    losses, _ = losses_of_run(updates, **trainer)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain[:updates]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "trainer",
    [{"channels_last": True}, {"checkpoint_activations": True}, {"compile": True}],
    ids=str,
)
def test_names_in_the_state_dict_stay(trainer: dict[str, Any]) -> None:
    module = tiny_module()
    names = list(module.state_dict())
    build_trainer(module, cpu_config(**trainer), [], [])
    assert list(module.state_dict()) == names


def test_spectra_mel_and_quantizer_distances_stay_in_float32() -> None:
    """Under the narrowest autocast they are what they are without."""
    module = tiny_module()
    audio = noise(0)
    vectors = torch.randn(2, 8, 50)

    def results() -> list[torch.Tensor]:
        scales = [part for part in module.discriminator.modules() if isinstance(part, STFTDiscriminator)]
        spectra = [scale.spectrogram(audio) for scale in scales]
        features = module.codec.analysis(audio)
        synthesis = module.codec.synthesis(features)
        codes = module.codec.quantizer.encode(vectors, 4)
        return [*spectra, features, synthesis, codes, module.mel_loss(audio, noise(1))]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results()
    assert is_same(found, expected)


def test_activations_are_computed_again_in_the_backward_pass_alone() -> None:
    module = tiny_module()
    block = next(part for part in module.codec.modules() if isinstance(part, EncoderBlock))
    calls: list[int] = []
    block.convolution.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(module.codec, module.discriminator)
    audio = noise(0)
    with torch.no_grad():
        module.codec(audio)
    assert len(calls) == 1
    module.codec(audio).audio.sum().backward()
    assert len(calls) == 3
    assert any(isinstance(part, ResidualBlock2d) for part in module.discriminator.modules())


@pytest.mark.slow
def test_an_overflow_of_scaled_gradients_is_not_a_bad_batch(tmp_path: Path) -> None:
    """The first scale is too much for this loss; it halves until the gradients fit, and nothing counts as bad."""
    module = tiny_module(max_steps=8, max_skipped_updates=0, initial_vectors=1000)
    fit(module, Batches(), cpu_config(precision="16-mixed"), tmp_path)
    assert module.guard.skipped == 0
    assert module.precision.state_dict()["generator"]["scale"] < execution.INITIAL_SCALE
    assert not list((tmp_path / "bad-batches").glob("*"))
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())


def test_a_resumed_run_keeps_the_gradient_scales() -> None:
    one, other = (Precision("16-mixed", torch.device("cpu")) for _ in range(2))
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    one.scaled((weight * float("inf")).sum(), "generator").backward()
    one.unscale(optimizer, "generator")
    one.update("generator")
    state = one.state_dict()
    assert state["generator"]["scale"] == 32768.0
    assert state["discriminator"]["scale"] == 65536.0
    other.load_state_dict(state)
    assert other.state_dict() == state
    plain = Precision("32-true", torch.device("cpu"))
    plain.load_state_dict(state)
    assert plain.scaled(weight.sum(), "generator").item() == 1.0


def test_the_balancer_and_scaled_gradients_are_refused_together() -> None:
    with pytest.raises(
        UserError, match=r"training.balance = true and trainer.precision = '16-mixed' do not go together"
    ):
        build_trainer(tiny_module(balance=True), cpu_config(precision="16-mixed"), [], [])


@pytest.mark.slow
def test_a_convolution_that_is_wrong_in_bfloat16_trains_in_float32(
    plain: list[list[float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The 7x7 convolutions of codec and discriminator are broken; the run trains as in float32, says so and counts."""
    monkeypatch.setattr(precision_check, "_known_errors", {})
    right = F.conv2d

    def broken(x: torch.Tensor, weight: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        y = right(x, weight, *rest, **options)
        return y * torch.nan if y.dtype == torch.bfloat16 and weight.shape[2:] == (7, 7) else y

    monkeypatch.setattr(F, "conv2d", broken)
    losses, module = losses_of_run(3, precision="bf16-mixed")
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain[:3]), rtol=0.05, atol=0.05)
    # The codec's first and last convolution, and the discriminator's first.
    assert module.precision.float32_layers == 3
    assert "computes 3 of" in caplog.text
    module.trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = Precision("bf16-mixed", torch.device("cpu"))
    resumed.load_state_dict(load(tmp_path / "run.ckpt")["carried"]["precision"])
    assert resumed.float32_layers == 3
    # Before this count existed.
    resumed.load_state_dict({"generator": {}, "discriminator": {}})
    assert resumed.float32_layers == 3


def test_the_run_counts_the_layers_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [WrongConvolution("0.encoder.first", 1.0), WrongConvolution("1.scales.0.first", 1.0)]
    monkeypatch.setattr(execution, "run_wrong_convolutions_in_float32", lambda *_, **__: found)
    result = fit(tiny_module(max_steps=1), Batches(), cpu_config(precision="bf16-mixed"), tmp_path / "short")
    assert result.float32_layers == 2
    result = fit(tiny_module(max_steps=1), Batches(), cpu_config(), tmp_path / "float32")
    assert result.float32_layers == 0
