"""Being written."""

from __future__ import annotations

import argparse

from spectrostream.cli.command import Commands


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Declares its commands."""
