"""What a codec sounds like while it trains: a few held-out clips, coded, drawn and scored every so many updates."""

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
from spectrostream.codec import SpectroStream

logger = logging.getLogger(__name__)

ScoreClip = Callable[[Tensor, Tensor], Mapping[str, float]]
"""Decoded and original, `[channels, samples]` each, to scores by name; what has no score is left out."""


@dataclass(frozen=True)
class Pictures:
    """How sound and codebooks are drawn; this room draws nothing itself.

    clip: original and decoded, `[channels, samples]` each. codebooks: their statistics and the number of entries.
    """

    clip: Callable[[Tensor, Tensor], Image.Image]
    codebooks: Callable[[CodebookStatistics, int], Image.Image]


class Samples(Callback):
    """Every `every` generator updates and at the end, in the first process: codes `clips` at the full rate.

    The averaged weights are heard, in evaluation mode; training goes on as if nothing had been. Each set is a folder
    `folder/step-00001000` with the original and the decoded audio (24-bit FLAC), pictures and codebook statistics, and
    goes to the loggers too, with the scores' means over clips as `validation/<name>`.

    clips: `[channels, samples]` each, in [-1, 1] at the codec's sample rate.
    score, pictures: see there. A score that fails costs that score and a warning, never the training.
    """

    def __init__(
        self, clips: Sequence[Tensor], folder: Path, *, every: int, score: ScoreClip, pictures: Pictures
    ) -> None:
        if every < 1 or not clips:
            raise ValueError(
                f"samples need every >= 1 and at least one clip; given every = {every}, {len(clips)} clips"
            )
        self._clips = list(clips)
        self._folder = folder
        self._every = every
        self._score = score
        self._pictures = pictures
        self._step_sampled = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """A resumed run stands at a step that was sampled before."""
        self._step_sampled = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_index: int,
    ) -> None:
        """A batch that completed no update leaves the step as it was and samples nothing."""
        if trainer.global_step % self._every == 0:
            self._sample(trainer, module)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """What the training came to; a run that is told to stop has no time for it."""
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
                decoded = [_coded(module, clip) for clip in self._clips]
                statistics = _statistics(module)
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
        """Beside, then renamed."""
        folder = self._folder / f"step-{step:08d}"
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for index, (original, heard) in enumerate(zip(self._clips, decoded, strict=True)):
            heard = heard.nan_to_num(0.0, 0.0, 0.0)
            _save(original, partial / f"clip-{index}-original.flac", module.codec.sample_rate)
            _save(heard, partial / f"clip-{index}-decoded.flac", module.codec.sample_rate)
            self._pictures.clip(original, heard).save(partial / f"clip-{index}.png")
        if statistics is not None and isinstance(module.codec, SpectroStream):
            self._pictures.codebooks(statistics, module.codec.codebook_size).save(partial / "codebooks.png")
            _save_statistics(statistics, partial / "codebooks.csv")
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was resumed from before it
        return partial.rename(folder)

    def _mean_scores(self, decoded: Sequence[Tensor]) -> dict[str, float]:
        """Over the clips that have the score."""
        values: dict[str, list[float]] = {}
        for index, (original, heard) in enumerate(zip(self._clips, decoded, strict=True)):
            try:
                scores = self._score(heard, original)
            except Exception as error:  # nothing that judges a training may end it
                logger.warning("clip %d has no scores: %s", index, error)
                continue
            for name, value in scores.items():
                values.setdefault(f"validation/{name}", []).append(value)
        return {name: sum(found) / len(found) for name, found in values.items()}


@contextmanager
def undisturbed(module: CodecTraining) -> Iterator[None]:
    """Within it `module.codec` has the averaged weights and is in evaluation mode; all is as before afterwards.

    Random states and each submodule's own mode among it: a frozen part stays as it is.
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


def _coded(module: CodecTraining, clip: Tensor) -> Tensor:
    """`[channels, samples]` through all levels, on the CPU."""
    codes = module.codec.encode(clip[None].to(module.device))
    return module.codec.decode(codes, length=clip.shape[-1])[0].float().cpu()


def _statistics(module: CodecTraining) -> CodebookStatistics | None:
    """Codebooks that learn by gradients do not count how they are used, others only once they have started."""
    if isinstance(module.codec, SpectroStream) and module.codec.quantizer.learning.is_started:
        return module.codec.quantizer.learning.statistics()
    return None


def _save(audio: Tensor, path: Path, sample_rate: int) -> None:
    soundfile.write(path, audio.clamp(-1, 1).T.numpy(), sample_rate, subtype="PCM_24")


def _save_statistics(statistics: CodebookStatistics, path: Path) -> None:
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(["level", "perplexity", "used_share"])
        pairs = zip(statistics.perplexity.tolist(), statistics.used.tolist(), strict=True)
        writer.writerows([level, f"{one:.4f}", f"{used:.4f}"] for level, (one, used) in enumerate(pairs, start=1))


def _show(trainer: lightning.Trainer, folder: Path, step: int) -> None:
    """Everything that was written, to the loggers; a file's name is what it is called there."""
    for path in sorted(folder.iterdir()):
        name = f"samples/{path.stem}"
        if path.suffix == ".flac":
            log_audio(trainer.loggers, name, path, step)
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                log_picture(trainer.loggers, name, picture, step)
