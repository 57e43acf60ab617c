"""Files that bring the decoder down in a loader's process: a training leaves them out and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from crashing_decoder import with_crashing_decoder
from music_files import noisy_tones, write_raw
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.audio.opening import AudioFileError
from datamodules.corpora.corpus import Track
from datamodules.track_reader import read_track
from datamodules.workers import crash_markers as crash_marks
from datamodules.workers import resilient_loader as module
from datamodules.workers.crash_markers import Marks, note_in, reading, refuse, refused
from datamodules.workers.processes import WorkersError, worker_context
from datamodules.workers.resilient_loader import ResilientLoader, StepSampler
from datamodules.workers.unreadable_files import listed_files

pytestmark = pytest.mark.processes


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    """Of two processes; this one is the second."""
    monkeypatch.setattr(crash_marks, "_own", None)
    monkeypatch.setattr(crash_marks, "_refused", {})
    marks = Marks(worker_context("datamodules.workers.crash_markers"), 2)
    note_in(marks, 1)
    return marks


@pytest.mark.parametrize("name", ["a/song.flac", os.fsdecode(b"latin \xe9 and \xf0\x9f\x8e\xb5.wav"), "a" * 4000])
def test_a_process_notes_what_it_reads(marks: Marks, name: str) -> None:
    with reading(Path("a much longer name of another file")):
        pass
    assert marks.path_of(1) is None
    with suppress(OSError), reading(Path(name)):
        assert (marks.path_of(0), marks.path_of(1)) == (None, Path(name))
        raise OSError("is broken")
    assert marks.path_of(1) is None


def test_a_read_that_was_given_up_hides_no_other(marks: Marks) -> None:
    hanging, other = reading(Path("hanging")), reading(Path("other"))
    hanging.__enter__()
    other.__enter__()
    hanging.__exit__(None, None, None)
    assert marks.path_of(1) == Path("other")
    other.__exit__(None, None, None)
    assert marks.path_of(1) is None


def test_a_refused_file_is_unreadable_for_its_reason(marks: Marks) -> None:
    refuse({Path("bad"): "brought the decoder down"})
    with pytest.raises(AudioFileError, match="'bad': brought the decoder down"), reading(Path("bad")):
        raise AssertionError("was read")
    assert refused() == {Path("bad"): "brought the decoder down"}


def test_a_name_that_no_file_can_have_is_unreadable_like_any_other(marks: Marks) -> None:
    track = Track(Path("lone \ud800.wav"), "lone", 1.0, 48000, 2, None)
    with pytest.raises(AudioFileError):
        read_track(track, sample_rate=48000, channels=2)


def test_a_note_takes_microseconds(marks: Marks) -> None:
    path = Path("/music/artist/album/01 - song.flac")
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            with reading(path):
                pass
        seconds.append(time.perf_counter() - began)
    # 5 us each; the shortest of many, for other processes may be at work.
    assert min(seconds) / 100 < 50e-6


class _Ending(Dataset[Tensor]):
    """Where reading the first item ends the process by a signal, in the midst of a file if there is one."""

    def __init__(self, number: signal.Signals, path: Path | None) -> None:
        self._number = number
        self._path = path

    def __getitem__(self, key: object) -> Tensor:
        if self._path is not None:
            with reading(self._path):
                os.kill(os.getpid(), self._number)
        os.kill(os.getpid(), self._number)
        raise AssertionError("still there")


def _loader(number: signal.Signals, path: Path | None) -> ResilientLoader:
    return ResilientLoader(_Ending(number, path), StepSampler(1), lambda: 0, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "path", "words"),
    [
        (signal.SIGKILL, Path("good.wav"), r"signal 9 \(SIGKILL\), as where memory is short: lower data.num_workers=1"),
        (signal.SIGBUS, Path("good.wav"), r"signal 7 \(SIGBUS\), as where /dev/shm is full: enlarge it"),
        (signal.SIGSEGV, None, r"signal 11 \(SIGSEGV\), but not by a file that it read; run the same command again"),
    ],
)
def test_no_file_is_blamed_for_what_it_did_not_do(number: signal.Signals, path: Path | None, words: str) -> None:
    with pytest.raises(WorkersError, match=words) as caught:
        next(iter(_loader(number, path)))
    assert "good.wav" not in str(caught.value)
    assert Path("good.wav") not in refused()


@pytest.mark.slow
def test_too_many_crashes_are_an_error_that_says_what_to_do(marks: Marks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_CRASHES", 0)
    words = r"1 files brought .* the last 'bad.wav' \(SIGABRT\); `spectrostream data scan .* then type data=music"
    with pytest.raises(WorkersError, match=words):
        next(iter(_loader(signal.SIGABRT, Path("bad.wav"))))


# Prints how many batches were the same as where the crashing files were unreadable from the start.
_COMPARE = """
import itertools, json, sys
from pathlib import Path
from datamodules.workers.crash_markers import refused
from datamodules.stereo_music import DataConfig, StereoMusicDataModule

def batches(workers):
    data = StereoMusicDataModule(DataConfig(
        root=sys.argv[1], crop_seconds=0.5, batch_size=2, num_workers=workers, cache_audio=False, split="end",
        held_out_seconds=0.0))
    data.failure_list = Path(sys.argv[1], "../unreadable.txt")
    return list(itertools.islice(data.train_dataloader(), 24))

if __name__ == "__main__":
    crashed = batches(2)
    files = {path.name: reason for path, reason in refused().items()}
    print(json.dumps([files, sum(one.equal(other) for one, other in zip(crashed, batches(0), strict=True))]))
"""


@pytest.mark.slow
def test_a_file_that_crashes_is_left_out_and_no_other_crop_changes(tmp_path: Path) -> None:
    for seed, name in enumerate(["segmentation fault", "abort", "one", "two", "three", "four", "five"]):
        write_raw(tmp_path / "music" / f"{name}.wav", noisy_tones(2.0, 48000, seed), 48000)
    environment = with_crashing_decoder(tmp_path)
    script = tmp_path / "compare.py"  # its processes import it
    script.write_text(_COMPARE)
    command = [sys.executable, str(script), str(tmp_path / "music")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    files, same = json.loads(done.stdout)
    assert files == {
        "segmentation fault.wav": "brought the decoder down (signal 11, SIGSEGV); copy it again or remove it",
        "abort.wav": "brought the decoder down (signal 6, SIGABRT); copy it again or remove it",
    }
    assert same == 24
    listed = {Path(name.strip("'")).name for name in listed_files(tmp_path / "unreadable.txt")}
    assert listed == set(files)
    assert "abort.wav' brought down a process that read it (SIGABRT); it is left out" in done.stderr
    assert "Traceback" not in done.stderr
