from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from stand_ins import chord, fluidsynth, on_path, program, soundfont, tones

from datamodules.free_corpora import tinysoundfont_player
from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.midi import read_song
from datamodules.free_corpora.renderers import Renderer, chosen_renderer
from datamodules.free_corpora.rendering import Rendering
from spectrostream.errors import UserError

RATE = 48000
REAL = [
    "tinysoundfont",
    pytest.param("fluidsynth", marks=pytest.mark.skipif(shutil.which("fluidsynth") is None, reason="a system package")),
]


@pytest.fixture
def font(tmp_path: Path) -> Path:
    path = tmp_path / "sine.sf2"
    path.write_bytes(soundfont())
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


def rendered(renderer: Renderer, song: bytes, font: Path, work: Path, *, bits: int = 24):
    source, target = work / "song.mid", work.parent / "out" / "song.flac"
    source.write_bytes(song)
    result = Rendering(renderer, font, work, bits).render(source, target, read_song(song).seconds)
    source.unlink()
    assert list(work.iterdir()) == []
    audio, rate = soundfile.read(target, always_2d=True)
    assert (rate, audio.shape[1], soundfile.info(target).subtype) == (RATE, 2, f"PCM_{bits}")
    return result, audio


def pitch(audio: np.ndarray) -> float:
    """Hz of the strongest partial of the middle."""
    middle = audio[len(audio) // 4 : len(audio) // 4 + RATE // 2, 0]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 2**17))
    return float(np.argmax(spectrum)) * RATE / 2**17


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(("key", "hertz"), [(69, 440.0), (81, 880.0), (57, 220.0)])
def test_notes_sound_at_their_pitch(font: Path, work: Path, name: str, key: int, hertz: float) -> None:
    result, audio = rendered(chosen_renderer(name), tones([key], seconds=1.5), font, work)
    assert pitch(audio) == pytest.approx(hertz, rel=2e-3)
    assert result.seconds == pytest.approx(len(audio) / RATE)
    assert 1.5 <= result.seconds < 8


@pytest.mark.parametrize("name", REAL)
def test_notes_begin_when_they_should(font: Path, work: Path, name: str) -> None:
    _, audio = rendered(chosen_renderer(name), tones([69], seconds=0.5, rest=1.25), font, work)
    onset = np.flatnonzero(np.abs(audio).max(axis=1) > 1e-3)[0] / RATE
    assert 1.2485 <= onset < 1.27  # fluidsynth begins notes at multiples of 64 samples


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_track_that_would_clip_is_scaled_as_a_whole(font: Path, work: Path, name: str) -> None:
    renderer = chosen_renderer(name)
    loud, audio = rendered(renderer, chord(range(36, 100)), font, work)
    assert loud.peak_dbfs > 0 > loud.scaled_db
    assert np.abs(audio).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)
    assert loud.peak_dbfs + loud.scaled_db == pytest.approx(-1, abs=0.02)
    soft, audio = rendered(renderer, tones([69]), font, work)
    assert soft.scaled_db == 0.0
    assert 20 * np.log10(np.abs(audio).max()) == pytest.approx(soft.peak_dbfs, abs=0.02)


def test_long_songs_do_not_drift(font: Path) -> None:
    song = read_song(tones([69, 71] * 400, seconds=0.0053))
    length = sum(map(len, tinysoundfont_player.play(song, font, RATE, 0.0)))
    tail = length - round(song.seconds * RATE)
    assert len(song.events) > 1500
    assert tail % 24000 == 0


@pytest.mark.parametrize("content", [b"", b"RIFF\4\0\0\0sfbk", b"no soundfont" * 100, soundfont()[:400]])
def test_a_broken_soundfont_is_said(tmp_path: Path, work: Path, content: bytes) -> None:
    broken = tmp_path / "broken.sf2"
    broken.write_bytes(content)
    with pytest.raises(RecipeError, match=r"tinysoundfont (ended with code|made nothing but silence)"):
        rendered(chosen_renderer("tinysoundfont"), tones([69]), broken, work)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's PATH with a folder for stand-ins before it, and where they write what they were told."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "fluidsynth.log"


def test_fluidsynth_is_told_what_to_do(tmp_path: Path, font: Path, work: Path, log: Path) -> None:
    fluidsynth(tmp_path / "bin", log, peak=0.25)
    renderer = chosen_renderer("auto")
    assert (renderer.name, renderer.version) == ("fluidsynth", "9.8.7")
    result, audio = rendered(renderer, tones([69]), font, work, bits=16)
    words = log.read_text().split()
    assert words[:6] == ["-ni", "-q", "-r", "48000", "-g", "0.3"]
    assert words[-2:] == [str(font), str(work / "song.mid")]
    assert result.peak_dbfs == pytest.approx(20 * np.log10(0.25), abs=0.01)
    assert result.seconds == pytest.approx(1.0, abs=0.001)  # the silence at the end is cut off
    assert np.abs(audio).max() == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"after": "echo 'parameter missing' >&2; echo 'the last word' >&2; exit 3"}, "code 3: the last word"),
        ({"after": ': > "$target"'}, "wrote no audio"),
        ({"after": "echo 'no audio at all' > \"$target\""}, "cannot be read as audio"),
        ({"peak": 0.0, "seconds": 5.0}, "nothing but silence"),
        ({"peak": float("nan"), "seconds": 5.0}, "NaN or infinite"),
        ({"seconds": 0.1}, r"wrote 0\.6 of 5\.0 s; is there room on the disk"),
    ],
)
def test_a_synthesizer_that_fails_leaves_nothing(
    tmp_path: Path, font: Path, work: Path, log: Path, how: dict[str, object], said: str
) -> None:
    fluidsynth(tmp_path / "bin", log, **how)
    with pytest.raises(UserError, match=said):
        rendered(chosen_renderer("fluidsynth"), tones([69], seconds=5.0), font, work)
    assert list(work.glob("*.wav")) == []
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".flac" or "unfinished" in path.name]


def test_a_synthesizer_that_runs_is_ended_when_all_stops(tmp_path: Path, font: Path, work: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    rendering = Rendering(Renderer("sleeper", "1", "", lambda *paths: command), font, work, 16)
    threading.Timer(0.5, rendering.stop).start()
    begin = time.monotonic()
    with pytest.raises(RecipeError, match="stopped"):
        rendering.render(font, tmp_path / "x.flac", 1.0)
    assert time.monotonic() - begin < 30


def test_a_renderer_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", on_path(tmp_path / "empty"))
    with pytest.raises(RecipeError, match="fluidsynth is not installed; type: apt-get install fluidsynth"):
        chosen_renderer("fluidsynth")
    assert chosen_renderer("auto").name == "tinysoundfont"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"none is installed; type: .*pip install --no-deps tinysoundfont"):
        chosen_renderer("auto")
    with pytest.raises(RecipeError, match="type: pip install --no-deps tinysoundfont"):
        chosen_renderer("tinysoundfont")


def test_a_fluidsynth_that_cannot_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "fluidsynth", "").write_text("#!/no/such/interpreter\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RecipeError, match="does not answer"):
        chosen_renderer("fluidsynth")
