from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from datamodules.workers import timeouts as patience
from datamodules.workers.timeouts import each_within, within


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


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_each_job_has_its_outcome_in_order(seconds: float | None) -> None:
    jobs: list[Callable[[], int]] = [lambda: 1, lambda: {}["lost"], lambda: 3]
    outcomes = list(each_within(seconds, jobs))
    assert [outcome.exception() is None for outcome in outcomes] == [True, False, True]
    assert (outcomes[0].result(), outcomes[2].result()) == (1, 3)
    assert not list(each_within(seconds, []))


@pytest.mark.slow
def test_each_job_may_take_its_time() -> None:
    outcomes = each_within(2.5, [lambda: time.sleep(0.8)] * 4)
    assert [outcome.exception() for outcome in outcomes] == [None] * 4


@pytest.mark.slow
def test_a_job_that_hangs_holds_up_none_of_the_others() -> None:
    never, order = threading.Event(), list[int]()
    jobs: list[Callable[[], Any]] = [lambda: order.append(0), never.wait, lambda: order.append(2), never.wait]
    outcomes = each_within(2.0, [*jobs, lambda: order.append(4)])
    errors = []
    for number, outcome in enumerate(outcomes):
        if number == 1:
            # What comes after it is not begun before its taker could note that it hangs.
            assert order == [0]
        errors.append(type(outcome.exception()))
    never.set()
    assert errors == [type(None), TimeoutError, type(None), TimeoutError, type(None)]
    assert order == [0, 2, 4]


@pytest.mark.slow
def test_the_thread_that_hangs_does_none_of_the_later_jobs() -> None:
    never, done = threading.Event(), list[int]()
    outcomes = each_within(2.0, [lambda: done.append(0), never.wait, lambda: done.append(2)])
    assert next(outcomes).exception() is None
    never.set()
    assert within(30.0, lambda: "next") == "next"
    assert done == [0]
    assert [outcome.exception() is None for outcome in outcomes] == [False, True]
    assert done == [0, 2]


@pytest.mark.slow
def test_a_job_that_was_not_begun_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    do = patience._do

    def stopped_after(job: Callable[[], Any], future: Future[Any]) -> None:
        do(job, future)
        time.sleep(1.5)  # the thread gets no processor between two jobs

    monkeypatch.setattr(patience, "_do", stopped_after)
    assert [outcome.exception() for outcome in each_within(0.5, [lambda: 0, lambda: 1])] == [None, None]


@pytest.mark.slow
def test_a_wait_that_is_interrupted_leaves_nothing_for_the_next_job_to_wait_for() -> None:
    never, done = threading.Event(), list[int]()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = threading.Timer(0.5, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    try:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            list(each_within(60.0, [never.wait, lambda: done.append(1)]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert within(30.0, lambda: "next") == "next"
    never.set()
    interrupt.join()
    assert done == []
