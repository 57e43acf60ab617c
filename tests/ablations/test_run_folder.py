"""A folder belongs to one run: what differs is named, accepted if asked for, and recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas
import pytest
from small_study import write_config, write_music, write_study

from ablations.compose import ConfigError
from ablations.provenance import read_json
from ablations.run_record import require_study_or_empty
from ablations.signature import TRAINING_VERSION
from datamodules.corpora import manifest_corpus
from datamodules.corpora.manifest import file_path, read_manifest, write_manifest
from spectrostream_cli import main

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Music, a configuration, and a run of three steps."""
    shop = tmp_path_factory.mktemp("shop")
    write_music(shop / "music", tracks=1)
    write_config(shop)
    assert train(shop, shop / "run") == 0
    return shop


@pytest.fixture
def run(shop: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop / "run", tmp_path / "run"))


def train(shop: Path, out: Path, *words: str) -> int:
    return main(["train", f"config={shop / 'minute.yaml'}", f"data.root={shop / 'music'}", f"out={out}", *words])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_each_difference_is_named_with_both_values(shop: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    assert train(shop, run, "training.max_steps=5", "training.generator.learning_rate=0.5", "trainer.threads=2") == 1
    error = capsys.readouterr().err
    assert "training.max_steps was 3 and is 5, training.generator.learning_rate was 0.0001 and is 0.5;" in error
    assert "add --accept-changes to resume from step 3" in error
    assert "threads" not in error
    assert content(run) == before


def test_accepted_changes_resume_and_are_recorded(shop: Path, run: Path) -> None:
    assert train(shop, run, "training.max_steps=5", "--accept-changes") == 0
    assert read_json(run / "trained.json")["steps"] == 5
    changes = [{"step": 3, "changed": {"training.max_steps": {"then": 3, "now": 5}}}]
    assert read_json(run / "run.json")["changes"] == changes
    # It is the new run now: the same words go on without the flag, and the record stays.
    assert train(shop, run, "training.max_steps=5") == 0
    assert train(shop, run, "training.max_steps=6", "--accept-changes") == 0
    changes.append({"step": 5, "changed": {"training.max_steps": {"then": 5, "now": 6}}})
    assert read_json(run / "run.json")["changes"] == changes


def test_keys_outside_the_signature_may_change(shop: Path, run: Path) -> None:
    assert train(shop, run, "trainer.threads=2", "trainer.log_every=3", "evaluation.workers=2") == 0
    assert read_json(run / "run.json")["changes"] == []


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("model.encoder_width=3", "model.encoder_width"),
        ("model.quantizer.initial_vectors=40", "model.quantizer.initial_vectors"),
        ("discriminator.width=3", "discriminator.width"),
        ("training.freeze=[encoder]", "training.freeze"),
        ("training.generator.betas=[0.1,0.2]", "training.generator.betas"),
    ],
)
def test_changes_that_a_checkpoint_cannot_resume_with_are_refused_with_accept_changes(
    shop: Path, run: Path, capsys: pytest.CaptureFixture[str], word: str, key: str
) -> None:
    before = content(run)
    assert train(shop, run, word, "--accept-changes") == 1
    error = capsys.readouterr().err
    assert f"a checkpoint cannot be resumed with another value of {key}, so --accept-changes does not help" in error
    assert content(run) == before


def test_how_codebooks_learn_may_change(shop: Path, run: Path) -> None:
    assert train(shop, run, "model.quantizer.decay=0.5", "training.max_steps=4", "--accept-changes") == 0
    assert read_json(run / "trained.json")["steps"] == 4


def test_another_corpus_is_named_as_such(
    shop: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    music = write_music(tmp_path / "other", tracks=2)
    assert train(shop, run, f"data.root={music}") == 1
    error = capsys.readouterr().err
    assert "configuration or corpus: the corpus' fingerprint was '" in error
    assert "training." not in error.replace(str(tmp_path), "")
    assert train(shop, run, f"data.root={music}", "training.max_steps=4", "--accept-changes") == 0
    assert set(read_json(run / "run.json")["changes"][0]["changed"]) == {
        "the corpus' fingerprint",
        "training.max_steps",
    }


def test_skipped_files_are_counted_by_reason_and_the_first_are_listed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "m.parquet"
    assert main(["data", "scan", str(shop / "music"), "--workers", "1", "--out", str(manifest)]) == 0
    table = read_manifest(manifest)
    bad = [table.assign(name=f"{number}.m4a", problem=f"reason {number % 2}") for number in range(301)]
    write_manifest(pandas.concat([table, *bad], ignore_index=True), manifest)
    made = []

    def counted(root: str, name: str) -> Path:
        made.append(name)
        return file_path(root, name)

    monkeypatch.setattr(manifest_corpus, "file_path", counted)
    words = [f"config={shop / 'minute.yaml'}", f"data={manifest}", f"out={tmp_path / 'run'}"]
    assert main(["train", *words, "training.max_steps=1"]) == 0
    facts = read_json(tmp_path / "run" / "run.json")
    assert facts["skipped_by_reason"] == {"reason 0": 151, "reason 1": 150}
    assert len(facts["skipped_files"]) == 100
    assert len(made) == 100  # a corpus may have a hundred thousand


def test_the_same_music_elsewhere_is_the_same_run(shop: Path, run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(shop / "music", tmp_path / "moved")
    assert train(shop, run, f"data.root={moved}") == 0


def test_a_folder_of_another_version_is_named(
    shop: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("signature", "run_record"):
        monkeypatch.setattr(f"ablations.{module}.TRAINING_VERSION", 99)
    assert train(shop, run) == 1
    assert f"the version of the training code was {TRAINING_VERSION} and is 99" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_explained(
    shop: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone put it there: the folder's own configuration cannot know."""
    assert train(shop, tmp_path / "wide", "model.encoder_width=3") == 0
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(tmp_path / "wide" / "checkpoints", run / "checkpoints")
    (run / "trained.json").unlink()
    capsys.readouterr()
    assert train(shop, run) == 1
    error = capsys.readouterr().err
    assert "the checkpoint is of another model" in error
    assert "Traceback" not in error


def test_a_folder_with_other_files_is_refused_and_unchanged(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("README.md", "config.yaml", "notes.txt", "run.json"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "cells").mkdir()
    before = content(tmp_path)
    assert train(shop, tmp_path) == 1
    error = capsys.readouterr().err
    assert f"out = {tmp_path} holds README.md, cells, config.yaml and 2 more, but no training run" in error
    assert f"type out={tmp_path / 'run'}" in error
    (tmp_path / "run.json").write_text('{"speed": 3}')
    monkeypatch.chdir(tmp_path)
    assert train(shop, Path()) == 1
    assert "a new or an empty folder; type out=run\n" in capsys.readouterr().err
    assert content(tmp_path) == {**before, str(tmp_path / "run.json"): b'{"speed": 3}'}


@pytest.mark.parametrize(
    "left", [(), ("lock",), ("lock", "start.json"), ("lock", "run.json.77.partial"), ("lock", "start.json.7.partial")]
)
def test_a_training_that_was_killed_early_can_use_its_folder_again(shop: Path, tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("{}")
    assert train(shop, tmp_path, "training.max_steps=1") == 0


def test_a_killed_training_without_a_signature_resumes(shop: Path, run: Path) -> None:
    for name in ("signature.json", "README.md", "config.yaml", "trained.json"):
        (run / name).unlink()
    (run / "my notes.txt").write_text("they may lie in a run")
    assert train(shop, run) == 0


def test_a_study_is_refused_in_a_folder_with_other_files(
    shop: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path)
    mine = tmp_path / "mine"
    (mine / "report").mkdir(parents=True)
    (mine / "report" / "index.html").write_text("mine")
    for out in (mine, run):
        before = content(out)
        assert main(["ablate", f"study={study}", f"data.root={shop / 'music'}", f"out={out}"]) == 1
        error = capsys.readouterr().err
        assert "but no study, and files there might be overwritten" in error
        assert f"type out={out / 'study'}" in error
        assert content(out) == before


def test_a_study_can_use_its_own_folder_again(tmp_path: Path) -> None:
    for name in ("start.json", "cells/fusion-3-0123456789ab", "report"):
        require_study_or_empty(tmp_path)
        (tmp_path / name).mkdir(parents=True)
    require_study_or_empty(tmp_path)
    (tmp_path / "cells" / "fusion-3-0123456789ab").rmdir()
    with pytest.raises(ConfigError, match="but no study"):
        require_study_or_empty(tmp_path)
