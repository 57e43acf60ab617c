"""A codec of a new kind is one class, one configuration and one line in the table: it is trained, scored, reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small_study import MINUTE, write_music, write_study, write_yaml
from torch import Tensor, nn
from torch.nn import functional as F

from ablations.collect_results import measure_costs, study_report
from ablations.commands import study_tasks
from ablations.initial_weights import read_weights
from ablations.run import train_and_evaluate
from ablations.study import load_study
from reports.records import read_card, read_records
from spectrostream.interface import Reconstruction, TrainableCodec
from spectrostream.registry import CODECS, CodecKind
from spectrostream.weights import codec_fingerprint, load_codec

BLOCK = 480


@dataclass(frozen=True)
class ToyConfig:
    kind: str = "toy"
    channels: int = 2
    levels: int = 2
    width: int = 4


class Toy(TrainableCodec):
    """Blocks of samples in a few numbers, and each of these rounded in steps that halve with the level."""

    sample_rate = 48000
    is_causal = False
    latency_samples = None
    codebook_size = 16
    codebook_parameters = 0

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Conv1d(config.channels, config.width, BLOCK, BLOCK)
        self.quantizer = nn.Identity()
        self.decoder = nn.ConvTranspose1d(config.width, config.channels, BLOCK, BLOCK)

    def encode(self, audio: Tensor, *, levels: int | None = None) -> Tensor:
        embeddings = self.encoder(F.pad(audio, (0, -audio.shape[-1] % BLOCK)))
        return (embeddings.tanh() * 2 ** (levels or self.levels)).round() / 2 ** (levels or self.levels)

    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        return self.decoder(codes)[..., :length]

    def forward(self, audio: Tensor) -> Reconstruction:
        embeddings = self.encoder(F.pad(audio, (0, -audio.shape[-1] % BLOCK))).tanh()
        return Reconstruction(self.decode(embeddings, length=audio.shape[-1]), embeddings.square().mean())

    def kbps(self, levels: int) -> float:
        return self.config.width * math.log2(2 ** (levels + 1) + 1) * self.sample_rate / BLOCK / 1000

    def bits(self, codes: Tensor) -> int:
        return codes[0].numel() * 3

    def freeze_part(self, part: str) -> None:
        self.get_submodule("quantizer" if part == "codebooks" else part).requires_grad_(False)

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.encoder, self.decoder

    @property
    def network_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "toy", CodecKind(ToyConfig, Toy))


@pytest.mark.slow
@pytest.mark.usefixtures("_registered")
def test_a_new_codec_is_trained_evaluated_and_reported(tmp_path: Path) -> None:
    path = write_study(tmp_path, variants=None, peers=None, axes=None, compared_at=2)
    write_yaml(
        {**MINUTE, "model": {"kind": "toy"}, "evaluation": {**MINUTE["evaluation"], "levels": [1, 2]}},
        tmp_path / "minute.yaml",
    )
    study = load_study(str(path))
    words = [f"data.root={write_music(tmp_path / 'music')}", "evaluation.keep_audio=false", "trainer.validate_every=3"]
    (task,) = tasks = study_tasks(study, [*words, "training.freeze=[codebooks]"], tmp_path / "out", to_train=True)
    train_and_evaluate(task.run, task.folder)
    measure_costs(tasks)

    page = study_report(study, tasks, {}, tmp_path / "report")

    codec = load_codec(task.files.weights)
    assert isinstance(codec, Toy)
    torch.manual_seed(0)
    assert codec_fingerprint(codec) != codec_fingerprint(Toy(ToyConfig())), "it has learnt"
    assert set(read_records(task.files.records)["levels"]) == {1, 2}
    card = read_card(task.files.card("baseline"))
    assert (card.parameters, card.codebook_parameters, card.sample_rate) == (2 * 2 * 4 * BLOCK + 4 + 2, 0, 48000)
    assert read_weights(str(task.folder), "toy").config == ToyConfig()
    assert "fusion six" in page.read_text(encoding="utf-8")
