"""CSV, TSV, JSON and YAML are read as the standard readers do, and refused with the line."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from datamodules.layouts.contract import LayoutError
from datamodules.layouts.metadata import first_file, read_json, read_table, yaml_scalar

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table"


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=6), mark=st.booleans())
def test_any_csv_comes_back(table: Path, rows: list[tuple[str, str, str]], mark: bool) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows([("a", "b", "c"), *rows])
    table.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode())
    lines = read_table(table, ("c", "a"))
    assert [line.cells for line in lines] == [(c, a) for a, _, c in rows]
    assert all(line.rest == () for line in lines)


@given(rows=st.lists(st.lists(PLAIN.filter(bool), min_size=2, max_size=6), max_size=6))
def test_any_tsv_comes_back_with_as_many_fields_as_there_are(table: Path, rows: list[list[str]]) -> None:
    table.write_text("".join("\t".join(row) + "\n" for row in [["a", "b", "c"], *rows]), encoding="utf-8")
    lines = read_table(table, ("a", "c"), tabs=True)
    assert [line.cells + line.rest for line in lines] == [(row[0], *(row[2:] or [""])) for row in rows]
    assert [line.number for line in lines] == list(range(2, len(rows) + 2))


def test_several_rows_of_names_are_joined_and_records_may_span_lines(table: Path) -> None:
    table.write_text(',x,x\n,one,two\nid,,\n1,"a\nb",c\n\n2,d,e\n', encoding="utf-8")
    lines = read_table(table, ("id", "x.two"), header_rows=3)
    assert [(line.number, line.cells) for line in lines] == [(4, ("1", "c")), (7, ("2", "e"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", "line 3: has 1 fields where the header has 2"),
        (b"a,b\n1,2,3\n", "line 2: has 3 fields where the header has 2"),
        (b'a,b\n1,2\n3,"4\n5\n6', r"line 3: is no table \(unexpected end of data\)"),
        (b'a,b\n1,"2"3\n', "line 2: is no table"),
        (b"a,b\n1,2\n\xff,4\n", "is not UTF-8"),
        (b"a,c\n1,2\n", "line 1: has no column 'b' in its header"),
        (b"", "line 1: has no column 'a' in its header"),
        (b'a,b\n"' + b"x" * ((1 << 24) + 2), "line 2: is no table .field larger than field limit"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(table: Path, content: bytes, message: str) -> None:
    table.write_bytes(content)
    with pytest.raises(LayoutError, match=message) as error:
        read_table(table, ("a", "b"))
    assert repr(str(table)) in str(error.value)
    assert "--corpus folder" in str(error.value)


def test_long_fields_are_read_and_the_limit_of_the_process_stays(table: Path) -> None:
    before = csv.field_size_limit()
    table.write_text("a,b\n1," + "x" * 500_000 + "\n", encoding="utf-8")
    assert len(read_table(table, ("a", "b"))[0].cells[1]) == 500_000
    assert csv.field_size_limit() == before


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    names = ("pipe", "folder", "dangling", "none", "file")
    assert first_file(tmp_path / name for name in names) == tmp_path / "file"
    assert first_file(tmp_path / name for name in names[:-1]) is None
    for reader in (read_json, lambda path: yaml_scalar(path, "a"), lambda path: read_table(path, ("a",))):
        with pytest.raises(LayoutError, match="cannot be read"):
            reader(tmp_path / "folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "line 2: is no JSON"),
        (b'{"a": "\xff"}', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"9" * 10_000, "is no JSON"),
        (b"", "line 1: is no JSON"),
    ],
)
def test_broken_json_is_refused(table: Path, content: bytes, message: str) -> None:
    table.write_bytes(content)
    with pytest.raises(LayoutError, match=message):
        read_json(table)


VALUES = st.recursive(PLAIN, lambda below: st.lists(below, max_size=3) | st.dictionaries(PLAIN, below, max_size=3))


@given(mapping=st.dictionaries(st.sampled_from(["UUID", "stems", "a", "b"]), VALUES), flow=st.booleans())
def test_a_scalar_of_any_yaml_mapping_is_found(table: Path, mapping: dict[str, object], flow: bool) -> None:
    table.write_text(yaml.safe_dump(mapping, default_flow_style=flow, allow_unicode=True), encoding="utf-8")
    expected = mapping.get("UUID", "")
    assert yaml_scalar(table, "UUID") == (expected if isinstance(expected, str) else "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"UUID: a\nstems: [1,\n", "line 3: is no YAML"),
        (b"UUID: a\n\tb: c\n", "line 2: is no YAML"),
        (b"UUID: \x00\n", "is no YAML"),
        (b"UUID: \xff\xff\n", "is no YAML"),
        (b"- UUID\n", "is no mapping"),
        (b"", "is no mapping"),
        (b"a: " + b"[" * 900, "is nested deeper"),
        (b"[" * 900, "is no mapping"),
        # PyYAML 6.0.4 has a limit of its own, of 1000.
        (b"a: " + b"[" * 100_000, r"is nested deeper|is no YAML \(exceeded maximum nesting depth"),
        (b"[" * 100_000, r"is no mapping|is no YAML \(exceeded maximum nesting depth"),
    ],
)
def test_broken_yaml_is_refused(table: Path, content: bytes, message: str) -> None:
    table.write_bytes(content)
    with pytest.raises(LayoutError, match=message):
        yaml_scalar(table, "UUID")


def test_hostile_yaml_builds_nothing(table: Path) -> None:
    laughs = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 30))
    table.write_text(f"l0: &l0 ha\n{laughs}UUID: !!python/object/apply:os.abort []\n", encoding="utf-8")
    assert yaml_scalar(table, "UUID") == ""
    assert yaml_scalar(table, "l0") == "ha"
