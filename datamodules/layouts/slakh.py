"""Slakh2100: songs synthesized from the Lakh MIDI files (http://www.slakh.com), the flac release and its redux."""

from __future__ import annotations

import re
from pathlib import Path

from datamodules.corpora.manifest import SPLITS
from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import CorpusFiles, Shape
from datamodules.layouts.metadata import first_file, yaml_scalar

_SHAPE = Shape("Slakh2100", "train, validation and test/Track<5 digits>/mix.flac (or mix.wav)", "*/Track*/mix.*")
_TRACK = re.compile(rf"(?P<split>{'|'.join(SPLITS)})/Track\d{{5}}/(?:(?P<mix>mix\.(?:flac|wav))|stems/[^/]+)", re.ASCII)
_OMITTED = "omitted"


def slakh(root: Path) -> Found:
    """Find the mixtures; the stems are no tracks. The redux's omitted/ is not used: it repeats songs of other folders.

    The group is the UUID in metadata.yaml, which names the MIDI file: the first release plays some files several times,
    on both sides of its split.

    Raises:
        LayoutError: No mixtures at their places, or a broken metadata.yaml.
    """
    files = CorpusFiles(root, _SHAPE)
    _leave_omitted(files)
    mixtures: list[str] = []
    # In this order mix.flac comes before mix.wav.
    for name in files:
        match = _TRACK.fullmatch(name)
        if match is None:
            continue
        if match["mix"] and mixtures and mixtures[-1].rpartition("/")[0] == name.rpartition("/")[0]:
            files.pass_over(name, "is the mixture once more, after mix.flac")
        else:
            files.take(name)
            mixtures += [name] if match["mix"] else []
    entries = [_entry(root, name, files) for name in mixtures]
    return files.found([entry for entry in entries if entry], "is neither mixture nor stem of train, validation, test")


def _leave_omitted(files: CorpusFiles) -> None:
    omitted = [name for name in files if name.startswith(f"{_OMITTED}/")]
    for name in omitted:
        files.take(name)
    if omitted:
        reason = f"songs that are in other folders again, which the redux leaves out: {len(omitted)} audio files"
        files.skip(files.root / _OMITTED, reason)


def _entry(root: Path, name: str, files: CorpusFiles) -> Entry | None:
    """Return the song; None, after reporting it as skipped, if the UUID of its MIDI file is missing."""
    folder = root / name.rpartition("/")[0]
    table = first_file([folder / "metadata.yaml"])
    uuid = yaml_scalar(table, "UUID") if table else ""
    if not uuid:
        files.skip(root / name, "no UUID in a metadata.yaml beside it says which MIDI file it plays; copy that again")
        return None
    return Entry(name, split=name.partition("/")[0], group=uuid)
