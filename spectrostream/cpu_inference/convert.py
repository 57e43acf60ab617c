"""Make a trained codec fast: the same weights in another layout, for encoding and decoding only."""

from __future__ import annotations

import copy
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from spectrostream.convolution import Convolution, TransposedConvolution
from spectrostream.cpu_inference.int8_layers import Int8UnavailableError
from spectrostream.cpu_inference.stacks import INT8, FastDecoder, FastEncoder
from spectrostream.decoder import Decoder
from spectrostream.encoder import Encoder
from spectrostream.frontends import SAMPLES_PER_TOKEN, FrontEnd
from spectrostream.precision_check import run_wrong_convolutions_in_float32
from spectrostream.quantizer import ResidualVectorQuantizer
from spectrostream.streaming import StreamState

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class TrainedCodec(Protocol):
    """What `for_inference` needs of a codec; `spectrostream.codec.SpectroStream` has it."""

    encoder: Encoder
    decoder: Decoder
    quantizer: ResidualVectorQuantizer

    @property
    def frontend(self) -> FrontEnd:
        """The front-end."""

    @property
    def channels(self) -> int:
        """Audio channels."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """See `torch.nn.Module`."""

    def eval(self) -> Self:
        """See `torch.nn.Module`."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """See `torch.nn.Module`."""


C = TypeVar("C", bound=TrainedCodec)


class LibraryStack(nn.Module):
    """An encoder or decoder with the library's own convolutions in any precision. Input and output are float32.

    On a CPU, some convolutions are wrong in some precisions; those run in float32.

    Args:
        stack: The trained encoder or decoder; it is copied.
        dtype: The precision of the convolutions.
        example: An input, which shows the convolutions that are wrong.

    Attributes:
        float32_layers: Number of convolutions that run in float32 because they are wrong in `dtype`.
    """

    def __init__(self, stack: Encoder | Decoder, dtype: torch.dtype, example: Tensor) -> None:
        super().__init__()
        self.stack = copy.deepcopy(stack).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input_span = self.stack.input_span
        self.dtype = torch.float32
        self.float32_layers = 0
        if dtype == torch.float32:
            return
        wrong = []
        if example.device.type == "cpu":
            wrong = run_wrong_convolutions_in_float32(self, lambda: self(example), dtype=dtype, gradients=False)
        self.float32_layers = len(wrong)
        in_float32 = {self.get_submodule(name) for name, _ in wrong}
        for layer in self.stack.modules():
            if isinstance(layer, Convolution | TransposedConvolution) and layer not in in_float32:
                layer.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """See `Encoder.forward` and `Decoder.forward`."""
        x = x.to(self.dtype)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = self.stack(x, state)
        return y.float()


def for_inference(codec: C, *, precision: str = "float32", compile: bool = False) -> C:
    """Make a fast copy of a codec; see `SpectroStream.for_inference`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r} is not known; allowed: {', '.join(PRECISIONS)}")
    is_spectral = codec.frontend.layout.bins > 1
    on_cpu = codec.quantizer.codebooks.device.type == "cpu"
    if precision == "int8":
        _require_int8(codec, on_cpu=on_cpu, is_spectral=is_spectral, compile=compile)
        return _with_stacks(codec, FastEncoder(codec.encoder, INT8), FastDecoder(codec.decoder, INT8))
    if precision == "float32" and not compile and on_cpu and is_spectral:
        return _with_stacks(codec, FastEncoder(codec.encoder), FastDecoder(codec.decoder))
    encoder, decoder = _library_stacks(codec, PRECISIONS[precision])
    if compile:
        encoder.compile(dynamic=True)
        decoder.compile(dynamic=True)
    return _with_stacks(codec, encoder, decoder)


def _require_int8(codec: TrainedCodec, *, on_cpu: bool, is_spectral: bool, compile: bool) -> None:
    refused = "precision = 'int8' is not possible "
    if compile:
        raise Int8UnavailableError(
            refused + "with compile = True, which is for the library's convolutions; give one of them"
        )
    if not on_cpu:
        device = codec.quantizer.codebooks.device.type
        raise Int8UnavailableError(refused + f"on {device}; allowed: a codec on the CPU, codec.cpu()")
    if not is_spectral:
        raise Int8UnavailableError(
            refused + "with the waveform front-end, whose layers would have a step for every sample; "
            "allowed: the spectral front-ends; use precision='float32'"
        )


def _library_stacks(codec: TrainedCodec, dtype: torch.dtype) -> tuple[LibraryStack, LibraryStack]:
    with torch.no_grad():
        # Two tokens of silence are enough, because only the shape matters.
        silence = codec.quantizer.codebooks.new_zeros(1, codec.channels, 2 * SAMPLES_PER_TOKEN)
        features = codec.frontend.analysis(silence)
        embeddings = codec.encoder(features)
    return LibraryStack(codec.encoder, dtype, features), LibraryStack(codec.decoder, dtype, embeddings)


def _with_stacks(codec: C, encoder: nn.Module, decoder: nn.Module) -> C:
    """Copy the codec with other stacks and without what only learning needs."""
    left_out = (codec.encoder, codec.decoder, codec.quantizer.learning)
    fast = copy.deepcopy(codec, {id(module): nn.Identity() for module in left_out})
    fast.add_module("encoder", encoder)
    fast.add_module("decoder", decoder)
    return fast.eval().requires_grad_(False)
