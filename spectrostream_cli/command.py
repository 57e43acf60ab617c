"""Adds commands to the parser, and options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

STANDARD_STREAM = "-"
PRECISIONS = ("float32", "bfloat16", "int8")

Run = Callable[[argparse.Namespace, "Console"], str]
"""Runs a command; returns the last line of its output."""
Commands = argparse._SubParsersAction


def add_command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    run: Run,
    summary: str,
    examples: str,
    *,
    stdout_is_data: Callable[[argparse.Namespace], bool] = lambda arguments: False,
    when_stopped: str = "stopped; run the same command again to resume",
) -> argparse.ArgumentParser:
    """Add a command whose `--help` ends with examples.

    Args:
        stdout_is_data: Returns True if the standard output carries data, so that text goes to the standard error.
        when_stopped: The last line after Ctrl-C.
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
    """Add the options that choose the codec and how it computes."""
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
    """Add the option that chooses the codec."""
    command.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="codec.safetensors, the folder of a run, a folder with the official files, or a hub id owner/name",
    )


def add_rate(command: argparse.ArgumentParser, default: str | None = "the highest") -> None:
    """Add the two options for the number of levels; if `default` is None, one of them is required."""
    rate = command.add_mutually_exclusive_group(required=default is None)
    otherwise = f" (default: {default})" if default else ""
    rate.add_argument("--kbps", type=float, help=f"rate of all channels together, never exceeded{otherwise}")
    rate.add_argument("--levels", type=int, help="number of quantizer levels")


def add_overwrite(command: argparse.ArgumentParser) -> None:
    """Add the option that replaces existing files."""
    command.add_argument("--overwrite", action="store_true", help="replace existing files")
