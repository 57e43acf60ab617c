"""Read a corpus' own tables: CSV, TSV, JSON and YAML. Errors name the file and the line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datamodules.corpora.manifest import SPLITS
from datamodules.layouts.contract import LayoutError

# A longer field has a quotation mark that was never closed.
_LONGEST_FIELD = 1 << 24
_DEEPEST = 32
# libyaml's parser, if PyYAML has it, gives the same events ten times as fast.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Line(NamedTuple):
    """A record of a table.

    Attributes:
        number: Its first line in the file, from 1.
        cells: Values of the requested columns, in their order.
        rest: Values beyond the last column of the header.
    """

    number: int
    cells: tuple[str, ...]
    rest: tuple[str, ...]


def broken(path: Path, reason: str, line: int | None = None) -> LayoutError:
    """Return the error for a table that cannot be read."""
    where = f"{str(path)!r}, line {line}" if line else repr(str(path))
    return LayoutError(f"{where}: {reason}; get the file again, or type --corpus folder, which reads no tables")


def first_file(candidates: Iterable[Path]) -> Path | None:
    """Return the first regular file, or None."""
    # Path.is_file raises below a locked folder.
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113


def read_table(path: Path, columns: Sequence[str], *, header_rows: int = 1, tabs: bool = False) -> list[Line]:
    """Read some columns of a CSV file with quotation, or of a TSV file without.

    Args:
        path: A UTF-8 file.
        columns: Their names; names of a header with several rows are joined by dots, without empty ones: "set.split".
        header_rows: Number of rows of the header.
        tabs: True for TSV, whose last column may be missing or have more fields.

    Raises:
        LayoutError: It cannot be read, lacks a column, or a record has another number of fields.
    """
    quotation: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    line_number = 0
    try:
        with _long_fields(), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, **quotation)
            names = _column_names(reader, header_rows)
            positions = [_position(path, names, column) for column in columns]
            lines: list[Line] = []
            line_number = reader.line_num
            for record in reader:
                if record:
                    lines.append(_line(path, line_number + 1, record, len(names), positions, tabs))
                line_number = reader.line_num
            return lines
    except csv.Error as error:
        raise broken(path, f"is no table ({error})", line_number + 1) from error
    except UnicodeDecodeError as error:
        raise broken(path, f"is not UTF-8 here or a little later ({error.reason})", line_number + 1) from error
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from error


def split_name(path: Path, line: int, written: str) -> str:
    """Return the manifest's name of a split in a table; "" stays. LayoutError for an unknown name."""
    split = "train" if written == "training" else written
    if split and split not in SPLITS:
        raise broken(path, f"the split {written!r} is none of {', '.join(SPLITS)}", line)
    return split


def read_json(path: Path) -> object:
    """Read a JSON file; LayoutError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise broken(path, f"is no JSON ({error.msg})", error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise broken(path, f"is no JSON ({error})") from error
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from error


def yaml_scalar(path: Path, key: str) -> str:
    """Read the value of a key of a YAML mapping, as text; "" if there is none.

    Events are read one by one and no objects are built, so a hostile file cannot use up the memory.

    Raises:
        LayoutError: It cannot be read, or is no mapping.
    """
    try:
        nodes = _top_nodes(path)
        if not isinstance(next(nodes, None), yaml.MappingStartEvent):
            raise broken(path, "is no mapping of names to values", 1)
        scalars = (node.value if isinstance(node, yaml.ScalarEvent) else "" for node in nodes)
        # Keys and values alternate. The whole file is read, so that a broken one is noticed.
        return dict(zip(scalars, scalars, strict=False)).get(key, "")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise broken(path, f"is no YAML ({error.problem})", line) from error
    except (yaml.YAMLError, ValueError) as error:
        raise broken(path, f"is no YAML ({' '.join(str(error).split())})") from error
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from error


def _top_nodes(path: Path) -> Iterator[yaml.Event]:
    """Yield the event of the document's root and of each node directly in it: a scalar, an alias, a start."""
    depth = 0
    for event in yaml.parse(path.read_bytes(), Loader=_YAML_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            if depth <= 1:
                yield event
            depth += isinstance(event, yaml.CollectionStartEvent)
        # The parser's time grows with the square of the depth.
        if depth > _DEEPEST:
            raise broken(path, f"is nested deeper than {_DEEPEST} times")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Raise the csv module's limit, which holds for the whole process."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _column_names(reader: Iterator[list[str]], header_rows: int) -> list[str]:
    rows = [row for _, row in zip(range(header_rows), reader, strict=False)]
    return [".".join(filter(None, cells)) for cells in zip(*rows, strict=False)]


def _position(path: Path, names: list[str], column: str) -> int:
    if column not in names:
        raise broken(path, f"has no column {column!r} in its header", 1)
    return names.index(column)


def _line(path: Path, number: int, record: list[str], width: int, positions: list[int], tabs: bool) -> Line:
    if tabs and len(record) == width - 1:
        record.append("")
    if len(record) < width or (len(record) > width and not tabs):
        raise broken(path, f"has {len(record)} fields where the header has {width}", number)
    return Line(number, tuple([record[position] for position in positions]), tuple(record[width:]))
