"""The table of evaluation segments, where runs and studies use it: refused in time, and limited as one asks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from small_study import MINUTE, Remembers, write_config, write_music, write_study

from ablations.assembly import data_module, evaluation_protocol, evaluation_segments, segment_limit
from ablations.commands import study_tasks
from ablations.compose import ConfigError, compose, overrides_layer
from ablations.evaluate import evaluation_identity
from ablations.run import is_done
from ablations.runner import run_tasks
from ablations.schema import ExperimentConfig
from ablations.study import load_study
from ablations.training_samples import sampling
from reports.records import read_records
from spectrostream_cli import main

pytestmark = pytest.mark.processes

# Of the nine seconds of each track the last two are held out.
HELD_OUT, TRAINED_ON = 7.0, 3.0


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_music(tmp_path_factory.mktemp("music"))


def table_of(path: Path, *starts: float, track: str = "track-0.flac") -> Path:
    """Half a second from each start on."""
    rows = [{"corpus": "folder", "track": track, "start_seconds": one, "duration_seconds": 0.5} for one in starts]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def configured(music: Path, *words: str) -> ExperimentConfig:
    return compose(OmegaConf.create(MINUTE), overrides_layer([f"data.root={music}", *words]))


@pytest.mark.parametrize(
    ("starts", "track", "message"),
    [
        (
            (HELD_OUT, TRAINED_ON),
            "track-0.flac",
            "1 of 2 segments cannot be used; that of 'track-0.flac' at 3.000 s is",
        ),
        ((HELD_OUT, 8.8), "track-1.flac", "that of 'track-1.flac' at 8.800 s goes beyond the end of its track"),
        ((HELD_OUT,), "gone.flac", "1 of 1 tracks are not in the corpus, the first 'gone.flac'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_the_training(
    music: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    starts: tuple[float, ...],
    track: str,
    message: str,
) -> None:
    table = table_of(tmp_path / "segments.csv", *starts, track=track)
    words = [f"data.root={music}", f"data.evaluation_segments={table}", f"out={tmp_path / 'out'}"]
    for command in (f"train config={write_config(tmp_path)}", f"ablate study={write_study(tmp_path)}"):
        assert main([*command.split(), *words, "evaluation.segments=1"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: data.evaluation_segments={str(table)!r}: ")
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_the_table_of_every_run_is_checked(music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = table_of(tmp_path / "bad.csv", TRAINED_ON)
    peers = {"other": {"title": "other", "set": {"data.evaluation_segments": str(bad)}}}
    words = [f"study={write_study(tmp_path, peers=peers)}", f"data.root={music}", f"out={tmp_path / 'out'}"]
    assert main(["ablate", *words]) == 1
    assert f"error: data.evaluation_segments={str(bad)!r}: 1 of 1 segments" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "with_table", "without"),
    [
        (None, 4, 8),
        ("evaluation.segments=9", 4, 8),
        ("evaluation.segments=4", 4, 4),
        ("evaluation.segments=2", 2, 2),
        ("evaluation.segments=1", 1, 1),
    ],
)
def test_an_evaluation_takes_the_whole_table_or_the_given_number(
    music: Path, tmp_path: Path, word: str | None, with_table: int, without: int
) -> None:
    words = ["data.evaluation_segment_seconds=0.5", *([word] if word else [])]
    table = table_of(tmp_path / "segments.csv", 7.0, 7.5, 8.0, 8.5)
    for more, count in (([f"data.evaluation_segments={table}"], with_table), ([], without)):
        config = configured(music, *words, *more)
        data = data_module(config)
        names = [segment.name for segment in evaluation_segments(config, data)]
        assert names == [segment.name for segment in evaluation_segments(config, data)]
        everything = [segment.name for segment in data.held_out_segments()]
        assert names == [name for name in everything if name in names]
        assert len(names) == count


def test_without_a_table_and_a_number_there_are_fifty_at_most(music: Path) -> None:
    config = configured(music, "data.evaluation_segment_seconds=0.05")
    assert len(evaluation_segments(config, data_module(config))) == segment_limit(config) == 50


def test_another_choice_is_another_protocol(music: Path, tmp_path: Path) -> None:
    """A report tells so which scores are of the same music, and `ablate` what it must evaluate again."""
    table = table_of(tmp_path / "segments.csv", 7.0, 7.5, 8.0, 8.5)
    study = load_study(str(write_study(tmp_path)))

    def hashes(*words: str) -> tuple[str, str]:
        given = [f"data.root={music}", f"data.evaluation_segments={table}", *words]
        run = study.runs(given)[0]
        return evaluation_protocol(run.config).hash, evaluation_identity(run)

    protocols, identities = zip(*(hashes(f"evaluation.segments={count}") for count in ("null", 1, 2, 3)), strict=True)
    assert len(set(protocols)) == len(set(identities)) == 4
    assert hashes("evaluation.segments=4") == hashes("evaluation.segments=40") == (protocols[0], identities[0])
    table_of(table, 7.0, 7.5, 8.0)
    assert hashes()[0] not in protocols


def test_without_a_table_null_segments_equal_fifty(music: Path, tmp_path: Path) -> None:
    study = load_study(str(write_study(tmp_path)))
    unsaid, fifty, five = (
        study.runs([f"data.root={music}", f"evaluation.segments={count}"])[0] for count in ("null", 50, 5)
    )
    assert evaluation_identity(unsaid) == evaluation_identity(fifty) != evaluation_identity(five)


@pytest.mark.parametrize("number", [0, -1])
def test_zero_segments_are_refused(music: Path, number: int) -> None:
    with pytest.raises(ConfigError, match=f"segments = {number} is not possible; allowed: null, or 1 or more"):
        configured(music, f"evaluation.segments={number}")


def test_training_has_the_configured_number_of_samples(music: Path, tmp_path: Path) -> None:
    table = table_of(tmp_path / "segments.csv", 7.0, 7.5, 8.0, 8.5)
    words = [f"data.evaluation_segments={table}", "trainer.samples_every=1"]
    config = configured(music, *words, "trainer.sample_clips=2")
    data = data_module(config)
    with sampling(config, tmp_path, data) as (samples,):
        first, second = samples._segments
        listed = [segment.audio for segment in data.held_out_segments()]
        assert any(torch.equal(first, one) for one in listed[:2])
        assert any(torch.equal(second, one) for one in listed[2:])


@pytest.mark.slow
def test_a_study_is_evaluated_on_its_table_and_again_on_a_part_of_it(music: Path, tmp_path: Path) -> None:
    table = table_of(tmp_path / "segments.csv", 7.0, 7.5, 8.0, 8.5)
    study = load_study(str(write_study(tmp_path, variants=None, peers=None, axes=None)))
    words = [f"data.root={music}", f"data.evaluation_segments={table}", "training.max_steps=1"]
    for more, count in ([], 4), (["evaluation.segments=2"], 2):
        (task,) = study_tasks(study, [*words, *more], tmp_path / "out", to_train=True)
        assert not is_done(task.folder, task.run)
        assert run_tasks([task], jobs=1, display=Remembers()) == {}
        assert is_done(task.folder, task.run)
        records = read_records(task.folder / "records.csv")
        assert records["segment"].nunique() == count
        assert len(list((task.folder / "audio" / "reference").iterdir())) == count
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1, "it was trained once"
