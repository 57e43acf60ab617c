"""Real-time factors of full-size codecs with random weights, side by side in one run.

    python -m benchmarks.codec --seconds 2 --runs 2

Encoding and decoding of stereo noise, one example; a warm-up, then the median of the runs. The codecs take turns
several times, so that a machine that is slow for a while is slow for all of them; ratios are the result.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn

from reports.cost import count_parameters, macs_per_second, real_time_factors
from spectrostream.baselines.dac import Dac, DacConfig
from spectrostream.codec import SpectroStream, SpectroStreamConfig

ROUNDS = 3


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of audio in each call")
    parser.add_argument("--runs", type=int, default=2, help="timed calls in each round")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    codecs: dict[str, nn.Module] = {
        "SpectroStream, released layout": SpectroStream(SpectroStreamConfig()),
        "SpectroStream, waveform front-end": SpectroStream(SpectroStreamConfig(frontend="waveform")),
        "DAC 44.1 kHz, two passes": Dac(DacConfig()),
    }
    for codec in codecs.values():
        codec.eval()
        if isinstance(codec, Dac):
            codec.fuse_weight_norm()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in codecs}
    for _ in range(ROUNDS):
        for name, codec in codecs.items():
            factors = real_time_factors(codec, seconds=arguments.seconds, runs=arguments.runs)
            times[name].append((factors.encode, factors.decode))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, eager, {arguments.seconds} s stereo\n"
    )
    print("| codec | parameters | GMAC per s | encode, s per s | decode, s per s | whole, against the first |")
    print("|---|---|---|---|---|---|")
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for name, rows in times.items()
    }
    first = sum(next(iter(medians.values())))
    for name, codec in codecs.items():
        encode, decode = medians[name]
        macs = macs_per_second(codec)
        parameters = count_parameters(codec).parameters
        print(
            f"| {name} | {parameters / 1e6:.2f} M | {macs / 1e9:.1f} | {encode:.3f} | {decode:.3f} "
            f"| {(encode + decode) / first:.2f}x |"
        )


if __name__ == "__main__":
    main()
