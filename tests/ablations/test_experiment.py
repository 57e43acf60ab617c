from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from small_study import MINUTE, TINY_DAC, write_yaml

from ablations import schema
from ablations.compose import (
    ConfigError,
    compose,
    configs_folder,
    find_yaml,
    keys_layer,
    load_experiment,
    load_layer,
    overrides_layer,
    to_plain,
    to_yaml,
)
from ablations.schema import ExperimentConfig
from ablations.signature import NOT_IN_SIGNATURE, signature
from lightning_modules.training_config import TrainingConfig
from spectrostream.adversarial.dac_discriminator import DacDiscriminatorConfig
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig
from spectrostream.codec import SpectroStreamConfig
from spectrostream.other_codecs.dac import DacConfig


def layer(**sections: Any) -> DictConfig:
    return OmegaConf.create(sections)


def minute(*words: str) -> ExperimentConfig:
    return compose(OmegaConf.create(MINUTE), overrides_layer(words))


def leaves(plain: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in plain.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def test_later_layers_override_earlier_ones_and_the_schema() -> None:
    config = compose(
        layer(training={"max_steps": 5, "accumulate": 2}),
        keys_layer({"training.max_steps": 6, "model.fusion": "input"}),
        overrides_layer(["training.max_steps=7", "data.seed=3"]),
    )
    assert (config.training.max_steps, config.training.accumulate, config.training.seed) == (7, 2, 0)
    assert (config.model.fusion, config.data.seed) == ("input", 3)
    assert config.training.generator == TrainingConfig().generator


def test_lists_become_tuples_and_numbers_the_schema_s_type() -> None:
    config = minute("training.generator.betas=[0.8,1]", "evaluation.levels=[1]", "data.root=12", "data.crop_seconds=1")
    assert config.training.generator.betas == (0.8, 1.0)
    assert config.evaluation.levels == (1,)
    assert config.data.root == "12"
    assert isinstance(config.data.crop_seconds, float)
    hash(config)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("traning.max_steps=3", "traning is not a key of the configuration; did you mean training?"),
        ("training.max_step=3", "did you mean training.max_steps?"),
        ("training.generator.learningrate=3", "did you mean training.generator.learning_rate?"),
        ("model.quantizer.level=3", "did you mean model.quantizer.levels?"),
        ("zzz=1", "allowed here: model, discriminator, training, trainer, data, evaluation"),
        ("model.strides=[2]", "model.strides is not a key"),
        ("model..x=3", "is not a key"),
        ("model.kind=foo", "model.kind = 'foo' is not known; allowed: spectrostream, dac"),
        ("model.kind=[1]", "is not known; allowed: spectrostream, dac"),
        ("model=3", "model is a section and takes no value; allowed: its keys kind, frontend"),
        ("model=null", "model is a section"),
        ("training.generator=null", "training.generator is a section"),
        ("training.max_steps=abc", "training.max_steps = 'abc' is not possible; allowed: a whole number"),
        ("training.max_steps=1e3", "training.max_steps = 1000.0 is not possible; allowed: a whole number"),
        ("training.max_steps=null", "training.max_steps = None is not possible; allowed: a whole number"),
        ("training.max_steps={a: 1}", "training.max_steps = {'a': 1} is not possible"),
        ("model.fusion=[1]", "model.fusion = [1] is not possible; allowed: a whole number or text"),
        ("data.crop_seconds=x", "data.crop_seconds = 'x' is not possible; allowed: a number"),
        ("evaluation.visqol=maybe", "evaluation.visqol = 'maybe' is not possible; allowed: true or false"),
        ("evaluation.levels=4", "evaluation.levels = 4 is not possible; allowed: a list, each a whole number"),
        ("evaluation.levels=[a]", "evaluation.levels = ['a'] is not possible"),
        ("training.generator.betas=[0.5]", "allowed: a list of 2, each a number"),
        ("data.root={a: 1}", "data.root = {'a': 1} is not possible; allowed: text or null"),
        ("data.root=${nothing}", "data.root is not possible: Interpolation key 'nothing' not found"),
        ("data.root=???", "missing mandatory value: root"),
        ("data.root=[abc", "'data.root=[abc' cannot be read as YAML; put double quotes"),
        ("data.root=@x", "cannot be read as YAML"),
        ("data.root=", "'data.root=' is not an override; type key=value"),
        ("=3", "is not an override"),
        ("abc", "is not an override"),
        ("[x=3", "cannot be read"),
        ("model.fusion=8", "model.fusion = 8 is not possible"),
        ("evaluation.levels=[5]", "evaluation.levels = [5] goes beyond the 4 levels"),
        ("evaluation.levels=[]", "allowed: one or more different numbers"),
        ("evaluation.levels=[2,2]", "allowed: one or more different numbers"),
        ("evaluation.levels=[0]", "evaluation.levels = [0] is not possible"),
        ("evaluation.workers=0", "evaluation.workers = 0 is not possible; allowed: 1 or more"),
        ("discriminator.windows=[16384]", "is shorter than the longest window of the discriminator"),
        ("discriminator.kind=foo", "discriminator.kind = 'foo' is not known; allowed: multi_scale_stft, dac"),
        ("discriminator.kind=[1]", "is not known; allowed: multi_scale_stft, dac"),
        ("discriminator.periods=[2]", "discriminator.periods is not a key of the configuration"),
        ("discriminator={kind: dac, multipliers: [2]}", "discriminator.multipliers is not a key of the configuration"),
        ("discriminator={kind: dac, width: 0}", "discriminator.width is 0; allowed: 1 or more"),
        ("discriminator={kind: dac, bands: [[0.5]]}", "discriminator.bands"),
        ("discriminator={kind: dac, windows: [16384]}", "the discriminator and of the mel loss, 16384 samples"),
        ("discriminator={kind: dac, windows: [], periods: [20000]}", "20001 samples; allowed: 0.417 or more"),
        ("discriminator=3", "discriminator is a section and takes no value; allowed: its keys kind, windows"),
        ("training.recipe=gan", "training.recipe = 'gan' is not possible; allowed: spectrostream, dac"),
        ("data.crop_seconds=0.02", "of the mel loss, 1025 samples; allowed: 0.022 or more"),
        ("training.max_steps=0", "training.max_steps = 0 is not possible"),
        (
            "training.generator.learning_rate=0",
            "training.generator.learning_rate = 0.0 is not possible; allowed",
        ),
        ("training.discriminator.schedule=x", "training.discriminator.schedule = 'x' is not known; allowed: constant"),
        ("training.loss.mel=-1", "training.loss.mel is -1.0; allowed: a finite number"),
        ("model.quantizer.decay=1", "model.quantizer.decay = 1.0 is not possible; allowed: above 0, below 1"),
        ("training.freeze=[head]", "training.freeze = ['head'] is not possible; allowed: a list of encoder, codebooks"),
        ("data.split=foo", "data.split='foo' is not allowed"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        minute(word)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not {"full_key", "object_type", "$VALUE"} & set(
        str(caught.value).replace("=", " ").replace(":", " ").split()
    )


def test_the_shortest_crop_that_a_message_allows_is_allowed() -> None:
    assert minute("discriminator.windows=[16384]", "data.crop_seconds=0.342").discriminator.windows == (16384,)
    assert minute("data.crop_seconds=0.022").data.crop_seconds == 0.022


def test_another_kind_of_model_replaces_the_section() -> None:
    config = compose(OmegaConf.create(MINUTE), keys_layer({"model": TINY_DAC, "evaluation.levels": [1]}))
    assert config.model == DacConfig(encoder_width=2, decoder_width=16, levels=2, codebook_size=16, codebook_dim=2)
    again = compose(
        OmegaConf.create(MINUTE), keys_layer({"model.kind": "dac"}), keys_layer({"model.kind": "spectrostream"})
    )
    assert again.model == SpectroStreamConfig()
    same = compose(OmegaConf.create(MINUTE), keys_layer({"model.kind": "spectrostream", "model.fusion": 2}))
    assert (same.model.fusion, same.model.encoder_width) == (2, 2)


def test_another_kind_of_discriminator_replaces_the_section() -> None:
    # MINUTE's section names no kind: it is the default one
    assert minute("discriminator.kind=dac").discriminator == DacDiscriminatorConfig()
    assert minute("discriminator={kind: dac, width: 3}").discriminator == DacDiscriminatorConfig(width=3)
    same = minute("discriminator.kind=multi_scale_stft", "discriminator.negative_slope=0.1").discriminator
    assert same == MultiScaleSTFTConfig(windows=(256,), width=2, negative_slope=0.1)
    kinds = [keys_layer({"discriminator.kind": kind}) for kind in ("dac", "multi_scale_stft")]
    assert compose(OmegaConf.create(MINUTE), *kinds).discriminator == MultiScaleSTFTConfig()
    later = compose(
        OmegaConf.create(MINUTE), keys_layer({"discriminator.kind": "dac"}), overrides_layer(["discriminator.width=3"])
    )
    assert later.discriminator == DacDiscriminatorConfig(width=3)


def test_the_shortest_crop_holds_for_both_kinds_of_discriminator() -> None:
    dac = "discriminator={kind: dac, windows: [8192], periods: [2]}"
    assert minute(dac, "data.crop_seconds=0.171").data.crop_seconds == 0.171
    with pytest.raises(ConfigError, match=r"8192 samples; allowed: 0\.171 or more"):
        minute(dac, "data.crop_seconds=0.17")
    short = "discriminator={kind: dac, windows: [64], periods: [2]}"
    with pytest.raises(ConfigError, match=r"of the mel loss, 1025 samples; allowed: 0\.022 or more"):
        minute(short, "data.crop_seconds=0.021", "training.recipe=dac")


def test_the_signature_follows_every_key_of_dac_s_discriminator() -> None:
    config = minute("discriminator.kind=dac")
    changes = {
        "periods": [2],
        "windows": [512],
        "bands": [[0.0, 0.5]],
        "width": 3,
        "per_channel": False,
        "negative_slope": 0.2,
    }
    assert changes.keys() | {"kind"} == {field.name for field in dataclasses.fields(DacDiscriminatorConfig)}
    signatures = {signature(config, "x"), signature(minute(), "x")}
    for key, value in changes.items():
        kind = keys_layer({"discriminator.kind": "dac", f"discriminator.{key}": value})
        signatures.add(signature(compose(OmegaConf.create(MINUTE), kind), "x"))
    assert len(signatures) == 2 + len(changes)


def test_yaml_files_are_found_and_checked(tmp_path: Path) -> None:
    path = write_yaml(MINUTE, tmp_path / "mine.yaml")
    assert load_experiment(str(path), ["training.seed=4"]).training.seed == 4
    assert find_yaml("tiny", configs_folder(), "config").name == "tiny.yaml"
    with pytest.raises(ConfigError, match=r"config = 'tyni': there is no such file.*one of dac, paper, small, tiny"):
        load_experiment("tyni")
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not readable YAML"):
        load_layer(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match=r"holds a list; a mapping of sections is needed"):
        load_layer(path)


def test_the_written_configuration_reads_as_the_same(tmp_path: Path) -> None:
    for words in (["model.fusion=input"], ["model.kind=dac", "evaluation.levels=[9]"], ["data.root='0123'"]):
        config = minute(*words, "training.generator.learning_rate=1.0e-05", "data.cache_audio=false")
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        assert load_experiment(str(path)) == config
        assert signature(load_experiment(str(path)), "x") == signature(config, "x")


@pytest.mark.slow
@settings(max_examples=12)
@given(
    rate=st.floats(1e-12, 1e3),
    root=st.none() | st.text("abc0:#'\"/ é~-", min_size=1),
    gains=st.tuples(st.floats(-60, 0), st.floats(0, 20)),
    levels=st.sets(st.integers(1, 4), min_size=1),
)
def test_any_configuration_round_trips(
    rate: float, root: str | None, gains: tuple[float, float], levels: set[int]
) -> None:
    changes = {
        "training.generator.learning_rate": rate,
        "data.root": root,
        "data.gain_db_range": list(gains),
        "evaluation.levels": sorted(levels),
    }
    config = compose(OmegaConf.create(MINUTE), keys_layer(changes))
    assert (config.training.generator.learning_rate, config.data.root, config.data.gain_db_range) == (rate, root, gains)
    assert compose(OmegaConf.create(to_yaml(config))) == config


# What each leaf may be changed to; a number not named here is raised by one, and what is true becomes false.
OTHER: dict[str, Any] = {
    "model.frontend": "waveform",
    "model.channels": 1,
    "model.fusion": 3,
    "model.split": "output",
    "model.channel_groups": [[1], [0]],
    "model.quantizer.bypass_probability": 0.25,
    "model.quantizer.decay": 0.5,
    "model.quantizer.revival_threshold": 0.2,
    "model.quantizer.codebook_size": 8,
    "discriminator.windows": [512],
    "discriminator.multipliers": [2, 4, 4, 8, 8, 8],
    "discriminator.frequency_strides": [2, 2, 2, 2, 2, 1],
    "discriminator.time_strides": [1, 2, 1, 2, 1, 1],
    "discriminator.negative_slope": 0.1,
    "training.recipe": "dac",
    "training.balance_decay": 0.5,
    "training.ema_decay": 0.5,
    "training.freeze": ["encoder"],
    "trainer.accelerator": "auto",
    "trainer.precision": "bf16-mixed",
    "trainer.wandb": "offline",
    "trainer.wandb_project": "other",
    "data.root": "/music",
    "data.split": "track",
    "data.held_out_fraction": 0.5,
    "data.cache_audio": True,
    "data.manifests": ["n.parquet"],
    "data.shards": "s3://bucket/music",
    "data.keep": "frames > 0",
    "data.weights": ["2 where frames > 0"],
    "data.balance": "genre",
    "data.evaluation_segments": "segments.csv",
    "data.shard_cache": "cache",
    "data.s3_endpoint": "http://localhost:9000",
    "data.normalize_lufs": -16.0,
    "data.gain_db_range": [-1.0, 1.0],
    "data.swap_channels_probability": 0.5,
    "evaluation.levels": [1],
    "evaluation.segments": 7,
    "evaluation.visqol": True,
    "evaluation.keep_audio": False,
}
for _side in ("generator", "discriminator"):
    OTHER |= {f"training.{_side}.betas": [0.1, 0.2], f"training.{_side}.schedule": "cosine"}
    OTHER |= {f"training.{_side}.decay": 0.5, f"training.{_side}.weight_decay": 0.5}
# Kinds replace sections; weights to start from are read (tests/ablations/test_starting.py).
APART = ("model.kind", "discriminator.kind", "training.start_from")
KEYS = [key for key in leaves(to_plain(minute())) if key not in APART]


@pytest.mark.parametrize("key", KEYS)
def test_the_signature_follows_every_key_that_counts(key: str) -> None:
    config = compose(OmegaConf.create(MINUTE), overrides_layer(["data=m.parquet"]))
    value: Any = to_plain(config)
    for part in key.split("."):
        value = value[part]
    changed = OTHER.get(key, not value if isinstance(value, bool) else None)
    given = {"data.manifests": ["m.parquet"]}
    if key == "data.shards":
        given = {"data.split": "official"}  # as with manifests
        config = compose(OmegaConf.create(MINUTE), keys_layer(given))
    changes = given | {key: value + 1 if changed is None else changed}
    other = compose(OmegaConf.create(MINUTE), keys_layer(changes))
    assert other != config
    is_left_out = any(key == one or key.startswith(f"{one}.") for one in NOT_IN_SIGNATURE)
    assert (signature(other, "x") == signature(config, "x")) == is_left_out


def test_the_signature_depends_on_the_result_s_keys_and_the_corpus() -> None:
    assert set(NOT_IN_SIGNATURE) <= {*KEYS, *APART, "evaluation"}
    config = minute()
    backwards = compose(OmegaConf.create(dict(reversed(MINUTE.items()))), overrides_layer(["training.seed=0"]))
    assert signature(config, "x") == signature(backwards, "x")
    assert len(signature(config, "x")) == 12
    assert signature(config, "y") != signature(config, "x")
    assert signature(minute("model.kind=dac"), "x") != signature(config, "x")


def test_a_changed_default_changes_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolved configuration counts, not what somebody typed."""
    before = signature(minute(), "x")

    @dataclasses.dataclass(frozen=True)
    class Changed(TrainingConfig):
        accumulate: int = 2

    field = dataclasses.field(default_factory=Changed)
    field.name = "training"
    monkeypatch.setitem(schema.SECTIONS, "training", field)
    assert minute().training.accumulate == 2
    assert signature(minute(), "x") != before
    assert signature(minute("training.accumulate=1"), "x") == before


def test_a_folder_that_was_prepared_is_known_by_its_manifest(tmp_path: Path) -> None:
    """Without it, its official division would be lost, and the music for the test trained on."""
    assert minute(f"data={tmp_path}").data.manifests == ()
    (tmp_path / "manifest.parquet").touch()
    data = minute(f"data={tmp_path}").data
    assert (data.manifests, data.root) == ((str(tmp_path / "manifest.parquet"),), str(tmp_path))
    assert data.chosen_split == "official"
    (tmp_path / "index.parquet").touch()
    assert minute(f"data={tmp_path}").data.shards == str(tmp_path)


def test_the_signature_is_the_same_for_a_default_split_and_the_typed_one() -> None:
    folder, typed, manifest, official = (
        signature(minute(*words), "x")
        for words in (["data=/music"], ["data=/music", "data.split=end"], ["data=m.csv"], ["data.split=official"])
    )
    assert folder == typed
    assert manifest == official
    assert folder != manifest
