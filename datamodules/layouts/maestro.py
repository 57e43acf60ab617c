"""MAESTRO: 200 hours of piano competitions (https://magenta.tensorflow.org/datasets/maestro)."""

from __future__ import annotations

from pathlib import Path

from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import CorpusFiles, Shape, matching, require_folder
from datamodules.layouts.metadata import first_file, read_table, split_name

_SHAPE = Shape("MAESTRO", "maestro-v3.0.0.csv and the <year>/<recording>.wav that it names", "maestro-v*.csv")
_COLUMNS = ("canonical_composer", "canonical_title", "split", "audio_filename")


def maestro(root: Path) -> Found:
    """The recordings that the newest maestro-v*.csv in `root` names.

    split: the table's. group: composer and title, because many pieces were played by several people and the official
    split does not divide them. artist: the composer; the table does not say who plays.

    Raises:
        LayoutError: no table, a broken one, none of its recordings.
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
