"""Codecs that take turns: ours in this process, the official one in its worker; each gives seconds by operation."""

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

# What is timed, and how many calls make one time: their median.
OPERATIONS = {"encode": 1, "decode": 1, "quantize": 3, "step encode": 15, "step decode": 15}
COUNTED = ("encode", "decode")


class TimedCodec(Protocol):
    """operations: those of `OPERATIONS` that it has. macs: multiply-accumulates of one call of the `COUNTED` ones."""

    parameters: int | None
    operations: frozenset[str]
    macs: dict[str, float]

    def seconds(self, operation: str) -> float:
        """Of one call, now."""


class LocalCodec:
    """A codec in this process on `audio` `[1, channels, samples]`; building it warms up each operation.

    `quantize` (all levels of the signal's embeddings) and the steps of one token are there for codecs that have
    SpectroStream's `embed` and `quantizer`, and `streaming`.
    """

    def __init__(self, codec: AudioCodec, audio: Tensor, *, counts: bool) -> None:
        """counts: whether multiply-accumulates are counted; not for a codec whose operations torch cannot see."""
        self.parameters = count_parameters(codec).parameters or None  # weights kept as buffers do not count
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
    """One token's samples in, one token out, in a stream that is under way."""
    if not hasattr(codec, "streaming"):
        return {}
    stream = codec.streaming()
    block = audio[..., :SAMPLES_PER_TOKEN]
    codes = codec.encode(block)
    stream.through(audio[..., : 3 * SAMPLES_PER_TOKEN])  # past the first tokens, which complete nothing
    return {"step encode": lambda: stream.encode(block), "step decode": lambda: stream.decode(codes)}


@torch.no_grad()
def _multiply_accumulates(codec: AudioCodec, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Half of torch's counted operations in one call; nothing for recurrent layers, which have no formula."""
    if not isinstance(codec, nn.Module) or any(isinstance(module, nn.RNNBase) for module in codec.modules()):
        return {}
    counts = {}
    for operation, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        counts[operation] = counter.get_total_flops() / 2
    return counts


class OfficialCodec:
    """The official implementation, compiled, on the same signal; its arithmetic is that of the released layout."""

    operations = frozenset(OPERATIONS)

    def __init__(self, worker: OfficialWorker, audio: Tensor, folder: Path, *, seed: int) -> None:
        """audio: `[1, channels, samples]`, handed over as a file in `folder`."""
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
