"""The worker: runs in the official environment, answers requests on standard input until it ends.

    .venv-official/bin/python -m benchmarks.official.worker --threads 2

Started by `client.OfficialWorker`; everything that libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.official.protocol import Handler, serve

PACKAGES = ("magenta-rt", "jax", "jaxlib", "flax", "numpy")


def main() -> None:
    """Sets the threads, then imports JAX, which reads them once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True, help="of XLA's thread pools")
    threads = parser.parse_args().threads
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ["NPROC"] = str(threads)  # the size of the CPU client's pools
    os.environ["JAX_PLATFORMS"] = "cpu"
    from benchmarks.official.audio_file import read_signal
    from benchmarks.official.codec import OfficialCodec
    from benchmarks.official.layouts import LAYOUTS
    from benchmarks.official.parity_outputs import write_outputs
    from benchmarks.official.timing import TimedCodec

    timed: dict[str, TimedCodec] = {}

    def versions() -> dict[str, Any]:
        return {package: importlib.metadata.version(package) for package in PACKAGES}

    def parity(layout: str, seed: int, audio: str, output: str, streamed: bool) -> dict[str, Any]:
        signal = read_signal(Path(audio))
        codec = OfficialCodec(LAYOUTS[layout], seed, signal)
        write_outputs(codec, signal, Path(output), streamed=streamed)
        return {"parameters": _parameters(codec.params)}

    def build(seed: int, audio: str) -> dict[str, Any]:
        start = time.perf_counter()
        signal = read_signal(Path(audio))
        codec = OfficialCodec(LAYOUTS["released"], seed, signal)
        timed["codec"] = TimedCodec(codec, signal)
        return {"parameters": _parameters(codec.params), "seconds": time.perf_counter() - start}

    def measure(operation: str, runs: int) -> dict[str, Any]:
        return {"seconds": timed["codec"].seconds(operation, runs)}

    handlers: dict[str, Handler] = {"versions": versions, "parity": parity, "build": build, "time": measure}
    serve(handlers, sys.stdin, answers)


def _parameters(params: dict[str, Any]) -> dict[str, int]:
    """Elements by half: encoder, decoder, quantizer."""
    counts: dict[str, int] = {}
    for path, value in params.items():
        half = path.split("/")[0]
        counts[half] = counts.get(half, 0) + value.size
    return counts


if __name__ == "__main__":
    main()
