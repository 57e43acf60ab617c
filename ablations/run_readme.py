"""The README.md in a run's folder: the command, the versions, the corpus, and what each file is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablations.run_folder import NAMES, RunFolder
from ablations.schema import ExperimentConfig
from spectrostream.atomic_files import write_whole


def write_readme(folder: Path, config: ExperimentConfig, facts: Mapping[str, Any]) -> None:
    """Write the README.md of a run; `facts` is the content of its run.json."""
    write_whole(RunFolder(folder).readme, readme(folder.resolve().name, config, facts))


def readme(name: str, config: ExperimentConfig, facts: Mapping[str, Any]) -> str:
    """Return the text in Markdown; it lists the files that this configuration writes."""
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = [
        f"# {name}",
        "",
        "A training run. Run the same command again to resume it:",
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
    yield str(NAMES.weights), "the trained codec, written when training is done; `--weights` takes it, or this folder"
    yield str(NAMES.config), "the whole configuration, defaults included"
    yield str(NAMES.facts), "command, revisions, versions, corpus and skipped files, for programs"
    yield str(NAMES.trained), "updates, seconds of training, seconds of audio; written when training is done"
    yield f"{NAMES.checkpoints}/", "checkpoints to resume from, each with its SHA-256"
    yield str(NAMES.log("000")), "losses, speed and validation by generator update; one folder for each start"
    if trainer.tensorboard:
        yield f"{NAMES.tensorboard}/", "the same for TensorBoard: `tensorboard --logdir FOLDER`"
    if trainer.wandb != "disabled":
        yield f"wandb/, {NAMES.wandb_id}", "the same for Weights & Biases; after offline runs `wandb sync` uploads it"
    if trainer.samples_every:
        yield (
            f"{NAMES.samples}/step-00000000/",
            "held-out segments after that update: original, decoded, spectrograms, codebooks",
        )
    yield f"{NAMES.bad_batches}/", "the music of updates that were skipped, if any were"
    yield str(NAMES.unreadable), "music files that could not be read in training and were replaced by others, if any"
    yield str(NAMES.lock), "locked while a process uses this folder"
    yield str(NAMES.signature), "of `train` only: the identity of configuration and corpus"
    yield (
        f"{NAMES.records}, {NAMES.card('*')}, {NAMES.audio}/",
        "of a study only: scores, facts about the codec, decoded held-out segments",
    )
    yield f"{NAMES.done}, {NAMES.failed}", "of a study only: the run is trained and evaluated, or the reason why not"
