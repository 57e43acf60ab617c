from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins import write_files

from datamodules.free_corpora.catalog import RECIPES
from datamodules.free_corpora.contract import Credit, RecipeError
from datamodules.free_corpora.credits import DebianCopyright, LicenceList, Stated

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: game

Files: *
Copyright: 2001, The team
License: GPL-2+

Files: music/*
Copyright: 2003, Ann
           2004, Bob (http://bob.example)
           2003, Ann
License: CC-BY-SA-3.0

Files:
 ./music/s?ng.ogg
 music/deep/*.ogg
Copyright: Cy
License: CC-BY-3.0
 The text of the licence
 .
 goes on.

License: GPL-2+
 See elsewhere.
"""
LIST = """- Ann Artist <ann@example.org>:
   license: GPLv3 / CC-by 3
   music:
     - one.ogg
     - two.ogg
   sounds:
     - bang.wav
- Somebody:
   license: A new one
   music:
     - three.ogg
- Nobody:
   license: PD
   sounds:
     - beep.wav
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tune.ogg", Credit("2003, Ann; 2004, Bob (http://bob.example)", "CC-BY-SA-3.0")),
        ("song.ogg", Credit("Cy", "CC-BY-3.0")),
        ("soong.ogg", Credit("2003, Ann; 2004, Bob (http://bob.example)", "CC-BY-SA-3.0")),
        ("deep/er/x.ogg", Credit("Cy", "CC-BY-3.0")),
    ],
)
def test_the_last_paragraph_that_matches_counts(tmp_path: Path, name: str, expected: Credit) -> None:
    root = write_files(tmp_path, {"usr/share/doc/game/copyright": COPYRIGHT.encode()})
    assert DebianCopyright("music/").read(root, "game")(name) == expected


def test_the_prefix_is_the_source_packages_folder(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"usr/share/doc/game/copyright": COPYRIGHT.encode()})
    assert DebianCopyright("other/").read(root, "game")("song.ogg") == Credit("2001, The team", "GPL-2+")


@pytest.mark.parametrize(
    "text", [b"", b"All rights are with somebody.", b"Files: x\nCopyright: y\n\nLicense: z", b"\xff\xfe"]
)
def test_a_file_without_paragraphs_says_nothing_of_any_track(tmp_path: Path, text: bytes) -> None:
    root = write_files(tmp_path, {"usr/share/doc/game/copyright": text})
    assert DebianCopyright("").read(root, "game")("song.ogg") is None


def test_a_missing_copyright_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="licences of game are unknown"):
        DebianCopyright("").read(tmp_path, "game")


def test_a_list_of_authors_gives_short_names_and_titles(tmp_path: Path) -> None:
    titles = "# order\n- name: Number one\n  filename: one.ogg\n"
    root = write_files(tmp_path, {"list.yaml": LIST.encode(), "titles.yaml": titles.encode()})
    credits = LicenceList("list.yaml", "titles.yaml", {"GPLv3 / CC-by 3": "CC-BY-3.0 or GPL-3"}).read(root, "game")
    assert credits("one.ogg") == Credit("Ann Artist", "CC-BY-3.0 or GPL-3", "Number one")
    assert credits("two.ogg") == Credit("Ann Artist", "CC-BY-3.0 or GPL-3")
    assert credits("three.ogg") == Credit("Somebody", "A new one")
    assert credits("four.ogg") is None


@pytest.mark.parametrize("text", ["{", "- just a name", "42", "- Ann:\n   music: [x.ogg]", "- [a, b]"])
def test_a_list_of_another_form_is_said(tmp_path: Path, text: str) -> None:
    root = write_files(tmp_path, {"list.yaml": text.encode(), "titles.yaml": b"[]"})
    with pytest.raises(RecipeError, match=r"list\.yaml"):
        LicenceList("list.yaml", "titles.yaml").read(root, "game")


def test_one_credit_can_stand_for_all(tmp_path: Path) -> None:
    assert Stated("They", "MIT").read(tmp_path, "game")("anything") == Credit("They", "MIT")


def test_recipes_are_told_apart_by_what_they_promise() -> None:
    assert {name for name, recipe in RECIPES.items() if recipe.held_out} == {
        "hyperrogue",
        "unknown-horizons",
        "marsshooter",
    }
    assert {name for name, recipe in RECIPES.items() if recipe.music.is_notes} == {"freedoom"}
    assert all(recipe.minutes > 0 and recipe.megabytes > 0 and recipe.licence for recipe in RECIPES.values())
