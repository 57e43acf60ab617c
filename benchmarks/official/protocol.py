"""Requests and answers as JSON lines: one object a line, an answer for each request, in order.

request: `{"command": name, ...arguments}`; answer: `{"result": {...}}` or `{"error": "one line"}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import IO, Any

Handler = Callable[..., dict[str, Any]]


class ProtocolError(Exception):
    """A line that is no message of this protocol."""


class EndOfMessagesError(ProtocolError):
    """The other side has closed the stream."""


def write_message(stream: IO[str], message: Mapping[str, Any]) -> None:
    """One line, flushed; numbers that JSON lacks (NaN, infinity) raise ValueError."""
    stream.write(_line(message))
    stream.flush()


def _line(message: Mapping[str, Any]) -> str:
    return json.dumps(message, allow_nan=False) + "\n"


def read_message(stream: IO[str]) -> dict[str, Any]:
    """The next message. Raises EndOfMessagesError at the end, ProtocolError for a line that is no JSON object."""
    line = stream.readline()
    if not line:
        raise EndOfMessagesError("the stream has ended")
    try:
        message = json.loads(line)
    except json.JSONDecodeError as error:
        raise ProtocolError(f"{line[:80]!r} is not JSON: {error}") from None
    if not isinstance(message, dict) or not line.endswith("\n"):
        raise ProtocolError(f"{line[:80]!r} is not a whole JSON object on a line")
    return message


def serve(handlers: Mapping[str, Handler], requests: IO[str], answers: IO[str]) -> None:
    """Answers requests until their stream ends. A handler that raises costs its request, not the server."""
    while True:
        try:
            request = read_message(requests)
        except EndOfMessagesError:
            return
        except ProtocolError as error:
            write_message(answers, {"error": str(error)})
            continue
        answers.write(_answer(handlers, request))
        answers.flush()


def _answer(handlers: Mapping[str, Handler], request: dict[str, Any]) -> str:
    command = request.pop("command", None)
    if not isinstance(command, str) or command not in handlers:
        return _line({"error": f"command {command!r} is not known; allowed: {', '.join(handlers)}"})
    try:
        return _line({"result": handlers[command](**request)})
    except Exception as error:  # whatever it is, the driver is told and decides
        return _line({"error": f"{command}: {type(error).__name__}: {' '.join(str(error).split())}"})
