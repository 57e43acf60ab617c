from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest
from stand_ins import GAMES, freedoom_files, tones, wad, write_files

from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.music import AudioFiles, MidiLumps, ZippedAudio

WADS = (f"{GAMES}/freedoom1.wad", f"{GAMES}/freedoom2.wad")
ZIPPED = ZippedAudio("game/music.pk3", "music")


def zipped(members: dict[str, bytes], *, link: str = "") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return target.getvalue()


def contents(sources: dict[str, Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in sources.items()}


def test_lumps_of_several_wads_are_taken_once_each(tmp_path: Path) -> None:
    root = write_files(tmp_path / "package", freedoom_files())
    sources = MidiLumps(WADS).sources(root, tmp_path / "work")
    assert contents(sources) == {
        "freedoom1/D_E1M1.flac": tones([69, 72]),
        "freedoom1/D_E1M2.flac": tones([60], seconds=1.0),
        "freedoom2/D_RUNNIN.flac": tones([64]),
    }
    assert all(path.suffix == ".mid" for path in sources.values())


def test_lumps_of_one_name_in_two_wads_stay_apart(tmp_path: Path) -> None:
    root = write_files(tmp_path, {WADS[0]: wad([("D_A", tones([60]))]), WADS[1]: wad([("D_A", tones([61]))])})
    sources = MidiLumps(WADS).sources(root, tmp_path / "work")
    assert contents(sources) == {"freedoom1/D_A.flac": tones([60]), "freedoom2/D_A.flac": tones([61])}


def test_audio_files_keep_their_names(tmp_path: Path) -> None:
    names = ("music/Peer Gynt, No. 1 🎻.ogg", "music/deep/a.ogg", "menu.ogg", "click.ogg", "music/readme.txt")
    root = write_files(tmp_path, {f"usr/game/{name}": name.encode() for name in names})
    (root / "usr/game/music/folder.ogg").mkdir()
    music = AudioFiles("usr/game", ("music/*.ogg", "menu.ogg"))
    assert contents(music.sources(root, tmp_path / "work")) == {name: name.encode() for name in names[:3]}
    assert music.wanted == ("usr/game/music/*.ogg", "usr/game/menu.ogg")


def test_zip_members_are_taken_out_by_pattern(tmp_path: Path) -> None:
    members = {
        "music/": b"",
        "music/a.ogg": b"a" * 5000,
        "music/deep/b.ogg": b"b",
        "music/x.txt": b"",
        "sound/c.ogg": b"c",
    }
    root = write_files(tmp_path, {"game/music.pk3": zipped(members)})
    expected = {"a.ogg": b"a" * 5000, "deep/b.ogg": b"b"}
    assert contents(ZIPPED.sources(root, tmp_path / "work")) == expected
    (tmp_path / "work" / "a.ogg").write_bytes(b"cut")
    assert contents(ZIPPED.sources(root, tmp_path / "work")) == expected


@pytest.mark.parametrize("name", ["music/../../evil.ogg", "music//../evil.ogg", "music/a\\..\\evil.ogg"])
def test_members_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    root = write_files(tmp_path, {"game/music.pk3": zipped({name: b"x"})})
    with pytest.raises(RecipeError, match="no plain file"):
        ZIPPED.sources(root, tmp_path / "work")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path, {"game/music.pk3": zipped({}, link="music/l.ogg")})
    with pytest.raises(RecipeError, match="no plain file"):
        ZIPPED.sources(root, tmp_path / "work")


def test_members_that_claim_too_much_are_refused(tmp_path: Path) -> None:
    content = zipped({"music/big.ogg": b"x" * 100})
    # The size stands in the directory at the end, which is what a reader believes.
    position = content.index(b"PK\x01\x02") + 24
    root = write_files(
        tmp_path, {"game/music.pk3": content[:position] + (2**31).to_bytes(4, "little") + content[position + 4 :]}
    )
    with pytest.raises(RecipeError, match="2147483648 bytes, allowed"):
        ZIPPED.sources(root, tmp_path / "work")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed"])
def test_broken_archives_are_said(tmp_path: Path, damage: str) -> None:
    content = bytearray(zipped({"music/a.ogg": bytes(range(256)) * 40}))
    content[60] ^= 0xFF
    damaged = {"missing": None, "empty": b"", "cut": bytes(content[:-30]), "changed": bytes(content)}[damage]
    root = write_files(tmp_path, {} if damaged is None else {"game/music.pk3": damaged})
    with pytest.raises(RecipeError, match=r"music\.pk3.*is (missing|broken)"):
        ZIPPED.sources(root, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("*.ogg"))
