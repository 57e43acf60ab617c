"""A corpus' own tables: CSV, TSV, JSON and YAML, with errors that name the file and the line."""

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

# A field of more characters is a quotation mark that was never closed.
_LONGEST_FIELD = 1 << 24
_DEEPEST = 32
# libyaml's parser where PyYAML was built with it: the same events, ten times as fast.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Line(NamedTuple):
    """A record of a table.

    number: of its first line in the file, from 1.
    cells: of the columns that were asked for, in that order.
    rest: of all columns beyond the last one of the header.
    """

    number: int
    cells: tuple[str, ...]
    rest: tuple[str, ...]


def broken(path: Path, reason: str, line: int | None = None) -> LayoutError:
    """The error of a table that cannot be read."""
    where = f"{str(path)!r}, line {line}" if line else repr(str(path))
    return LayoutError(f"{where}: {reason}; get the file again, or type --corpus folder, which reads no tables")


def first_file(candidates: Iterable[Path]) -> Path | None:
    """The first that is a regular file."""
    # Path.is_file raises below a locked folder.
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113


def read_table(path: Path, columns: Sequence[str], *, header_rows: int = 1, tabs: bool = False) -> list[Line]:
    """The given columns of a CSV file with quotation, or of a TSV file without.

    Args:
        path: UTF-8.
        columns: their names; where the header has several rows, joined by dots without the empty ones: "set.split".
        header_rows: how many.
        tabs: TSV. Then the last column may be missing, or go on: as many fields as there are.

    Raises:
        LayoutError: unreadable, no such column, a record of another width.
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
    """Our name of a split that a table names; "" stays. Raises LayoutError: none of its names."""
    split = "train" if written == "training" else written
    if split and split not in SPLITS:
        raise broken(path, f"the split {written!r} is none of {', '.join(SPLITS)}", line)
    return split


def read_json(path: Path) -> object:
    """What a JSON file holds. Raises LayoutError: unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise broken(path, f"is no JSON ({error.msg})", error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise broken(path, f"is no JSON ({error})") from error
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from error


def yaml_scalar(path: Path, key: str) -> str:
    """The value of a key of the mapping that a YAML file is, as it is written; "" where it has none.

    Events are looked at one by one and nothing is built: a hostile file can be neither deep nor wide enough to hurt.

    Raises:
        LayoutError: unreadable, or no mapping.
    """
    try:
        nodes = _top_nodes(path)
        if not isinstance(next(nodes, None), yaml.MappingStartEvent):
            raise broken(path, "is no mapping of names to values", 1)
        scalars = (node.value if isinstance(node, yaml.ScalarEvent) else "" for node in nodes)
        # Keys and values by turns; all of the file is read, so that a broken one is noticed.
        return dict(zip(scalars, scalars, strict=False)).get(key, "")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise broken(path, f"is no YAML ({error.problem})", line) from error
    except (yaml.YAMLError, ValueError) as error:
        raise broken(path, f"is no YAML ({' '.join(str(error).split())})") from error
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from error


def _top_nodes(path: Path) -> Iterator[yaml.Event]:
    """The event that starts a document's root, and those of the nodes in it: a scalar, an alias, an inner start."""
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
    """The csv module's limit is one of the process."""
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
