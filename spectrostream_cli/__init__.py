"""The command line: `spectrostream train | ablate | report | encode | decode | repack | stream | info | export`.

The front door alone may reach every room, and does so inside its commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from spectrostream.errors import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    0; 1 for an explained mistake; 2 from argparse; 75 for a training that made room and goes on when started again; 130
    when interrupted; 141 when the reader of a pipe has gone.
    """
    # All other imports are made within: Ctrl-C while they last is no traceback either.
    try:
        parsed = _parsed(arguments)
    except KeyboardInterrupt:
        return _interrupted("stopped")
    try:
        _run(parsed)
    except UserError as error:
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:
        return _reader_has_gone()
    except OSError as error:  # no permission, no space, a folder where a file should be
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}")
    except KeyboardInterrupt as interrupt:  # a training says itself what it has saved
        return _interrupted(str(interrupt) or parsed.when_stopped)
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    from spectrostream_cli.parser import build_parser

    return build_parser().parse_args(arguments)


def _run(parsed: argparse.Namespace) -> None:
    import logging

    from rich.console import Console

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Words must not get between the bytes of a pipe.
    console = Console(stderr=parsed.stdout_is_data(parsed))
    last_line = parsed.run(parsed, console)
    console.print(last_line, markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()


def _interrupted(last_line: str) -> int:
    sys.stderr.write(f"\n{last_line}\n")
    return _INTERRUPTED


def _failed(message: str, exit_code: int = 1) -> int:
    if exit_code:
        sys.stderr.write(f"error: {message}\n")
    return exit_code


def _reader_has_gone() -> int:
    import os

    # The interpreter flushes the standard output once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.write("stopped: nobody reads the output any more\n")
    return _BROKEN_PIPE
