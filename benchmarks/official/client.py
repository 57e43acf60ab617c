"""The driver's side: starts the worker in the official environment and asks it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.official.protocol import EndOfMessagesError, ProtocolError, read_message, write_message
from spectrostream.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = REPOSITORY / ".venv-official"
CLOSING_SECONDS = 10
LAST_WORDS = 2000  # characters of the worker's standard error that an error quotes


class OfficialWorkerError(UserError):
    """The official environment is missing, or its worker could not do what was asked."""


def official_python(environment: Path = ENVIRONMENT) -> Path:
    """The official environment's interpreter. Raises OfficialWorkerError, saying what to type, if there is none."""
    python = environment / "bin" / "python"
    if not python.is_file():
        raise OfficialWorkerError(
            f"the official implementation's environment {environment} is not there; type: make official-environment"
        )
    return python


class OfficialWorker:
    """A running worker; `ask` waits for its answer, so that only one of the two processes computes.

    Used as `with OfficialWorker.start(threads=2) as worker: worker.ask("versions")`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """command: what to run; it speaks `protocol` on its standard input and output."""
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed with the worker
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    @classmethod
    def start(cls, *, threads: int, environment: Path = ENVIRONMENT) -> OfficialWorker:
        """The official implementation with so many threads. Raises OfficialWorkerError without its environment."""
        python = official_python(environment)
        return cls([str(python), "-m", "benchmarks.official.worker", "--threads", str(threads)])

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer's result. Raises OfficialWorkerError for an error, or if the worker has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._process.stdin.closed:  # it ended during an earlier request
                raise BrokenPipeError
            write_message(self._process.stdin, {"command": command, **arguments})
            answer = read_message(self._process.stdout)
        except (EndOfMessagesError, BrokenPipeError):
            raise OfficialWorkerError(f"the official worker ended during {command!r}: {self._last_words()}") from None
        except ProtocolError as error:
            raise OfficialWorkerError(f"the official worker's answer to {command!r} is none: {error}") from None
        if "error" in answer:
            raise OfficialWorkerError(f"the official worker reports: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _last_words(self) -> str:
        self._end()
        self._log.seek(0)
        return f"exit code {self._process.returncode}\n{self._log.read()[-LAST_WORDS:]}"

    def close(self) -> None:
        """Ends the worker: it reads the end of its input, or is ended after a while."""
        self._end()
        self._log.close()

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what a dead worker never read
                    stream.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> OfficialWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
