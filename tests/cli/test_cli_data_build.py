from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from workbench import hidden_or_unfinished, started

sys.path.insert(0, str(Path(__file__).parent.parent / "datamodules" / "free_corpora"))
from stand_ins import SMALL_FONT_PACKAGE, apt_get, fluidsynth, on_path, write_debs

from spectrostream_cli import main

pytestmark = pytest.mark.processes

SLEEP = shutil.which("sleep")
NAMES = ["freedoom1/D_E1M1.flac", "freedoom1/D_E1M2.flac", "freedoom2/D_RUNNIN.flac"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose apt-get has both packages, with a fluidsynth; its home is the test's folder."""
    debs = write_debs(tmp_path / "served")
    apt_get(tmp_path / "bin", debs, tmp_path / "apt.log")
    fluidsynth(tmp_path / "bin", tmp_path / "log")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["data", "build", *map(str, words)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_a_corpus_is_downloaded_and_built(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = machine / "with space 🎵"
    code, said, _ = ran(capsys, "freedoom", "--out", out, "--jobs", 2)
    size = sum((out / name).stat().st_size for name in NAMES) / 1e6
    last = f"built: {out} (3 tracks, 0 minutes, {size:.0f} MB; next: spectrostream data scan '{out}')"
    assert (code, said.splitlines()[-1]) == (0, last)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.flac")) == NAMES
    assert len(list((machine / "cache" / "spectrostream" / "packages").glob("*.deb"))) == 2
    assert hidden_or_unfinished(out) == []
    code, said, _ = ran(capsys, "freedoom", "--out", out)
    assert (code, "all there before" in said) == (0, True)


def test_a_terminal_sees_how_many_minutes_are_done(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    code, said, _ = ran(capsys, "freedoom", "--out", machine / "out")
    assert code == 0
    assert "rendering" in said
    assert "0.0/0.0 min of music" in said


def test_copies_of_packages_need_no_apt_get(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "bin" / "apt-get").unlink()
    files = [word for path in (machine / "served").iterdir() for word in ("--package-file", path)]
    code, _, _ = ran(capsys, "freedoom", "--out", machine / "out", *files, "--only", "D_E1M1", "--bits", 24)
    assert code == 0
    assert [path.name for path in (machine / "out").rglob("*.flac")] == ["D_E1M1.flac"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--package-file", "none.deb"], "error: The package file 'none.deb' cannot be opened: No such file"),
        (["--source", "nowhere"], "error: The folder 'nowhere' holds none of the packages freedoom and"),
        (["--jobs", "0"], "error: --jobs is 0, allowed is 1 or more"),
        (["--soundfont", "lossless"], "error: apt-get does not know the package musescore-general-soundfont-lossless"),
        (["--licence", "CC*"], "error: No track has a licence CC*; there are: BSD-3-clause and MIT"),
    ],
)
def test_mistakes_are_explained(machine: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    code, _, error = ran(capsys, "freedoom", "--out", machine / "out", *words)
    assert code == 1
    assert error.startswith(said)
    assert not list(machine.rglob("*.flac"))


def test_a_missing_synthesizer_is_an_error_before_any_download(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "bin" / "fluidsynth").unlink()
    code, _, error = ran(capsys, "freedoom", "--out", machine / "out", "--renderer", "fluidsynth")
    assert (code, "apt-get install fluidsynth" in error) == (1, True)
    assert not (machine / "apt.log").exists()
    assert not (machine / "out").exists()


def test_a_missing_apt_get_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", on_path(tmp_path / "empty"))
    code, _, error = ran(capsys, "hyperrogue", "--out", tmp_path / "out")
    assert (code, "there is no apt-get here to download it; copy the file" in error) == (1, True)


def test_the_help_lists_what_can_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "build", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for name, facts in {"freedoom": "181 min", "naev": "128 min", "marsshooter": "59 min"}.items():
        assert any(line.split()[:1] == [name] and facts in line for line in said.splitlines())
    assert "spectrostream data build freedoom --out" in said
    assert SMALL_FONT_PACKAGE not in said


def test_an_unknown_recipe_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "build", "doom", "--out", "x"])
    assert ended.value.code == 2
    assert "'freedoom', 'naev'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_build_says_how_to_resume(machine: Path) -> None:
    fluidsynth(machine / "bin", machine / "log", after=f"exec {SLEEP} 600")
    process = started("data", "build", "freedoom", "--out", machine / "out")
    deadline = time.monotonic() + 60
    while not (machine / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.decode().endswith("stopped; run the same command again to resume\n")
    assert not list((machine / "out").rglob("*.flac"))
    assert list((machine / "out" / ".building" / "audio").iterdir()) == []
