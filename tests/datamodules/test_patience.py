from __future__ import annotations

import threading
import time

import pytest

from datamodules.patience import within


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_a_job_in_time_gives_its_result_or_error(seconds: float | None) -> None:
    assert [within(seconds, lambda n=n: n) for n in range(3)] == [0, 1, 2]  # type: ignore[misc]
    with pytest.raises(KeyError, match="lost"):
        within(seconds, lambda: {}["lost"])


def test_a_job_that_hangs_is_given_up_and_the_next_one_is_done() -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.05, never.wait)
    assert within(30.0, lambda: "next") == "next"
    assert time.monotonic() - began < 10
    never.set()


def test_one_thread_serves_many_jobs() -> None:
    identities = {within(30.0, threading.get_ident) for _ in range(5)}
    assert len(identities) == 1
    assert identities != {threading.get_ident()}
