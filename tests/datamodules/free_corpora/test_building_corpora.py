from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from stand_ins import (
    GAMES,
    SMALL_FONT,
    SMALL_FONT_PACKAGE,
    fluidsynth,
    freedoom_files,
    soundfont,
    soundfont_files,
    tones,
    wad,
    write_files,
)

from datamodules.free_corpora.building import Built, Options, build
from datamodules.free_corpora.catalog import RECIPES
from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.ledger import Ledger
from datamodules.free_corpora.packages import Given

pytestmark = pytest.mark.processes

FREEDOOM, HYPERROGUE, NAEV = RECIPES["freedoom"], RECIPES["hyperrogue"], RECIPES["naev"]
NAMES = ["freedoom1/D_E1M1.flac", "freedoom1/D_E1M2.flac", "freedoom2/D_RUNNIN.flac"]
DEMO = Path(__file__).parents[3] / "datamodules" / "demo_corpus"
ROGUE_COPYRIGHT = """Files: *
Copyright: Zeno
License: GPL-2+

Files: music/hr3-*
Copyright: Shawn Parrotte
License: CC-BY-SA-3.0
"""


class Watched:
    """A report that adds up."""

    def __init__(self) -> None:
        self.expected = self.done = 0.0

    def doing(self, what: str) -> None: ...

    def total(self, seconds: float) -> None:
        self.expected += seconds

    def advance(self, seconds: float) -> None:
        self.done += seconds


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacked packages, a quick fluidsynth before everything else on PATH, and its log."""
    write_files(tmp_path / "packages", {**freedoom_files(), **soundfont_files()})
    fluidsynth(tmp_path / "bin", tmp_path / "log")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def built(machine: Path, recipe=FREEDOOM, report: Watched | None = None, **options: object) -> Built:
    given = Given([machine / "packages"], [], machine / "cache")
    return build(recipe, machine / "out", given, Options(**options), report or Watched())


def music(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".flac", ".ogg"))


def hyperrogue(machine: Path) -> dict[str, bytes]:
    content = {
        "hr3-caves.ogg": (DEMO / "ubports_duarte.ogg").read_bytes(),
        "hr3-hell.ogg": (DEMO / "zalek2_whallon.ogg").read_bytes(),
        "other.ogg": (DEMO / "ambiphonic_zeropage.ogg").read_bytes(),
    }
    files = {f"usr/share/hyperrogue/music/{name}": audio for name, audio in content.items()}
    write_files(machine / "packages", {**files, "usr/share/doc/hyperrogue-music/copyright": ROGUE_COPYRIGHT.encode()})
    return content


def test_rendered_music_lies_beside_its_attribution_and_licences(machine: Path) -> None:
    report = Watched()
    result = built(machine, report=report)
    out = machine / "out"
    assert music(out) == NAMES
    assert (result.tracks, result.new, result.left_out, result.scaled) == (3, 3, 0, 0)
    assert result.seconds == pytest.approx(3.0, abs=0.01)
    assert result.size_bytes == sum((out / name).stat().st_size for name in NAMES)
    assert report.done == pytest.approx(report.expected) == pytest.approx(2.5)
    assert sorted(path.name for path in out.iterdir()) == [
        "ATTRIBUTION.md",
        "LICENSES",
        "freedoom1",
        "freedoom2",
        "recipe.json",
    ]
    assert (out / "LICENSES/freedoom/copyright").read_text().startswith("Files: *")
    assert (out / f"LICENSES/{SMALL_FONT_PACKAGE}/copyright").is_file()
    attribution = (out / "ATTRIBUTION.md").read_text()
    assert "with fluidsynth 9.8.7 and the soundfont MuseScore_General_Lite.sf3 (MIT)" in attribution
    assert attribution.count("| BSD-3-clause and MIT |") == 3
    record = json.loads((out / "recipe.json").read_text())
    assert list(record["pieces"]) == NAMES
    assert record["pieces"][NAMES[0]]["peak_dbfs"] == pytest.approx(-6.02, abs=0.01)


def test_the_synthesizer_without_system_packages_builds_the_same_tracks(machine: Path) -> None:
    built(machine, renderer="tinysoundfont", only=("D_E1M*",), bits=24, jobs=2)
    assert music(machine / "out") == NAMES[:2]
    assert {soundfile.info(path).subtype for path in (machine / "out").rglob("*.flac")} == {"PCM_24"}


def test_a_build_that_is_complete_is_left_alone(machine: Path) -> None:
    first = built(machine)
    before = {path: path.stat().st_mtime_ns for path in (machine / "out").rglob("*") if path.is_file()}
    (machine / "log").unlink()
    assert built(machine) == dataclasses.replace(first, new=0)
    assert {path: path.stat().st_mtime_ns for path in (machine / "out").rglob("*") if path.is_file()} == before
    assert not (machine / "log").exists()


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_tracks_that_were_lost_since_are_made_again(machine: Path, damage: str) -> None:
    first = built(machine)
    victim = machine / "out" / NAMES[1]
    whole = victim.read_bytes()
    victim.unlink() if damage == "removed" else victim.write_bytes(whole[:100])
    (machine / "log").unlink()
    assert built(machine) == dataclasses.replace(first, new=1)
    assert victim.read_bytes() == whole
    assert len((machine / "log").read_text().splitlines()) == 1


def test_a_failed_track_does_not_stop_the_others_and_is_tried_again(machine: Path) -> None:
    fluidsynth(machine / "bin", machine / "log", after='case "$*" in *D_E1M2*) exit 9;; esac')
    with pytest.raises(
        RecipeError, match=r"1 of 3 tracks failed:\n  freedoom1/D_E1M2\.flac: fluidsynth ended with code 9"
    ):
        built(machine)
    assert music(machine / "out") == [NAMES[0], NAMES[2]]
    assert not (machine / "out" / "recipe.json").exists()
    fluidsynth(machine / "bin", machine / "log")
    assert built(machine).new == 1
    assert music(machine / "out") == NAMES


def test_a_broken_lump_does_not_stop_the_others(machine: Path) -> None:
    lumps = [("D_GOOD", tones([69])), ("D_CUT", tones([60])[:-9]), ("D_LONG", tones([60], seconds=9000.0))]
    write_files(machine / "packages", {f"{GAMES}/freedoom1.wad": wad(lumps), f"{GAMES}/freedoom2.wad": wad([])})
    with pytest.raises(RecipeError, match="2 of 3 tracks failed") as caught:
        built(machine)
    assert "D_CUT.flac: its chunk" in str(caught.value)
    assert "D_LONG.flac: it would be 9000 s long, allowed are 7200" in str(caught.value)
    assert music(machine / "out") == ["freedoom1/D_GOOD.flac"]


def test_loud_tracks_are_counted(machine: Path) -> None:
    fluidsynth(machine / "bin", machine / "log", peak=1.5)
    assert built(machine, only=("D_E1M1",)).scaled == 1
    assert "| -4.5 dB |" in (machine / "out" / "ATTRIBUTION.md").read_text()


def test_audio_is_copied_byte_for_byte_with_its_credit(machine: Path) -> None:
    content = hyperrogue(machine)
    result = built(machine, HYPERROGUE, licences=("CC*",))
    assert {name: (machine / "out" / name).read_bytes() for name in music(machine / "out")} == {
        name: content[name] for name in ("hr3-caves.ogg", "hr3-hell.ogg")
    }
    assert (result.tracks, result.left_out) == (2, 1)
    attribution = (machine / "out" / "ATTRIBUTION.md").read_text()
    assert "| hr3-caves.ogg | hr3-caves | Shawn Parrotte | CC-BY-SA-3.0 |" in attribution
    assert "https://creativecommons.org/licenses/by-sa/3.0/legalcode" in attribution
    assert "copied as they are" in attribution


def test_all_licences_are_taken_unless_others_are_asked_for(machine: Path) -> None:
    hyperrogue(machine)
    assert built(machine, HYPERROGUE).left_out == 0
    assert "| Zeno | GPL-2+ |" in (machine / "out" / "ATTRIBUTION.md").read_text()


def test_a_track_that_is_no_audio_is_named(machine: Path) -> None:
    hyperrogue(machine)
    broken = {"hr3-empty.ogg": b"", "hr3-text.ogg": b"no audio", "hr3-naïve 🎵|x.ogg": b"OggS"}
    write_files(machine / "packages/usr/share/hyperrogue/music", broken)
    with pytest.raises(RecipeError, match="3 of 6 tracks failed") as caught:
        built(machine, HYPERROGUE)
    assert all(name in str(caught.value) for name in broken)
    assert len(music(machine / "out")) == 3


@pytest.mark.skipif(os.name != "posix", reason="names there are text")
def test_names_that_are_no_utf8_survive(machine: Path) -> None:
    folder = machine / "packages/usr/share/hyperrogue/music"
    hyperrogue(machine)
    (folder / "hr3-hell.ogg").rename(folder / os.fsdecode(b"hr3-\xff\n.ogg"))
    assert built(machine, HYPERROGUE).tracks == 3
    assert (machine / "out" / os.fsdecode(b"hr3-\xff\n.ogg")).is_file()
    assert "hr3-\\udcff .ogg" in (machine / "out" / "ATTRIBUTION.md").read_text()
    assert built(machine, HYPERROGUE).new == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ("NOSUCH*",)}, r"No track of freedoom is called NOSUCH\*; the 3 are called like freedoom1/D_E1M1"),
        ({"licences": ("CC*",)}, r"No track has a licence CC\*; there are: BSD-3-clause and MIT"),
        ({"soundfont": "huge"}, "There is no soundfont 'huge'; type small or lossless, or the name of a file"),
    ],
)
def test_what_was_asked_in_vain_is_said(machine: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        built(machine, **options)
    assert music(machine / "out") == []


def test_a_package_without_the_music_is_said(machine: Path) -> None:
    write_files(
        machine / "packages", {"usr/share/doc/naev-data/copyright": b"", "usr/share/naev/dat/snd/music.lua": b""}
    )
    with pytest.raises(
        RecipeError, match=r"naev-data has no music where it should be \(usr/share/naev/dat/snd/music/\*\.ogg\)"
    ):
        built(machine, NAEV)


PACKED = gzip.compress(b"x" * 999, mtime=0)


@pytest.mark.parametrize("content", [b"no gzip", PACKED[:-20], PACKED[:12] + bytes(30)], ids=["none", "short", "zeros"])
def test_damaged_credits_are_said(machine: Path, content: bytes) -> None:
    write_files(machine / "packages", {"usr/share/doc/freedoom/CREDITS.gz": content})
    with pytest.raises(RecipeError, match=r"CREDITS\.gz' is damaged"):
        built(machine, only=("D_E1M1",))
    write_files(machine / "packages", {"usr/share/doc/freedoom/CREDITS.gz": gzip.compress(b"N: Ann", mtime=0)})
    assert built(machine, only=("D_E1M1",)).new == 0
    assert (machine / "out" / "LICENSES" / "freedoom" / "CREDITS").read_bytes() == b"N: Ann"


def test_a_soundfont_of_ones_own_says_that_its_licence_is_unknown(machine: Path) -> None:
    (machine / "packages" / SMALL_FONT).unlink()
    (machine / "mine.sf2").write_bytes(soundfont())
    built(machine, soundfont=str(machine / "mine.sf2"))
    assert "the soundfont mine.sf2 (licence unknown)" in (machine / "out" / "ATTRIBUTION.md").read_text()


def test_a_folder_that_belongs_to_something_else_is_left_alone(machine: Path) -> None:
    write_files(machine / "out", {"mine.txt": b"x"})
    with pytest.raises(RecipeError, match="is not empty and no build was begun there"):
        built(machine)
    assert [path.name for path in (machine / "out").iterdir()] == ["mine.txt"]


def test_other_options_are_refused_in_the_same_folder(machine: Path) -> None:
    built(machine)
    with pytest.raises(RecipeError, match=r'was built with .*"bits"|bits 16.*asked is .*bits 24'):
        built(machine, bits=24)
    (machine / "out" / NAMES[0]).unlink()
    fluidsynth(machine / "bin", machine / "log").write_text(
        (machine / "bin" / "fluidsynth").read_text().replace("9.8.7", "10.0")
    )
    with pytest.raises(RecipeError, match=r"was begun with .*9\.8\.7.* and would go on with .*10\.0"):
        built(machine)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"asked": 1}', b"\xff"])
def test_a_damaged_record_is_said(machine: Path, content: bytes) -> None:
    (machine / "out").mkdir()
    (machine / "out" / "recipe.json").write_bytes(content)
    with pytest.raises(RecipeError, match="is no record of a build"):
        built(machine)


def test_two_builds_do_not_share_a_folder(machine: Path) -> None:
    asked = {"recipe": "freedoom", "renderer": "auto", "soundfont": "small", "bits": 16, "licences": ["*"], "only": []}
    with Ledger(machine / "out", asked).locked(), pytest.raises(RecipeError, match="Another process builds in"):
        built(machine)
    assert built(machine).new == 3


def test_a_mistake_can_be_mended_in_the_same_folder(machine: Path) -> None:
    with pytest.raises(RecipeError, match="is called D_E9"):
        built(machine, only=("D_E9*",))
    fluidsynth(machine / "bin", machine / "log", after="exit 1")
    with pytest.raises(RecipeError, match="3 of 3 tracks failed"):
        built(machine)
    fluidsynth(machine / "bin", machine / "log")
    assert built(machine, only=("D_E1*",)).new == 2


def test_a_folder_below_a_file_is_an_os_error(machine: Path) -> None:
    (machine / "out").write_text("a file")
    with pytest.raises(RecipeError, match="is a file; type the name of a new folder"):
        built(machine)
    with pytest.raises(NotADirectoryError):
        build(FREEDOOM, machine / "out" / "below", Given([machine / "packages"], [], machine), Options(), Watched())


SCRIPT = """import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_building_corpora import built
built(Path({machine!r}))
"""


@pytest.mark.slow
def test_a_build_killed_in_the_middle_of_a_track_goes_on(machine: Path) -> None:
    # The second track never ends, until the build is killed.
    slow = f'case "$*" in *D_RUNNIN*) exec {shutil.which("sleep")} 600;; esac'
    fluidsynth(machine / "bin", machine / "log", after=slow)
    script = SCRIPT.format(tests=str(Path(__file__).parent), machine=str(machine))
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    out = machine / "out"
    deadline = time.monotonic() + 60
    while not (len(music(out)) >= 2 and "D_RUNNIN" in (machine / "log").read_text()) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = music(out)
    assert finished == NAMES[:2]
    assert all(soundfile.info(out / name).frames > 0 for name in finished)
    assert not (out / "recipe.json").exists()
    (machine / "log").unlink()
    fluidsynth(machine / "bin", machine / "log")
    assert built(machine).new == 1
    assert music(out) == NAMES
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
