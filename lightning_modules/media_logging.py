"""Sends audio and pictures to the loggers that can show them: TensorBoard and W&B."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image


def log_audio(loggers: Iterable[Logger], name: str, path: Path, step: int) -> None:
    """Send a sound file to each logger that plays audio.

    Args:
        loggers: All loggers of the run.
        name: Name of the audio there.
        path: A FLAC or WAV file with any number of channels.
        step: The generator update.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_audio(name, [str(path)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            _tensorboard_audio(logger, name, path, step)


def log_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Send a picture to each logger that shows pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def _tensorboard_audio(logger: TensorBoardLogger, name: str, path: Path, step: int) -> None:
    # `SummaryWriter.add_audio` takes one channel only; the format takes more, and browsers play them.
    from tensorboard.compat.proto.summary_pb2 import Summary

    audio, sample_rate = soundfile.read(path, dtype="int16", always_2d=True)
    wav = io.BytesIO()
    soundfile.write(wav, audio, sample_rate, format="WAV", subtype="PCM_16")
    content = Summary.Audio(
        sample_rate=sample_rate,
        num_channels=audio.shape[1],
        length_frames=audio.shape[0],
        encoded_audio_string=wav.getvalue(),
        content_type="audio/wav",
    )
    writer = logger.experiment.file_writer
    assert writer is not None
    writer.add_summary(Summary(value=[Summary.Value(tag=name, audio=content)]), step)
