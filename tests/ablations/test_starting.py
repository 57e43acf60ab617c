"""Fine-tuning: a run that starts from trained weights, its model, its identity, and its frozen parts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from small_study import MINUTE, TINY_DAC, write_config, write_music, write_study, write_yaml

from ablations.assembly import training_module
from ablations.commands import study_tasks
from ablations.compose import ConfigError, compose, overrides_layer
from ablations.initial_weights import StartError, Starts
from ablations.provenance import read_json
from ablations.schema import ExperimentConfig
from ablations.signature import signature
from ablations.study import load_study
from spectrostream import SpectroStream
from spectrostream.other_codecs.dac import Dac, DacConfig
from spectrostream.weights import codec_fingerprint, save_codec, save_official
from spectrostream_cli import main

sys.path.insert(0, str(Path(__file__).parent.parent / "spectrostream"))
from official_setup import fixture_params, write_official

pytestmark = pytest.mark.processes

WITHOUT_MODEL = {name: section for name, section in MINUTE.items() if name != "model"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Music, a trained run to start from, and a configuration that says nothing about the model."""
    shop = tmp_path_factory.mktemp("shop")
    write_music(shop / "music", tracks=1)
    write_yaml(WITHOUT_MODEL, shop / "without.yaml")
    config = write_config(shop)
    assert main(["train", f"config={config}", f"data.root={shop / 'music'}", f"out={shop / 'start'}"]) == 0
    return shop


def composed(*words: str, base: dict[str, Any] = WITHOUT_MODEL, starts: Starts | None = None) -> ExperimentConfig:
    layer = OmegaConf.create(base)
    assert isinstance(layer, DictConfig)
    return compose(layer, overrides_layer(words), starts=starts)


def fine_tune(shop: Path, out: Path, *words: str, config: str = "without.yaml") -> int:
    start = f"training.start_from={shop / 'start'}"
    return main(["train", f"config={shop / config}", f"data.root={shop / 'music'}", f"out={out}", start, *words])


def test_the_model_is_that_of_the_weights(shop: Path) -> None:
    weights = SpectroStream.from_pretrained(shop / "start")
    config = composed(f"training.start_from={shop / 'start'}")
    assert config.model == weights.config
    tuned = composed(f"training.start_from={shop / 'start'}", "model.quantizer.decay=0.5", "model.encoder_width=2")
    assert tuned.model.quantizer.decay == 0.5
    module = training_module(tuned)
    assert torch.equal(module.codec.quantizer.codebooks, weights.quantizer.codebooks)
    assert module.codec.quantizer.learning.decay == 0.5
    assert module.codec.quantizer.learning.is_started
    assert composed().model != weights.config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.encoder_width=3"], "model.encoder_width = 3 (2 there) contradicts the weights that"),
        (["model.fusion=3", "model.quantizer.levels=8"], "model.fusion = 3 (6 there), model.quantizer.levels = 8 (4"),
        (["model.kind=dac", "evaluation.levels=[1]"], "holds a codec of kind 'spectrostream', and the model is of"),
    ],
)
def test_a_model_key_that_contradicts_is_named_with_both_values(shop: Path, words: list[str], message: str) -> None:
    with pytest.raises((ConfigError, StartError)) as caught:
        composed(f"training.start_from={shop / 'start'}", *words)
    assert message in str(caught.value)
    assert "training.start_from = " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_weights_are_explained(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shop / "nothing"
    words = [f"config={shop / 'without.yaml'}", f"out={out}", f"training.start_from={shop / 'no'}"]
    assert main(["train", *words]) == 1
    assert "training.start_from = " in capsys.readouterr().err
    assert main(["train", *words, "model.kind=dac"]) == 1
    assert "a DAC starts from a codec.safetensors or the folder of a run" in capsys.readouterr().err
    assert not out.exists()


def test_the_signature_has_the_weights_and_not_their_path(shop: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(shop / "start", tmp_path / "copied")
    starts = Starts()
    one, other = (composed(f"training.start_from={path}", starts=starts) for path in (shop / "start", copied))
    identities = [
        signature(config, "x", starts.fingerprint(config.training.start_from)) for config in (one, other, composed())
    ]
    assert identities[0] == identities[1] != identities[2]
    weights = SpectroStream.from_pretrained(shop / "start")
    assert starts.fingerprint(str(copied)) == codec_fingerprint(weights).hex()


def test_decoder_only_fine_tuning_leaves_encoder_and_codes_and_resumes_without_the_weights(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, frozen = tmp_path / "weights", "training.freeze=[encoder,codebooks]"
    shutil.copytree(shop / "start", source)
    words = [f"training.start_from={source}", frozen]
    assert fine_tune(shop, tmp_path / "straight", *words, "training.max_steps=4") == 0
    before = load_file(source / "codec.safetensors")
    after = load_file(tmp_path / "straight" / "codec.safetensors")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}
    audio = 0.1 * torch.randn(1, 2, 9600)
    codes = [SpectroStream.from_pretrained(path).encode(audio) for path in (source, tmp_path / "straight")]
    assert torch.equal(*codes)
    run = read_json(tmp_path / "straight" / "run.json")
    assert run["start"]["source"] == str(source)
    assert run["start"]["fingerprint"] == codec_fingerprint(SpectroStream.from_pretrained(source)).hex()
    # Stopped after three of four steps, and the weights are gone.
    stopped = Path(shutil.copytree(tmp_path / "straight", tmp_path / "stopped"))
    for path in (stopped / "trained.json", stopped / "codec.safetensors", *stopped.glob("checkpoints/*00000004*")):
        path.unlink()
    assert list(stopped.glob("checkpoints/step-00000003.ckpt"))
    shutil.rmtree(source)
    assert fine_tune(shop, stopped, *words, "training.max_steps=4") == 0
    resumed = load_file(stopped / "codec.safetensors")
    assert all(torch.equal(resumed[name], after[name]) for name in after)
    # Without a checkpoint the weights are needed.
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "trained.json").unlink()
    capsys.readouterr()
    assert fine_tune(shop, stopped, *words, "training.max_steps=4") == 1
    assert "training.start_from = " in capsys.readouterr().err


def test_other_weights_at_the_same_place_are_noticed_before_they_are_used(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "weights.safetensors", tmp_path / "out"
    shutil.copy(shop / "start" / "codec.safetensors", source)
    assert fine_tune(shop, out, f"training.start_from={source}") == 0
    (out / "trained.json").unlink()
    shutil.rmtree(out / "checkpoints")
    torch.manual_seed(7)
    save_codec(SpectroStream(SpectroStream.from_pretrained(source).config), source)
    assert fine_tune(shop, out, f"training.start_from={source}") == 1
    assert "holds other weights than when this run was begun (fingerprint " in capsys.readouterr().err


def test_a_training_can_start_from_the_official_layout(tmp_path: Path) -> None:
    official = write_official(fixture_params("stereo_m2"), tmp_path / "official")
    config = composed(f"training.start_from={official}", "evaluation.levels=[1]", "training.freeze=[encoder]")
    expected = SpectroStream.from_pretrained(official)
    assert config.model == expected.config
    codec = training_module(config).codec
    audio = 0.1 * torch.randn(1, 2, 9600)
    assert torch.equal(codec.encode(audio), expected.encode(audio))
    again = tmp_path / "again"
    save_official(codec, again)
    assert Starts().fingerprint(str(again)) == Starts().fingerprint(str(official))


def test_a_dac_starts_from_a_dac(shop: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    dac = Dac(DacConfig(**TINY_DAC))  # type: ignore[arg-type]
    save_codec(dac, tmp_path / "dac.safetensors")
    words = [f"training.start_from={tmp_path / 'dac.safetensors'}", "model.kind=dac", "evaluation.levels=[1]"]
    config = composed(*words, "training.freeze=[encoder,codebooks]", "model.quantizer_dropout=0.0")
    assert config.model == DacConfig(**{**TINY_DAC, "quantizer_dropout": 0.0})  # type: ignore[arg-type]
    codec = training_module(config).codec
    state = codec.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in dac.state_dict().items())
    with pytest.raises(StartError, match="holds a codec of kind 'dac', not a SpectroStream"):
        composed(words[0])


def test_freezing_all_that_learns_is_refused(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fine_tune(shop, tmp_path / "out", "training.freeze=[encoder,decoder]") == 1
    assert "training.freeze = ['encoder', 'decoder'] is not possible: with encoder, decoder frozen nothing" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_study_names_its_runs_by_the_weights(shop: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, variants=None, peers=None, axes=None)
    base = yaml.safe_load((tmp_path / "minute.yaml").read_text())
    del base["model"]
    write_yaml(base, tmp_path / "minute.yaml")
    source = shutil.copytree(shop / "start", tmp_path / "weights")
    study = load_study(str(path))
    words = [f"data.root={shop / 'music'}", f"training.start_from={source}"]
    (task,) = study_tasks(study, words, tmp_path / "out", to_train=True)
    assert task.run.start_fingerprint == Starts().fingerprint(str(source))
    shutil.rmtree(source)
    assert study_tasks(study, words, tmp_path / "out") == [task]
    with pytest.raises(ConfigError, match=r"training\.start_from"):
        study_tasks(study, words, tmp_path / "elsewhere")
