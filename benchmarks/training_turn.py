"""Measures one training in its own process: `python -m benchmarks.training_turn WHAT CASE RESULT`.

WHAT is a key of `MEASURED`, CASE a `TrainingCase` as JSON, RESULT the file that the first process writes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from ablations.assembly import data_module, training_module
from ablations.provenance import write_json
from ablations.schema import ExperimentConfig
from benchmarks.training_case import TrainingCase
from benchmarks.training_watch import StepProfile, Stopwatch
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules import codec_training
from lightning_modules import fit as fitting
from lightning_modules.codec_training import CodecTraining
from lightning_modules.rank_cleanup import is_rank
from spectrostream.errors import UserError


class SkippedUpdatesError(UserError):
    """Updates were skipped, so the measured time is not that of a training."""


def speed(case: TrainingCase) -> dict[str, float]:
    """Train `case`; return `Stopwatch.measured`."""
    config = case.experiment()
    watch = Stopwatch(warm_up=case.warm_up, last=config.training.max_steps)
    train(case, config, watch)
    return watch.measured


def profile(case: TrainingCase) -> dict[str, float]:
    """Train `case` uncompiled in one process, so that hooks work; return `StepProfile.measured` and sizes."""
    plain = dataclasses.replace(case, compile=False, devices=1)
    look = StepProfile(warm_up=plain.warm_up, steps=plain.steps)
    module = train(plain, plain.experiment(extra_steps=1), look)
    counts = {"codec_parameters": module.codec, "discriminator_parameters": module.discriminator}
    return look.measured | {name: float(_parameters(side)) for name, side in counts.items()}


def _parameters(side: nn.Module) -> int:
    return sum(parameter.numel() for parameter in side.parameters())


def train(case: TrainingCase, config: ExperimentConfig, watch: Callback) -> CodecTraining:
    """Train as `spectrostream train` does, in a temporary folder.

    Raises:
        SkippedUpdatesError: Updates were skipped, or the weights are not finite.
    """
    module = training_module(config)
    start_codebooks(module)
    if case.strategy == "find_unused":
        search_for_unused_parameters()
    data = data_module(config)
    decode_music(data, config)
    with tempfile.TemporaryDirectory() as folder:
        fitting.fit(module, data, config.trainer, Path(folder), callbacks=[watch])
    if module.guard.skipped:
        raise SkippedUpdatesError(
            f"{module.guard.skipped} of {config.training.max_steps} updates of {case.config} were skipped; "
            "type another --precision"
        )
    _require_finite(module.parameters())
    return module


def _require_finite(parameters: Iterable[nn.Parameter]) -> None:
    if not all(math.isfinite(float(parameter.detach().sum())) for parameter in parameters):
        raise SkippedUpdatesError("weights are not finite after the training; type another --precision")


def decode_music(data: StereoMusicDataModule, config: ExperimentConfig) -> None:
    """Read every crop of the run once, so that the corpus is decoded and in memory, as in a long run.

    Workers decode on their own, during the warm-up.
    """
    if config.data.num_workers == 0:
        crops = data.train_dataset()
        for batch in range(config.training.max_steps + 1):  # Lightning reads one batch ahead
            for slot in range(config.data.batch_size * config.trainer.devices):
                crops[batch, slot]


def start_codebooks(module: CodecTraining) -> None:
    """Let the quantizer compute as after the initialisation of its codebooks.

    Collecting the vectors for k-means takes more steps than are measured here. The values in the codebooks do not
    change the amount of computing.
    """
    module.codec.adopt_codebooks()


def search_for_unused_parameters() -> None:
    """Replace our averaging by Lightning's `ddp_find_unused_parameters_true` for the rest of this process."""
    fitting.AveragingStrategy = lambda: DDPStrategy(find_unused_parameters=True)  # type: ignore[misc,assignment]
    codec_training.GradientAverage = _AveragedAlready  # type: ignore[misc,assignment]


class _AveragedAlready:
    """Averages nothing: DistributedDataParallel averages the gradients during the backward passes."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def finish(self) -> None:
        """Do nothing."""


MEASURED = {"speed": speed, "profile": profile}


def main(words: Sequence[str]) -> int:
    """Measure and write the result; return the exit code."""
    what, case, result = words
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    started = time.perf_counter()
    try:
        measured = MEASURED[what](TrainingCase(**json.loads(case)))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    measured["process_seconds"] = time.perf_counter() - started
    if not is_rank(os.environ):
        write_json(measured, Path(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
