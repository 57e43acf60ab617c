"""Coded samples during training: a few held-out segments are coded, drawn and scored at regular intervals."""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning
import soundfile
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn

from lightning_modules.codec_training import CodecTraining
from lightning_modules.media_logging import log_audio, log_picture
from spectrostream.codebook_learning import CodebookStatistics

logger = logging.getLogger(__name__)

ScoreSegment = Callable[[Tensor, Tensor], Mapping[str, float]]
"""Scores decoded against original audio, `[channels, samples]` each, by name; scores that do not exist are left out."""


@dataclass(frozen=True)
class Pictures:
    """How audio and codebooks are drawn; `ablations` gives these functions.

    Attributes:
        segment: Draws original and decoded audio, `[channels, samples]` each.
        codebooks: Draws codebook statistics, given also the number of entries of a codebook.
    """

    segment: Callable[[Tensor, Tensor], Image.Image]
    codebooks: Callable[[CodebookStatistics, int], Image.Image]


class Samples(Callback):
    """Codes held-out segments at the full rate, during training and at its end, in the first process.

    It uses the averaged weights in evaluation mode and leaves the training undisturbed. Each set is a folder
    `folder/step-00001000` with the original and the decoded audio (24-bit FLAC), pictures and codebook statistics. The
    loggers get the same, and the means of the scores over the segments as `validation/<name>`.

    Args:
        segments: `[channels, samples]` each, in [-1, 1] at the codec's sample rate.
        folder: Where the sets are written.
        every: Generator updates between two sets.
        score: Scores one segment; a failure gives a warning and does not stop the training.
        pictures: Draws segments and codebooks.
    """

    def __init__(
        self, segments: Sequence[Tensor], folder: Path, *, every: int, score: ScoreSegment, pictures: Pictures
    ) -> None:
        if every < 1 or not segments:
            raise ValueError(
                f"samples need every >= 1 and at least one segment; given every = {every}, {len(segments)} segments"
            )
        self._segments = list(segments)
        self._folder = folder
        self._every = every
        self._score = score
        self._pictures = pictures
        self._step_sampled = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Note the step that a resumed run starts from: it has samples already."""
        self._step_sampled = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_index: int,
    ) -> None:
        """Sample if it is time; a batch that completes no update does not change the step and samples nothing."""
        if trainer.global_step % self._every == 0:
            self._sample(trainer, module)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Sample the result of a finished training; a run that was asked to stop has no time for it."""
        assert isinstance(module, CodecTraining)
        if trainer.global_step >= module.config.max_steps:
            self._sample(trainer, module)

    def _sample(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, CodecTraining)
        step = trainer.global_step
        if step == self._step_sampled or not trainer.is_global_zero:
            return
        self._step_sampled = step
        try:
            with undisturbed(module):
                decoded = [_coded(module, segment) for segment in self._segments]
                statistics = module.codec.codebook_statistics()
                folder = self._write(module, decoded, statistics, step)
        except OSError as error:  # a full disk, for instance
            logger.warning("the samples of step %d are not written: %s", step, error)
            return
        for one in trainer.loggers:
            one.log_metrics(self._mean_scores(decoded), step)
        _show(trainer, folder, step)

    def _write(
        self, module: CodecTraining, decoded: Sequence[Tensor], statistics: CodebookStatistics | None, step: int
    ) -> Path:
        """Write one set to a partial folder, then rename it."""
        folder = self._folder / f"step-{step:08d}"
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for index, (original, coded) in enumerate(zip(self._segments, decoded, strict=True)):
            coded = coded.nan_to_num(0.0, 0.0, 0.0)
            _save(original, partial / f"clip-{index}-original.flac", module.codec.sample_rate)
            _save(coded, partial / f"clip-{index}-decoded.flac", module.codec.sample_rate)
            self._pictures.segment(original, coded).save(partial / f"clip-{index}.png")
        if statistics is not None:
            self._pictures.codebooks(statistics, module.codec.codebook_size).save(partial / "codebooks.png")
            _save_statistics(statistics, partial / "codebooks.csv")
        shutil.rmtree(folder, ignore_errors=True)  # left by an earlier attempt
        return partial.rename(folder)

    def _mean_scores(self, decoded: Sequence[Tensor]) -> dict[str, float]:
        """Mean of each score over the segments that have it."""
        values: dict[str, list[float]] = {}
        for index, (original, coded) in enumerate(zip(self._segments, decoded, strict=True)):
            try:
                scores = self._score(coded, original)
            except Exception as error:  # a failing score must not end a training
                logger.warning("segment %d has no scores: %s", index, error)
                continue
            for name, value in scores.items():
                values.setdefault(f"validation/{name}", []).append(value)
        return {name: sum(found) / len(found) for name, found in values.items()}


@contextmanager
def undisturbed(module: CodecTraining) -> Iterator[None]:
    """Use the averaged weights in evaluation mode within the context, and restore everything afterwards.

    That includes the random states and each submodule's own mode: a frozen part keeps its mode.
    """
    devices = [module.device] if module.device.type == "cuda" else []
    modes = {part: part.training for part in module.codec.modules()}
    with torch.random.fork_rng(devices), torch.no_grad(), module.averaged_weights():
        module.codec.eval()
        try:
            yield
        finally:
            _set_modes(modes)


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for part, mode in modes.items():
        part.training = mode


def _coded(module: CodecTraining, segment: Tensor) -> Tensor:
    """Code `[channels, samples]` with all levels; the result is on the CPU."""
    codes = module.codec.encode(segment[None].to(module.device))
    return module.codec.decode(codes, length=segment.shape[-1])[0].float().cpu()


def _save(audio: Tensor, path: Path, sample_rate: int) -> None:
    soundfile.write(path, audio.clamp(-1, 1).T.numpy(), sample_rate, subtype="PCM_24")


def _save_statistics(statistics: CodebookStatistics, path: Path) -> None:
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(["level", "perplexity", "used_share"])
        pairs = zip(statistics.perplexity.tolist(), statistics.used.tolist(), strict=True)
        writer.writerows([level, f"{one:.4f}", f"{used:.4f}"] for level, (one, used) in enumerate(pairs, start=1))


def _show(trainer: lightning.Trainer, folder: Path, step: int) -> None:
    """Send all audio and pictures in the folder to the loggers, under the names of the files."""
    for path in sorted(folder.iterdir()):
        name = f"samples/{path.stem}"
        if path.suffix == ".flac":
            log_audio(trainer.loggers, name, path, step)
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                log_picture(trainer.loggers, name, picture, step)
