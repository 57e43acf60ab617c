"""The paper's discriminator: one network of the complex spectrogram at each of several window sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.adversarial.contract import Discriminator, DiscriminatorOutput, check_audio
from spectrostream.errors import require


@dataclass(frozen=True)
class MultiScaleSTFTConfig:
    """The paper's discriminator: six complex-STFT scales, hop of half a window."""

    kind: str = "multi_scale_stft"
    """The tag that selects this discriminator. Allowed: multi_scale_stft."""
    windows: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    """FFT sizes in samples, one network for each. Allowed: different even numbers, 4 or more. Source: paper."""
    width: int = 32
    """Features after the first convolution. Allowed: 1 or more. Source: paper."""
    multipliers: tuple[int, ...] = (2, 4, 4, 8, 8, 16)
    """Features after each residual block, in multiples of `width`. Allowed: one or more numbers, 1 or more. Source:
    public re-implementation."""
    frequency_strides: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    """Stride of each residual block along frequency. Allowed: numbers, 1 or more, as many as multipliers. Source:
    public re-implementation."""
    time_strides: tuple[int, ...] = (1, 2, 1, 2, 1, 2)
    """Stride of each residual block along time. Allowed: numbers, 1 or more, as many as multipliers. Source: public
    re-implementation."""
    negative_slope: float = 0.2
    """Slope of the LeakyReLU below 0. Allowed: 0 or more, below 1. Source: public re-implementation."""

    def __post_init__(self) -> None:
        for name in ("windows", "multipliers", "frequency_strides", "time_strides"):
            # A configuration file has lists where this class has tuples.
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require(self.kind == "multi_scale_stft", f"discriminator.kind is {self.kind!r}", "'multi_scale_stft'")
        windows_fit = all(window >= 4 and window % 2 == 0 for window in self.windows)
        distinct = len(set(self.windows)) == len(self.windows) > 0
        allowed = "one or more different even numbers of samples, >= 4"
        require(windows_fit and distinct, f"discriminator.windows is {self.windows}", allowed)
        require(self.width >= 1, f"discriminator.width is {self.width}", "1 or more")
        slope_fits = 0 <= self.negative_slope < 1
        require(slope_fits, f"discriminator.negative_slope is {self.negative_slope}", "0 <= slope < 1")
        blocks = len(self.multipliers)
        for name in ("multipliers", "frequency_strides", "time_strides"):
            values = getattr(self, name)
            fits = len(values) == blocks >= 1 and all(value >= 1 for value in values)
            allowed = f"{blocks or 'one or more'} numbers >= 1, one for each of the multipliers"
            require(fits, f"discriminator.{name} is {values}", allowed)

    @property
    def shortest_audio(self) -> int:
        """Fewest samples that the discriminator takes: the longest window."""
        return max(self.windows)


class PaddedConv2d(nn.Conv2d):
    """`nn.Conv2d` over (time, frequency) with zero padding, right in bfloat16 on every processor.

    oneDNN's kernels for AMX are wrong where a convolution with a stride along frequency gives a single bin
    (docs/bfloat16.md). There that stride means nothing: the padded input is cut to the width of the kernel instead.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, T, F]` to `[batch, out, T', F']`, as `nn.Conv2d`."""
        frames, bins = (int(side) for side in self.padding)
        width = self.kernel_size[1]
        gives_one_bin = 0 <= x.shape[-1] + 2 * bins - width < self.stride[1]
        if not gives_one_bin:
            return super().forward(x)
        x = F.pad(x, (bins, width - bins - x.shape[-1], frames, frames))
        return F.conv2d(x, self.weight, self.bias, (self.stride[0], 1))


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution, right in bfloat16 on every processor.

    oneDNN's kernels for AMX are wrong for 2 to 4 positions (docs/bfloat16.md). There it is written as the matrix
    product that it is.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, T, F]` to `[batch, out, T, F]`."""
        if x.shape[-2] * x.shape[-1] > 4:
            return super().forward(x)
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class ResidualBlock2d(nn.Module):
    """3x3 convolution, then a strided one of size stride + 2, each normalised; strided 1x1 shortcut (SoundStream).

    "Layer norm" is `GroupNorm(1, features)`: mean and variance over features, time and frequency of one example, with a
    gain and bias per feature. It works for any number of frames and bins and never mixes examples.
    """

    def __init__(self, in_features: int, out_features: int, stride: tuple[int, int], negative_slope: float) -> None:
        super().__init__()
        self.stride = stride
        self.negative_slope = negative_slope
        kernel = (stride[0] + 2, stride[1] + 2)
        self.first = nn.Conv2d(in_features, in_features, 3, padding=1)
        self.first_norm = nn.GroupNorm(1, in_features)
        self.second = PaddedConv2d(in_features, out_features, kernel, stride, padding=1)
        self.second_norm = nn.GroupNorm(1, out_features)
        self.shortcut = PointwiseConv2d(in_features, out_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, T, F]` to `[batch, out, ceil(T/stride_t), ceil(F/stride_f)]`."""
        frames, bins = x.shape[-2:]
        y = F.leaky_relu(self.first_norm(self.first(x)), self.negative_slope)
        # A rest of a stride at the end still gets a position, here as in the shortcut.
        y = F.pad(y, (0, -bins % self.stride[1], 0, -frames % self.stride[0]))
        y = self.second_norm(self.second(y))
        # Sliced, not strided: torch's strided 1x1 convolution in the channels-last layout ends a CPU process (2.13).
        shortcut = self.shortcut(x[..., :: self.stride[0], :: self.stride[1]])
        return F.leaky_relu(y + shortcut, self.negative_slope)


class STFTDiscriminator(nn.Module):
    """One scale: complex spectrogram, 7x7 convolution, residual blocks, a last convolution over the remaining bins.

    It sees all channels together: real part, imaginary part and modulus of each, 3 * channels features. So it sees a
    wrong phase between left and right.
    """

    analysis_window: Tensor

    def __init__(self, config: MultiScaleSTFTConfig, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        self.hop_length = window // 2
        self.negative_slope = config.negative_slope
        hann = torch.hann_window(window, periodic=True, dtype=torch.float64)
        # Divided by the root of its energy: white noise of variance v has E|X|^2 = v in every bin at every scale.
        hann = hann / hann.square().sum().sqrt()
        self.register_buffer("analysis_window", hann.float(), persistent=False)

        widths = [config.width, *(config.width * multiplier for multiplier in config.multipliers)]
        strides = list(zip(config.time_strides, config.frequency_strides, strict=True))
        self.first = nn.Conv2d(3 * channels, widths[0], 7, padding=3)
        self.first_norm = nn.GroupNorm(1, widths[0])
        self.blocks = nn.ModuleList(
            ResidualBlock2d(before, after, stride, config.negative_slope)
            for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        bins = window // 2
        for _, stride in strides:
            bins = math.ceil(bins / stride)
        self.last = nn.Conv2d(widths[-1], 1, (1, bins))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`[batch, channels, samples]` to logits `[batch, time]` and the features of each hidden layer."""
        # [batch, 3 * channels, frames, bins]
        x = F.leaky_relu(self.first_norm(self.first(self.spectrogram(audio))), self.negative_slope)
        features = [x]
        for block in self.blocks:
            # [batch, width * multiplier, frames / time strides, bins / frequency strides]
            x = block(x)
            features.append(x)
        # [batch, time, width * bins] to [batch, time, 1]: a convolution over all bins is a matrix product. Written as a
        # convolution, oneDNN's bfloat16 kernels for AMX get it wrong at small widths (docs/bfloat16.md).
        logits = F.linear(x.transpose(1, 2).flatten(2), self.last.weight.flatten(1), self.last.bias)
        return logits[..., 0], features

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Real, imaginary, modulus of all channels: `[batch, 3 * channels, frames, window/2]`, always float32.

        The end is zero-padded to a whole frame, so the tail counts too; the Nyquist bin is dropped as in the codec.
        """
        with torch.autocast(audio.device.type, enabled=False):
            rest = -(audio.shape[-1] - self.window) % self.hop_length
            frames = F.pad(audio.float(), (0, rest)).unfold(-1, self.window, self.hop_length)
            spectrum = torch.fft.rfft(frames * self.analysis_window.float())[..., :-1]
            # sqrt has no finite slope at 0; 1e-10 (-100 dB) bounds the modulus' gradient by 1.
            modulus = (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()
            return torch.cat((spectrum.real, spectrum.imag, modulus), dim=1)


class MultiScaleSTFTDiscriminator(Discriminator):
    """The paper's discriminator: one independent `STFTDiscriminator` per window.

    It sees all channels together, so `channels` must be that of the audio.
    """

    def __init__(self, config: MultiScaleSTFTConfig, channels: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.scales = nn.ModuleList(STFTDiscriminator(config, window, channels) for window in config.windows)
        self.windows = config.windows
        self.shortest_audio = config.shortest_audio

    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        """See `Discriminator.forward`; one scale per window, in the order of `windows`."""
        check_audio(audio, self.channels)
        if audio.shape[-1] < self.shortest_audio:
            raise ValueError(
                f"the discriminator got {audio.shape[-1]} samples; discriminator.windows is {self.windows}, "
                f"so it needs {self.shortest_audio} or more: use longer crops or shorter windows"
            )
        logits, features = zip(*(scale(audio) for scale in self.scales), strict=True)
        return DiscriminatorOutput(list(logits), list(features))
