from __future__ import annotations

import importlib.util
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from training_setup import LIGHTNING_WARNINGS, Batches, cpu_config, noise, tiny_module

from lightning_modules.fit import fit
from lightning_modules.loggers import LoggerError, opened_loggers
from lightning_modules.media_logging import log_audio, log_picture

pytestmark = [pytest.mark.processes, *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS)]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """W&B with an account's key and a server that nobody runs; its settings are those of the test alone."""
    import wandb

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in {"BASE_URL": server, "API_KEY": "a" * 40, "CONFIG_DIR": str(tmp_path / "settings")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    wandb.teardown()
    yield server
    wandb.teardown()


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"audio": 0, "images": 0, "scalars": 0}).Reload()


def test_csv_is_always_there_and_alone_by_default(tmp_path: Path) -> None:
    for attempt in range(2):
        with opened_loggers(cpu_config(), tmp_path, None) as (logger,):
            logger.log_metrics({"loss": 1.0}, 1)
            logger.save()
        assert (tmp_path / "logs" / f"attempt-{attempt:03d}" / "metrics.csv").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_tensorboard_continues_in_its_folder(tmp_path: Path) -> None:
    for steps in (2, 4):
        fit(tiny_module(max_steps=steps), Batches(), cpu_config(tensorboard=True), tmp_path)
    scalars = events(tmp_path / "tensorboard").Scalars("train/mel_loss")
    assert [event.step for event in scalars] == [1, 2, 3, 4]
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 2


def test_tensorboard_takes_stereo_and_pictures(tmp_path: Path) -> None:
    audio = (np.arange(-4000, 4000, dtype=np.int16)).reshape(-1, 2)
    soundfile.write(tmp_path / "clip.flac", audio, 48000, subtype="PCM_24")
    pixels = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    log_audio([logger], "samples/clip", tmp_path / "clip.flac", 7)
    log_picture([logger], "samples/picture", Image.fromarray(pixels), 7)
    logger.finalize("success")
    seen = events(tmp_path / "tensorboard")
    (audio_event,), (shown,) = seen.Audio("samples/clip"), seen.Images("samples/picture")
    assert (audio_event.step, audio_event.sample_rate, audio_event.content_type) == (7, 48000, "audio/wav")
    (tmp_path / "decoded.wav").write_bytes(audio_event.encoded_audio_string)
    again, rate = soundfile.read(tmp_path / "decoded.wav", dtype="int16")
    assert rate == 48000
    assert np.array_equal(again, audio)
    (tmp_path / "shown.png").write_bytes(shown.encoded_image_string)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "shown.png")), pixels)


@pytest.mark.parametrize(
    ("package", "changes", "given"),
    [
        ("tensorboard", {"tensorboard": True}, "tensorboard = true"),
        ("wandb", {"wandb": "offline"}, "wandb = 'offline'"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, changes: dict[str, Any], given: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    message = rf"trainer.{given} needs the package {package}.*type pip install {package}, or trainer.{package}="
    with pytest.raises(LoggerError, match=message), opened_loggers(cpu_config(**changes), tmp_path, None):
        pytest.fail("it must not begin")


@pytest.mark.slow
def test_a_missing_network_is_an_error_within_seconds_and_before_training(tmp_path: Path, online: str) -> None:
    module = tiny_module(max_steps=1)
    module.codec.register_forward_hook(lambda *_: pytest.fail("it trained"))
    began = time.monotonic()
    with pytest.raises(LoggerError, match=rf"'online': {online} is not reached .*refused.*trainer.wandb=offline"):
        fit(module, Batches(), cpu_config(wandb="online"), tmp_path)
    assert time.monotonic() - began < 15


def test_a_missing_account_is_explained(tmp_path: Path, online: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    config = cpu_config(wandb="online")
    with pytest.raises(LoggerError, match="needs the key of an account"), opened_loggers(config, tmp_path, None):
        pytest.fail("it must not begin")
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    wandb.teardown()
    with pytest.raises(LoggerError, match=r"wandb login, or trainer\.wandb=offline"):
        opened_loggers(config, tmp_path, None).__enter__()


@pytest.mark.slow
def test_a_resumed_run_is_the_same_weights_and_biases_run_and_errors_close_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = cpu_config(wandb="offline", checkpoint_every=1)

    def fails(step: int, _metrics: dict[str, float]) -> None:
        if step == 2:
            raise RuntimeError("in the midst of it")

    with pytest.raises(RuntimeError, match="in the midst"):
        fit(tiny_module(max_steps=3), Batches(), config, tmp_path, report=fails)
    assert wandb.run is None
    fit(tiny_module(max_steps=3), Batches(held_out=(noise(9),)), config, tmp_path)
    assert wandb.run is None
    wandb.teardown()
    name = (tmp_path / "wandb-id.txt").read_text().strip()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert 1 <= len(runs) <= 2  # two that begin within one second share a folder
    # Of two that begin within one second the later one may have a number behind its name.
    assert all(re.fullmatch(rf"offline-run-\d+_\d+-{name}(-\d+)?", path.name) for path in runs)
