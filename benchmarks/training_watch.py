"""Callbacks that measure a training: its time and memory, its quantizer's share, its operations."""

from __future__ import annotations

import re
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.clock import TrainingClock


def now() -> float:
    """Return the time in seconds, after the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: on the GPU if there is one, otherwise its resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage's number would include the process that this one was forked from.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class _Mark:
    seconds: float
    processor_seconds: float
    waited: float
    audio_seconds: float


class Stopwatch(Callback):
    """Measures the time from the end of update `warm_up` to the end of update `last`.

    Attributes:
        measured: `seconds` of wall time; `waited`, the part of it spent waiting for data; `processor_seconds` of all
            threads of this process; `audio_seconds` of all processes; `steps`; `peak_memory`, bytes of this process
            since its start or, on a GPU, in these updates.
    """

    def __init__(self, *, warm_up: int, last: int) -> None:
        self.measured: dict[str, float] = {}
        self._warm_up = warm_up
        self._last = last
        self._start: _Mark | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Read the clocks at the first and at the last of these updates."""
        if trainer.global_step == self._warm_up:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self._start = _read_clocks(trainer)
        elif trainer.global_step == self._last:
            assert self._start is not None
            end = _read_clocks(trainer)
            self.measured = {
                "seconds": end.seconds - self._start.seconds,
                "processor_seconds": end.processor_seconds - self._start.processor_seconds,
                "waited": end.waited - self._start.waited,
                "audio_seconds": end.audio_seconds - self._start.audio_seconds,
                "steps": float(self._last - self._warm_up),
                "peak_memory": float(peak_memory_bytes()),
            }


def _read_clocks(trainer: lightning.Trainer) -> _Mark:
    clock = next(callback for callback in trainer.callbacks if isinstance(callback, TrainingClock))
    return _Mark(now(), time.process_time(), clock.data_wait.seconds, clock.audio_seconds)


class QuantizerTimer:
    """Sums the seconds that a quantizer takes in forward and backward passes, with hooks."""

    def __init__(self, quantizer: nn.Module) -> None:
        self.forward_seconds = 0.0
        self.backward_seconds = 0.0
        self._since = 0.0
        self._hooks = [
            quantizer.register_forward_pre_hook(self._enter),
            quantizer.register_forward_hook(self._leave_forward),
            quantizer.register_full_backward_pre_hook(self._enter),
            quantizer.register_full_backward_hook(self._leave_backward),
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, *_: Any) -> None:
        self._since = now()

    def _leave_forward(self, *_: Any) -> None:
        self.forward_seconds += now() - self._since

    def _leave_backward(self, *_: Any) -> None:
        self.backward_seconds += now() - self._since


class StepProfile(Callback):
    """Measures the quantizer in `steps` updates after `warm_up` others, then counts the operations of one update.

    Attributes:
        measured: `quantizer_forward`, `quantizer_backward` and `seconds` of all these steps; `flops` of one step. The
            count has matrix products and convolutions of both turns, forward and backward, no Fourier transforms.
    """

    def __init__(self, *, warm_up: int, steps: int) -> None:
        self.measured: dict[str, float] = {}
        self._warm_up = warm_up
        self._steps = steps
        self._started = 0.0
        self._timer: QuantizerTimer | None = None
        self._counter = FlopCounterMode(display=False)

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        """Start the timer or the counter, if it is this update's."""
        step = trainer.global_step
        if step == self._warm_up:
            self._timer = QuantizerTimer(quantizer_of(module.codec))
            self._started = now()
        elif step == self._warm_up + self._steps:
            self._counter.__enter__()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Stop it and note the result."""
        step = trainer.global_step
        if step == self._warm_up + self._steps:
            assert self._timer is not None
            self._timer.remove()
            self.measured = {
                "seconds": now() - self._started,
                "quantizer_forward": self._timer.forward_seconds,
                "quantizer_backward": self._timer.backward_seconds,
            }
        elif step == self._warm_up + self._steps + 1:
            self._counter.__exit__(None, None, None)
            self.measured["flops"] = float(self._counter.get_total_flops())


def quantizer_of(codec: Any) -> nn.Module:
    """Return the quantizer of our codec, or that of DAC's model."""
    found = codec.quantizer if hasattr(codec, "quantizer") else codec.model.quantizer
    assert isinstance(found, nn.Module)
    return found
