"""`train`, `ablate` and `report`: read their `key=value` words and call `ablations`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectrostream.errors import UserError
from spectrostream_cli.command import Commands, add_command

if TYPE_CHECKING:
    from rich.console import Console

_TRAIN = """  spectrostream train config=tiny out=runs/tiny
  spectrostream train config=small data=/music out=runs/small training.max_steps=200000 trainer.devices=2
  spectrostream train config=tiny out=runs/fusion3 model.fusion=3
  spectrostream train config=tiny out=runs/finer training.start_from=runs/tiny "training.freeze=[encoder,codebooks]"

Without out= the folder is runs/ and the configuration's name. Run the same command again to resume a training."""
# Shown before the first update and after a second Ctrl-C; otherwise the training saves and has its own message.
_WHEN_STOPPED = "stopped; run the same command again to resume from the last checkpoint, if there is one"
_ABLATE = """  spectrostream ablate study=demo out=runs/demo
  spectrostream ablate study=my_study.yaml data=/music out=runs/mine jobs=2

Finished runs are not repeated, interrupted runs resume, a failed run does not stop the rest."""
_REPORT = """  spectrostream report study=demo out=runs/demo

Writes the report again from the results in the folder."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add train, ablate and report."""
    words = "key=value words; dotted keys override the configuration, for instance training.max_steps=1000"
    for name, run, summary, examples, usage in (
        (
            "train",
            _train,
            "train one codec",
            _TRAIN,
            "config=NAME|FILE [out=FOLDER] [data=FOLDER] [key=value ...] [--accept-changes]",
        ),
        (
            "ablate",
            _ablate,
            "run a study and write its report",
            _ABLATE,
            "study=NAME|FILE out=FOLDER [jobs=N] [key=value ...]",
        ),
        ("report", _report, "write a study's report again", _REPORT, "study=NAME|FILE out=FOLDER [key=value ...]"),
    ):
        command = add_command(commands, name, run, summary, examples)
        command.usage = f"spectrostream {name} {usage}"
        command.add_argument("words", nargs="*", metavar="key=value", help=words)
        if name == "train":
            command.add_argument(
                "--accept-changes",
                action="store_true",
                help="resume a run with changed values; run.json records the changes and their step",
            )
            command.set_defaults(when_stopped=_WHEN_STOPPED)


def _train(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import train
    from ablations.run_folder import RunFolder
    from spectrostream_cli.run_progress import ConsoleDisplay

    given, overrides = split_words(arguments.words, required=("config",), optional=("out",))
    out = Path(given.get("out") or f"runs/{Path(given['config']).stem}")
    weights = train(given["config"], overrides, out, ConsoleDisplay(console), accept_changes=arguments.accept_changes)
    return f"trained: {weights} (the other files: {RunFolder(weights.parent).readme})"


def _ablate(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import ablate
    from spectrostream_cli.run_progress import ConsoleDisplay

    given, overrides = split_words(arguments.words, required=("study", "out"), optional=("jobs",))
    jobs = _positive("jobs", given["jobs"]) if "jobs" in given else None
    page, failed = ablate(given["study"], overrides, Path(given["out"]), jobs, ConsoleDisplay(console))
    if failed:
        raise UserError(f"{failed} runs failed, see {page}; run the same command again to retry them")
    return f"report: {page}"


def _report(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import report
    from spectrostream_cli.run_progress import ConsoleDisplay

    given, overrides = split_words(arguments.words, required=("study", "out"))
    return f"report: {report(given['study'], overrides, Path(given['out']), ConsoleDisplay(console))}"


def split_words(
    words: Sequence[str], *, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Split `key=value` words into those of the command itself and the overrides of the configuration.

    Returns:
        Key -> value of the required and optional words, and all other words.

    Raises:
        UserError: A required word is missing.
    """
    given: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in (*required, *optional):
            given[key] = value
        else:
            overrides.append(word)
    missing = [key for key in required if not given.get(key)]
    if missing:
        raise UserError(f"{' and '.join(f'{key}=..' for key in missing)} is missing; see --help for examples")
    return given, overrides


def _positive(key: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"{key} = {value!r} is not possible; allowed: a whole number, 1 or more")
    return int(value)
