"""How a command is declared, and the options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

STANDARD_STREAM = "-"
PRECISIONS = ("float32", "bfloat16", "int8")

# Does the work; returns the last line.
Run = Callable[[argparse.Namespace, "Console"], str]
Commands = argparse._SubParsersAction


def add_command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    run: Run,
    summary: str,
    examples: str,
    *,
    stdout_is_data: Callable[[argparse.Namespace], bool] = lambda arguments: False,
    when_stopped: str = "stopped; type the same command again to go on",
) -> argparse.ArgumentParser:
    """A command whose `--help` ends with examples.

    stdout_is_data: whether the standard output carries bytes, so that words must go to the standard error.
    when_stopped: what is said after Ctrl-C.
    """
    command = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, stdout_is_data=stdout_is_data, when_stopped=when_stopped)
    return command


def add_codec_options(command: argparse.ArgumentParser) -> None:
    """Which codec, and how it computes."""
    add_weights(command)
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the networks; bfloat16 is for processors with units for it, int8 for CPUs with VNNI; "
        "both change some codes",
    )
    command.add_argument(
        "--compile", action="store_true", help="torch.compile: minutes at first, faster after; needs a C++ compiler"
    )


def add_weights(command: argparse.ArgumentParser) -> None:
    """Which codec."""
    command.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="codec.safetensors, the folder of a run, a folder with the official files, or a hub id owner/name",
    )


def add_rate(command: argparse.ArgumentParser, default: str | None = "the highest") -> None:
    """How many levels, in one of two ways; without a default one of them must be given."""
    rate = command.add_mutually_exclusive_group(required=default is None)
    otherwise = f" (default: {default})" if default else ""
    rate.add_argument("--kbps", type=float, help=f"rate of all channels together, never exceeded{otherwise}")
    rate.add_argument("--levels", type=int, help="number of quantizer levels")


def add_overwrite(command: argparse.ArgumentParser) -> None:
    """What happens to files that are there."""
    command.add_argument("--overwrite", action="store_true", help="write again what is already there")
