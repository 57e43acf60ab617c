"""The parts of an experiment, built from one configuration: codec, training module, data module, protocol."""

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
    """Return the codec before its first step; it depends only on `config.model` and `config.training.seed`."""
    torch.manual_seed(config.training.seed)
    return build_codec(config.model)


def training_module(config: ExperimentConfig, folder: Path | None = None, start_fingerprint: str = "") -> CodecTraining:
    """Return codec and discriminator with their initial weights, or with those of `training.start_from`.

    Args:
        config: `training.freeze` names the parts that do not learn.
        folder: The run's folder. If it has a valid checkpoint, the weights at `training.start_from` are not read.
        start_fingerprint: The fingerprint that these weights must have; empty allows any.

    Raises:
        ConfigError: The codec cannot freeze the parts of `training.freeze`.
        StartError: The weights cannot be read, or have another fingerprint.
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
    """Return the data module of the configuration; it scans the corpus at the first use."""
    return StereoMusicDataModule(
        config.data, channels=config.model.channels, batches_per_step=config.training.accumulate
    )


def deployed_codec(weights: Path) -> TrainableCodec:
    """Return a trained codec in its deployed form: without weight normalisation."""
    return load_codec(weights).deployed()


def evaluation_protocol(config: ExperimentConfig) -> EvaluationProtocol:
    """Return how the codec of this configuration is evaluated.

    Raises:
        SegmentsError: The table of evaluation segments is missing.
    """
    table = config.data.evaluation_segments
    if table is None:
        return protocol(config.data.evaluation_segment_seconds)
    return protocol(None, segments_fingerprint(Path(table).expanduser(), segment_limit(config)))


def segment_limit(config: ExperimentConfig) -> int | None:
    """Return the largest number of held-out segments of an evaluation; None means all of the table of segments."""
    if config.evaluation.segments is None and config.data.evaluation_segments is None:
        return _SEGMENTS_WITHOUT_TABLE
    return config.evaluation.segments


def evaluation_segments(config: ExperimentConfig, data: StereoMusicDataModule) -> list[Segment]:
    """Return the held-out segments of an evaluation, in the type that `reports` takes."""
    segments = data.held_out_segments(segment_limit(config))
    return [Segment(segment.track, segment.name, segment.audio) for segment in segments]
