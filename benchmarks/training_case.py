"""The training of one row of `benchmarks.training`: a shipped configuration with a given length of music per step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ablations.compose import load_experiment
from ablations.schema import ExperimentConfig

STRATEGIES = ("averaging", "find_unused")
_NEVER = 10**9


@dataclass(frozen=True)
class TrainingCase:
    """One training to measure."""

    config: str
    """A shipped name, or a path to a YAML file."""
    batch_seconds: float = 1.28
    """Music in the batch of each process. The crops get a length near the configuration's that divides it."""
    precision: str = "32-true"
    """As `trainer.precision`."""
    compile: bool = False
    channels_last: bool = False
    devices: int = 1
    """Number of processes."""
    strategy: str = STRATEGIES[0]
    """How processes average gradients: ours, or Lightning's search for unused parameters."""
    threads: int = 1
    """Of each process; 0 keeps torch's default."""
    workers: int = 0
    """Of each process."""
    warm_up: int = 1
    """Updates before the timed ones."""
    steps: int = 2
    """Timed updates."""

    def experiment(self, *, extra_steps: int = 0) -> ExperimentConfig:
        """Return the configuration: the demo corpus, and a discriminator that trains from the first update.

        Args:
            extra_steps: Updates after the timed ones.

        Raises:
            ConfigError: The case is not possible.
        """
        crops, seconds = self.crops()
        overrides = {
            "data.root": "null",
            "data.crop_seconds": repr(seconds),
            "data.batch_size": crops,
            "data.num_workers": self.workers,
            "training.max_steps": self.warm_up + self.steps + extra_steps,
            "training.adversarial_start": 0,
            "training.discriminator_every": 1,
            "training.accumulate": 1,
            "trainer.accelerator": "cuda" if torch.cuda.is_available() else "cpu",
            "trainer.devices": self.devices,
            "trainer.threads": self.threads,
            "trainer.precision": self.precision,
            "trainer.compile": self.compile,
            "trainer.channels_last": self.channels_last,
            "trainer.validate_every": 0,
            "trainer.checkpoint_every": _NEVER,
            "trainer.log_every": _NEVER,
            "trainer.samples_every": 0,
            "trainer.tensorboard": "false",
            "trainer.wandb": "disabled",
        }
        return load_experiment(self.config, [f"{key}={value}" for key, value in overrides.items()])

    def crops(self) -> tuple[int, float]:
        """Return the number of crops in the batch of one process, and the seconds of each."""
        usual = load_experiment(self.config).data.crop_seconds
        count = max(1, round(self.batch_seconds / usual))
        return count, self.batch_seconds / count
