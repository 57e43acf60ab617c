"""MAESTRO: 200 hours of piano competitions (https://magenta.tensorflow.org/datasets/maestro)."""

from __future__ import annotations

from pathlib import Path

from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import CorpusFiles, Shape, matching, require_folder
from datamodules.layouts.metadata import first_file, read_table, split_name

_SHAPE = Shape("MAESTRO", "maestro-v3.0.0.csv and the <year>/<recording>.wav that it names", "maestro-v*.csv")
_COLUMNS = ("canonical_composer", "canonical_title", "split", "audio_filename")


def maestro(root: Path) -> Found:
    """Find the recordings that the newest maestro-v*.csv in `root` names, with the official split.

    The group is composer and title, because the official split does not divide the performances of a work. The artist
    is the composer; the table does not name the pianists.

    Raises:
        LayoutError: No table, a broken one, or none of its recordings.
    """
    require_folder(root)
    table = first_file(reversed(matching(root, "maestro-v*.csv")))
    if table is None:
        raise _SHAPE.refusal(root, "There is no maestro-v*.csv in it.")
    rows = read_table(table, _COLUMNS)
    files = CorpusFiles(root, _SHAPE)
    entries = []
    for line, (composer, title, split, written), _ in rows:
        side = split_name(table, line, split)
        name = files.take_named(written, table, line)
        if name is not None:
            entries.append(Entry(name, split=side, group=f"{composer}: {title}", artist=composer))
    return files.found(entries, f"is not named by {table.name}")
