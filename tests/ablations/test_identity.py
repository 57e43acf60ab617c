"""Hashes name runs, weights and coded files for years: a new configuration key must move none of them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ablations import signature as identity
from ablations.compose import ConfigError, compose, configs_folder, load_experiment, load_layer, overrides_layer
from ablations.evaluate import evaluation_identity
from ablations.initial_weights import Starts
from ablations.run_record import require_same_run
from ablations.schema import SECTIONS, EvaluationConfig, ExperimentConfig
from ablations.signature import signature
from ablations.study import load_study
from lightning_modules.training_config import TrainingConfig
from spectrostream.added_keys import added
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.quantizer import QuantizerConfig
from spectrostream.registry import CODECS
from spectrostream.weight_files import official_weights, pretrained
from spectrostream.weights import codec_fingerprint, from_official, load_codec, load_pretrained, save_codec

sys.path.insert(0, str(Path(__file__).parent.parent / "spectrostream"))
from official_setup import fixture_params

EARLIER = Path(__file__).parent.parent / "fixtures" / "from_d598b8b"
WEIGHTS = EARLIER / "run" / "codec.safetensors"
FROZEN = json.loads((EARLIER / "identities.json").read_text())
CORPUS = "a corpus"
REMEDY = """The hash of {what} is not what it was: every existing {loss}.
If a configuration key is new, declare it with spectrostream.added_keys.added(default, neutral=...). The neutral value
reproduces the behaviour from before the key existed, and the shipped configurations must have it.
If the change alters what a training computes, raise TRAINING_VERSION in ablations/signature.py and freeze the new hash.
If a shipped configuration is new or was changed on purpose, freeze its hash.
Frozen hashes are in tests/fixtures/from_d598b8b/identities.json."""
RUNS, FILES = "run is trained or evaluated again", "weight file loses its coded files"


def start_signature(*words: str) -> str:
    """Of a run that starts from the earlier weights, as the earlier start.json remembers them."""
    starts = Starts(EARLIER)
    layer = load_layer(EARLIER / "minute.yaml")
    layer.pop("model")
    config = compose(layer, overrides_layer(["training.start_from=run", *words]), starts=starts)
    return signature(config, CORPUS, starts.fingerprint("run"))


def evaluations(*words: str) -> dict[str, str]:
    """Of the baseline and of the peer of the demo study."""
    runs = load_study("demo").runs(words)
    return {run.variant.role: evaluation_identity(run) for run in runs if run.variant.role != "variant"}


@pytest.mark.parametrize("name", sorted(path.stem for path in configs_folder().glob("*.yaml")))
def test_the_signatures_of_the_shipped_configurations_stay(name: str) -> None:
    now = signature(load_experiment(name), CORPUS)
    assert now == FROZEN["configurations"].get(name), REMEDY.format(what=f"configs/{name}.yaml", loss=RUNS)


def test_the_hashes_of_weights_and_of_what_starts_from_them_stay() -> None:
    assert codec_fingerprint(load_codec(WEIGHTS)).hex() == FROZEN["codec"], REMEDY.format(what="weights", loss=FILES)
    what = "a run that starts from weights"
    assert Starts(EARLIER).fingerprint("run") == FROZEN["start"]["fingerprint"], REMEDY.format(what=what, loss=RUNS)
    assert start_signature() == FROZEN["start"]["signature"], REMEDY.format(what=what, loss=RUNS)


def test_the_hashes_of_evaluations_stay() -> None:
    assert evaluations() == FROZEN["evaluations"], REMEDY.format(what="an evaluation", loss=RUNS)


@dataclass(frozen=True)
class LaterQuantizer(QuantizerConfig):
    later: int = added(7, neutral=0)


@dataclass(frozen=True)
class LaterModel(SpectroStreamConfig):
    later: str | None = added("x", neutral=None)
    quantizer: LaterQuantizer = field(default_factory=LaterQuantizer)


@dataclass(frozen=True)
class LaterSection:
    shares: tuple[float, ...] = added((0.5, 0.5), neutral=())


@dataclass(frozen=True)
class LaterTraining(TrainingConfig):
    section: LaterSection = field(default_factory=LaterSection)


@dataclass(frozen=True)
class LaterEvaluation(EvaluationConfig):
    later: bool = added(True, neutral=False)


MODEL = ("model.later=null", "model.quantizer.later=0")
NEUTRAL = (*MODEL, "training.section.shares=[]", "evaluation.later=false")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version: keys in the model, its quantizer, a new section of the training, and the evaluation."""
    monkeypatch.setitem(CODECS, "spectrostream", CODECS["spectrostream"]._replace(config=LaterModel))
    for module in (official_weights, pretrained):
        monkeypatch.setattr(module, "SpectroStreamConfig", LaterModel)
    for name, schema in (("training", LaterTraining), ("evaluation", LaterEvaluation)):
        section = field(default_factory=schema)
        section.name = name  # type: ignore[attr-defined]
        monkeypatch.setitem(SECTIONS, name, section)


@pytest.mark.slow
@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("name", ["paper", "small", "tiny"])
def test_an_added_key_changes_signatures_only_with_a_value_that_is_not_neutral(name: str) -> None:
    def hashed(*words: str) -> str:
        return signature(load_experiment(name, [*NEUTRAL, *words]), CORPUS)

    assert hashed() == FROZEN["configurations"][name]
    others = ("model.later=y", "model.quantizer.later=1", "training.section.shares=[1.0]")
    assert len({hashed(), *map(hashed, others)}) == 4
    assert signature(load_experiment(name), CORPUS) != hashed(), "the defaults are not neutral here"
    assert hashed("evaluation.later=true") == hashed(), "left out of the signature as all of its section"


@pytest.mark.usefixtures("later")
def test_an_added_section_outside_the_signature_changes_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = (*identity.NOT_IN_SIGNATURE, "training.section.shares")
    monkeypatch.setattr(identity, "NOT_IN_SIGNATURE", left_out)
    config = load_experiment("tiny", [*NEUTRAL, "training.section.shares=[1.0]"])
    assert identity.signature(config, CORPUS) == FROZEN["configurations"]["tiny"]


@pytest.mark.slow
@pytest.mark.usefixtures("later")
def test_an_added_key_with_its_neutral_value_changes_no_evaluation_hash() -> None:
    assert evaluations("evaluation.later=false") == FROZEN["evaluations"]
    moved = evaluations()
    assert all(moved[role] != frozen for role, frozen in FROZEN["evaluations"].items())


@pytest.mark.usefixtures("later")
def test_earlier_weights_have_the_neutral_value_and_keep_their_fingerprint(tmp_path: Path) -> None:
    codec = load_codec(WEIGHTS)
    assert codec.config == load_pretrained(WEIGHTS).config
    assert isinstance(codec.config, LaterModel)
    assert (codec.config.later, codec.config.quantizer.later) == (None, 0)
    assert codec_fingerprint(codec).hex() == FROZEN["codec"]
    save_codec(codec, tmp_path / "again.safetensors")
    assert metadata(tmp_path / "again.safetensors") == metadata(WEIGHTS)

    other = CODECS["spectrostream"].codec(replace(codec.config, quantizer=replace(codec.config.quantizer, later=3)))
    other.load_state_dict(codec.state_dict())
    assert codec_fingerprint(other) != codec_fingerprint(codec)
    save_codec(other, tmp_path / "other.safetensors")
    assert load_codec(tmp_path / "other.safetensors").config == other.config


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_the_official_weights_keep_their_fingerprint(request: pytest.FixtureRequest) -> None:
    params = fixture_params("stereo_m2")
    before = codec_fingerprint(from_official(params))
    request.getfixturevalue("later")
    codec = from_official(params)
    assert isinstance(codec.config, LaterModel)
    assert (codec.config.later, codec_fingerprint(codec)) == (None, before)


@pytest.mark.usefixtures("later")
def test_a_run_from_earlier_weights_has_their_neutral_values() -> None:
    assert start_signature(*NEUTRAL[2:]) == FROZEN["start"]["signature"]
    assert start_signature(*NEUTRAL) == FROZEN["start"]["signature"]
    with pytest.raises(ConfigError, match=r"model\.later = 'y' \(None there\) contradicts the weights"):
        start_signature("model.later=y")


@pytest.mark.usefixtures("later")
def test_an_earlier_run_is_the_same_run_at_the_neutral_values(tmp_path: Path) -> None:
    out = Path(shutil.copytree(EARLIER / "run", tmp_path / "run"))
    fingerprint = json.loads((out / "run.json").read_text())["data_fingerprint"]

    def changes(*words: str) -> Any:
        config = load_experiment(str(EARLIER / "minute.yaml"), words)
        return require_same_run(out, config, fingerprint, "", accept_changes=False)

    assert changes(*NEUTRAL) == {}
    with pytest.raises(ConfigError) as caught:
        changes(*MODEL)
    assert "another configuration or corpus: training.section.shares was [] and is [0.5, 0.5];" in str(caught.value)
    with pytest.raises(ConfigError, match=r"another configuration or corpus: training\.seed was 0 and is 5;"):
        changes(*NEUTRAL, "training.seed=5")


@pytest.mark.usefixtures("later")
def test_the_configuration_of_an_earlier_run_keeps_its_meaning(tmp_path: Path) -> None:
    config = load_experiment(str(EARLIER / "run" / "config.yaml"))
    assert isinstance(config.model, LaterModel)
    assert (config.model.later, config.model.quantizer.later) == (None, 0)
    assert config.training == LaterTraining(
        **{one.name: getattr(config.training, one.name) for one in fields(TrainingConfig)}, section=LaterSection(())
    )
    assert load_experiment(str(EARLIER / "run" / "config.yaml"), ["model.later=y"]).model.later == "y"
    assert signature(config, CORPUS) == signature(of_minute(*NEUTRAL), CORPUS)
    assert of_minute().model.later == "x", "somebody's own file has the defaults of now"


def of_minute(*words: str) -> ExperimentConfig:
    return load_experiment(str(EARLIER / "minute.yaml"), words)
