"""One turn of one row, in a process of its own: `python -m benchmarks.training_turn WHAT CASE RESULT`.

WHAT is one of `MEASURED`, CASE a `TrainingCase` as JSON, RESULT the file that the first process writes.
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
    """Updates that were not applied: what was measured is no training."""


def speed(case: TrainingCase) -> dict[str, float]:
    """Trains `case`; see `Stopwatch.measured`."""
    config = case.experiment()
    watch = Stopwatch(warm_up=case.warm_up, last=config.training.max_steps)
    train(case, config, watch)
    return watch.measured


def profile(case: TrainingCase) -> dict[str, float]:
    """Trains `case` uncompiled, in one process, so that all can be seen; see `StepProfile.measured`."""
    plain = dataclasses.replace(case, compile=False, devices=1)
    look = StepProfile(warm_up=plain.warm_up, steps=plain.steps)
    module = train(plain, plain.experiment(extra_steps=1), look)
    counts = {"codec_parameters": module.codec, "judge_parameters": module.discriminator}
    return look.measured | {name: float(_parameters(side)) for name, side in counts.items()}


def _parameters(side: nn.Module) -> int:
    return sum(parameter.numel() for parameter in side.parameters())


def train(case: TrainingCase, config: ExperimentConfig, watch: Callback) -> CodecTraining:
    """As `spectrostream train` does, in a folder that is thrown away; UserError if it was no training."""
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
    """Reads every crop of the run once: a small corpus is decoded once in a long run, and then is in memory.

    Workers decode for themselves, in the warm-up.
    """
    if config.data.num_workers == 0:
        crops = data.train_dataset()
        for batch in range(config.training.max_steps + 1):  # Lightning reads one batch ahead
            for slot in range(config.data.batch_size * config.trainer.devices):
                crops[batch, slot]


def start_codebooks(module: CodecTraining) -> None:
    """The quantizer computes as in a run that is under way.

    Collecting enough vectors for k-means takes more steps than are measured here; which numbers the codebooks hold
    changes nothing in what is computed.
    """
    module.codec.adopt_codebooks()


def search_for_unused_parameters() -> None:
    """Lightning's `ddp_find_unused_parameters_true` in place of our averaging, for this process's further life."""
    fitting.AveragingStrategy = lambda: DDPStrategy(find_unused_parameters=True)  # type: ignore[misc,assignment]
    codec_training.GradientAverage = _AveragedAlready  # type: ignore[misc,assignment]


class _AveragedAlready:
    """DistributedDataParallel has averaged the gradients during the backward passes."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def finish(self) -> None:
        """Nothing is on its way."""


MEASURED = {"speed": speed, "profile": profile}


def main(words: Sequence[str]) -> int:
    """Measures and writes; the exit code."""
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
