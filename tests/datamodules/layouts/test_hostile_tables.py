"""Whatever a corpus' tables say: tracks inside of its folder with reasons for the rest, or a LayoutError."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import MAESTRO_TABLE, MINIATURES, write_music

from datamodules.corpora.manifest import file_path, table_name
from datamodules.layouts import LAYOUTS, Found, LayoutError

# For each layout the tables that it reads.
TABLES = [
    ("fma", "fma_metadata/tracks.csv"),
    ("jamendo", "data/autotagging.tsv"),
    ("jamendo", "data/splits/split-0/autotagging-train.tsv"),
    ("maestro", "maestro-v3.0.0.csv"),
    ("moisesdb", "moisesdb_v0.1/6c8ec4e0-e04e-592e-8414-f6acaa9699ac/data.json"),
    ("slakh", "train/Track00001/metadata.yaml"),
]


class Corpora(NamedTuple):
    """A folder with all miniatures in it, and music that belongs to none of them."""

    folder: Path
    outside: Path


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in MINIATURES.items():
        make(folder / name)
    return Corpora(folder, write_music(folder / "outside.wav", 5))


def require_inside(root: Path, found: Found) -> None:
    for entry in found.entries:
        for name in entry.parts or (entry.name,):
            path = file_path(table_name(root), name)
            assert path.is_file()
            assert path.resolve().is_relative_to(root.resolve())
        for text in (entry.name, entry.group, entry.artist, entry.genre):
            text.encode()
    assert all(file.reason for file in found.skipped)
    names = [entry.name for entry in found.entries]
    assert names == sorted(set(names))


def outcome(layout: str, root: Path) -> Found | None:
    """None where the folder is refused."""
    try:
        found = LAYOUTS[layout](root)
    except LayoutError as error:
        message = str(error)
    else:
        require_inside(root, found)
        return found
    assert len(message) > 40
    return None


@pytest.fixture
def restored(corpora: Corpora) -> Iterator[Corpora]:
    """Tables are as they were, before and after."""
    before = {path: (corpora.folder / path[0] / path[1]).read_bytes() for path in TABLES}
    yield corpora
    for (name, table), content in before.items():
        (corpora.folder / name / table).write_bytes(content)


PIECES = st.sampled_from(
    [
        b'"',
        b",",
        b"\t",
        b"\n",
        b"\r",
        b"\x00",
        b"\xff",
        b"../",
        b"/",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"- ",
        b"null",
        b"\xe2\x80\xa8",
    ]
)
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), PIECES | st.binary(max_size=6)), min_size=1, max_size=4
)


@pytest.mark.parametrize(("layout", "table"), TABLES)
@settings(max_examples=60)
@given(changes=CHANGES)
def test_mutated_tables_give_tracks_inside_or_a_layout_error(
    corpora: Corpora, layout: str, table: str, changes: list[tuple[float, int, bytes]]
) -> None:
    path = corpora.folder / layout / table
    intact = path.read_bytes()
    content = intact
    for where, removed, piece in changes:
        place = round(where * len(content))
        content = content[:place] + piece + content[place + removed :]
    try:
        path.write_bytes(content)
        outcome(layout, corpora.folder / layout)
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize(("layout", "table"), TABLES)
def test_a_table_cut_anywhere_gives_tracks_inside_or_a_layout_error(restored: Corpora, layout: str, table: str) -> None:
    root = restored.folder / layout
    content = (root / table).read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        (root / table).write_bytes(content[:length])
        outcome(layout, root)


def hostile_paths(corpora: Corpora) -> st.SearchStrategy[str]:
    """Paths of a file that is there and must not be taken, and paths of any kind."""
    outside = corpora.outside
    known = [
        "../outside.wav",
        "2018/../../outside.wav",
        str(outside),
        f"/{outside}",
        "..",
        ".",
        "",
        "/",
        "~",
        "\x00",
        "a\nb",
    ]
    known += [
        "2018",
        "2018/",
        "./2018/R3_2018--1.wav",
        "2018//R3_2018--1.wav",
        "C:\\x.wav",
        "\\\\host\\x.wav",
        "x" * 5000,
    ]
    anything = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("./"), max_size=20)
    return st.sampled_from(known) | anything


@given(data=st.data())
def test_maestro_s_table_names_no_file_outside(corpora: Corpora, data: st.DataObject) -> None:
    written = data.draw(hostile_paths(corpora))
    root = corpora.folder / "maestro"
    table = root / "maestro-v3.0.0.csv"
    quoted = written.replace('"', '""')
    try:
        table.write_text(f'{MAESTRO_TABLE}A,B,train,2018,x.midi,"{quoted}",1\n', encoding="utf-8", newline="")
        found = outcome("maestro", root)
    finally:
        table.write_text(MAESTRO_TABLE, encoding="utf-8")
    assert found is not None
    assert len(found.entries) == 4
    assert len(found.skipped) == 1


def test_reasons_for_hostile_paths(restored: Corpora) -> None:
    root = restored.folder / "maestro"
    table = root / "maestro-v3.0.0.csv"
    for written, reason in (
        ("../outside.wav", "line 6: the path '../outside.wav' leads out"),
        (str(restored.outside), "leads out"),
        ("2018/nothing.wav", "maestro-v3.0.0.csv, line 6, names it, but it is not there"),
        ("2018//R3_2018--1.wav", "line 6: names '2018/R3_2018--1.wav' once more"),
    ):
        table.write_text(f"{MAESTRO_TABLE}A,B,train,2018,x.midi,{written},1\n", encoding="utf-8")
        (skipped,) = LAYOUTS["maestro"](root).skipped
        assert reason in skipped.reason


@given(data=st.data())
def test_moisesdb_s_songs_have_no_source_outside(corpora: Corpora, data: st.DataObject) -> None:
    root = corpora.folder / "moisesdb"
    table = root / "moisesdb_v0.1" / "6c8ec4e0-e04e-592e-8414-f6acaa9699ac" / "data.json"
    intact = table.read_text(encoding="utf-8")
    song = json.loads(intact)
    words = hostile_paths(corpora) | st.sampled_from(["../../..", "\udcff", "\ud800", None, 3, [], {"a": "b"}])
    source = {"id": data.draw(words), "trackType": "x", "extension": data.draw(st.just("wav") | words)}
    song["stems"].append({"stemName": data.draw(words), "tracks": [source, {"id": "outside", "extension": "wav"}]})
    song["genre"] = data.draw(words)
    try:
        table.write_text(json.dumps(song), encoding="utf-8")
        found = outcome("moisesdb", root)
    finally:
        table.write_text(intact, encoding="utf-8")
    # Nothing but "../../../outside.wav" exists, so the song is never whole.
    assert found is None or len(found.entries) == 2


@pytest.mark.parametrize(
    "content", ["[]", "3", "{}", '{"stems": 3}', '{"stems": [3]}', '{"stems": [{"tracks": {}}]}', "[" * 9000]
)
def test_a_data_json_of_another_make_is_refused_by_name(content: str, restored: Corpora) -> None:
    layout, table = TABLES[4]
    path = restored.folder / layout / table
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LayoutError) as error:
        LAYOUTS[layout](restored.folder / layout)
    assert repr(str(path)) in str(error.value)


def test_a_source_that_is_named_twice_is_heard_once(restored: Corpora) -> None:
    layout, table = TABLES[4]
    path = restored.folder / layout / table
    before = LAYOUTS[layout](restored.folder / layout).entries
    song = json.loads(path.read_text(encoding="utf-8"))
    song["stems"] += song["stems"]
    path.write_text(json.dumps(song), encoding="utf-8")
    assert LAYOUTS[layout](restored.folder / layout).entries == before


def test_a_song_without_sources_is_skipped(restored: Corpora) -> None:
    layout, table = TABLES[4]
    path = restored.folder / layout / table
    path.write_text('{"stems": []}', encoding="utf-8")
    found = LAYOUTS[layout](restored.folder / layout)
    assert len(found.entries) == 2
    told = {file.path: file.reason for file in found.skipped}
    assert told.pop(path.parent) == "its data.json names no sources"
    assert set(told.values()) == {"is named by no data.json"}


def test_jamendo_s_table_names_no_file_outside(restored: Corpora, untouched: Callable[[str], Path]) -> None:
    layout, table = TABLES[1]
    root = restored.folder / layout
    hostile = ["../../outside.wav", str(restored.outside), "14/../../x.mp3", "raw_30s/audio/14/214.mp3", "\x00"]
    with (root / table).open("a", encoding="utf-8") as file:
        file.writelines(f"track_{n}\tartist_1\talbum_1\t{path}\t1.0\tgenre---x\n" for n, path in enumerate(hostile))
    found = outcome(layout, root)
    assert found is not None
    assert found.entries == LAYOUTS[layout](untouched(layout)).entries
    assert sum("leads out" in file.reason for file in found.skipped) == 3
    assert sum("is not there" in file.reason for file in found.skipped) == 2
