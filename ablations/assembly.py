"""Puts an experiment together: codec, judge, training module and data module from one configuration."""

from __future__ import annotations

import torch

from ablations.experiment import ExperimentConfig
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules.codec_training import CodecTraining
from reports.evaluation import Segment
from spectrostream.discriminators import MultiScaleSTFTDiscriminator
from spectrostream.registry import Codec, build_codec


def initial_codec(config: ExperimentConfig) -> Codec:
    """The codec as it is before its first step: a function of the configuration and training.seed alone."""
    torch.manual_seed(config.training.seed)
    return build_codec(config.model)


def training_module(config: ExperimentConfig) -> CodecTraining:
    """Codec and judge with their initial weights."""
    codec = initial_codec(config)
    discriminator = MultiScaleSTFTDiscriminator(config.discriminator, channels=config.model.channels)
    return CodecTraining(codec, discriminator, config.training)


def data_module(config: ExperimentConfig) -> StereoMusicDataModule:
    """The corpus of the configuration; scans it when it is first needed."""
    return StereoMusicDataModule(
        config.data, channels=config.model.channels, batches_per_step=config.training.accumulate
    )


def evaluation_segments(data: StereoMusicDataModule) -> list[Segment]:
    """The held-out excerpts, as reports know them."""
    return [Segment(excerpt.track, excerpt.name, excerpt.audio) for excerpt in data.held_out_excerpts()]
