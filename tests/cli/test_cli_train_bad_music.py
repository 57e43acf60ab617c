"""`spectrostream train` on music that cannot be read, or that brings its decoder down: it goes on and says how many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "ablations"))
sys.path.insert(0, str(Path(__file__).parents[1] / "datamodules"))
from crashing_decoder import with_crashing_decoder
from small_study import write_config, write_music

from datamodules.workers.unreadable_files import listed_files
from spectrostream_cli import main

pytestmark = pytest.mark.processes


def words_for(folder: Path, *words: str) -> list[str]:
    config = write_config(folder, training={"max_steps": 4}, data={"held_out_seconds": 0.0, "batch_size": 4})
    return ["train", f"config={config}", f"data={folder / 'music'}", f"out={folder / 'run'}", *words]


def test_replaced_files_are_counted_at_every_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_music(tmp_path / "music")
    soundfile.write(tmp_path / "music" / "bad.wav", np.full((9 * 48000, 2), np.nan), 48000, subtype="FLOAT")
    words = words_for(tmp_path)
    said = "1 file, shard or folder could not be read in this run (over all its starts) and was replaced by others: "
    said = f"{said}{tmp_path}/run/unreadable.txt"
    assert main(words) == 0
    *_, replaced, trained = capsys.readouterr().out.splitlines()
    assert replaced.startswith(said)
    assert trained.startswith("trained: ")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablations.commands.trained", interrupted)
    assert main(words) == 130
    assert said in capsys.readouterr().out
    (tmp_path / "run" / "unreadable.txt").unlink()
    assert main(words) == 130
    assert "could not be read" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segmentation fault", "kill"])
def test_a_training_survives_a_crashed_worker_and_a_killed_worker_blames_no_file(tmp_path: Path, name: str) -> None:
    write_music(tmp_path / "music")
    bad = (tmp_path / "music" / "track-1.flac").rename(tmp_path / "music" / f"{name}.flac")
    words = words_for(tmp_path, "data.num_workers=2", "data.cache_audio=false")
    command = [sys.executable, "-m", "spectrostream_cli", *words]
    done = subprocess.run(command, env=with_crashing_decoder(tmp_path), capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    listed = listed_files(tmp_path / "run" / "unreadable.txt")
    if name == "kill":
        assert done.returncode == 1
        assert "error: a process that reads music ended by signal 9 (SIGKILL), as where memory is short" in done.stderr
        assert str(bad) not in done.stderr
        assert not listed
    else:
        assert done.returncode == 0, done.stderr
        assert f"{str(bad)!r} brought down a process that read it (SIGSEGV); it is left out" in done.stderr
        assert "1 file, shard or folder could not be read in this run" in done.stdout
        assert listed == {repr(str(bad))}
        assert (tmp_path / "run" / "codec.safetensors").exists()
