"""The signal that driver and worker share: one NPY file, float32 `[samples, channels]`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_signal(path: Path, audio: NDArray[np.float32]) -> None:
    """Writes `[samples, channels]` beside `path`, then renames."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(audio, dtype=np.float32))
    partial.replace(path)


def read_signal(path: Path) -> NDArray[np.float32]:
    """What `write_signal` wrote. Raises ValueError for another type or shape."""
    audio: NDArray[np.float32] = np.load(path)
    if audio.dtype != np.float32 or audio.ndim != 2:
        raise ValueError(f"{path.name} holds {audio.dtype} {list(audio.shape)}; allowed: float32 [samples, channels]")
    return audio
