from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from music_files import noisy_tones, write_raw
from torch import Tensor

from datamodules.audio.files import read_audio
from datamodules.corpora.corpus import EmptyCorpusError
from datamodules.corpora.manifest import table_name
from datamodules.stereo_music import DataConfig, DataConfigError, StereoMusicDataModule
from datamodules.workers.resilient_loader import WorkerStart

# Lightning's own: its use of torch's deprecated pytree class, and its advice about num_workers.
pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


def first(loader: Any, count: int) -> list[Tensor]:
    iterator: Iterator[Tensor] = iter(loader)
    return list(itertools.islice(iterator, count))


def on_rank(config: DataConfig, rank: int, world_size: int, step: int = 0) -> StereoMusicDataModule:
    data = StereoMusicDataModule(config)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, global_step=step)  # type: ignore[assignment]
    return data


def test_the_demo_corpus_trains_without_any_configuration() -> None:
    data = StereoMusicDataModule(DataConfig(batch_size=3))
    data.setup("fit")
    (batch,) = first(data.train_dataloader(), 1)
    assert batch.shape == (3, 2, 61440)
    assert batch.dtype == torch.float32
    assert data.describe() == "demo corpus: 6 tracks, 2.0 train minutes, 28.8 s held out, 0 files skipped"
    assert len(data.fingerprint) == 64
    segments = data.held_out_segments(limit=3)
    assert [segment.audio.shape[0] for segment in segments] == [2, 2, 2]
    assert len({segment.track for segment in segments}) == 3


@pytest.mark.parametrize("cache_audio", [False, True])
def test_worker_processes_change_no_crop(music_folder: Path, cache_audio: bool) -> None:
    config = DataConfig(root=str(music_folder), batch_size=2, seed=5, cache_audio=cache_audio)
    alone = first(StereoMusicDataModule(config).train_dataloader(), 5)
    if not cache_audio:
        shared = first(StereoMusicDataModule(replace(config, num_workers=2)).train_dataloader(), 5)
        for one, other in zip(alone, shared, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    other_seed = first(StereoMusicDataModule(replace(config, seed=6)).train_dataloader(), 1)
    assert not torch.equal(alone[0], other_seed[0])


def test_a_worker_goes_on_when_the_whole_job_is_told_to_make_room(music_folder: Path) -> None:
    config = DataConfig(root=str(music_folder), batch_size=2, seed=5)
    alone = first(StereoMusicDataModule(config).train_dataloader(), 8)
    batches = iter(StereoMusicDataModule(replace(config, num_workers=1)).train_dataloader())
    shared = [next(batches)]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
    shared += itertools.islice(batches, 7)  # more than had been prepared
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_resumed_run_and_the_ranks_share_one_sequence(music_folder: Path) -> None:
    config = DataConfig(root=str(music_folder), batch_size=2)
    alone = first(StereoMusicDataModule(replace(config, batch_size=4)).train_dataloader(), 4)
    for rank in (0, 1):
        resumed = first(on_rank(config, rank, 2, step=2).train_dataloader(), 2)
        for batch, whole in zip(resumed, alone[2:], strict=True):
            assert torch.equal(batch, whole[2 * rank : 2 * rank + 2])


def test_loading_leaves_the_global_random_numbers_alone(music_folder: Path) -> None:
    data = StereoMusicDataModule(DataConfig(root=str(music_folder), batch_size=1))
    before = torch.random.get_rng_state()
    first(data.train_dataloader(), 2)
    first(data.val_dataloader(), 2)
    assert torch.equal(torch.random.get_rng_state(), before)


class Recorder(lightning.LightningModule):
    """Keeps what it is given; one optimizer step per batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        self.trained.append(batch.clone())
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight.sum())
        optimizer.step()

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        self.validated.append(batch.clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(config: DataConfig, root: Path, steps: int, resume: Path | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=root,
        **options,
    )
    trainer.fit(recorder, datamodule=StereoMusicDataModule(config), ckpt_path=resume)
    trainer.save_checkpoint(root / f"{steps}.ckpt")
    return recorder


def test_lightning_trains_validates_and_resumes_exactly(music_folder: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(music_folder), batch_size=2, validation_crops=3)
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    whole = fit(config, tmp_path, 5, **options)
    assert len(whole.trained) == 5
    assert [batch.shape[0] for batch in whole.validated] == [2, 1]
    fit(config, tmp_path, 2, **options)
    resumed = fit(config, tmp_path, 5, resume=tmp_path / "2.ckpt", **options)
    assert len(resumed.trained) == 3
    for one, other in zip(resumed.trained, whole.trained[2:], strict=True):
        assert torch.equal(one, other)


def test_short_epochs_do_not_repeat_the_same_crops(
    music_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(root=str(music_folder), batch_size=1, validation_crops=0)
    trained = fit(config, tmp_path, 4, limit_train_batches=2, limit_val_batches=0).trained
    assert len({batch.sum().item() for batch in trained}) == 4
    started = list[object]()
    monkeypatch.setattr(WorkerStart, "__init__", _counted(WorkerStart.__init__, started))
    config = replace(config, num_workers=2, cache_audio=False)
    in_workers = fit(config, tmp_path, 4, limit_train_batches=2, limit_val_batches=0).trained
    for one, other in zip(in_workers, trained, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert len(started) == 1, "the processes of the first epoch serve the others"
    assert not multiprocessing.active_children(), "they end with the training"


@pytest.mark.processes
def test_processes_end_when_nobody_holds_their_loader(music_folder: Path) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    data = StereoMusicDataModule(DataConfig(root=str(music_folder), num_workers=2, cache_audio=False))
    batches = iter(data.train_dataloader())
    gc.disable()  # by counting references alone
    try:
        next(batches)
        started = {child.pid for child in multiprocessing.active_children()} - before
        del batches, data
        left = {child.pid for child in multiprocessing.active_children()} & started
    finally:
        gc.enable()
    assert len(started) == 2
    assert not left


def _counted(function: Callable[..., None], calls: list[object]) -> Callable[..., None]:
    def counted(*arguments: object) -> None:
        calls.append(arguments)
        function(*arguments)

    return counted


def test_validation_crops_are_fixed_and_shared_evenly(music_folder: Path) -> None:
    config = DataConfig(root=str(music_folder), batch_size=2, validation_crops=3)
    alone = torch.cat(list(StereoMusicDataModule(config).val_dataloader()))
    again = torch.cat(list(StereoMusicDataModule(config).val_dataloader()))
    assert alone.shape == (3, 2, 61440)
    assert torch.equal(alone, again)
    shards = [torch.cat(list(on_rank(config, rank, 2).val_dataloader())) for rank in (0, 1)]
    assert torch.equal(shards[0], alone[[0, 2]])
    assert torch.equal(shards[1], alone[[1, 0]])


def test_segments_lie_in_the_held_out_part(music_folder: Path) -> None:
    config = DataConfig(root=str(music_folder), held_out_fraction=0.5, evaluation_segment_seconds=2.5)
    data = StereoMusicDataModule(config)
    segments = data.held_out_segments()
    spans = {data.corpus.tracks[span.track_index].name: span for span in data.split.test}
    # 3, 3.5, 4 and 4.5 s are held out: a rest of 2 s is kept, a shorter one is not.
    assert [round(segment.audio.shape[1] / 48000, 3) for segment in segments] == [2.5, 2.5, 2.5, 2.5, 2.0]
    assert len({segment.name for segment in segments}) == 5
    for segment in segments:
        span = spans[segment.track]
        seconds = segment.audio.shape[1] / 48000
        assert span.start_seconds - 1e-4 <= segment.start_seconds <= span.end_seconds - seconds + 1e-4
        assert segment.name == Path(segment.name).name
        path = music_folder / segment.track
        part = read_audio(path, start_seconds=segment.start_seconds, duration_seconds=seconds)
        torch.testing.assert_close(segment.audio, part, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["a b/🎵.wav", "a_b/_.wav", "new\nline.wav"])
def test_segment_names_are_fit_for_file_names(tmp_path: Path, name: str) -> None:
    write_raw(tmp_path / name, noisy_tones(12.0, 48000), 48000)
    (segment,) = StereoMusicDataModule(DataConfig(root=str(tmp_path))).held_out_segments()
    assert segment.track == table_name(name)
    assert set(segment.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._")


def test_tracks_too_short_to_divide_are_trained_on_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_raw(tmp_path / "short.wav", noisy_tones(2.0, 48000), 48000)
    data = StereoMusicDataModule(DataConfig(root=str(tmp_path)))
    with caplog.at_level(logging.WARNING):
        data.setup()
    assert "1 of 1 tracks are too short to hold out a part" in caplog.text
    assert "Nothing is held out" in caplog.text
    assert data.split.train_seconds == 2.0
    assert data.val_dataloader() == []
    assert data.held_out_segments() == []


def test_mistakes_are_answered_with_what_to_type(music_folder: Path, tmp_path: Path) -> None:
    everything_held_out = DataConfig(root=str(music_folder), split="track", held_out_fraction=0.999999)
    with pytest.raises(EmptyCorpusError, match=r"data\.root="):
        StereoMusicDataModule(DataConfig(root=str(tmp_path))).setup()
    with pytest.raises(DataConfigError, match=r"holds out all 4 tracks; lower data\.held_out_fraction"):
        StereoMusicDataModule(everything_held_out).setup()
    with pytest.raises(DataConfigError, match=r"data\.swap_channels_probability=0\.5 needs 2 channels"):
        StereoMusicDataModule(DataConfig(swap_channels_probability=0.5), channels=1)
    with pytest.raises(ValueError, match="batches_per_step"):
        StereoMusicDataModule(DataConfig(), batches_per_step=0)
    data = on_rank(DataConfig(root=str(music_folder)), 0, 2)
    data.trainer._accelerator_connector = SimpleNamespace(use_distributed_sampler=True)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="use_distributed_sampler=False"):
        data.train_dataloader()
