"""`data scan | stats | prepare | build | segments`: music corpora from folders to training."""

from __future__ import annotations

import argparse

from spectrostream_cli.command import Commands
from spectrostream_cli.data import build as data_building
from spectrostream_cli.data import prepare as data_preparing
from spectrostream_cli.data import scan as data_scanning
from spectrostream_cli.data import segments as data_segments


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `data` and its commands."""
    data = commands.add_parser(
        "data",
        help="measure, prepare and build music corpora",
        description="Measure, prepare and build music corpora.",
        epilog="`spectrostream data COMMAND --help` has examples.",
    )
    below = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    for group in (data_building, data_scanning, data_preparing, data_segments):
        group.add_commands(below)
