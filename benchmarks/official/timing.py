"""One compiled call of each operation of the official codec, timed until its result is there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax  # type: ignore[import-not-found]
import numpy as np

from benchmarks.official.codec import SAMPLES_PER_TOKEN, OfficialCodec


class TimedCodec:
    """Operations on one signal `[samples, channels]`; building it compiles and warms up each of them."""

    def __init__(self, codec: OfficialCodec, audio: np.ndarray) -> None:
        signal = codec.batch(audio)
        block = codec.batch(audio[:SAMPLES_PER_TOKEN])
        embeddings = jax.block_until_ready(codec.embeddings(signal))
        codes = jax.block_until_ready(codec.quantize(embeddings))
        encode_step, decode_step = codec.encoder_stream(), codec.decoder_stream()
        self._operations: dict[str, Callable[[], jax.Array]] = {
            "encode": lambda: codec.encode(signal),
            "quantize": lambda: codec.quantize(embeddings),
            "decode": lambda: codec.decode(codes),
            "step encode": lambda: encode_step(block),
            "step decode": lambda: decode_step(codec.dequantize(codes[:, :1])),
        }
        for operation in self._operations:
            self.seconds(operation, runs=2)

    def seconds(self, operation: str, runs: int) -> float:
        """Of one call, the median of `runs`. Raises KeyError for an operation that is not there."""
        return statistics.median(_seconds(self._operations[operation]) for _ in range(runs))


def _seconds(call: Callable[[], jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
