"""How a training is executed: number formats, compilation, memory layout, activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectrostream.adversarial.contract import Discriminator
from spectrostream.adversarial.stft_discriminator import ResidualBlock2d
from spectrostream.interface import TrainableCodec
from spectrostream.precision_check import run_wrong_convolutions_in_float32

SIDES = ("generator", "discriminator")
INITIAL_SCALE = 2.0**16
COMPILER = "inductor"
_AUTOCAST_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Precision:
    """Autocast for forward passes, and where float16 needs them a gradient scaler for generator and discriminator.

    Lightning's own plugin shares one scaler between optimizers and unscales after clipping.

    Attributes:
        float32_layers: Number of convolutions that run in float32, because this CPU computes them wrongly in the short
            format; the highest number over all starts of a run.
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
        """A new context for one forward pass; it keeps the weights that it casts until it ends."""
        dtype = _AUTOCAST_TYPES.get(self.name)
        return torch.autocast(self._device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def check(self, codec: TrainableCodec, discriminator: Discriminator, crop: Tensor) -> None:
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
        """The loss of one side of the GAN, scaled for its backward pass."""
        return self._scalers[side].scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer, side: str) -> None:
        """Divide the gradients by the scale of that side."""
        self._scalers[side].unscale_(optimizer)

    def update(self, side: str) -> None:
        """Adapt the scale after an update, applied or not: half after an overflow, double after a long time without."""
        self._scalers[side].update()

    def can_overflow(self, side: str) -> bool:
        """True if gradients that are not finite may be due to the scale alone."""
        return self.is_scaled and self._scalers[side].get_scale() > 1

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        scalers = {side: scaler.state_dict() for side, scaler in self._scalers.items()}
        return {**scalers, "float32_layers": self.float32_layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; a checkpoint of another number format does not change the scales."""
        self.float32_layers = max(self.float32_layers, state.get("float32_layers", 0))
        for side, scaler in self._scalers.items():
            if self.is_scaled and state.get(side):
                scaler.load_state_dict(state[side])


def lay_out_channels_last(*modules: nn.Module) -> None:
    """Store two-dimensional convolutions with features as the innermost dimension, the layout of matrix units."""
    for module in modules:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_training(codec: TrainableCodec, discriminator: nn.Module) -> None:
    """Compile the convolutions of a training pass with `torch.compile`; names in the state dict do not change.

    Encoding and decoding keep the plain layers: streams carry state, and their lengths vary.
    """
    for part in codec.networks:
        part.forward = _only_in_training(part.forward)
    for part in discriminator.modules():
        if hasattr(part, "spectrogram"):  # the compiler does not support complex numbers
            part.spectrogram = torch.compiler.disable(part.spectrogram)
    discriminator.compile(backend=COMPILER)


def _only_in_training(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(forward, backend=COMPILER)

    def run(x: Tensor, *state: Any) -> Tensor:
        result: Tensor = compiled(x) if torch.is_grad_enabled() and not any(state) else forward(x, *state)
        return result

    return run


def checkpoint_activations(codec: TrainableCodec, discriminator: nn.Module) -> None:
    """Let residual blocks keep only their input; they run a second time in the backward pass."""
    discriminating = (block for block in discriminator.modules() if isinstance(block, ResidualBlock2d))
    for block in (*codec.recomputed_blocks, *discriminating):
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, *state: Any) -> Tensor:
        if not torch.is_grad_enabled() or not x.requires_grad:
            return forward(x, *state)
        result: Tensor = checkpoint(forward, x, *state, use_reentrant=False)
        return result

    return run
