from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import pytest
from lightning.pytorch.callbacks import Callback
from training_setup import LIGHTNING_WARNINGS, Batches, cpu_config, is_same, load, noise, tiny_module

from lightning_modules import preemption
from lightning_modules.checkpoints import CheckpointError, RunCheckpoint
from lightning_modules.codec_training import CodecTraining
from lightning_modules.fit import FitResult, fit
from lightning_modules.preemption import SIGNALS, PreemptedError, Preemption, TrainingInterruptedError
from spectrostream_cli import main

pytestmark = [pytest.mark.processes, *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS)]

COMPARED = ("state_dict", "optimizer_states", "global_step", "loops", "carried")


@contextmanager
def own_handlers() -> Iterator[list[int]]:
    """Install handlers that must be in place again afterwards; yield the signals that reached them."""
    received: list[int] = []
    note = lambda number, _frame: received.append(number)  # noqa: E731
    before = {number: signal.signal(number, note) for number in (*SIGNALS, signal.SIGINT)}
    try:
        yield received
        assert [signal.getsignal(number) for number in before] == [note] * len(before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Sends(Callback):
    """This process gets a signal at the start of batch `batch`, or in the validation of step `validation`."""

    def __init__(self, number: signal.Signals, *, batch: int | None = None, validation: int | None = None) -> None:
        self.number = number
        self.batch = batch
        self.validation = validation
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_index: int) -> None:
        if batch_index == self.batch:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.validated.append(trainer.global_step)
        if trainer.global_step == self.validation:
            os.kill(os.getpid(), self.number)


def run(folder: Path, *callbacks: Callback, accumulate: int = 1) -> tuple[CodecTraining, FitResult]:
    """Four updates, the second and fourth validated, without a checkpoint in between."""
    module = tiny_module(max_steps=4, accumulate=accumulate)
    data = Batches(accumulate=accumulate, held_out=(noise(99),))
    return module, fit(module, data, cpu_config(validate_every=2, checkpoint_every=99), folder, callbacks=callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("where", "step"), [({"batch": 0}, 1), ({"batch": 1}, 2), ({"validation": 2}, 3)])
def test_a_signal_waits_for_the_update_saves_and_loses_nothing(
    tmp_path: Path, whole: Path, number: signal.Signals, where: dict[str, int], step: int
) -> None:
    """In step 2 the validation is not waited for: the run that goes on makes up for it."""
    sends = Sends(number, **where)
    message = f"asked to make room at step {step} of 4; all is saved, run the same command again to resume"
    with own_handlers() as received, pytest.raises(PreemptedError, match=message) as raised:
        run(tmp_path, sends)
    assert raised.value.exit_code == 75
    assert received == []
    assert f"step-{step:08d}.ckpt" in checkpoints(tmp_path)
    again = Sends(number)
    run(tmp_path, again)
    assert sends.validated + again.validated == [2, 4]
    one, other = (load(folder / "checkpoints" / "step-00000004.ckpt") for folder in (tmp_path, whole))
    for key in COMPARED:
        assert is_same(one[key], other[key]), key
    assert one["callbacks"]["RunCheckpoint"] == other["callbacks"]["RunCheckpoint"]


def test_a_signal_within_an_update_waits_for_its_last_batch(tmp_path: Path) -> None:
    with pytest.raises(PreemptedError, match="step 2 of 4"):
        run(tmp_path, Sends(signal.SIGTERM, batch=3), accumulate=3)
    assert checkpoints(tmp_path) == ["step-00000002.ckpt"]
    with pytest.raises(PreemptedError, match="step 3 of 4"):
        run(tmp_path, Sends(signal.SIGTERM, batch=6), accumulate=3)


def test_a_signal_in_the_last_update_changes_nothing(tmp_path: Path) -> None:
    with own_handlers() as received:
        _, result = run(tmp_path, Sends(signal.SIGTERM, batch=3))
    assert (result.steps, received) == (4, [])


def test_handlers_are_restored_whatever_happens(tmp_path: Path) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyError("broken")

    with own_handlers() as received:
        with pytest.raises(KeyError, match="broken"):
            run(tmp_path, Breaks())
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]


def test_a_failed_save_after_a_signal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2 could be written .*; make room there"):
        run(tmp_path, Sends(signal.SIGTERM, batch=1))


@pytest.mark.parametrize(
    ("signals", "ends"),
    [
        ([(0, signal.SIGTERM), (1.9, signal.SIGTERM)], False),  # one request, passed on by a launcher too
        ([(0, signal.SIGTERM), (2.1, signal.SIGTERM)], True),
        ([(0, signal.SIGUSR1), (90, signal.SIGTERM)], True),
        ([(0, signal.SIGUSR1), (90, signal.SIGUSR1)], False),
    ],
)
def test_a_second_sigterm_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, signals: list[tuple[float, signal.Signals]], ends: bool
) -> None:
    killed: list[tuple[int, Any]] = []
    monkeypatch.setattr(preemption.os, "kill", lambda _pid, number: killed.append((number, signal.getsignal(number))))
    callback = Preemption(RunCheckpoint(Path("nowhere"), every=1))
    with own_handlers():
        before = signal.getsignal(signal.SIGTERM)
        for seconds, number in signals:
            monkeypatch.setattr(preemption.time, "monotonic", lambda seconds=seconds: 1000 + seconds)
            callback._request(number, None)
        signal.signal(signal.SIGTERM, before)
    assert killed == ([(signal.SIGTERM, signal.SIG_DFL)] if ends else [])


def test_ctrl_c_saves_and_the_run_resumes(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "^stopped at step 2 of 4; all is saved, run the same command again to resume$"
    with own_handlers() as received, pytest.raises(TrainingInterruptedError, match=message):
        run(tmp_path, Sends(signal.SIGINT, batch=1))
    assert (received, checkpoints(tmp_path)) == ([], ["step-00000002.ckpt"])
    assert "Ctrl-C once more ends at once, without saving" in capsys.readouterr().err
    run(tmp_path)
    one, other = (load(folder / "checkpoints" / "step-00000004.ckpt") for folder in (tmp_path, whole))
    for key in COMPARED:
        assert is_same(one[key], other[key]), key


def test_an_ignored_ctrl_c_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, result = run(tmp_path, Sends(signal.SIGINT, batch=1))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.steps == 4


@pytest.mark.parametrize(
    ("seconds", "before", "ends"),
    [
        ((0, 0.9), None, False),  # one Ctrl-C, passed on by a launcher too
        ((0, 1.1), None, True),
        ((5,), signal.SIGTERM, False),  # the first one never loses anything
        ((5, 7), signal.SIGUSR1, True),
    ],
)
def test_a_second_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], before: signal.Signals | None, ends: bool
) -> None:
    monkeypatch.setattr(preemption._thread, "start_new_thread", lambda *_: None)
    callback = Preemption(RunCheckpoint(Path("nowhere"), every=1))
    monkeypatch.setattr(preemption.time, "monotonic", lambda: 1000.0)
    if before:
        callback._request(before, None)
    with pytest.raises(KeyboardInterrupt) if ends else nullcontext():
        for moment in seconds:
            monkeypatch.setattr(preemption.time, "monotonic", lambda moment=moment: 1000 + moment)
            callback._interrupt(signal.SIGINT, None)


def test_outside_the_main_thread_handlers_stay_as_they_are(tmp_path: Path) -> None:
    seen = []

    class Looks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    def train_here() -> int:
        assert threading.current_thread() is not threading.main_thread()
        return run(tmp_path, Looks())[1].steps

    before = [signal.getsignal(number) for number in SIGNALS]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train_here).result() == 4
    assert seen == before * 4


@pytest.mark.parametrize("is_first", [True, False])
def test_only_one_process_reports_the_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_first: bool
) -> None:
    """The command's exit code is that of the error; a rank that is not the first ends without words."""

    def preempted(*_: object, **__: object) -> None:
        raise PreemptedError(5, 9, is_first=is_first)

    monkeypatch.setattr("spectrostream_cli.training.split_words", preempted)
    assert main(["train", "config=tiny", "out=nowhere"]) == (75 if is_first else 0)
    said = capsys.readouterr().err
    assert said == (f"error: {PreemptedError(5, 9)}\n" if is_first else "")
