"""The cost of a codec: parameters, multiply-accumulates and computing time per second of audio, all measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spectrostream.interface import AudioCodec

TIMED_RUNS = 5


class ParameterCounts(NamedTuple):
    """Numbers of trained values of a codec."""

    parameters: int | None
    """Elements of all nn.Parameters; None for a codec that is not an nn.Module."""
    codebook_parameters: int | None
    """`codec.codebook_parameters`; None if the codec does not declare it.

    Codebooks that learn by moving averages are buffers, so they are not among `parameters`.
    """


class RealTimeFactors(NamedTuple):
    """Seconds of computing per second of audio, median of several runs; a factor below 1 is faster than real time."""

    encode: float
    decode: float
    threads: int


def count_parameters(codec: AudioCodec) -> ParameterCounts:
    """Count the parameters of the codec; a tensor that is used twice counts once."""
    parameters = sum(p.numel() for p in codec.parameters()) if isinstance(codec, nn.Module) else None
    return ParameterCounts(parameters, getattr(codec, "codebook_parameters", None))


def macs_per_second(codec: AudioCodec, *, levels: int | None = None) -> float | None:
    """Count the multiply-accumulates of encoding and decoding one second of audio.

    The count is half the floating-point operations that torch's FlopCounterMode sees while the codec runs. It includes
    convolutions, transposed convolutions and matrix products (attention too). It leaves out Fourier transforms and
    element-wise operations.

    Args:
        codec: The codec.
        levels: Number of quantizer levels; None for all.

    Returns:
        Multiply-accumulates per second of audio, all channels together. None for a codec outside torch, and for
        recurrent layers, which FlopCounterMode cannot count.
    """
    if not isinstance(codec, nn.Module) or any(isinstance(module, nn.RNNBase) for module in codec.modules()):
        return None
    audio = _noise(codec, 1.0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        codec.decode(codec.encode(audio, levels=levels), length=audio.shape[-1])
    return counter.get_total_flops() / 2


def real_time_factors(
    codec: AudioCodec, *, seconds: float = 5.0, levels: int | None = None, runs: int = TIMED_RUNS
) -> RealTimeFactors:
    """Time the encoding and the decoding of noise, batch size 1, after one run that is not counted.

    Args:
        codec: The codec.
        seconds: Length of the noise.
        levels: Number of quantizer levels; None for all.
        runs: Number of timed runs; the median counts.

    Returns:
        Both factors and the number of threads.

    Raises:
        ValueError: If `runs` or `seconds` is not positive.
    """
    if runs < 1 or seconds <= 0:
        raise ValueError(f"runs is {runs} and seconds is {seconds}; both are positive")
    audio = _noise(codec, seconds)
    with torch.inference_mode():
        codes = codec.encode(audio, levels=levels)
        device = device_of(codec)
        encode = _median_seconds(lambda: codec.encode(audio, levels=levels), runs, device)
        decode = _median_seconds(lambda: codec.decode(codes, length=audio.shape[-1]), runs, device)
    return RealTimeFactors(encode / seconds, decode / seconds, torch.get_num_threads())


def device_of(codec: AudioCodec) -> torch.device:
    """Return the device of the codec's first parameter or buffer, else the CPU."""
    if isinstance(codec, nn.Module):
        for tensor in (*codec.parameters(), *codec.buffers()):
            return tensor.device
    return torch.device("cpu")


def _noise(codec: AudioCodec, seconds: float) -> Tensor:
    """`[1, channels, samples]`, the same noise each time: the work of a codec does not depend on the sound."""
    shape = (1, codec.channels, round(seconds * codec.sample_rate))
    return (0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(device_of(codec))


def _median_seconds(run: Callable[[], Any], runs: int, device: torch.device) -> float:
    run()  # the first run plans transforms and allocates
    return statistics.median(_seconds(run, device) for _ in range(runs))


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the call returns before the device is done
    return time.perf_counter() - start
