"""Manifests of what soundfile says of files: for tests of what comes after the scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas
import soundfile

from datamodules.corpora.manifest import table_name, typed


def manifest_of(root: Path, files: Sequence[Path], **columns: Sequence[object] | object) -> pandas.DataFrame:
    """A row for each file; a file that soundfile cannot open gets the numbers of a good one."""
    rows = []
    for path in files:
        try:
            info = soundfile.info(str(path))
            numbers = (info.samplerate, info.channels, info.frames, info.subtype)
        except (soundfile.SoundFileError, UnicodeError):
            numbers = (48000, 2, 48000, "PCM_16")
        row = dict(zip(("sample_rate", "channels", "frames", "subtype"), numbers, strict=True))
        name = table_name(path.relative_to(root))
        rows.append({"corpus": "folder", "root": table_name(root), "name": name, **row})
    table = pandas.DataFrame(rows)
    table["duration_seconds"] = table["frames"] / table["sample_rate"]
    return typed(table.assign(**columns))
