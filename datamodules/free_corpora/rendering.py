"""Render a track to FLAC: run the synthesizer, measure the peak, scale the whole track down if it is too loud."""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from datamodules.audio.blocks import AudioReader, AudioWriter
from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.programs import run_watched
from datamodules.free_corpora.renderers import SAMPLE_RATE, Renderer

# One dB below full scale leaves room for what a resampler or a lossy codec adds.
CEILING_DBFS = -1.0
# After the last note, audio below this is cut off.
_QUIET = 2.0**-15
_BLOCK_SAMPLES = 2**20
# A synthesizer that needs longer for one track hangs: the slowest is some ten times as fast as real time.
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class Rendered:
    """A finished track: its length, the peak of the synthesizer's output, and the gain, 0 dB or less."""

    seconds: float
    peak_dbfs: float
    scaled_db: float


class Rendering:
    """Renders tracks until it is stopped; several threads may call it.

    `work` is an existing folder for unfinished audio, on a disk with room for 23 MB a minute.
    """

    def __init__(self, renderer: Renderer, soundfont: Path, work: Path, bits: int) -> None:
        self._renderer = renderer
        self._soundfont = soundfont
        self._work = work
        self._bits = bits
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all running synthesizers."""
        self._stopped.set()

    def render(self, midi: Path, target: Path, seconds: float) -> Rendered:
        """Write the FLAC file, which appears whole or not at all; audio shorter than the notes is refused.

        Raises:
            RecipeError: The synthesizer failed, or wrote too little or only silence.
        """
        # A new name, because a synthesizer of an earlier, killed build may still be writing.
        descriptor, name = tempfile.mkstemp(suffix=".wav", dir=self._work)
        os.close(descriptor)
        wav = Path(name)
        try:
            self._run(midi, wav)
            return self._to_flac(wav, target, seconds)
        finally:
            wav.unlink(missing_ok=True)

    def _run(self, midi: Path, wav: Path) -> None:
        command = self._renderer.command(midi, self._soundfont, wav)
        deadline = time.monotonic() + _LONGEST_SECONDS

        def watch() -> None:
            if self._stopped.is_set():
                raise RecipeError("stopped")
            if time.monotonic() > deadline:
                raise RecipeError(f"{self._renderer.name} did not finish within {_LONGEST_SECONDS:.0f} s")

        try:
            code, output = run_watched(command, watch)
        except OSError as error:
            raise RecipeError(f"{command[0]} cannot be started: {error.strerror}") from error
        if code:
            last = output[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
            raise RecipeError(f"{self._renderer.name} ended with code {code}: {' '.join(last) or 'no word why'}")

    def _to_flac(self, wav: Path, target: Path, seconds: float) -> Rendered:
        if wav.stat().st_size == 0:
            raise RecipeError(f"{self._renderer.name} wrote no audio")
        peak, length, total = _measured(wav)
        if total < (seconds - 1) * SAMPLE_RATE:
            # A synthesizer may not notice that the disk is full.
            raise RecipeError(
                f"{self._renderer.name} wrote {total / SAMPLE_RATE:.1f} of {seconds:.1f} s; is there room on the disk?"
            )
        if peak <= _QUIET:
            raise RecipeError(
                f"{self._renderer.name} made nothing but silence; the soundfont {self._soundfont.name!r} may be broken"
            )
        # One factor for the whole track, and 1 for most tracks, so that they keep their relative loudness.
        factor = min(1.0, 10 ** (CEILING_DBFS / 20) / peak)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            AudioReader(wav, sample_rate=SAMPLE_RATE, channels=2) as reader,
            AudioWriter(target, sample_rate=SAMPLE_RATE, channels=2, subtype=f"PCM_{self._bits}") as writer,
        ):
            for audio in reader.blocks(_BLOCK_SAMPLES):
                writer.write(audio[:, : length - writer.samples] * factor)
            writer.close()
        return Rendered(length / SAMPLE_RATE, _decibels(peak), _decibels(factor))


def _measured(wav: Path) -> tuple[float, int, int]:
    """Measure the largest sample, the number of samples until all is quiet, and the number of all samples."""
    peak, length, position = 0.0, 0, 0
    with AudioReader(wav, sample_rate=SAMPLE_RATE, channels=2) as reader:
        for audio in reader.blocks(_BLOCK_SAMPLES):
            loudest = audio.abs().amax(dim=0)
            peak = max(peak, float(loudest.max()))
            audible = (loudest > _QUIET).nonzero()
            if len(audible):
                length = position + int(audible[-1]) + 1
            position += audio.shape[1]
    return peak, length, position


def _decibels(factor: float) -> float:
    return round(20 * math.log10(factor), 2)
