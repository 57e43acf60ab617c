"""All commands with their arguments. It imports no large package, so that `--help` answers at once."""

from __future__ import annotations

import argparse

from spectrostream_cli import exporting, inspection, training
from spectrostream_cli.coding import commands as coding
from spectrostream_cli.coding import live
from spectrostream_cli.data import commands as data


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `spectrostream` with all commands."""
    parser = argparse.ArgumentParser(
        prog="spectrostream",
        description="Train, compare and use SpectroStream, a 48 kHz stereo neural audio codec.",
        epilog="`spectrostream COMMAND --help` has examples.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (training, data, coding, live, inspection, exporting):
        group.add_commands(commands)
    return parser
