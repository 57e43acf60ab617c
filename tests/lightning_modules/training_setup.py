"""The smallest complete training: codec, discriminator, data and trainer that the tests in this folder share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.codec_training import CodecTraining
from lightning_modules.fit import build_trainer
from lightning_modules.optimization import OptimizerConfig
from lightning_modules.trainer_config import TrainerConfig
from lightning_modules.training_config import TrainingConfig
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig, MultiScaleSTFTDiscriminator
from spectrostream.codec import SpectroStream, SpectroStreamConfig
from spectrostream.quantizer import QuantizerConfig

# Lightning's own: its use of torch's deprecated pytree class, and its advice about num_workers.
LIGHTNING_WARNINGS = ("ignore:.*LeafSpec:FutureWarning", "ignore:The '.*_dataloader' does not have many workers")
# Three tokens.
SAMPLES = 5760
TOKENS = 3
FAST = OptimizerConfig(learning_rate=2e-3)


def tiny_module(
    *, embedding_dim: int = 8, codebook_size: int = 16, initial_vectors: int = 24, **training: Any
) -> CodecTraining:
    """Codec and discriminator with fixed initial weights; the codebooks start in the fourth batch of two examples.

    training: as `TrainingConfig` takes it.
    """
    torch.manual_seed(0)
    quantizer = QuantizerConfig(
        levels=4, codebook_size=codebook_size, initial_vectors=initial_vectors, kmeans_iterations=2
    )
    codec = SpectroStream(
        SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=embedding_dim, quantizer=quantizer)
    )
    discriminator = MultiScaleSTFTDiscriminator(
        MultiScaleSTFTConfig(windows=(256,), width=2, multipliers=(2, 2), frequency_strides=(2, 2), time_strides=(1, 2))
    )
    return CodecTraining(codec, discriminator, TrainingConfig(**{"generator": FAST, "discriminator": FAST, **training}))


class PlainGradientDescent(CodecTraining):
    """Adam divides by a gradient's size and so blows up rounding; plain descent shows gradients as they are."""

    # Of plain descent, moving weights by 1e-4 to 1e-3: the mel loss is steep at the start.
    rates: ClassVar = {
        "generator": OptimizerConfig(learning_rate=1e-6),
        "discriminator": OptimizerConfig(learning_rate=1e-3),
    }

    @classmethod
    def tiny(cls, **training: Any) -> PlainGradientDescent:
        parts = tiny_module(**cls.rates, **training)
        return cls(parts.codec, parts.discriminator, parts.config)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(side.parameters(), lr=1.0) for side in (self.codec, self.discriminator)]


def noise(index: int, batch: int = 2) -> Tensor:
    """Batch `index` of stereo noise, whoever asks."""
    return 0.1 * torch.randn(batch, 2, SAMPLES, generator=torch.Generator().manual_seed(index))


class Batches(lightning.LightningDataModule):
    """Training batch k is `batch_at(k)`, and a resumed run goes on at its place; `held_out` is validated."""

    def __init__(
        self, batch_at: Callable[[int], Tensor] = noise, *, accumulate: int = 1, held_out: tuple[Tensor, ...] = ()
    ) -> None:
        super().__init__()
        self.batch_at = batch_at
        self.accumulate = accumulate
        self.held_out = list(held_out)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(_Endless(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor] | list[DataLoader[Tensor]]:
        return DataLoader(self.held_out, batch_size=None) if self.held_out else []  # type: ignore[arg-type]


class _Endless(IterableDataset[Tensor]):
    def __init__(self, data: Batches) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Tensor]:
        assert self.data.trainer is not None
        first = self.data.trainer.global_step * self.data.accumulate
        return map(self.data.batch_at, itertools.count(first))


class Updates(Callback):
    """Writes down what each optimizer applies: gradients and learning rate, generator (0) and discriminator (1)."""

    def __init__(self) -> None:
        self.gradients: tuple[list[list[Tensor]], ...] = ([], [])
        self.rates: tuple[list[float], ...] = ([], [])

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        for side, optimizer in enumerate(trainer.optimizers):
            optimizer.register_step_pre_hook(lambda optimizer, _args, _kwargs, side=side: self._note(optimizer, side))

    def _note(self, optimizer: torch.optim.Optimizer, side: int) -> None:
        (group,) = optimizer.param_groups
        self.gradients[side].append([parameter.grad.clone() for parameter in group["params"]])
        self.rates[side].append(group["lr"])

    def norms(self, side: int) -> list[float]:
        """Norm of the whole gradient of each update."""
        return [float(torch.cat([g.flatten() for g in gradients]).norm()) for gradients in self.gradients[side]]


def train(module: CodecTraining, data: lightning.LightningDataModule, *callbacks: Callback) -> lightning.Trainer:
    """Up to max_steps on the CPU, without logs and validation."""
    trainer = build_trainer(module, cpu_config(), list(callbacks), [])
    trainer.fit(module, datamodule=data)
    return trainer


def cpu_config(**changes: Any) -> TrainerConfig:
    """Without validation, everything logged."""
    return TrainerConfig(**{"accelerator": "cpu", "validate_every": 0, "log_every": 1, **changes})


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, as safely as it must be loadable."""
    return torch.load(path, weights_only=True)


def is_same(one: Any, other: Any) -> bool:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)
