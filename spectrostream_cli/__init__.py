"""The command line: `spectrostream train | ablate | report | encode | decode | repack | stream | info | export`.

Each command imports what it needs when it runs, so that `--help` answers at once.
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
    """Run one command.

    Args:
        arguments: The words after `spectrostream`; those of the process if None.

    Returns:
        The exit code: 0 for success, 1 for an explained mistake, 75 for a training that a signal stopped and that can
        be resumed, 130 after Ctrl-C, 141 if the reader of a pipe has ended. argparse exits with 2 itself.
    """
    # All other imports happen inside functions, so that Ctrl-C during an import shows no traceback either.
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
    except KeyboardInterrupt as interrupt:  # a training's message says what was saved
        return _interrupted(str(interrupt) or parsed.when_stopped)
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    from spectrostream_cli.parser import build_parser

    return build_parser().parse_args(arguments)


def _run(parsed: argparse.Namespace) -> None:
    import logging

    from rich.console import Console

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # No text may come between the bytes of a pipe.
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

    # The interpreter flushes the standard output again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.write("stopped: nobody reads the output any more\n")
    return _BROKEN_PIPE
