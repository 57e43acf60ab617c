"""The README.md in a run's folder: what was trained with which words, and what each file is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablations.run_folder import NAMES, RunFolder
from ablations.schema import ExperimentConfig
from spectrostream.atomic_files import write_whole


def write_readme(folder: Path, config: ExperimentConfig, facts: Mapping[str, Any]) -> None:
    """For people; `facts` is what run.json has for programs."""
    write_whole(RunFolder(folder).readme, readme(folder.resolve().name, config, facts))


def readme(name: str, config: ExperimentConfig, facts: Mapping[str, Any]) -> str:
    """Markdown; the files are those that this configuration makes."""
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = [
        f"# {name}",
        "",
        "A training run. The command that made it; typed again, it goes on where it stopped:",
        "",
        f"    {facts['command']}",
        "",
        f"- code: git revision {facts['git_revision'] or 'unknown (not run from a repository)'}",
        f"- versions: {versions}",
        f"- corpus: {facts['data']}, fingerprint {facts['data_fingerprint'][:12]}",
        "",
        "| file | what it is |",
        "|---|---|",
        *(f"| `{file}` | {meaning} |" for file, meaning in _files(config)),
    ]
    return "\n".join(lines) + "\n"


def _files(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    trainer = config.trainer
    yield str(NAMES.weights), "the trained codec, there when training is done; `--weights` takes it, or this folder"
    yield str(NAMES.config), "the whole configuration, defaults included"
    yield str(NAMES.facts), "command, revisions, versions, corpus and skipped files, for programs"
    yield str(NAMES.trained), "updates, seconds of training and of audio heard; there when training is done"
    yield f"{NAMES.checkpoints}/", "states to go on from, each with its SHA-256"
    yield str(NAMES.log("000")), "losses, speed and validation by generator update; one folder for each start"
    if trainer.tensorboard:
        yield f"{NAMES.tensorboard}/", "the same for TensorBoard: `tensorboard --logdir FOLDER`"
    if trainer.wandb != "disabled":
        yield f"wandb/, {NAMES.wandb_id}", "the same for Weights & Biases; after offline runs `wandb sync` uploads it"
    if trainer.samples_every:
        yield (
            f"{NAMES.samples}/step-00000000/",
            "held-out clips after that update: original, decoded, spectrograms, codebooks",
        )
    yield f"{NAMES.bad_batches}/", "the music of updates that were skipped, if any were"
    yield str(NAMES.unreadable), "files that could not be read while training and were replaced by others, if any"
    yield str(NAMES.lock), "held while a process works here"
    yield str(NAMES.signature), "of `train` only: the identity of configuration and corpus"
    yield (
        f"{NAMES.records}, {NAMES.card('*')}, {NAMES.audio}/",
        "of a study only: scores, the system in numbers, coded held-out segments",
    )
    yield f"{NAMES.done}, {NAMES.failed}", "of a study only: trained and evaluated; or why not"
