"""Measures time and memory of coding signals from a second to many minutes, in blocks.

    python -m benchmarks.scaling --seconds 1 10 100 1000
    python -m benchmarks.scaling --seconds 3600 --width 4

The time should grow in proportion to the length, the memory not at all. Stereo noise is generated, encoded and decoded
block by block. Every length runs in its own process; the system counts its peak memory. The weights are random;
`--width 32` is the released layout.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from spectrostream.codec import SAMPLE_RATE, SpectroStream
from spectrostream.codec_config import SpectroStreamConfig

BLOCK_SECONDS = 10


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--width", type=int, default=32, help="of the encoder; the decoder's is twice that")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one, arguments.width)))
        return
    print("| audio | encode, s per s | decode, s per s | peak memory, MB |\n|---|---|---|---|")
    for seconds in arguments.seconds:
        command = [sys.executable, "-m", "benchmarks.scaling", "--one", str(seconds), "--width", str(arguments.width)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"| {seconds} s | {result['encode'] / seconds:.3f} | {result['decode'] / seconds:.3f} "
            f"| {result['megabytes']:.0f} |",
            flush=True,
        )


def measured(seconds: int, width: int) -> dict[str, float]:
    """Return the seconds of encoding and of decoding, and the peak memory of this process in MB."""
    torch.manual_seed(0)
    config = SpectroStreamConfig(encoder_width=width, decoder_width=2 * width)
    codec = SpectroStream(config).for_inference()
    codec.decode(codec.encode(torch.randn(1, 2, SAMPLE_RATE)))
    stream = codec.streaming()
    encode = decode = 0.0
    for start in range(0, seconds, BLOCK_SECONDS):
        block = 0.1 * torch.randn(1, 2, min(BLOCK_SECONDS, seconds - start) * SAMPLE_RATE)
        begin = time.perf_counter()
        codes = stream.encode(block)
        encoded = time.perf_counter()
        stream.decode(codes)
        encode, decode = encode + encoded - begin, decode + time.perf_counter() - encoded
    begin = time.perf_counter()
    codes = stream.finish_encoding()
    encoded = time.perf_counter()
    stream.decode(codes)
    stream.finish_decoding(seconds * SAMPLE_RATE)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "encode": encode + encoded - begin,
        "decode": decode + time.perf_counter() - encoded,
        "megabytes": megabytes,
    }


if __name__ == "__main__":
    main()
