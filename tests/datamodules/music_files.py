"""Small signals and files that the tests of the data room share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def noisy_tones(seconds: float, sample_rate: int, seed: int = 0, channels: int = 2) -> np.ndarray:
    """Frames `[frames, channels]` with a tone below noise, nowhere silent and nowhere periodic."""
    frames = round(seconds * sample_rate)
    time = np.arange(frames) / sample_rate
    noise = 0.1 * np.random.default_rng(seed).standard_normal((frames, channels))
    return noise + 0.3 * np.sin(2 * np.pi * (300 + 50 * seed) * time)[:, None]


def write_raw(path: Path, frames: np.ndarray, sample_rate: int, **options: str) -> Path:
    """Write with soundfile itself, not with the code under test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, frames, sample_rate, **options)
    return path
