from __future__ import annotations

import logging
import pickle
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from music_files import noisy_tones, write_raw
from torch import Tensor

from datamodules import crop_dataset
from datamodules.audio.files import AudioFileError, read_audio
from datamodules.audio.loudness import loudness_of
from datamodules.corpora.corpus import Track
from datamodules.corpora.folder_corpus import scan_folder
from datamodules.corpora.time_ranges import TimeRange, TimeRanges
from datamodules.crop_dataset import CropDataset, HeldOutDataset, NothingReadableError
from datamodules.crops import RandomCrops
from datamodules.track_reader import TrackReader, read_track

KEYS = [(step, slot) for step in range(12) for slot in range(2)]


def reader_of(root: Path, *, cache_audio: bool = False) -> TrackReader:
    return TrackReader(scan_folder(root), sample_rate=48000, channels=2, cache_audio=cache_audio)


def dataset_of(
    reader: TrackReader,
    *,
    gain_db: float = 0.0,
    swap: float = 0.0,
    redraws: int = 8,
    normalize_lufs: float | None = None,
) -> CropDataset:
    spans = TimeRanges.of(TimeRange(index, 0.0, track.duration_seconds) for index, track in enumerate(reader.tracks))
    crops = RandomCrops(
        spans,
        crop_seconds=1.28,
        sample_rate=48000,
        gain_db_range=(gain_db, gain_db),
        swap_channels_probability=swap,
    )
    return CropDataset(reader, crops, crop_seconds=1.28, silence_redraws=redraws, normalize_lufs=normalize_lufs)


def test_cached_and_uncached_crops_are_the_same(music_folder: Path) -> None:
    uncached, cached = (dataset_of(reader_of(music_folder, cache_audio=cache)) for cache in (False, True))
    for key in KEYS:
        crop = uncached[key]
        assert crop.shape == (2, 61440)
        assert crop.dtype == torch.float32
        torch.testing.assert_close(cached[key], crop, atol=1e-5, rtol=0)


@pytest.mark.parametrize("timeout_seconds", [None, 60.0])
@pytest.mark.parametrize("cache_audio", [False, True])
def test_a_batch_is_the_crops_of_its_keys(tmp_path: Path, timeout_seconds: float | None, cache_audio: bool) -> None:
    frames = noisy_tones(8.0, 48000)
    frames[: 5 * 48000] = 0
    for name in ("late", "other", "gone"):
        write_raw(tmp_path / f"{name}.wav", frames, 48000)
    reader = reader_of(tmp_path, cache_audio=cache_audio)
    reader.timeout_seconds = timeout_seconds
    (tmp_path / "gone.wav").unlink()
    one_by_one, together = dataset_of(reader), dataset_of(reader)
    expected = [one_by_one[key] for key in KEYS]
    # The loader's way to ask for a batch.
    batch = together.__getitems__(KEYS)
    assert len({tuple(crop[0, -50:].tolist()) for crop in batch}) > 20
    assert all(torch.equal(crop, other) for crop, other in zip(batch, expected, strict=True))
    assert together.failures == one_by_one.failures
    assert 0 < together.failures["gone.wav"] < 3 * len(KEYS)


@pytest.mark.slow
def test_one_file_of_a_batch_hangs_and_the_others_are_read(music_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dataset_of(reader_of(music_folder)).__getitems__(KEYS)
    hanging, asked = threading.Event(), Counter[str]()

    def slow(track: Track, **options: Any) -> Tensor:
        asked[track.name] += 1
        return hanging.wait() and torch.zeros(0) if track.name == "b.ogg" else read_track(track, **options)

    monkeypatch.setattr("datamodules.track_reader.read_track", slow)
    reader = reader_of(music_folder)
    reader.timeout_seconds = 2.0
    dataset = dataset_of(reader)
    batch = dataset.__getitems__(KEYS)
    hanging.set()
    drawn = [dataset._crops.crop_for(0, *key).track_index for key in KEYS]
    hung = next(index for index, track in enumerate(reader.tracks) if track.name == "b.ogg")
    assert drawn.count(hung) > 1
    for crop, other, track_index in zip(batch, expected, drawn, strict=True):
        assert torch.equal(crop, other) == (track_index != hung)
    assert asked["b.ogg"] == 1
    # Each crop that was read, and the draws in place of those that were not.
    assert asked.total() == len(KEYS) + 1


def test_a_cached_crop_may_be_changed_in_place(music_folder: Path) -> None:
    dataset = dataset_of(reader_of(music_folder, cache_audio=True))
    before = dataset[0, 0].clone()
    dataset[0, 0].zero_()
    assert torch.equal(dataset[0, 0], before)


def test_decoded_music_is_not_sent_to_workers(music_folder: Path) -> None:
    dataset = dataset_of(reader_of(music_folder, cache_audio=True))
    crop = dataset[0, 0]
    sent = pickle.dumps(dataset)
    assert len(sent) < 20000
    assert torch.equal(pickle.loads(sent)[0, 0], crop)


def test_gain_and_channel_swap_are_applied(music_folder: Path) -> None:
    reader = reader_of(music_folder, cache_audio=True)
    plain, varied = dataset_of(reader)[3, 1], dataset_of(reader, gain_db=-6.0206, swap=1.0)[3, 1]
    torch.testing.assert_close(varied, 0.5 * plain.flip(0), atol=1e-5, rtol=1e-4)


def test_silent_crops_are_drawn_again(tmp_path: Path) -> None:
    frames = noisy_tones(8.0, 48000)
    frames[: 5 * 48000] = 0
    write_raw(tmp_path / "late.wav", frames, 48000)
    reader = reader_of(tmp_path, cache_audio=True)
    first_draws, redrawn = dataset_of(reader, redraws=0), dataset_of(reader, redraws=30)
    silent = [key for key in KEYS if not first_draws[key].any()]
    assert len(silent) > 5
    for key in KEYS:
        assert redrawn[key].square().mean().sqrt() > 1e-3
        if key not in silent:
            assert torch.equal(redrawn[key], first_draws[key])


def test_a_silent_corpus_ends_its_redraws(tmp_path: Path) -> None:
    write_raw(tmp_path / "nothing.wav", np.zeros((4 * 48000, 2)), 48000)
    assert not dataset_of(reader_of(tmp_path))[0, 0].any()


@pytest.mark.slow
@pytest.mark.parametrize("cache_audio", [False, True])
def test_a_file_that_breaks_is_replaced_and_named_once(
    music_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, cache_audio: bool
) -> None:
    root = tmp_path / "music"
    shutil.copytree(music_folder, root)
    expected = [dataset_of(reader_of(root))[key] for key in KEYS]
    dataset = dataset_of(reader_of(root, cache_audio=cache_audio))
    dataset._failure_list = tmp_path / "unreadable.txt"
    (root / "b.ogg").unlink()
    (root / "deep" / "d.ogg").write_bytes(b"no longer audio")
    with caplog.at_level(logging.WARNING):
        crops = [dataset[key] for key in KEYS]
    assert dataset.failures.keys() == {"b.ogg", "deep/d.ogg"}
    assert dataset.failures.total() > len(dataset.failures)
    assert len(caplog.records) == 2
    listed = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert sorted("b.ogg" in line for line in listed) == [False, True]
    kept = [torch.allclose(crop, other, atol=1e-5) for crop, other in zip(crops, expected, strict=True)]
    assert 0 < sum(kept) < len(KEYS)
    # The replacement does not depend on what was asked before.
    again = dataset_of(reader_of(music_folder))
    again._reader.tracks = dataset._reader.tracks
    for key, crop in reversed(list(zip(KEYS, crops, strict=True))):
        torch.testing.assert_close(again[key], crop, atol=1e-5, rtol=0)


def test_when_every_file_breaks_training_ends_with_an_error(music_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "music"
    shutil.copytree(music_folder, root)
    dataset = dataset_of(reader_of(root))
    shutil.rmtree(root)
    with pytest.raises(AudioFileError, match="None of the 4 training tracks can be read"):
        dataset[0, 0]


def test_a_track_with_a_bad_spot_still_gives_its_good_parts(tmp_path: Path) -> None:
    frames = noisy_tones(6.0, 48000)
    frames[200000] = np.nan
    path = write_raw(tmp_path / "spot.wav", frames, 48000, subtype="FLOAT")
    good = read_audio(path, duration_seconds=1.28)
    for cache in (False, True):
        reader = reader_of(tmp_path, cache_audio=cache)
        assert torch.equal(reader.read(0, 0.0, 1.28), good)
        with pytest.raises(AudioFileError, match="2 NaN"):
            reader.read(0, 4.0, 1.28)


def test_a_held_out_crop_that_is_gone_is_replaced_by_the_next_one_and_told(
    music_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "music"
    shutil.copytree(music_folder, root)
    pieces = TimeRanges.of([TimeRange(0, 4.0, 5.28), TimeRange(1, 4.0, 5.28), TimeRange(1, 5.0, 6.28)])
    dataset = HeldOutDataset(reader_of(root), pieces, tmp_path / "unreadable.txt")
    assert len(dataset) == 3
    expected = read_audio(root / "a.flac", start_seconds=4.0, duration_seconds=1.28)
    assert torch.equal(dataset[0], expected)
    (root / "b.ogg").unlink()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(dataset[1], expected)
        assert torch.equal(dataset[2], expected)
    assert len(caplog.records) == 1
    assert (tmp_path / "unreadable.txt").read_text().count("b.ogg") == 1
    (root / "a.flac").unlink()
    with pytest.raises(AudioFileError, match="None of the 3 validation crops can be read"):
        dataset[1]


def test_a_read_that_hangs_is_replaced_like_a_broken_file(
    music_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = reader_of(music_folder)
    hanging = threading.Event()

    def slow(track: Track, **options: Any) -> Tensor:
        # A disk that does not answer, for one of the files.
        return hanging.wait() and torch.zeros(0) if track.name == "b.ogg" else read_track(track, **options)

    monkeypatch.setattr("datamodules.track_reader.read_track", slow)
    plain = dataset_of(reader_of(music_folder))
    keys = [key for key in KEYS if plain._crops.crop_for(0, *key).track_index == 1][:1]
    reader.timeout_seconds = 0.2
    dataset = dataset_of(reader)
    with caplog.at_level(logging.WARNING):
        crops = [dataset[key] for key in keys]
    hanging.set()
    assert [crop.shape for crop in crops] == [(2, 61440)]
    assert dataset.failures == {"b.ogg": 1}
    # It is not waited for again: the clock would tell, and so does the reason.
    with pytest.raises(AudioFileError, match="did not answer a while ago"):
        reader.read(1, 0.0, 1.0)
    assert "takes longer to read than data.read_timeout_seconds=0.2" in caplog.text


def test_crops_are_brought_to_a_loudness_and_silence_stays_silent(music_folder: Path, tmp_path: Path) -> None:
    reader = reader_of(music_folder)
    for target in (-16.0, -30.0):
        dataset = dataset_of(reader, normalize_lufs=target)
        for key in KEYS[:4]:
            assert loudness_of(dataset[key], 48000) == pytest.approx(target, abs=0.05)
    plain, normalized = dataset_of(reader)[KEYS[0]], dataset_of(reader, normalize_lufs=-16.0)[KEYS[0]]
    ratio = normalized / plain
    assert ratio.std() < 1e-3 * ratio.mean()
    write_raw(tmp_path / "nothing.wav", np.zeros((4 * 48000, 2)), 48000)
    assert not dataset_of(reader_of(tmp_path), normalize_lufs=-16.0)[0, 0].any()


def test_a_disk_that_is_gone_ends_a_training_before_a_million_files_are_tried(
    music_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_dataset, "_MOST_FAILURES", 3)
    dataset = dataset_of(reader_of(music_folder))
    monkeypatch.setattr("datamodules.track_reader.read_track", lambda track, **_: read_audio(track.path / "gone"))
    with pytest.raises(NothingReadableError, match=r"3 reads in a row failed; the last: .*gone"):
        dataset[0, 0]


def test_what_is_below_the_silence_threshold_is_not_made_louder(tmp_path: Path) -> None:
    # -64.4 dB, which is heard well enough to have a loudness.
    write_raw(tmp_path / "hiss.wav", 6e-4 * np.random.default_rng(0).standard_normal((4 * 48000, 2)), 48000)
    reader = reader_of(tmp_path)
    for redraws in (0, 2):
        plain, normalized = (dataset_of(reader, redraws=redraws, normalize_lufs=lufs)[0, 0] for lufs in (None, -16.0))
        assert -65 < 20 * float(plain.square().mean().sqrt().log10()) < -64
        assert torch.equal(normalized, plain)
