"""Export the codec as two ONNX graphs: audio to codes and codes to audio, for any batch size and any length."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.atomic_files import whole_file
from spectrostream.codebook_learning import nearest_entries
from spectrostream.codec import SpectroStream
from spectrostream.convolution import separate_groups
from spectrostream.errors import UserError
from spectrostream.frontends import SAMPLES_PER_TOKEN, FrontEnd, PowerSTFT, Waveform
from spectrostream.streaming import Span, StreamState
from spectrostream.weights import codec_fingerprint

OPSET = 20
# The exporter makes an axis of size 1 constant, so the example's axes are longer.
_EXAMPLE_BATCH, _EXAMPLE_TOKENS = 2, 3


class ExportError(UserError):
    """A codec that cannot be exported; the message says what to change."""


def export_encoder(codec: SpectroStream, path: Path, levels: int | None = None) -> None:
    """Write the graph that encodes.

    Its input `audio` is float32 `[batch, channels, samples]`. Its output `codes` is int64 `[batch, levels,
    ceil(samples / 1920)]`: the codes of `SpectroStream.encode`, except where two entries are almost equally near.

    Args:
        codec: The codec; it stays as it is.
        path: The file, with the suffix .onnx, in an existing folder.
        levels: Number of levels that the graph computes, fixed in the graph (default: all).

    Raises:
        ExportError: The levels or the path are not possible, or a package is missing.
    """
    levels = codec.levels if levels is None else levels
    if not 1 <= levels <= codec.levels:
        raise ExportError(f"levels = {levels} is not possible with this codec; allowed: 1..{codec.levels}")
    audio = torch.zeros(_EXAMPLE_BATCH, codec.channels, _EXAMPLE_TOKENS * SAMPLES_PER_TOKEN - 1)
    _export(
        ExportedEncoder(codec, levels), audio, path, codec, axes=("audio", "samples"), result="codes", levels=levels
    )


def export_decoder(codec: SpectroStream, path: Path) -> None:
    """Write the graph that decodes.

    Its input `codes` is int64 `[batch, levels, frames]` with all levels of the codec; fill missing levels with -1. Its
    output `audio` is float32 `[batch, channels, 1920 * frames]`; cut it to the length that was encoded.

    Args:
        codec: The codec; it stays as it is.
        path: The file, with the suffix .onnx, in an existing folder.

    Raises:
        ExportError: The path is not possible, or a package is missing.
    """
    codes = torch.zeros(_EXAMPLE_BATCH, codec.levels, _EXAMPLE_TOKENS, dtype=torch.int64)
    _export(ExportedDecoder(codec), codes, path, codec, axes=("codes", "frames"), result="audio", levels=codec.levels)


class ExportedEncoder(nn.Module):
    """`SpectroStream.encode` at a fixed number of levels in operations that ONNX has, on a copy of the codec."""

    def __init__(self, codec: SpectroStream, levels: int) -> None:
        super().__init__()
        self.codec = _exportable(codec)
        self.levels = levels

    def forward(self, audio: Tensor) -> Tensor:
        """Map audio `[batch, channels, samples]` to int64 codes `[batch, levels, ceil(samples / 1920)]`."""
        quantizer = self.codec.quantizer
        groups = quantizer.token_groups
        # [batch * groups, frames, dim]
        vectors = separate_groups(self.codec.embed(audio), groups).transpose(1, 2)
        rows, frames, _ = vectors.shape
        # Not the quantizer's own loop, which ONNX can express for one length only.
        codes = []
        depth = -(-self.levels // groups)
        for codebook, norms in zip(quantizer.codebooks[:depth], quantizer.squared_norms()[:depth], strict=True):
            index = nearest_entries(vectors.flatten(0, 1), codebook, norms).reshape(rows, frames)
            vectors = vectors - codebook[index]
            codes.append(index)
        # [batch * groups, depth, frames] -> [batch, depth * groups, frames]
        interleaved = torch.stack(codes, dim=1).unflatten(0, (-1, groups)).transpose(1, 2)
        return interleaved.flatten(1, 2)[:, : self.levels]


class ExportedDecoder(nn.Module):
    """`SpectroStream.decode` in operations that ONNX has, on a copy of the codec."""

    def __init__(self, codec: SpectroStream) -> None:
        super().__init__()
        self.codec = _exportable(codec)

    def forward(self, codes: Tensor) -> Tensor:
        """Map int64 codes `[batch, levels, frames]` to audio `[batch, channels, 1920 * frames]`."""
        return self.codec.synthesize(self.codec.quantizer.decode(codes), SAMPLES_PER_TOKEN * codes.shape[-1])


class LinearFrontEnd(nn.Module):
    """A linear front-end of lapped frames as one convolution each way, because ONNX runtimes lack FFTs.

    The bases are the front-end's own outputs for unit impulses, so the transform is the same.

    Attributes:
        analysis_basis: `[features * bins, 1, 2 * hop]`.
        synthesis_basis: The same shape.
    """

    analysis_basis: Tensor
    synthesis_basis: Tensor

    def __init__(self, frontend: FrontEnd) -> None:
        super().__init__()
        self.hop_length = frontend.hop_length
        self.look_ahead = frontend.look_ahead
        self.features_per_channel = frontend.features_per_channel
        self.layout = frontend.layout
        impulses = torch.eye(2 * self.hop_length).unsqueeze(1)
        analysis = frontend.analysis(impulses)[:, :, 0].flatten(1).T.unsqueeze(1)
        units = torch.eye(self.features_per_channel * self.layout.bins)
        units = units.reshape(-1, self.features_per_channel, 1, self.layout.bins)
        # A second, empty frame, because synthesis keeps back the second half of the last frame.
        synthesis = frontend.synthesis(F.pad(units, (0, 0, 0, 1)))
        self.register_buffer("analysis_basis", analysis.contiguous(), persistent=False)
        self.register_buffer("synthesis_basis", synthesis.contiguous(), persistent=False)

    def analysis(self, audio: Tensor) -> Tensor:
        """See `FrontEnd.analysis`."""
        batch, channels, samples = audio.shape
        # With so many zeros, any length gives ceil(samples / hop) frames.
        padded = F.pad(audio.reshape(batch * channels, 1, samples), (0, 2 * self.hop_length - 1))
        features = F.conv1d(padded, self.analysis_basis, stride=self.hop_length)
        features = features.reshape(batch, channels * self.features_per_channel, self.layout.bins, -1)
        return features.transpose(2, 3)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `FrontEnd.synthesis`; a state is not possible."""
        if state is not None:
            raise ValueError("an exported front-end keeps no state between chunks; give it the whole signal")
        batch, width, frames, bins = features.shape
        channels = width // self.features_per_channel
        columns = features.transpose(2, 3).reshape(batch * channels, self.features_per_channel * bins, frames)
        audio = F.conv_transpose1d(columns, self.synthesis_basis, stride=self.hop_length)
        return audio[..., : frames * self.hop_length].reshape(batch, channels, -1)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return first // self.hop_length - 1, last // self.hop_length


def _exportable(codec: SpectroStream) -> SpectroStream:
    twin = copy.deepcopy(codec).to("cpu", torch.float32).eval().requires_grad_(False)
    if isinstance(twin.frontend, PowerSTFT):
        # ONNX has its power law; only the linear transform is replaced.
        twin.frontend.add_module("stft", LinearFrontEnd(twin.frontend.stft))
    elif not isinstance(twin.frontend, Waveform):
        twin.add_module("frontend", LinearFrontEnd(twin.frontend))
    return twin


def _export(
    module: nn.Module, example: Tensor, path: Path, codec: SpectroStream, *, axes: tuple[str, str], result: str,
    levels: int,
) -> None:  # fmt: skip
    path = Path(path)
    _require_exporter(path)
    name, length = axes
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=[name],
            output_names=[result],
            dynamic_shapes=({0: "batch", 2: length},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(_metadata(codec, f"spectrostream {name} to {result}", levels))
    with whole_file(path) as file:
        program.save(file.name, external_data=False)


def _metadata(codec: SpectroStream, graph_format: str, levels: int) -> dict[str, str]:
    return {
        "format": graph_format,
        "sample_rate": str(codec.sample_rate),
        "samples_per_token": str(SAMPLES_PER_TOKEN),
        "levels": str(levels),
        "codebook_size": str(codec.codebook_size),
        "codec": codec_fingerprint(codec).hex(),
    }


def _require_exporter(path: Path) -> None:
    if path.suffix != ".onnx":
        raise ExportError(f"{path} does not end in .onnx; ONNX is the only format")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}; make it first")
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(f"export needs {' and '.join(missing)}; type: pip install 'spectrostream[export]'")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's warnings, which are about its own parts and about optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
