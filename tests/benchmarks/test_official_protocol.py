import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.official.protocol import EndOfMessagesError, ProtocolError, read_message, serve, write_message

TEXT = st.text(max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=3)


def answers_to(*requests: str) -> list[dict]:
    def divide(over: float, under: float) -> dict:
        return {"quotient": over / under}

    answers = io.StringIO()
    serve({"divide": divide, "nan": lambda: {"value": float("nan")}}, io.StringIO("".join(requests)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=3))
def test_what_is_written_is_read_in_order(messages):
    stream = io.StringIO(newline="\n")
    for message in messages:
        write_message(stream, message)
    stream.seek(0)
    assert [read_message(stream) for _ in messages] == messages
    with pytest.raises(EndOfMessagesError):
        read_message(stream)


@pytest.mark.parametrize("line", ["\n", "[1]\n", '{"a": 1}', '{"a": \n', "nonsense\n", "3\n"])
def test_a_line_that_is_not_a_complete_object_is_an_error(line):
    with pytest.raises(ProtocolError, match="JSON"):
        read_message(io.StringIO(line))


def test_numbers_that_json_lacks_are_not_written():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="JSON"):
        write_message(stream, {"seconds": float("inf")})
    assert stream.getvalue() == ""


def test_each_request_has_one_answer_whatever_happens():
    answers = answers_to(
        '{"command": "divide", "over": 3, "under": 2}\n',
        '{"command": "divide", "over": 3, "under": 0}\n',
        '{"command": "divide", "over": 3}\n',
        "garbage\n",
        '{"command": "multiply"}\n',
        '{"command": ["divide"]}\n',
        "{}\n",
        '{"command": "nan"}\n',
        '{"command": "divide", "over": 1, "under": 4}\n',
    )
    assert answers[0] == {"result": {"quotient": 1.5}}
    assert answers[1] == {"error": "divide: ZeroDivisionError: division by zero"}
    assert "under" in answers[2]["error"]
    assert "garbage" in answers[3]["error"]
    assert answers[4] == {"error": "command 'multiply' is not known; allowed: divide, nan"}
    assert all("not known" in answer["error"] for answer in answers[5:7])
    assert answers[7]["error"].startswith("nan: ValueError")
    assert answers[8] == {"result": {"quotient": 0.25}}
    assert len(answers) == 9
