"""How a module is executed: number formats, compilation, memory layout, activations kept or computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectrostream.adversarial.discriminators import Discriminator
from spectrostream.adversarial.stft_discriminator import ResidualBlock2d
from spectrostream.codec import SpectroStream
from spectrostream.decoder import DecoderBlock
from spectrostream.encoder import EncoderBlock
from spectrostream.precision_check import run_wrong_convolutions_in_float32
from spectrostream.registry import Codec

SIDES = ("generator", "discriminator")
INITIAL_SCALE = 2.0**16
COMPILER = "inductor"
_AUTOCAST_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Precision:
    """Autocast for forward passes, and a gradient scaler for each side where float16 needs one.

    Lightning's own plugin shares one scaler between optimizers and unscales after clipping.

    float32_layers: convolutions that run in float32, because this CPU computes them wrongly in the short format; of all
    starts of a run the most.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.float32_layers = 0
        self._device = device
        self._is_checked = device.type != "cpu" or name not in _AUTOCAST_TYPES
        self.is_scaled = name == "16-mixed"
        self._scalers = {
            side: torch.amp.GradScaler(device.type, INITIAL_SCALE, enabled=self.is_scaled) for side in SIDES
        }

    def autocast(self) -> torch.autocast:
        """A fresh context for one forward pass: what it casts it keeps until its end."""
        dtype = _AUTOCAST_TYPES.get(self.name)
        return torch.autocast(self._device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def check(self, codec: Codec, discriminator: Discriminator, crop: Tensor) -> None:
        """On a CPU, once: has the convolutions that it computes wrongly in this format computed in float32.

        crop: `[1, channels, samples]`, as the training has it.
        """
        if self._is_checked:
            return
        self._is_checked = True
        short = crop[..., : discriminator.shortest_audio]

        def run() -> None:
            codec.decode(codec.encode(short), length=short.shape[-1])
            # Not the compiled form, if there is one.
            discriminator.forward(short)

        wrong = run_wrong_convolutions_in_float32(
            nn.ModuleList((codec, discriminator)), run, dtype=_AUTOCAST_TYPES[self.name], gradients=True
        )
        self.float32_layers = max(self.float32_layers, len(wrong))

    def scaled(self, loss: Tensor, side: str) -> Tensor:
        """The loss to call backward on."""
        return self._scalers[side].scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer, side: str) -> None:
        """Makes true gradients of the scaled ones."""
        self._scalers[side].unscale_(optimizer)

    def update(self, side: str) -> None:
        """After an update, applied or not: the scale halves after an overflow and doubles after a long time without."""
        self._scalers[side].update()

    def can_overflow(self, side: str) -> bool:
        """True if gradients that are not finite may be due to the scale alone."""
        return self.is_scaled and self._scalers[side].get_scale() > 1

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        scalers = {side: scaler.state_dict() for side, scaler in self._scalers.items()}
        return {**scalers, "float32_layers": self.float32_layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; one of another number format leaves the scales as they are."""
        self.float32_layers = max(self.float32_layers, state.get("float32_layers", 0))
        for side, scaler in self._scalers.items():
            if self.is_scaled and state.get(side):
                scaler.load_state_dict(state[side])


def lay_out_channels_last(*modules: nn.Module) -> None:
    """Two-dimensional convolutions with features as the innermost dimension, the layout of matrix units."""
    for module in modules:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_training(codec: Codec, discriminator: nn.Module) -> None:
    """`torch.compile` for the convolutions of a training pass; names in the state dict stay.

    Encoding and decoding go on with the plain layers: streams carry state, and their lengths vary.
    """
    model = codec if isinstance(codec, SpectroStream) else codec.model
    for part in (model.encoder, model.decoder):
        part.forward = _only_in_training(part.forward)  # type: ignore[method-assign]
    for judge in discriminator.modules():
        if hasattr(judge, "spectrogram"):  # complex numbers are not for the compiler
            judge.spectrogram = torch.compiler.disable(judge.spectrogram)
    discriminator.compile(backend=COMPILER)


def _only_in_training(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(forward, backend=COMPILER)

    def run(x: Tensor, *state: Any) -> Tensor:
        result: Tensor = compiled(x) if torch.is_grad_enabled() and not any(state) else forward(x, *state)
        return result

    return run


def checkpoint_activations(*modules: nn.Module) -> None:
    """Residual blocks keep their input alone and run a second time in the backward pass."""
    for module in modules:
        for block in module.modules():
            if isinstance(block, EncoderBlock | DecoderBlock | ResidualBlock2d):
                block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *state: Any) -> Tensor:
        if not torch.is_grad_enabled() or not x.requires_grad:
            return forward(x, *state)
        result: Tensor = checkpoint(forward, x, *state, use_reentrant=False)
        return result

    return run
