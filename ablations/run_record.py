"""Records what a run's folder was made with, and refuses to resume it with another configuration or corpus."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ablations.compose import ConfigError, leaves, load_layer, to_plain, to_yaml
from ablations.initial_weights import LEARNING_KEYS
from ablations.provenance import git_revision, package_versions, read_json, write_json
from ablations.run_folder import NAMES, RunFolder
from ablations.run_readme import write_readme
from ablations.schema import ExperimentConfig
from ablations.signature import TRAINING_VERSION, is_in_signature, signature
from datamodules.corpora.manifest_corpus import skip_reasons
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules.checkpoints import latest_valid_checkpoint
from spectrostream.atomic_files import UNFINISHED, write_whole

# A corpus may have a hundred thousand unusable files; its manifest lists them all.
_LISTED = 100
_ABSENT = object()
Changes = dict[str, tuple[Any, Any]]
"""Key, or a description -> the recorded value and the present one."""

CORPUS = "the corpus' fingerprint"
WEIGHTS = "the fingerprint of the weights at training.start_from"
VERSION = "the version of the training code"
# A checkpoint fixes these keys: their shapes would not fit, or the checkpoint would silently restore the old value.
_FIXED = ("model.", "discriminator.", "training.freeze", "training.recipe", WEIGHTS)
_FIXED_ENDS = (".betas", ".weight_decay")
RUNS = "cells"  # in a study's folder
# The files that exist before run.json: a training that is killed early leaves only these.
# Earlier versions wrote to a file with the ending .partial first.
_START, _FACTS = re.escape(NAMES.start.name), re.escape(NAMES.facts.name)
_STARTS = rf"{_START}|{_START}\.\d+\.partial|\.{_START}{UNFINISHED}"
_RUN_BEGINS = re.compile(rf"{NAMES.lock}|{_STARTS}|{_FACTS}\.\d+\.partial|\.{_FACTS}{UNFINISHED}")
_STUDY_BEGINS = re.compile(rf"{RUNS}|{_STARTS}")
_RUN_NAME = re.compile(r".+-[0-9a-f]{12}")  # see `folder_of`
_NAMED = 3
_FREE = tuple(key for key in LEARNING_KEYS if not key.endswith("initial_vectors"))


def require_run_or_empty(out: Path) -> None:
    """Check that no other files can be overwritten in `out`.

    Raises:
        ConfigError: `out` holds files, but no training run.
    """
    names = _names(out)
    if not all(map(_RUN_BEGINS.fullmatch, names)) and not _is_run(out):
        raise _other_files(out, names, "no training run", "run")


def require_study_or_empty(out: Path) -> None:
    """Check that no other files can be overwritten in `out`.

    Raises:
        ConfigError: `out` holds files, but no study.
    """
    names = _names(out)
    if not all(map(_STUDY_BEGINS.fullmatch, names)) and not any(map(_RUN_NAME.fullmatch, _names(out / RUNS))):
        raise _other_files(out, names, "no study", "study")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _is_run(out: Path) -> bool:
    try:
        facts = read_json(RunFolder(out).facts)
    except (ValueError, OSError):  # another program's run.json, or a folder of that name
        return False
    return isinstance(facts, dict) and "data_fingerprint" in facts


def _other_files(out: Path, names: list[str], missing: str, example: str) -> ConfigError:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ConfigError(
        f"out = {out} holds {', '.join(names[:_NAMED])}{more}, but {missing}, and files there might be overwritten; "
        f"allowed: a new or an empty folder; type out={out / example}"
    )


def describe(folder: Path, config: ExperimentConfig, data: StereoMusicDataModule, start_fingerprint: str) -> None:
    """Write config.yaml, run.json and README.md; run.json keeps the revisions and changes of earlier starts."""
    before = read_json(RunFolder(folder).facts) or {}
    revisions = [before["git_revision"]] if before else []
    start = {"source": config.training.start_from, "fingerprint": start_fingerprint} if start_fingerprint else None
    facts = {
        "command": shlex.join(sys.argv),
        "git_revision": " then ".join(dict.fromkeys([*revisions, git_revision()])),
        "versions": package_versions(),
        "data": data.describe(),
        "data_fingerprint": data.fingerprint,
        "validation_shares_test_music": data.split.is_shared,
        "skipped_files": {str(file.path): file.reason for file in data.corpus.skipped[:_LISTED]},
        "skipped_by_reason": dict(skip_reasons(data.corpus.skipped).most_common(_LISTED)),
        "start": start,
        "training_version": TRAINING_VERSION,
        "changes": before.get("changes", []),
    }
    write_json(facts, RunFolder(folder).facts)
    write_whole(RunFolder(folder).config, to_yaml(config))
    write_readme(folder, config, facts)


def require_same_run(
    out: Path, config: ExperimentConfig, data_fingerprint: str, start_fingerprint: str, *, accept_changes: bool
) -> Changes:
    """Compare with the run that `out` holds, if any.

    Args:
        start_fingerprint: Of the weights that the run starts from; empty for none.
        accept_changes: Return the differences instead of an error, if the checkpoint allows them.

    Returns:
        The accepted differences; empty for the same run and for a new folder.

    Raises:
        ConfigError: The run differs; the message names each difference with both values.
    """
    before = read_json(RunFolder(out).signature)
    if before is None or before == signature(config, data_fingerprint, start_fingerprint):
        return {}
    changes = _changes(out, config, data_fingerprint, start_fingerprint)
    differences = f"{out} holds a run of another configuration or corpus: {_in_words(changes)}"
    step = newest_step(out)
    if not accept_changes:
        raise ConfigError(
            f"{differences}; type the earlier values, add --accept-changes to resume from step {step} with the new "
            "ones, or choose another folder with out=FOLDER"
        )
    fixed = [key for key in changes if _is_fixed(key)]
    if fixed and step:
        raise ConfigError(
            f"{differences}; a checkpoint cannot be resumed with another value of {', '.join(fixed)}, so "
            "--accept-changes does not help; choose another folder with out=FOLDER"
        )
    return changes


def claim(
    out: Path, config: ExperimentConfig, data: StereoMusicDataModule, start_fingerprint: str, changes: Changes
) -> None:
    """Make `out` this run's folder; run.json records accepted changes with the step at which they begin."""
    if changes:
        RunFolder(out).trained.unlink(missing_ok=True)  # with the new values the training may need more steps
    if not RunFolder(out).trained.exists():
        describe(out, config, data, start_fingerprint)
    if changes:
        facts = read_json(RunFolder(out).facts)
        changed = {key: {"then": _shown(then), "now": _shown(now)} for key, (then, now) in changes.items()}
        facts["changes"].append({"step": newest_step(out), "changed": changed})
        write_json(facts, RunFolder(out).facts)
    write_json(signature(config, data.fingerprint, start_fingerprint), RunFolder(out).signature)


def newest_step(out: Path) -> int:
    """Return the generator updates of the newest valid checkpoint; 0 without one."""
    newest = latest_valid_checkpoint(RunFolder(out).checkpoints)
    return int(newest.stem.rpartition("-")[2]) if newest else 0  # step-00000100, or best-step-00000100


def _changes(out: Path, config: ExperimentConfig, data_fingerprint: str, start_fingerprint: str) -> Changes:
    path = RunFolder(out).config
    then = leaves(OmegaConf.to_container(load_layer(path))) if path.exists() else {}
    now = leaves(to_plain(config))
    run = read_json(RunFolder(out).facts) or {}
    facts = {CORPUS: run.get("data_fingerprint"), WEIGHTS: (run.get("start") or {}).get("fingerprint", "")}
    facts[VERSION] = run.get("training_version")
    own = {CORPUS: data_fingerprint, WEIGHTS: start_fingerprint, VERSION: TRAINING_VERSION}
    keys = [key for key in {**then, **now} if is_in_signature(key)]
    differing = {key: (then.get(key, _ABSENT), now.get(key, _ABSENT)) for key in keys if then}
    recorded = {key: (facts[key], own[key]) for key in own if run}
    return {key: pair for key, pair in (differing | recorded).items() if pair[0] != pair[1]}


def _in_words(changes: Changes) -> str:
    words = [f"{key} was {_shown(then)!r} and is {_shown(now)!r}" for key, (then, now) in changes.items()]
    return ", ".join(words) or "its configuration is not recorded"


def _shown(value: Any) -> Any:
    if value is _ABSENT:
        return "absent"
    # The beginning of a corpus' SHA-256 is enough to distinguish two.
    return f"{value[:12]}.." if isinstance(value, str) and len(value) == 64 else value


def _is_fixed(key: str) -> bool:
    return key not in _FREE and (key.startswith(_FIXED) or key.endswith(_FIXED_ENDS))
