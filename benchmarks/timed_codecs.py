"""Codecs whose operations are timed: ours in this process, the official one in a worker process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.official.audio_file import write_signal
from benchmarks.official.client import OfficialWorker
from reports.metrics.cost import count_parameters
from spectrostream.frontends import SAMPLES_PER_TOKEN
from spectrostream.interface import AudioCodec

# Operation -> calls per measurement, which is their median.
OPERATIONS = {"encode": 1, "decode": 1, "quantize": 3, "step encode": 15, "step decode": 15}
COUNTED = ("encode", "decode")


class TimedCodec(Protocol):
    """A codec whose operations can be timed."""

    parameters: int | None
    operations: frozenset[str]
    """Those of `OPERATIONS` that the codec has."""
    macs: dict[str, float]
    """Operation -> multiply-accumulates of one call, for `COUNTED`."""

    def seconds(self, operation: str) -> float:
        """Run an operation now; return the seconds of one call."""


class LocalCodec:
    """A codec in this process; its constructor warms up each operation.

    `quantize` (all levels of the signal's embeddings) needs SpectroStream's `embed` and `quantizer`; the steps of one
    token need `streaming`.

    Args:
        codec: The codec.
        audio: `[1, channels, samples]`.
        counts: Count multiply-accumulates; False for a codec whose operations torch cannot count.
    """

    def __init__(self, codec: AudioCodec, audio: Tensor, *, counts: bool) -> None:
        self.parameters = count_parameters(codec).parameters or None  # None: the weights are buffers
        self._calls: dict[str, Callable[[], Any]] = {}
        with torch.no_grad():
            codes = codec.encode(audio)
            self._calls["encode"] = lambda: codec.encode(audio)
            self._calls["decode"] = lambda: codec.decode(codes, length=audio.shape[-1])
            self._calls |= _quantizing(codec, audio) | _stepping(codec, audio)
        self.operations = frozenset(self._calls)
        self.macs = _multiply_accumulates(codec, {name: self._calls[name] for name in COUNTED}) if counts else {}
        for operation in self.operations:
            self._once(operation)

    def seconds(self, operation: str) -> float:
        """See `TimedCodec`."""
        return statistics.median(self._once(operation) for _ in range(OPERATIONS[operation]))

    @torch.no_grad()
    def _once(self, operation: str) -> float:
        start = time.perf_counter()
        self._calls[operation]()
        return time.perf_counter() - start


def _quantizing(codec: Any, audio: Tensor) -> dict[str, Callable[[], Any]]:
    if not (hasattr(codec, "embed") and hasattr(codec, "quantizer")):
        return {}
    embeddings = codec.embed(audio)
    return {"quantize": lambda: codec.quantizer.encode(embeddings, codec.levels)}


def _stepping(codec: Any, audio: Tensor) -> dict[str, Callable[[], Any]]:
    """Return calls that encode and decode one token in a running stream."""
    if not hasattr(codec, "streaming"):
        return {}
    stream = codec.streaming()
    block = audio[..., :SAMPLES_PER_TOKEN]
    codes = codec.encode(block)
    stream.through(audio[..., : 3 * SAMPLES_PER_TOKEN])  # the first tokens of a stream give no output
    return {"step encode": lambda: stream.encode(block), "step decode": lambda: stream.decode(codes)}


@torch.no_grad()
def _multiply_accumulates(codec: AudioCodec, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return half of torch's counted operations in one call; empty for recurrent layers, which torch cannot count."""
    if not isinstance(codec, nn.Module) or any(isinstance(module, nn.RNNBase) for module in codec.modules()):
        return {}
    counts = {}
    for operation, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        counts[operation] = counter.get_total_flops() / 2
    return counts


class OfficialCodec:
    """The compiled official implementation in its worker; its operations count as those of the released layout.

    Args:
        worker: The worker process.
        audio: `[1, channels, samples]`.
        folder: Where the worker reads the audio.
        seed: Of its random weights.
    """

    operations = frozenset(OPERATIONS)

    def __init__(self, worker: OfficialWorker, audio: Tensor, folder: Path, *, seed: int) -> None:
        signal = folder / "signal.npy"
        write_signal(signal, audio[0].T.numpy())
        counts = worker.ask("build", seed=seed, audio=str(signal))["parameters"]
        self.parameters = counts["encoder"] + counts["decoder"]
        self.macs: dict[str, float] = {}
        self._worker = worker

    def seconds(self, operation: str) -> float:
        """See `TimedCodec`."""
        answer = self._worker.ask("time", operation=operation, runs=OPERATIONS[operation])
        return float(answer["seconds"])
