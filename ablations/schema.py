"""The configuration of an experiment; only this file joins the configurations of all packages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from datamodules.data_config import DataConfig
from lightning_modules.trainer_config import TrainerConfig
from lightning_modules.training_config import TrainingConfig
from spectrostream.adversarial.contract import DiscriminatorConfig
from spectrostream.adversarial.discriminators import DISCRIMINATORS, DiscriminatorKind
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig
from spectrostream.interface import CodecConfig
from spectrostream.registry import CODECS, CodecKind


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained codec is evaluated."""

    levels: tuple[int, ...] = (64,)
    """Operating points: numbers of quantizer levels. Allowed: different numbers, from 1 to the levels of the model."""
    visqol: bool = True
    """Whether ViSQOL is computed; it is the slowest metric."""
    segments: int | None = None
    """Most held-out segments, spread evenly over all of them; null is the whole table of `data.evaluation_segments`, or
    50 without one. Allowed: null, or 1 or more."""
    workers: int = 2
    """Processes that compute ViSQOL. Allowed: 1 or more."""
    keep_audio: bool = True
    """Whether every decoded segment is written, for the report's player and pictures."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels or min(self.levels) < 1 or len(set(self.levels)) < len(self.levels):
            given = f"evaluation.levels = {list(self.levels)}"
            raise ValueError(f"{given} is not possible; allowed: one or more different numbers >= 1")
        if self.segments is not None and self.segments < 1:
            raise ValueError(f"evaluation.segments = {self.segments} is not possible; allowed: null, or 1 or more")
        if self.workers < 1:
            raise ValueError(f"evaluation.workers = {self.workers} is not possible; allowed: 1 or more")


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that one run needs; each section is defined beside the class that it configures."""

    model: CodecConfig
    discriminator: DiscriminatorConfig = field(default_factory=MultiScaleSTFTConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        trained = self.model.levels
        if max(self.evaluation.levels) > trained:
            raise ValueError(
                f"evaluation.levels = {list(self.evaluation.levels)} goes beyond the {trained} levels that the model "
                f"trains; allowed: 1..{trained}"
            )
        longest = max(self.discriminator.shortest_audio, self.training.shortest_audio)
        if round(self.data.crop_seconds * 48000) < longest:
            raise ValueError(
                f"data.crop_seconds = {self.data.crop_seconds} is shorter than the longest window of the discriminator "
                f"and of the mel loss, {longest} samples; allowed: {math.ceil(longest / 48) / 1000:.3f} or more"
            )


SECTIONS = {f.name: f for f in dataclasses.fields(ExperimentConfig)}
# The sections whose `kind` chooses the schema, with their kinds; the first kind is the default.
KINDS: dict[str, Mapping[str, CodecKind | DiscriminatorKind]] = {"model": CODECS, "discriminator": DISCRIMINATORS}
