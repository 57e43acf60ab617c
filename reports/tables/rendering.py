"""One table, four renderings: the same cells become HTML, Markdown, CSV and LaTeX (booktabs).

A cell holds the text for readers and the raw value for programs, so no rendering formats a number again.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

NOT_APPLICABLE = "–"
MINUS = "−"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str  # its name in CSV
    title: str  # its name everywhere else
    css: str = "number"
    group: str = ""  # neighbouring columns with the same group share a spanning header
    details: tuple[str, ...] = ()  # names of the cells' `detail_raw` values: further CSV columns `<key>_<detail>`


@dataclass(frozen=True)
class Cell:
    """The content of one field."""

    text: str  # for readers
    raw: float | int | str | None = None  # for programs
    bold: bool = False
    css: str = ""
    detail: str = ""  # a second, smaller text: a difference, a reason
    detail_raw: tuple[float | str | None, ...] = ()  # the values of `Column.details`


@dataclass(frozen=True)
class Row:
    """The cells of one row."""

    cells: tuple[Cell, ...]
    css: str = ""
    heading: str = ""  # a separate line above the row


@dataclass(frozen=True)
class Table:
    """A finished table.

    Raises:
        ValueError: If a row does not have one cell per column.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r} has {len(self.columns)} columns, but a row brings {len(row.cells)} cells; "
                    "give one Cell per Column (Cell('–') where nothing applies)"
                )

    @property
    def column_groups(self) -> tuple[tuple[str, int], ...]:
        """Neighbouring columns of one group, as (group title, number of columns)."""
        runs = groupby(self.columns, key=lambda column: column.group)
        return tuple((group, len(list(members))) for group, members in runs)


def number(value: float | None, decimals: int) -> str:
    """Write `value` with fixed decimals and a real minus sign; None and NaN are `–`."""
    if value is None or math.isnan(value):
        return NOT_APPLICABLE
    text = f"{value:.{decimals}f}"
    # -0.001 with two decimals is "0.00", not "-0.00".
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def signed(value: float | None, decimals: int) -> str:
    """Write a difference with its sign; a difference that rounds to zero has none."""
    text = number(value, decimals)
    return f"+{text}" if text != NOT_APPLICABLE and not text.startswith(MINUS) and float(text) else text


def with_interval(mean: float, low: float, high: float, decimals: int) -> str:
    """Write `3.83 [3.76, 3.90]`, or only the mean without an interval."""
    if math.isnan(low) or math.isnan(high):
        return number(mean, decimals)
    return f"{number(mean, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def not_available(reason: str) -> str:
    """Write a missing value: `n/a (reason)`, or `–` without a reason."""
    return f"n/a ({reason})" if reason else NOT_APPLICABLE


def p_value(value: float | None) -> str:
    """Write a p value with three decimals, never "0.000"; None and NaN are `–`."""
    if value is None or math.isnan(value):
        return NOT_APPLICABLE
    return "< 0.001" if value < 0.001 else number(value, 3)


# ---- Markdown -----------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """Render as GitHub-flavoured Markdown: title, table, notes."""
    lines = [f"**{escape_markdown(table.title)}**", ""]
    lines.append(_markdown_line(escape_markdown(column.title) for column in table.columns))
    lines.append(_markdown_line("---:" if column.css == "number" else ":---" for column in table.columns))
    for row in table.rows:
        if row.heading:
            padding = [""] * (len(table.columns) - 1)
            lines.append(_markdown_line([f"*{escape_markdown(row.heading)}*", *padding]))
        lines.append(_markdown_line(_markdown_cell(cell) for cell in row.cells))
    lines += ["", *(f"{escape_markdown(note)}  " for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def escape_markdown(text: str) -> str:
    """Escape `text` so that it is literal inside a Markdown table cell."""
    text = re.sub(r"([\\`*|<])", r"\\\1", " ".join(text.split())).replace("&", "&amp;")
    # Inside a word an underscore is literal already; an escape there would only make the source harder to read.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _markdown_line(fields: Iterator[str] | Sequence[str]) -> str:
    return "| " + " | ".join(fields) + " |"


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.bold and text else text
    return f"{text} ({escape_markdown(cell.detail)})" if cell.detail else text


# ---- CSV ----------------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Render as CSV: raw values in full precision, empty where nothing applies, `n/a (reason)` for a missing value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _csv_names(column)])
    for row in table.rows:
        writer.writerow([x for column, cell in zip(table.columns, row.cells, strict=True) for x in _csv(column, cell)])
    return stream.getvalue()


def _csv_names(column: Column) -> list[str]:
    return [column.key, *(f"{column.key}_{detail}" for detail in column.details)]


def _csv(column: Column, cell: Cell) -> list[float | int | str]:
    raw = _known(cell.raw)
    if raw == "" and cell.text != NOT_APPLICABLE:
        raw = cell.text
    details = cell.detail_raw or (None,) * len(column.details)
    return [raw, *map(_known, details)]


def _known(value: float | int | str | None) -> float | int | str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


# ---- LaTeX --------------------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "Δ": r"$\Delta$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "\u202f": r"\,",
    "\u00a0": "~",
}


def escape_latex(text: str) -> str:
    """Escape `text` so that it is literal in LaTeX; control characters become spaces."""
    return "".join(_LATEX.get(character, character if character.isprintable() else " ") for character in text)


def to_latex(table: Table) -> str:
    r"""Render as a LaTeX table (needs `\usepackage{booktabs}`), with the notes below it in footnote size."""
    alignment = "".join("r" if column.css == "number" else "l" for column in table.columns)
    body = [line for row in table.rows for line in _latex_row(row, len(table.columns))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
        *_latex_groups(table),
        _latex_line([escape_latex(column.title) for column in table.columns]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip{{\footnotesize {escape_latex(note)}}}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_groups(table: Table) -> list[str]:
    if not any(column.group for column in table.columns):
        return []
    fields, rules, first = [], [], 1
    for group, width in table.column_groups:
        fields.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_latex_line(fields), " ".join(rules)]


def _latex_row(row: Row, width: int) -> list[str]:
    heading = [rf"\multicolumn{{{width}}}{{@{{}}l}}{{\emph{{{escape_latex(row.heading)}}}}} \\"] if row.heading else []
    return [*heading, _latex_line([_latex_cell(cell) for cell in row.cells])]


def _latex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{escape_latex(cell.text)}}}" if cell.bold else escape_latex(cell.text)
    return f"{text} ({escape_latex(cell.detail)})" if cell.detail else text


def _latex_line(fields: Sequence[str]) -> str:
    line = " & ".join(fields)
    # After \\, LaTeX reads a leading [ or * of the next line as an argument.
    return ("{}" if line.lstrip().startswith(("[", "*")) else "") + line + r" \\"
