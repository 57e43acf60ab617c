"""What one row of `benchmarks.training` trains: a shipped configuration at a given length of music per step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ablations.compose import load_experiment
from ablations.schema import ExperimentConfig

STRATEGIES = ("averaging", "find_unused")
_NEVER = 10**9


@dataclass(frozen=True)
class TrainingCase:
    """config: a shipped name, or a path to a YAML file.

    batch_seconds: of music in the batch of each process; crops are about as long as the configuration has them, so that
        a whole number of them is exactly that.
    precision: as `trainer.precision`. compile, channels_last: likewise.
    devices: processes. strategy: how these share gradients: ours, or Lightning's search for unused parameters.
    threads, workers: of each process; 0 threads leaves torch's own.
    warm_up, steps: updates before the clock starts, and with it.
    """

    config: str
    batch_seconds: float = 1.28
    precision: str = "32-true"
    compile: bool = False
    channels_last: bool = False
    devices: int = 1
    strategy: str = STRATEGIES[0]
    threads: int = 1
    workers: int = 0
    warm_up: int = 1
    steps: int = 2

    def experiment(self, *, extra_steps: int = 0) -> ExperimentConfig:
        """The configuration that is trained, on the demo corpus, the judge from the first update. Raises ConfigError.

        extra_steps: updates after those with the clock.
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
        """Of one process's batch: how many, and the seconds of each."""
        usual = load_experiment(self.config).data.crop_seconds
        count = max(1, round(self.batch_seconds / usual))
        return count, self.batch_seconds / count
