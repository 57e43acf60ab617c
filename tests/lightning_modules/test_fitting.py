from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fit_process import descent, music_run
from process_start import start
from training_setup import (
    LIGHTNING_WARNINGS,
    SAMPLES,
    Batches,
    cpu_config,
    is_same,
    load,
    noise,
    tiny_module,
    train,
)

from lightning_modules.checkpoints import latest_valid_checkpoint
from lightning_modules.codec_training import CodecTraining, OtherModelError
from lightning_modules.fit import FitResult, TrainingStoppedError, build_trainer, fit
from lightning_modules.optimization import OptimizerConfig
from lightning_modules.trainer_config import TrainerConfig

pytestmark = [pytest.mark.processes, *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS)]

HELD_OUT = (noise(1000, 3), noise(1001, 1))


class InterruptedRunError(RuntimeError):
    """Ends a run between two checkpoints."""


def logged(folder: Path, attempt: int = 0) -> pd.DataFrame:
    return pd.read_csv(folder / "logs" / f"attempt-{attempt:03d}" / "metrics.csv")


def final(folder: Path) -> dict[str, Any]:
    """The trained state in the newest checkpoint."""
    path = latest_valid_checkpoint(folder / "checkpoints")
    assert path is not None
    content = load(path)
    return {key: content[key] for key in ("state_dict", "optimizer_states", "carried", "global_step", "loops")}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("precision", "16", "trainer.precision = '16' is not known; allowed: 32-true, bf16-mixed, 16-mixed"),
        ("wandb", "on", "trainer.wandb = 'on' is not known; allowed: disabled, offline, online"),
        ("devices", 0, "trainer.devices = 0 is not possible; allowed: 1 or more"),
        ("num_nodes", 0, "trainer.num_nodes = 0 is not possible; allowed: 1 or more"),
        ("threads", -1, "trainer.threads = -1 is not possible; allowed: 0 or more"),
        ("validate_every", -1, "trainer.validate_every = -1 is not possible; allowed: 0 or more"),
        ("checkpoint_every", 0, "trainer.checkpoint_every = 0 is not possible; allowed: 1 or more"),
        ("keep_checkpoints", 1, "trainer.keep_checkpoints = 1 is not possible; allowed: 2 or more"),
        ("log_every", 0, "trainer.log_every = 0 is not possible; allowed: 1 or more"),
    ],
)
def test_impossible_values_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**{key: value})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_log_counts_generator_updates(tmp_path: Path, accumulate: int) -> None:
    """Whatever Lightning counts: losses at every `log_every`, validation at every `validate_every` updates."""
    module = tiny_module(max_steps=5, accumulate=accumulate)
    reported: list[tuple[int, bool]] = []
    data = Batches(accumulate=accumulate, held_out=HELD_OUT)
    config = cpu_config(validate_every=2, log_every=2)
    result = fit(module, data, config, tmp_path, report=lambda step, m: reported.append((step, "train/mel_loss" in m)))
    log = logged(tmp_path)
    training = log.dropna(subset=["train/mel_loss"])
    assert training["step"].tolist() == [2, 4]
    expected = {"train/generator_loss", "train/discriminator_loss", "train/adversarial_loss", "train/commitment_loss"}
    expected |= {"train/feature_matching_loss", "train/generator_gradient_norm", "train/discriminator_gradient_norm"}
    assert bool(training[sorted(expected)].notna().all(axis=None))
    validation = log.dropna(subset=["validation/mel_loss"])
    assert validation["step"].tolist() == [2, 4]
    assert validation["validation/mel_loss"].gt(0).all()
    assert result.steps == 5
    assert result.audio_seconds == pytest.approx(5 * accumulate * 2 * SAMPLES / 48000)
    assert 0 < result.seconds < 60
    # The last batch of an update reports it; before, the step is the one before.
    assert [step for step, _ in reported] == [batch // accumulate for batch in range(1, 5 * accumulate + 1)]
    assert [step for step, has_losses in reported if has_losses] == [2, 4]


def test_validation_is_the_mel_loss_of_held_out_audio_as_it_is_coded(tmp_path: Path) -> None:
    """A mean over examples, not over batches of different sizes."""
    module = tiny_module(max_steps=1)
    fit(module, Batches(held_out=HELD_OUT), cpu_config(validate_every=1), tmp_path)
    losses = []
    for example in torch.cat(HELD_OUT).split(1):
        decoded = module.codec.decode(module.codec.encode(example), length=SAMPLES)
        losses.append(float(module.mel_loss(decoded, example)))
    (value,) = logged(tmp_path)["validation/mel_loss"].dropna()
    assert value == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_step_of_a_validation_late_in_a_run_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of equal numbers over batches rounds in float32, and the loggers cut it to an integer."""
    module = tiny_module()
    monkeypatch.setattr(CodecTraining, "global_step", 999_999)
    held_out = tuple(torch.zeros(3, 2, 1920) for _ in range(9))
    (logged_values,) = build_trainer(module, cpu_config(validate_every=1), [], []).validate(
        module, Batches(held_out=held_out).val_dataloader(), verbose=False
    )
    assert int(logged_values["step"]) == 999_999


def test_without_validation_nothing_is_validated(tmp_path: Path) -> None:
    fit(tiny_module(max_steps=2), Batches(held_out=HELD_OUT), cpu_config(validate_every=0), tmp_path)
    log = logged(tmp_path)
    assert len(log) == 2
    assert "validation/mel_loss" not in log


def test_a_corpus_that_holds_out_nothing_is_trained_on_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="across ranks is zero"):
        fit(tiny_module(max_steps=2), Batches(held_out=()), cpu_config(validate_every=1), tmp_path)
    assert len(logged(tmp_path)) == 2


# What a run may carry along: training and trainer keys.
CARRIED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "averages": ({"ema_decay": 0.9, "balance": True, "discriminator_every": 2}, {}),
    "scales": ({"ema_decay": 0.5}, {"precision": "16-mixed"}),
}
Run = tuple[Path, CodecTraining, FitResult]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Run]:
    """Runs without a stop, by `accumulate` and what they carry."""
    runs: dict[tuple[int, str], Run] = {}

    def run(accumulate: int, carried: str) -> Run:
        key = (accumulate, carried)
        if key not in runs:
            folder = tmp_path_factory.mktemp("straight")
            module, data, config = resumable(accumulate, carried)
            runs[key] = folder, module, fit(module, data, config, folder)
        return runs[key]

    return run


def resumable(accumulate: int, carried: str) -> tuple[CodecTraining, Batches, TrainerConfig]:
    """Six or four updates, with warm-up, decay, the start of codebooks and discriminator, and a spoilt batch."""
    generator = OptimizerConfig(learning_rate=2e-3, warmup_steps=5)
    discriminator = OptimizerConfig(learning_rate=2e-3, schedule="exponential", decay=0.8)
    training, trainer = CARRIED[carried]
    module = tiny_module(
        max_steps=8 - 2 * accumulate,
        accumulate=accumulate,
        adversarial_start=2,
        generator=generator,
        discriminator=discriminator,
        **training,
    )
    spoilt = 3 if carried != "nothing" else None
    data = Batches(
        lambda k: noise(k) * (float("nan") if k == spoilt else 1), accumulate=accumulate, held_out=HELD_OUT[1:]
    )
    return module, data, cpu_config(validate_every=3, checkpoint_every=1, keep_checkpoints=2, **trainer)


class StopsAtTwo(CodecTraining):
    """Stopped as Lightning stops a run when a signal arrives."""

    def on_train_batch_end(self, *_: object) -> None:
        self.trainer.should_stop = self.global_step == 2


def test_a_stopped_run_is_not_finished(tmp_path: Path) -> None:
    parts = tiny_module(max_steps=4)
    stopping = StopsAtTwo(parts.codec, parts.discriminator, parts.config)
    with pytest.raises(TrainingStoppedError, match=r"stopped at step 2 of 4; run the same command again"):
        fit(stopping, Batches(), cpu_config(validate_every=0), tmp_path)
    assert fit(tiny_module(max_steps=4), Batches(), cpu_config(validate_every=0), tmp_path).steps == 4


@pytest.mark.parametrize(
    ("accumulate", "stops", "carried"),
    [(1, [2], "nothing"), (1, [1, 5], "nothing"), (2, [1, 3], "nothing"), (1, [3, 5], "averages"), (1, [4], "scales")],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, straight: Callable[[int, str], Run], accumulate: int, stops: list[int], carried: str
) -> None:
    """Bit for bit, stopped before and after the codebooks start, and in the midst of an update."""

    def stop_at(step: int) -> Any:
        def report(now: int, _metrics: dict[str, float]) -> None:
            # Without accumulation before the checkpoint of `step` is written, with it in the midst of the next update.
            seen.append(now)
            if now == step and seen.count(now) == accumulate:
                raise InterruptedRunError

        seen: list[int] = []
        return report

    for stop in stops:
        with pytest.raises(InterruptedRunError):
            fit(*resumable(accumulate, carried), tmp_path, report=stop_at(stop))
    module, data, config = resumable(accumulate, carried)
    result = fit(module, data, config, tmp_path)

    folder, whole_module, uninterrupted = straight(accumulate, carried)
    assert module.codec.quantizer.learning.is_started
    assert is_same(final(tmp_path), final(folder))
    assert is_same(dict(module.state_dict()), dict(whole_module.state_dict()))
    assert module.guard.skipped == whole_module.guard.skipped == (carried != "nothing")
    assert result.steps == uninterrupted.steps == 8 - 2 * accumulate
    assert result.audio_seconds == pytest.approx(uninterrupted.audio_seconds)
    attempts = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert attempts == [f"attempt-{attempt:03d}" for attempt in range(len(stops) + 1)]
    last = logged(tmp_path, len(stops)).dropna(subset=["train/mel_loss"]).set_index("step")["train/mel_loss"]
    whole = logged(folder).dropna(subset=["train/mel_loss"]).set_index("step")["train/mel_loss"]
    assert last.equals(whole[last.index])


def test_the_clock_adds_up_over_attempts(tmp_path: Path) -> None:
    first = fit(tiny_module(max_steps=2), Batches(), cpu_config(), tmp_path)
    second = fit(tiny_module(max_steps=3), Batches(), cpu_config(), tmp_path)
    assert second.seconds > first.seconds > 0
    assert second.audio_seconds == pytest.approx(1.5 * first.audio_seconds)
    assert first.audio_seconds == pytest.approx(2 * 2 * SAMPLES / 48000)


def test_a_finished_run_started_again_trains_nothing(tmp_path: Path) -> None:
    module = tiny_module(max_steps=2)
    first = fit(module, Batches(), cpu_config(), tmp_path)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    before = path.read_bytes()
    again = tiny_module(max_steps=2)
    again.codec.register_forward_hook(lambda *_: pytest.fail("it trained"))
    assert fit(again, Batches(), cpu_config(), tmp_path) == first
    assert is_same(dict(again.state_dict()), dict(module.state_dict()))
    assert path.read_bytes() == before


def test_another_models_checkpoint_is_refused_with_what_differs(tmp_path: Path) -> None:
    fit(tiny_module(max_steps=1), Batches(), cpu_config(), tmp_path)
    message = (
        r"another model: its codec.\S+ is of shape \[.*8.*\], here it is of shape \[.*6.*\]; train in a new folder"
    )
    with pytest.raises(OtherModelError, match=message):
        fit(tiny_module(max_steps=2, embedding_dim=6), Batches(), cpu_config(), tmp_path)


def test_only_the_intended_warnings_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice about workers and unused devices is silenced; whatever else is warned of arrives."""
    from lightning.pytorch.accelerators import CUDAAccelerator

    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)

    def batch_at(index: int) -> torch.Tensor:
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        return noise(index)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tiny_module(max_steps=1), Batches(batch_at, held_out=HELD_OUT), cpu_config(validate_every=1), tmp_path)
    messages = {str(warning.message) for warning in caught}
    assert "something is odd" in messages
    assert not [message for message in messages if "workers" in message or "available but not used" in message]


def test_fewer_processes_than_asked_for_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a SLURM job of one task Lightning would train on one of two devices without a word."""
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(RuntimeError, match=r"asked for 1 x 2 processes but the launcher gave 1; .*--ntasks-per-node"):
        build_trainer(tiny_module(), cpu_config(devices=2), [], [])


def test_threads_are_those_of_the_configuration(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    fit(tiny_module(max_steps=1), Batches(), cpu_config(threads=1), tmp_path)
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_weights_and_biases_offline_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE")
    fit(tiny_module(max_steps=2), Batches(), cpu_config(wandb="offline"), tmp_path / "tiny-run", run_name="named")
    import wandb

    wandb.finish()
    wandb.teardown()  # its process writes the last of the file
    (run,) = (tmp_path / "tiny-run" / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    content = record.read_bytes()
    assert b"named" in content
    assert b"train/mel_loss" in content
    assert len(logged(tmp_path / "tiny-run")) == 2


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """SIGKILL of a real process on real music; then the same command again."""
    killed = start("kill", tmp_path / "killed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert latest_valid_checkpoint(tmp_path / "killed" / "checkpoints").name == "step-00000004.ckpt"
    resumed, result = music_run(tmp_path / "killed")
    straight, whole = music_run(tmp_path / "straight")
    assert straight.codec.quantizer.learning.is_started
    assert is_same(dict(resumed.state_dict()), dict(straight.state_dict()))
    assert is_same(final(tmp_path / "killed"), final(tmp_path / "straight"))
    assert result.steps == whole.steps == 6
    assert result.audio_seconds == pytest.approx(whole.audio_seconds) == pytest.approx(6 * 2 * 0.12)
    # What was logged until the end is kept, the validation at 3 among it.
    steps = [logged(tmp_path / "killed", attempt)["step"].tolist() for attempt in (0, 1)]
    assert steps == [[1, 2, 3, 3, 4], [5, 6, 6]]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Weights and codebooks agree bit for bit, as those of one process with both shares; only the first writes."""
    ended = start("two", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr[-4000:]
    first, second = (load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    assert int(first["state"]["codec.quantizer.learning.collected_count"]) == -1
    assert is_same(dict(first["state"]), dict(second["state"]))
    assert second["written"] == []
    assert "sync_dist" not in ended.stderr
    assert any(name.endswith("metrics.csv") for name in first["written"])
    assert [path.name for path in (tmp_path / "run" / "logs").iterdir()] == ["attempt-000"]
    assert first["audio_seconds"] == second["audio_seconds"] == pytest.approx(3 * 4 * SAMPLES / 48000)

    # Two updates, the codebooks' start included, draw nothing that depends on the process.
    module = descent(max_steps=2)
    train(module, Batches(lambda k: noise(k, 4)))
    state = load(tmp_path / "run" / "checkpoints" / "step-00000002.ckpt")["state_dict"]
    for name, alone in module.named_parameters():
        torch.testing.assert_close(state[name], alone.detach(), atol=1e-6, rtol=1e-5)
    # Of the first level: in the next ones entries of one vector leave exact zeros, and rounding decides where they go.
    name = "codec.quantizer.codebooks"
    torch.testing.assert_close(state[name][0], module.state_dict()[name][0], atol=1e-5, rtol=1e-4)
