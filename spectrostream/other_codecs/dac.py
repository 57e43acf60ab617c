"""Descript Audio Codec (arXiv:2306.06546) through `transformers.DacModel`, behind the interface of our codec.

DAC is a 44.1 kHz mono codec. As its authors do, this class codes each channel alone with the same weights. It resamples
48 kHz audio before and after, and cuts the result to the input's length. All strides are even, so the output is aligned
with the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from spectrostream.config_from_plain import config_of
from spectrostream.errors import UserError
from spectrostream.interface import Reconstruction, TrainableCodec
from spectrostream.torchaudio_functional import Resample

PRETRAINED_NAME = "descript/dac_44khz"


class MissingPackageError(UserError, ImportError):
    """A codec needs a package that is not installed; the message says how to install it."""


class PretrainedWeightsError(UserError):
    """The pretrained weights cannot be used or are not on this machine; the message says how to get them."""


@dataclass(frozen=True)
class DacConfig:
    """DAC's architecture; the defaults are Descript's 44.1 kHz model.

    Raises:
        ValueError: A value is not possible; the message says what is allowed.
    """

    kind: str = "dac"
    """The tag that selects this codec. Allowed: dac."""
    channels: int = 2
    """Audio channels of input and output; each is coded alone. Allowed: 1 or more."""
    encoder_width: int = 64
    """Features after the encoder's first convolution. Allowed: 1 or more. Source: DAC."""
    decoder_width: int = 1536
    """Features after the decoder's first convolution; each stride halves them. Allowed: multiples of 2 to the number of
    strides. Source: DAC."""
    strides: tuple[int, ...] = (2, 4, 8, 8)
    """Strides of the encoder; the decoder runs them backwards. Allowed: even numbers, 2 or more. Source: DAC."""
    levels: int = 9
    """Levels of the residual quantizer. Allowed: 1 or more. Source: DAC."""
    codebook_size: int = 1024
    """Entries of a codebook; 1024 are 10 bits per code. Allowed: 2 or more. Source: DAC."""
    codebook_dim: int = 8
    """Features of a codebook entry. Allowed: 1 or more. Source: DAC."""
    quantizer_dropout: float = 0.5
    """Share of training examples coded with a random number of levels. Allowed: 0 to 1. Source: DAC."""
    sample_rate: int = 44100
    """Sample rate inside DAC in Hz; its input and output are at 48 kHz. Allowed: 1 or more. Source: DAC."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))
        for key in ("channels", "encoder_width", "decoder_width", "levels", "codebook_dim", "sample_rate"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} = {getattr(self, key)} is not possible; allowed: 1 or more")
        if any(stride < 2 or stride % 2 for stride in self.strides):
            raise ValueError(
                f"model.strides = {self.strides} is not possible: an odd one shifts the output; allowed: even numbers"
            )
        if self.decoder_width % 2 ** len(self.strides):
            raise ValueError(
                f"model.decoder_width = {self.decoder_width} is halved {len(self.strides)} times; "
                f"allowed: multiples of {2 ** len(self.strides)}"
            )


class Dac(TrainableCodec):
    """DAC for audio `[batch, channels, samples]` at 48 kHz; a `spectrostream.interface.TrainableCodec`.

    Codes are int64 `[batch, channels, levels, frames]`.

    Args:
        config: The architecture.
        model: A `transformers.DacModel` with weights; by default one with random weights.
    """

    sample_rate = 48000
    is_causal = False
    latency_samples = None

    config: DacConfig
    model: Any  # a transformers.DacModel; transformers is imported only where it is used

    def __init__(self, config: DacConfig, model: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = _random_model(config) if model is None else model
        self.resample_in = Resample(self.sample_rate, config.sample_rate)
        self.resample_out = Resample(config.sample_rate, self.sample_rate)
        self.hop_length = math.prod(config.strides)

    @classmethod
    def from_pretrained(cls, name: str = PRETRAINED_NAME, *, channels: int = 2) -> Dac:
        """Load Descript's weights. Nothing is downloaded.

        Args:
            name: A name in the local Hugging Face cache, or a local folder.
            channels: Audio channels of the codec.

        Raises:
            PretrainedWeightsError: The weights are not there; the message says what to type.
        """
        transformers = _import_transformers()
        try:
            model = transformers.DacModel.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError) as error:
            raise PretrainedWeightsError(
                f"the weights {name!r} are not in the local cache. "
                f"On a machine with a network type: hf download {name}\n"
                f"or give the path of a folder that holds config.json and model.safetensors. ({error})"
            ) from error
        config = _config_of(model.config, channels)
        model.apply_weight_norm()  # the same function, in the form that is trained and saved
        return cls(config, model).eval()

    def deployed(self) -> Self:
        """Replace the normalised weights by plain ones, in place, for use and timing. Do not train it afterwards."""
        for module in self.model.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return self

    def freeze_part(self, part: str) -> None:
        """See `TrainableCodec`. The codebooks learn by gradients, so the projections around them are frozen too."""
        self.model.get_submodule("quantizer" if part == "codebooks" else part).requires_grad_(False)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Encoder and decoder."""
        return self.model.encoder, self.model.decoder

    @property
    def inner_sample_rate(self) -> int:
        """Sample rate inside DAC in Hz."""
        return self.config.sample_rate

    @property
    def codebook_size(self) -> int:
        """Entries per level."""
        return self.config.codebook_size

    @property
    def codebook_parameters(self) -> int:
        """Numbers in all codebooks; these are `parameters()`."""
        return self.config.levels * self.config.codebook_size * self.config.codebook_dim

    @property
    def network_parameters(self) -> int:
        """Numbers in the networks, without the codebooks."""
        return sum(parameter.numel() for parameter in self.parameters()) - self.codebook_parameters

    def kbps(self, levels: int) -> float:
        """Return the rate of all channels together."""
        frame_rate = self.config.sample_rate / self.hop_length
        return self.channels * levels * math.log2(self.config.codebook_size) * frame_rate / 1000

    def bits(self, codes: Tensor) -> int:
        """Return the bits of one example, from codes `[batch, channels, levels, frames]`."""
        return round(codes[0].numel() * math.log2(self.config.codebook_size))

    @torch.no_grad()
    def encode(self, audio: Tensor, *, levels: int | None = None) -> Tensor:
        """Encode audio.

        Args:
            audio: `[batch, channels, samples]` at 48 kHz.
            levels: 1..`self.levels`; all by default.

        Returns:
            int64 codes `[batch, channels, levels, frames]`.

        Raises:
            ValueError: The audio has another shape, or DAC does not have these levels.
        """
        levels = self.levels if levels is None else levels
        if levels not in range(1, self.levels + 1):
            raise ValueError(
                f"levels = {levels} is not possible: this DAC has {self.levels}; allowed: 1..{self.levels}"
            )
        with self._evaluating():  # in training mode, transformers draws a random number of levels
            codes = self.model.encode(self._inner_input(audio), n_quantizers=levels).audio_codes
        return codes.unflatten(0, (-1, self.channels))

    @torch.no_grad()
    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        """Decode codes `[batch, channels, levels, frames]` to audio `[batch, channels, length]` at 48 kHz."""
        return self._outer_output(self.model.decode(audio_codes=codes.flatten(0, 1)).audio_values, length)

    def forward(self, audio: Tensor) -> Reconstruction:
        """Run one training pass; the loss is the sum of DAC's commitment and codebook losses with its weights."""
        output = self.model(self._inner_input(audio))
        return Reconstruction(self._outer_output(output.audio_values, audio.shape[-1]), output.loss.mean())

    def _inner_input(self, audio: Tensor) -> Tensor:
        """Resample `[batch, channels, samples]` to `[batch * channels, 1, whole hops]` at DAC's rate."""
        if audio.ndim != 3 or audio.shape[1] != self.channels or audio.shape[2] == 0:
            raise ValueError(
                f"audio has the shape {tuple(audio.shape)}; "
                f"this codec takes [batch, {self.channels}, samples], samples > 0"
            )
        resampled = self.resample_in(audio.float().flatten(0, 1)[:, None])
        return F.pad(resampled, (0, -resampled.shape[-1] % self.hop_length))

    def _outer_output(self, audio: Tensor, length: int) -> Tensor:
        """Resample `[batch * channels, inner samples]` to `[batch, channels, length]` at 48 kHz."""
        return self.resample_out(audio)[..., :length].unflatten(0, (-1, self.channels))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


def _config_of(inner: Any, channels: int) -> DacConfig:
    """Convert a `transformers.DacConfig` to ours."""
    plain = {
        "channels": channels,
        "encoder_width": inner.encoder_hidden_size,
        "decoder_width": inner.decoder_hidden_size,
        "strides": inner.downsampling_ratios,
        "levels": inner.n_codebooks,
        "codebook_size": inner.codebook_size,
        "codebook_dim": inner.codebook_dim,
        "sample_rate": inner.sampling_rate,
    }
    # Descript's model is older than every key that was added here, so `config_of` adds their neutral values.
    return config_of(DacConfig, plain)


def _random_model(config: DacConfig) -> nn.Module:
    transformers = _import_transformers()
    inner = transformers.DacConfig(
        encoder_hidden_size=config.encoder_width,
        decoder_hidden_size=config.decoder_width,
        downsampling_ratios=list(config.strides),
        upsampling_ratios=list(config.strides)[::-1],
        n_codebooks=config.levels,
        codebook_size=config.codebook_size,
        codebook_dim=config.codebook_dim,
        quantizer_dropout=config.quantizer_dropout,
        sampling_rate=config.sample_rate,
    )
    model = transformers.DacModel(inner)
    _initialize(model, config)
    model.apply_weight_norm()  # Descript trains with weight normalisation
    return model


@torch.no_grad()
def _initialize(model: nn.Module, config: DacConfig) -> None:
    """Initialise as Descript at the released widths (standard deviation 0.02), with the same gain per layer at others.

    A layer's gain is 0.02 times the root of its inputs. So a fixed 0.02 makes signals vanish in a narrow model.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.init.trunc_normal_(module.weight, std=0.02 * math.sqrt(_narrowing(name, config)))


def _narrowing(name: str, config: DacConfig) -> float:
    """Return the inputs of the layer in the released model, divided by its inputs here."""
    if name == "encoder.conv1" or name.endswith("out_proj"):
        return 1.0  # their inputs are a waveform's one channel and a code's few dimensions at any width
    if name.startswith("decoder.") and name != "decoder.conv1":
        return DacConfig.decoder_width / config.decoder_width
    return DacConfig.encoder_width / config.encoder_width


def _import_transformers():  # type: ignore[no-untyped-def]
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("DAC needs transformers; type: pip install 'spectrostream[baselines]'") from error
    return transformers
