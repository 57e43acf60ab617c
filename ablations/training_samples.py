"""Samples during training: gives the functions of `reports` that score and draw to `lightning_modules`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from PIL import Image
from torch import Tensor

from ablations.run_folder import RunFolder
from ablations.schema import ExperimentConfig
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules.samples import Pictures, Samples
from reports.figures.sample_pictures import codebook_picture, segment_picture
from reports.metrics.score import Score
from reports.metrics.spectral import mel_distance, si_sdr
from reports.metrics.stereo import cue_errors
from reports.metrics.visqol import VisqolPool, VisqolWorkerError
from spectrostream.codebook_learning import CodebookStatistics

logger = logging.getLogger(__name__)


@contextmanager
def sampling(config: ExperimentConfig, folder: Path, data: StereoMusicDataModule) -> Iterator[tuple[Samples, ...]]:
    """Yield the callback of `trainer.samples_every`, if any, for the training within the context.

    If no held-out music is long enough for a sample, there is a warning and no callback.
    """
    trainer = config.trainer
    if not trainer.samples_every:
        yield ()
        return
    segments = [segment.audio for segment in data.held_out_segments(trainer.sample_clips)]
    if not segments:
        logger.warning(
            "trainer.samples_every = %d, but no held-out music is long enough for a sample", trainer.samples_every
        )
        yield ()
        return
    samples = RunFolder(folder).samples
    pictures = _pictures(data.sample_rate)
    with SegmentScores(visqol_workers=config.evaluation.workers if config.evaluation.visqol else 0) as score:
        yield (Samples(segments, samples, every=trainer.samples_every, score=score, pictures=pictures),)


def _pictures(sample_rate: int) -> Pictures:
    def segment(original: Tensor, decoded: Tensor) -> Image.Image:
        return segment_picture(original.numpy(), decoded.numpy(), sample_rate)

    def codebooks(statistics: CodebookStatistics, entries: int) -> Image.Image:
        return codebook_picture(statistics.perplexity.tolist(), statistics.used.tolist(), entries)

    return Pictures(segment, codebooks)


class SegmentScores:
    """Computes mel distance, SI-SDR, IPD error and ViSQOL-LR of a segment; a context manager.

    Missing scores are left out, with one warning for each reason.

    Args:
        visqol_workers: Processes for ViSQOL; they start with the first segment and end with the context. 0 leaves
            ViSQOL out.
    """

    def __init__(self, *, visqol_workers: int) -> None:
        self._workers = visqol_workers
        self._pool: VisqolPool | None = None
        self._warned: set[str] = set()

    def __enter__(self) -> SegmentScores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.__exit__(kind, error, traceback)
            self._pool = None

    def __call__(self, decoded: Tensor, original: Tensor) -> dict[str, float]:
        """Score one segment.

        Args:
            decoded: `[channels, samples]` at 48 kHz.
            original: The same shape.

        Returns:
            Name of the metric -> value, without stereo metrics for audio that is not stereo.
        """
        metrics: dict[str, Callable[[], Score]] = {
            "mel_distance": lambda: mel_distance(original, decoded),
            "si_sdr": lambda: si_sdr(original, decoded),
        }
        if original.shape[0] == 2:
            metrics["ipd_error"] = lambda: cue_errors(original, decoded).ipd
        if self._workers:
            metrics["visqol"] = lambda: self._visqol(decoded, original)
        return self._known({name: metric() for name, metric in metrics.items()})

    def _known(self, scores: Mapping[str, Score]) -> dict[str, float]:
        for name, score in scores.items():
            if score.reason and f"{name}: {score.reason}" not in self._warned:
                self._warned.add(f"{name}: {score.reason}")
                logger.warning("samples: a segment has no %s: %s", name, score.reason)
        return {name: score.value for name, score in scores.items() if not score.reason}

    def _visqol(self, decoded: Tensor, original: Tensor) -> Score:
        """Return the mean over channels."""
        if self._pool is None:
            self._pool = VisqolPool(self._workers).__enter__()
        pairs = zip(original.numpy(), decoded.numpy(), strict=True)
        waiting = [self._pool.submit(f"channel {number}", *pair) for number, pair in enumerate(pairs, start=1)]
        try:
            scores = [one.result() for one in waiting]
        except VisqolWorkerError as error:
            # A pool with a lost worker cannot score again; the next segment starts a new pool.
            self.__exit__(VisqolWorkerError, error, error.__traceback__)
            return Score.missing(str(error))
        reason = "; ".join(sorted({score.reason for score in scores if score.reason}))
        return Score.missing(reason) if reason else Score(sum(score.value for score in scores) / len(scores))
