"""Puts an experiment together: codec, judge, training module and data module from one configuration."""

from __future__ import annotations

from pathlib import Path

import torch

from ablations.compose import ConfigError
from ablations.initial_weights import put_start_into
from ablations.run_folder import RunFolder
from ablations.schema import ExperimentConfig
from datamodules.corpora.segments import segments_fingerprint
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules.checkpoints import latest_valid_checkpoint
from lightning_modules.codec_training import CodecTraining
from reports.evaluation import Segment, protocol
from reports.records import EvaluationProtocol
from spectrostream.adversarial.discriminators import build_discriminator
from spectrostream.interface import TrainableCodec
from spectrostream.registry import build_codec
from spectrostream.weights import load_codec

_SEGMENTS_WITHOUT_TABLE = 50


def initial_codec(config: ExperimentConfig) -> TrainableCodec:
    """The codec as it is before its first step: a function of the configuration and training.seed alone."""
    torch.manual_seed(config.training.seed)
    return build_codec(config.model)


def training_module(config: ExperimentConfig, folder: Path | None = None, start_fingerprint: str = "") -> CodecTraining:
    """Codec and judge with their initial weights, or with those of `training.start_from`; frozen parts do not learn.

    folder: of the run; with a checkpoint in it, that has the weights and those it started from are not needed any more.
    start_fingerprint: what these must have; empty for any. Raises ConfigError and StartError.
    """
    codec = initial_codec(config)
    source = config.training.start_from
    if source and not (folder and latest_valid_checkpoint(RunFolder(folder).checkpoints)):
        put_start_into(codec, source, start_fingerprint)
    try:
        codec.freeze(config.training.freeze)
    except ValueError as error:
        raise ConfigError(f"training.freeze = {list(config.training.freeze)} is not possible: {error}") from error
    discriminator = build_discriminator(config.discriminator, channels=config.model.channels)
    return CodecTraining(codec, discriminator, config.training)


def data_module(config: ExperimentConfig) -> StereoMusicDataModule:
    """The corpus of the configuration; scans it when it is first needed."""
    return StereoMusicDataModule(
        config.data, channels=config.model.channels, batches_per_step=config.training.accumulate
    )


def deployed_codec(weights: Path) -> TrainableCodec:
    """A trained codec as it is used, not as it is trained: without weight normalisation."""
    return load_codec(weights).deployed()


def evaluation_protocol(config: ExperimentConfig) -> EvaluationProtocol:
    """How the codec of this configuration is judged. Raises SegmentsError where its table of segments is missing."""
    table = config.data.evaluation_segments
    if table is None:
        return protocol(config.data.evaluation_segment_seconds)
    return protocol(None, segments_fingerprint(Path(table).expanduser(), segment_limit(config)))


def segment_limit(config: ExperimentConfig) -> int | None:
    """How many held-out segments an evaluation takes at most; None is all that the table of segments lists."""
    if config.evaluation.segments is None and config.data.evaluation_segments is None:
        return _SEGMENTS_WITHOUT_TABLE
    return config.evaluation.segments


def evaluation_segments(config: ExperimentConfig, data: StereoMusicDataModule) -> list[Segment]:
    """The held-out segments that an evaluation takes, as reports know them."""
    segments = data.held_out_segments(segment_limit(config))
    return [Segment(segment.track, segment.name, segment.audio) for segment in segments]
