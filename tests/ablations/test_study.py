from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from small_study import STUDY, TINY_DAC, write_music, write_study, write_yaml

from ablations.commands import default_jobs, study_tasks
from ablations.compose import ConfigError, to_plain
from ablations.signature import signature
from ablations.study import Study, load_study
from spectrostream.other_codecs.dac import DacConfig
from spectrostream.width_matching import matched_widths


def variant(**changes: Any) -> dict[str, Any]:
    return {"fusion-3": {**STUDY["variants"]["fusion-3"], **changes}}


def test_a_study_is_read_as_it_is_written(tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path, set={"training.max_steps": 9})))
    assert (study.name, study.title, study.question) == ("study", "A minute's study", "Does it run?")
    assert {one.name: (one.role, one.axis) for one in study.variants} == {
        "baseline": ("baseline", ""),
        "fusion-3": ("variant", "fusion point"),
        "dac": ("peer", ""),
    }
    runs = {run.name: run for run in study.runs()}
    assert {run.config.training.max_steps for run in runs.values()} == {9}
    assert [runs[name].config.model.fusion for name in ("baseline", "fusion-3")] == [6, 3]
    assert isinstance(runs["dac"].config.model, DacConfig)
    assert runs["dac"].config.evaluation.levels == (1, 2)
    assert {(run.seed, run.compared_at) for run in runs.values()} == {(0, 4)}


@pytest.mark.parametrize("key", ["title", "question", "base", "baseline", "compared_at"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"study\.yaml: missing keys: {key}; unknown keys: none; a study has title"):
        load_study(str(write_study(tmp_path, **{key: None})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"varaints": {}}, "missing keys: none; unknown keys: varaints"),
        ({"base": "nothing"}, "base = 'nothing': there is no such file"),
        ({"baseline": "x"}, "baseline: a variant has a title and may have set, change, axis, match; given: 'x'"),
        ({"baseline": {"set": {}}}, "baseline: a variant has a title"),
        ({"variants": variant(sets={})}, "fusion-3: a variant has a title and may have"),
        ({"variants": variant(set=[1])}, "fusion-3: set = [1] is not possible"),
        ({"variants": [1]}, "variants = [1] is not possible; allowed: keys with their values"),
        ({"peers": "dac"}, "peers = 'dac' is not possible"),
        ({"axes": ["model.fusion"]}, "axes = ['model.fusion'] is not possible"),
        ({"set": "x"}, "set = 'x' is not possible"),
        ({"seeds": 3}, "seeds = 3 is not possible; allowed: a list of different whole numbers"),
        ({"seeds": ["a"]}, "seeds = ['a'] is not possible"),
        ({"seeds": [1, 1]}, "seeds = [1, 1] is not possible"),
        ({"compared_at": "all"}, "compared_at = 'all' is not possible"),
        ({"variants": {"baseline": {"title": "b"}}}, "the name 'baseline' is not possible"),
        ({"variants": {"a/b": {"title": "b"}}}, "the name 'a/b' is not possible"),
        ({"variants": {"dac": {"title": "b"}}}, "the name 'dac' is not possible"),
        ({"variants": variant(axis="split")}, "axis 'split' is not among the study's axes (fusion point)"),
        ({"axes": None}, "is not among the study's axes (none declared)"),
        ({"variants": variant(set={"model.split": 3})}, "changes model.fusion and nothing else; given: model.split"),
        ({"variants": variant(set={"model.fusion": 3, "data.seed": 1})}, "given: model.fusion, data.seed"),
        ({"variants": variant(set=None)}, "and nothing else; given: nothing"),
        ({"variants": variant(match="flops")}, "fusion-3: match = 'flops' is not known; allowed: macs, parameters"),
        ({"variants": variant(match=None)}, "fusion-3: match = None is not known; allowed: macs, parameters"),
        ({"variants": variant(match=["macs"])}, "fusion-3: match = ['macs'] is not known"),
        ({"baseline": {"title": "b", "match": "macs"}}, "baseline: match is for the others, which are matched to"),
    ],
)
def test_an_impossible_study_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(str(write_study(tmp_path, **changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a study; it needs the keys title"):
        load_study(str(write_yaml([1], tmp_path / "list.yaml")))
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not readable YAML"):
        load_study(str(tmp_path / "broken.yaml"))
    with pytest.raises(ConfigError, match=r"study = 'deom': there is no such file.*one of.* demo"):
        load_study("deom")


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"set": {"training.max_step": 9}}, [], "study, variant baseline: training.max_step is not a key"),
        (
            {"variants": variant(set={"model.fusion": 9})},
            [],
            "study, variant fusion-3: model.fusion = 9 is not possible",
        ),
        ({"compared_at": 3}, [], "evaluation.levels = [2, 4] lacks the study's compared_at = 3; add it to them"),
        ({}, ["evaluation.levels=[2]"], "lacks the study's compared_at = 4"),
        ({}, ["model.fusion=2"], "variant fusion-3: model.fusion cannot be set here: it is what this variant changes"),
        ({}, ["training.seed=2"], "training.seed cannot be set here: the study's seeds set it for every run"),
        ({"baseline": {"title": "b", "set": {"data.seed": 1}}}, [], "data.seed cannot be set here"),
        ({}, ["model.channels=1"], "model.channels = 1 is not possible in a study; allowed: 2"),
        (
            {"variants": variant(match="macs", set={"model.fusion": 3, "model.decoder_width": 3}, axis="")},
            [],
            "variant fusion-3: model.decoder_width cannot be set here: match = 'macs' finds it; change the study file",
        ),
        (
            {"variants": variant(match="parameters", set={"model.frontend": "waveform"}, axis="")},
            [],
            "variant fusion-3: match = 'parameters': the nearest model.encoder_width, 3, makes the encoder cost",
        ),
        (
            {"peers": {"dac": {**STUDY["peers"]["dac"], "match": "macs"}}},
            [],
            "variant dac: match = 'macs' finds the widths of a SpectroStream for the cost of another; model.kind is "
            "'dac' here and 'spectrostream' in the baseline; allowed for both: 'spectrostream'",
        ),
    ],
)
def test_impossible_runs_are_refused(tmp_path: Path, changes: dict[str, Any], words: list[str], message: str) -> None:
    study = load_study(str(write_study(tmp_path, **changes)))
    with pytest.raises(ConfigError) as caught:
        study.runs(words)
    assert message in str(caught.value)


def test_seeds_multiply_the_runs(tmp_path: Path) -> None:
    runs = load_study(str(write_study(tmp_path, seeds=[3, 5]))).runs()
    assert sorted(run.name for run in runs) == [
        *("baseline-seed3", "baseline-seed5", "dac-seed3", "dac-seed5", "fusion-3-seed3", "fusion-3-seed5")
    ]
    for run in runs:
        assert run.seed == run.config.training.seed == run.config.data.seed == int(run.name[-1])
    (one, *_) = load_study(str(write_study(tmp_path, seeds=[7]))).runs()
    assert (one.name, one.config.training.seed) == ("baseline", 7)


def test_overrides_hold_for_all_but_the_model_of_a_peer(tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path)))
    runs = {run.name: run.config for run in study.runs(["model.encoder_width=3", "training.max_steps=8"])}
    assert [runs[name].model.encoder_width for name in ("baseline", "fusion-3", "dac")] == [3, 3, 2]
    assert {config.training.max_steps for config in runs.values()} == {8}
    assert runs["dac"].model == DacConfig(**TINY_DAC)


def waveform_study(folder: Path, **variant_keys: Any) -> Study:
    """A study wide enough to be matched, with a waveform variant."""
    return load_study(
        str(
            write_study(
                folder,
                set={"model.encoder_width": 20, "model.decoder_width": 24},
                axes={"front-end": "model.frontend"},
                variants={
                    "waveform": {
                        "title": "waveform",
                        "axis": "front-end",
                        "set": {"model.frontend": "waveform"},
                        **variant_keys,
                    }
                },
                peers=None,
            )
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("by", ["macs", "parameters"])
def test_a_matched_variant_has_the_widths_that_give_it_the_baselines_cost(tmp_path: Path, by: str) -> None:
    study = waveform_study(tmp_path, match=by)
    baseline, matched = study.runs()
    (_, as_it_was) = waveform_study(tmp_path).runs()
    assert (baseline.config.model.encoder_width, baseline.config.model.decoder_width) == (20, 24)
    found = matched_widths(as_it_was.config.model, baseline.config.model, by).config
    assert matched.config == dataclasses.replace(as_it_was.config, model=found)
    assert (found.encoder_width > 24, found.decoder_width > 29) == (True, True)
    # the widths are part of the run: of its resolved configuration, its identity and what its card says was changed
    assert to_plain(matched.config)["model"]["encoder_width"] == found.encoder_width
    assert signature(matched.config, "x") != signature(as_it_was.config, "x")
    assert matched.variant.set == {
        "model.frontend": "waveform",
        "model.encoder_width": found.encoder_width,
        "model.decoder_width": found.decoder_width,
    }
    assert study.variants[1].set == {"model.frontend": "waveform"}
    assert study.positions([baseline, matched]) == {"front-end": [("baseline", "stft"), ("waveform", "waveform")]}


def test_an_override_of_a_width_moves_the_baseline_and_what_is_matched_to_it(tmp_path: Path) -> None:
    words = ["model.encoder_width=40", "model.quantizer.levels=8"]
    baseline, matched = waveform_study(tmp_path, match="parameters").runs(words)
    assert baseline.config.model.encoder_width == 40
    assert matched.config.model == matched_widths(matched.config.model, baseline.config.model, "parameters").config
    assert matched.config.model.encoder_width > 50
    assert matched.config.model.quantizer.levels == 8


def test_a_peer_of_the_same_kind_can_be_matched_too(tmp_path: Path) -> None:
    model = {"kind": "spectrostream", "frontend": "mdct"}
    peer = {"title": "MDCT", "match": "parameters", "set": {"model": model}}
    widths = {"model.encoder_width": 20, "model.decoder_width": 24}
    study = load_study(str(write_study(tmp_path, set=widths, peers={"mdct": peer})))
    runs = {run.name: run.config.model for run in study.runs(["model.encoder_width=30"])}
    assert (runs["mdct"].frontend, runs["mdct"].encoder_width) == ("mdct", 30)


def test_positions_on_an_axis_include_the_baseline(tmp_path: Path) -> None:
    axes = {"fusion point": "model.fusion", "rate": "training.generator.learning_rate"}
    more = {"slow": {"title": "slow", "axis": "rate", "set": {"training.generator.learning_rate": 0.5}}}
    study = load_study(str(write_study(tmp_path, axes=axes, variants={**variant(), **more}, seeds=[0, 1])))
    assert study.positions(study.runs()) == {
        "fusion point": [("baseline-seed0", 6), ("baseline-seed1", 6), ("fusion-3-seed0", 3), ("fusion-3-seed1", 3)],
        "rate": [("baseline-seed0", 1e-4), ("baseline-seed1", 1e-4), ("slow-seed0", 0.5), ("slow-seed1", 0.5)],
    }
    finished = [run for run in study.runs() if not run.name.startswith("fusion")]
    assert study.positions(finished)["fusion point"] == [("baseline-seed0", 6), ("baseline-seed1", 6)]


@pytest.mark.slow
def test_every_run_has_its_own_folder_and_runs_share_scanned_corpora(tmp_path: Path) -> None:
    music = write_music(tmp_path / "music", tracks=1)
    longer = {"long": {"title": "long", "set": {"data.crop_seconds": 0.4}}}
    study = load_study(str(write_study(tmp_path, variants={**variant(), **longer}, seeds=[0, 1])))
    tasks = study_tasks(study, [f"data.root={music}"], tmp_path / "out")
    assert len({task.folder for task in tasks}) == 8
    assert all(task.folder.name.rsplit("-", 1)[0] == task.run.name for task in tasks)
    again = study_tasks(study, [f"data.root={music}", "trainer.threads=2", "evaluation.workers=3"], tmp_path / "out")
    assert [task.folder for task in again] == [task.folder for task in tasks]
    assert default_jobs(tasks) >= default_jobs(again) >= 1
    with pytest.raises(ConfigError, match=r"trainer.devices and trainer.num_nodes are 1 in a study.*type jobs=N"):
        study_tasks(study, [f"data.root={music}", "trainer.devices=2"], tmp_path / "out")
