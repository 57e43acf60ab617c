"""`train`, `ablate` and `report`: the words `key=value`, handed to the room that assembles experiments."""

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

Without out= the folder is runs/ and the configuration's name. Started again with the same words, it goes on where it
stopped."""
# Before its first update, or by a second Ctrl-C: else it is saved and says so itself.
_WHEN_STOPPED = "stopped; type the same command again to go on from the last checkpoint, if there is one"
_ABLATE = """  spectrostream ablate study=demo out=runs/demo
  spectrostream ablate study=my_study.yaml data=/music out=runs/mine jobs=2

Finished runs are not repeated, interrupted ones go on, a failed one does not stop the rest."""
_REPORT = """  spectrostream report study=demo out=runs/demo

Writes the report again from what lies in the folder."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Declares train, ablate and report."""
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
                help="go on with a run under other values than it was begun with; run.json records which and when",
            )
            command.set_defaults(when_stopped=_WHEN_STOPPED)


def _train(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import train
    from ablations.run_folder import RunFolder
    from spectrostream_cli.run_progress import ConsoleDisplay

    given, overrides = split_words(arguments.words, required=("config",), optional=("out",))
    out = Path(given.get("out") or f"runs/{Path(given['config']).stem}")
    weights = train(given["config"], overrides, out, ConsoleDisplay(console), accept_changes=arguments.accept_changes)
    return f"trained: {weights} (what lies beside it: {RunFolder(weights.parent).readme})"


def _ablate(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import ablate
    from spectrostream_cli.run_progress import ConsoleDisplay

    given, overrides = split_words(arguments.words, required=("study", "out"), optional=("jobs",))
    jobs = _positive("jobs", given["jobs"]) if "jobs" in given else None
    page, failed = ablate(given["study"], overrides, Path(given["out"]), jobs, ConsoleDisplay(console))
    if failed:
        raise UserError(f"{failed} runs failed and are marked so in {page}; run again to retry them")
    return f"report: {page}"


def _report(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import report
    from spectrostream_cli.run_progress import ConsoleDisplay

    given, overrides = split_words(arguments.words, required=("study", "out"))
    return f"report: {report(given['study'], overrides, Path(given['out']), ConsoleDisplay(console))}"


def split_words(
    words: Sequence[str], *, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The command's own `key=value` words, and the overrides. UserError if a required one is missing."""
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
