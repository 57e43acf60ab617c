"""A tiny codec on disk, sounds to code, and the command line as a process of its own: for the tests of the commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parent.parent / "spectrostream"))
from tiny_codec import tiny_codec

from spectrostream import SpectroStream
from spectrostream.weights import save_codec

RATE = 48000


def noise(seconds: float, *, rate: int = RATE, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Frames `[frames, channels]`, louder and softer, so that codes change."""
    frames = round(seconds * rate)
    loudness = 0.2 + 0.15 * np.sin(2 * np.pi * 0.7 * np.arange(frames) / rate)
    return loudness[:, None] * np.random.default_rng(seed).standard_normal((frames, channels))


def write_sound(path: Path, seconds: float, *, rate: int = RATE, channels: int = 2, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, rate=rate, channels=channels, seed=seed).clip(-0.9, 0.9), rate)
    return path


def codec_on_disk(folder: Path, **changes: object) -> tuple[SpectroStream, Path]:
    codec = tiny_codec(**changes)
    path = folder / "codec.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_codec(codec, path)
    return codec, path


def started(*words: object, **options: Any) -> subprocess.Popen[bytes]:
    """A process that runs a command, with one thread as in these tests."""
    return subprocess.Popen(
        [sys.executable, "-m", "spectrostream_cli", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def hidden_or_unfinished(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]
