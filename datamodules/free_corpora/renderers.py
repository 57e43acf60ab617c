"""The synthesizers, programs that render notes to a WAV file of 32-bit floats, which cannot clip."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from datamodules.free_corpora.contract import RecipeError

SAMPLE_RATE = 48000
NAMES = ("auto", "fluidsynth", "tinysoundfont")
# In fluidsynth's own unit. Measured on Freedoom's 66 tracks: at 0.5 the peaks are between -13.8 and +3.1 dBFS, and 17
# tracks come within 1 dB of full scale; at 0.3, which is 4.4 dB softer, none does.
_FLUIDSYNTH_GAIN = 0.3
# tinysoundfont balances instruments differently: with this gain, three tracks had 1 dB less to 4 dB more energy than
# with fluidsynth.
TINYSOUNDFONT_GAIN_DB = -6.0
# --no-deps, because PyAudio must be compiled against PortAudio's headers and is only needed for loudspeakers.
_INSTALL_TINYSOUNDFONT = "pip install --no-deps tinysoundfont"
_INSTALL_FLUIDSYNTH = "apt-get install fluidsynth (Debian, Ubuntu) or brew install fluid-synth (macOS)"


@dataclass(frozen=True)
class Renderer:
    """A synthesizer.

    Attributes:
        manner: How it renders, in words, for the attribution.
        command: (MIDI file, soundfont, WAV file to write) -> the words of the command.
    """

    name: str
    version: str
    manner: str
    command: Callable[[Path, Path, Path], list[str]]


def chosen_renderer(name: str) -> Renderer:
    """Find fluidsynth, tinysoundfont, or with `auto` the first that is installed; RecipeError if none is."""
    if name == "fluidsynth" or (name == "auto" and shutil.which("fluidsynth")):
        return _fluidsynth()
    if util.find_spec("tinysoundfont") is not None:
        return _tinysoundfont()
    if name == "tinysoundfont":
        raise RecipeError(f"The renderer tinysoundfont is not installed; type: {_INSTALL_TINYSOUNDFONT}")
    raise RecipeError(
        f"Notes need a synthesizer, and none is installed; type: {_INSTALL_FLUIDSYNTH}; or without system packages: "
        f"{_INSTALL_TINYSOUNDFONT}"
    )


def _fluidsynth() -> Renderer:
    program = shutil.which("fluidsynth")
    if program is None:
        raise RecipeError(
            f"The renderer fluidsynth is not installed; type: {_INSTALL_FLUIDSYNTH}; or use --renderer tinysoundfont"
        )

    def command(midi: Path, soundfont: Path, target: Path) -> list[str]:
        # Decoding only the samples that a track plays halves the memory and saves 2 s with a large font.
        options = ["-ni", "-q", "-r", str(SAMPLE_RATE), "-g", str(_FLUIDSYNTH_GAIN)]
        options += ["-o", "synth.dynamic-sample-loading=1", "-O", "float", "-T", "wav", "-F", str(target)]
        return [program, *options, str(soundfont), str(midi)]

    manner = f"gain {_FLUIDSYNTH_GAIN}, with its reverb and chorus, 32-bit float at {SAMPLE_RATE} Hz"
    return Renderer("fluidsynth", _fluidsynth_version(program), manner, command)


def _fluidsynth_version(program: str) -> str:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecipeError(f"{program} does not answer ({error}); use --renderer tinysoundfont") from error
    found = re.search(r"version (\S+)", answer.stdout.decode("utf-8", "replace"))
    return found[1] if found else "unknown"


def _tinysoundfont() -> Renderer:
    def command(midi: Path, soundfont: Path, target: Path) -> list[str]:
        words = [midi, soundfont, target, SAMPLE_RATE, TINYSOUNDFONT_GAIN_DB]
        return [sys.executable, "-m", "datamodules.free_corpora.tinysoundfont_player", *map(str, words)]

    manner = f"gain {TINYSOUNDFONT_GAIN_DB:g} dB, without reverb and chorus, 32-bit float at {SAMPLE_RATE} Hz"
    return Renderer("tinysoundfont", metadata.version("tinysoundfont"), manner, command)
