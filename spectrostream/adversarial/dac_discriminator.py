"""DAC's discriminator: networks of the folded waveform and of complex spectrograms in bands (arXiv:2306.06546)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from spectrostream.adversarial.contract import Discriminator, DiscriminatorOutput, check_audio
from spectrostream.adversarial.stft_discriminator import PaddedConv2d
from spectrostream.errors import require

# Descript's layers. Periods: widths over `width`; kernel 5 along time, stride 3 but for the last.
PERIOD_MULTIPLIERS = (1, 4, 16, 32, 32)
PERIOD_STRIDES = (3, 3, 3, 3, 1)
# Spectrograms, all of `width`: kernels (time, frequency) and strides along frequency.
BAND_KERNELS = ((3, 9), (3, 9), (3, 9), (3, 9), (3, 3))
BAND_STRIDES = (1, 2, 2, 2, 1)


@dataclass(frozen=True)
class DacDiscriminatorConfig:
    """The discriminator of DAC's 44.1 kHz model; periods and windows are in samples, whatever the sample rate."""

    kind: str = "dac"
    """The tag that selects this discriminator. Allowed: dac."""
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Periods in samples at which the waveform is folded, one network for each. Allowed: different numbers, 1 or more,
    or []. Source: DAC."""
    windows: tuple[int, ...] = (2048, 1024, 512)
    """FFT sizes in samples, one network of the complex spectrogram for each; hop of a quarter. Allowed: different
    multiples of 8, or []. Source: DAC."""
    bands: tuple[tuple[float, float], ...] = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
    """Parts of the spectrum, [from, to] as fractions of it, each with layers of its own. Allowed: pairs of numbers from
    0 to 1. Source: DAC."""
    width: int = 32
    """Features after the first convolution; all other widths follow from it. Allowed: 1 or more. Source: DAC."""
    per_channel: bool = True
    """Whether each channel is an example of its own, as in DAC; false gives the networks all channels together. Source:
    DAC."""
    negative_slope: float = 0.1
    """Slope of the LeakyReLU below 0. Allowed: 0 or more, below 1. Source: DAC."""

    def __post_init__(self) -> None:
        # A configuration file has lists where this class has tuples.
        object.__setattr__(self, "periods", tuple(self.periods))
        object.__setattr__(self, "windows", tuple(self.windows))
        object.__setattr__(self, "bands", tuple((float(low), float(high)) for low, high in self.bands))
        require(self.kind == "dac", f"discriminator.kind is {self.kind!r}", "'dac'")
        self._check_scales()
        require(self.width >= 1, f"discriminator.width is {self.width}", "1 or more")
        slope_fits = 0 <= self.negative_slope < 1
        require(slope_fits, f"discriminator.negative_slope is {self.negative_slope}", "0 <= slope < 1")

    def _check_scales(self) -> None:
        periods_fit = all(period >= 1 for period in self.periods) and len(set(self.periods)) == len(self.periods)
        given = f"discriminator.periods is {self.periods}"
        require(periods_fit, given, "different numbers of samples, >= 1, or none at all")
        windows_fit = all(window >= 8 and window % 8 == 0 for window in self.windows)
        distinct = len(set(self.windows)) == len(self.windows)
        allowed = "different multiples of 8 samples, or none at all"
        require(windows_fit and distinct, f"discriminator.windows is {self.windows}", allowed)
        require(bool(self.periods or self.windows), given, "one or more where there are no windows")
        allowed = "pairs (from, to) with 0 <= from < to <= 1, each with a bin in the shortest of the windows"
        bands_fit = bool(self.bands) and all(map(self._is_band, self.bands))
        require(bands_fit, f"discriminator.bands is {self.bands}", allowed)

    def _is_band(self, band: tuple[float, float]) -> bool:
        low, high = band
        if not 0 <= low < high <= 1:
            return False
        return all(first < last for first, last in (bins_of(band, window) for window in self.windows))

    @property
    def shortest_audio(self) -> int:
        """Fewest samples that the discriminator takes: a whole window, more than a period."""
        return max(*self.windows, *(period + 1 for period in self.periods), 1)


def bins_of(band: tuple[float, float], window: int) -> tuple[int, int]:
    """The first bin of a band and the one after its last, of `window/2 + 1` bins."""
    bins = window // 2 + 1
    return int(band[0] * bins), int(band[1] * bins)


class PeriodDiscriminator(nn.Module):
    """The waveform folded into rows of `period` samples: convolutions along time see every period-th sample."""

    def __init__(self, config: DacDiscriminatorConfig, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        self.negative_slope = config.negative_slope
        widths = (channels, *(config.width * multiplier for multiplier in PERIOD_MULTIPLIERS))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), (stride, 1), padding=(2, 0)))
            for (before, after), stride in zip(pairwise(widths), PERIOD_STRIDES, strict=True)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`[examples, channels, samples]` to logits `[examples, positions]` and the features of each hidden layer."""
        # [examples, channels, rows, period]; as in DAC, audio of whole rows gets one more row
        x = F.pad(audio, (0, self.period - audio.shape[-1] % self.period), mode="reflect")
        x = x.unflatten(-1, (-1, self.period))
        features = []
        for layer in self.layers:
            # [examples, width * multiplier, ceil(rows / strides), period]
            x = F.leaky_relu(layer(x), self.negative_slope)
            features.append(x)
        return self.last(x).flatten(1), features


class BandDiscriminator(nn.Module):
    """Real and imaginary part of a spectrogram, cut into bands with layers of their own; the last layer joins them."""

    analysis_window: Tensor

    def __init__(self, config: DacDiscriminatorConfig, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        self.hop_length = window // 4
        self.negative_slope = config.negative_slope
        self.register_buffer("analysis_window", torch.hann_window(window, periodic=True), persistent=False)
        self.bands = [bins_of(band, window) for band in config.bands]
        self.band_layers = nn.ModuleList(_band_layers(2 * channels, config.width) for _ in self.bands)
        self.last = weight_norm(nn.Conv2d(config.width, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`[examples, channels, samples]` to logits `[examples, positions]` and the hidden features, band by band."""
        spectrogram = self.spectrogram(audio)
        features, ends = [], []
        for (first, last), layers in zip(self.bands, self.band_layers, strict=True):
            x = spectrogram[..., first:last]
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                # [examples, width, frames, bins of the band / strides]
                x = F.leaky_relu(layer(x), self.negative_slope)
                features.append(x)
            ends.append(x)
        return self.last(torch.cat(ends, dim=-1)).flatten(1), features

    def spectrogram(self, audio: Tensor) -> Tensor:
        """`[examples, channels, samples]` to `[examples, 2 * channels, ceil(samples / hop), window/2 + 1]`, float32.

        Unscaled, reflected ends; frame k is centred on the k-th hop of samples. Features: re, im of each channel.
        """
        with torch.autocast(audio.device.type, enabled=False):
            side = (self.window - self.hop_length) // 2
            rest = -audio.shape[-1] % self.hop_length
            padded = F.pad(audio.float(), (side, side + rest), mode="reflect")
            frames = padded.unfold(-1, self.window, self.hop_length) * self.analysis_window.float()
            spectrum = torch.fft.rfft(frames)
            return torch.stack((spectrum.real, spectrum.imag), dim=2).flatten(1, 2)


def _band_layers(features: int, width: int) -> nn.ModuleList:
    layers = nn.ModuleList()
    for kernel, stride in zip(BAND_KERNELS, BAND_STRIDES, strict=True):
        padding = (kernel[0] // 2, kernel[1] // 2)
        layers.append(weight_norm(PaddedConv2d(features, width, kernel, (1, stride), padding)))
        features = width
    return layers


class DacDiscriminator(Discriminator):
    """All networks of the configuration: one per period first, then one per window.

    With `per_channel` the examples of a `DiscriminatorOutput` are the channels, in the order [crop 0 left, crop 0
    right, crop 1 left, ..], and the same weights serve any number of `channels`.
    """

    def __init__(self, config: DacDiscriminatorConfig, channels: int = 2) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.shortest_audio = config.shortest_audio
        channels_seen = 1 if config.per_channel else channels
        # One discriminator per scale; the attribute's name is part of the names in every checkpoint, so it stays.
        self.judges = nn.ModuleList(
            [
                *(PeriodDiscriminator(config, period, channels_seen) for period in config.periods),
                *(BandDiscriminator(config, window, channels_seen) for window in config.windows),
            ]
        )

    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        """See `Discriminator.forward`; one scale per period, then one per window."""
        check_audio(audio, self.channels)
        if audio.shape[-1] < self.shortest_audio:
            raise ValueError(
                f"the discriminator got {audio.shape[-1]} samples; discriminator.windows is {self.config.windows} and "
                f"discriminator.periods {self.config.periods}, so it needs {self.shortest_audio} or more: "
                "use longer crops"
            )
        examples = level(audio.flatten(0, 1)[:, None] if self.config.per_channel else audio)
        logits, features = zip(*(scale(examples) for scale in self.judges), strict=True)
        return DiscriminatorOutput(list(logits), list(features))


def level(audio: Tensor) -> Tensor:
    """Remove the mean of audio `[examples, channels, samples]` and scale each example to a peak of 0.8, in float32.

    So the discriminator cannot use loudness (Descript). Silence stays silent: 1e-9 keeps the division finite.
    """
    with torch.autocast(audio.device.type, enabled=False):
        centred = audio.float() - audio.float().mean(dim=-1, keepdim=True)
        return 0.8 * centred / (centred.abs().amax(dim=(1, 2), keepdim=True) + 1e-9)
