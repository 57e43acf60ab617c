import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from synthetic_music import SAMPLE_RATE, music
from torch import Tensor, nn

from reports.evaluation import Segment, evaluate, protocol
from reports.metrics.catalog import METRICS
from reports.metrics.visqol import VisqolPool
from reports.records import read_records, track_means, write_records


class RoundingCodec(nn.Module):
    """Rounds samples to 4 bits per level. Its output depends on `training`, as a careless module's would."""

    sample_rate, channels, levels, is_causal, latency_samples = SAMPLE_RATE, 2, 3, True, 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)

    def encode(self, audio: Tensor, *, levels: int | None = None) -> Tensor:
        self.bits_per_sample = 4 * (levels or self.levels)
        return (self.inner(audio) * 2 ** (self.bits_per_sample - 1)).round().long()

    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        return codes[..., :length] / 2 ** (self.bits_per_sample - 1)

    def kbps(self, levels: int) -> float:
        return math.nan  # the nominal rate must not be believed

    def bits(self, codes: Tensor) -> int:
        return codes[0].numel() * self.bits_per_sample


class Decoding(RoundingCodec):
    """The same with `change` done to what it decodes."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        return self.change(super().decode(codes, length=length))


@pytest.fixture(scope="module")
def segments() -> list[Segment]:
    one, two = music(1.0, seed=1), music(1.0, seed=2)
    return [Segment("a", "a-0", one), Segment("a", "a-1", two), Segment("b", "b-0", torch.zeros(2, SAMPLE_RATE))]


@pytest.fixture(scope="module")
def pool() -> Iterator[VisqolPool]:
    with VisqolPool(workers=1) as pool:
        yield pool


def values(frame, metric: str, levels: int) -> list[float]:
    return frame[(frame["metric"] == metric) & (frame["levels"] == levels)]["value"].tolist()


@pytest.mark.slow
def test_every_metric_of_every_segment_is_recorded(segments: list[Segment], pool: VisqolPool, tmp_path: Path) -> None:
    codec, said = RoundingCodec().train(), []
    frame = evaluate(
        "rounding", codec, segments, levels=[2, 3], visqol=pool, audio_folder=tmp_path, progress=said.append
    )
    assert codec.training
    assert codec.inner.training
    assert len(frame) == 2 * 3 * len(METRICS)
    assert set(frame["metric"]) == set(METRICS)
    assert said == [f"rounding, {n} levels: {name}" for n in (2, 3) for name in ("a-0", "a-1", "b-0")] + [
        "rounding: waiting for ViSQOL"
    ]
    # 8 and 12 bits per sample, two channels
    assert sorted(set(frame["kbps"])) == [2 * 8 * 48.0, 2 * 12 * 48.0]
    silent = frame[frame["segment"] == "b-0"]
    assert set(silent[silent["value"].isna()]["metric"]) == set(METRICS) - {"clipped_samples"}
    for metric in set(METRICS) - {"clipped_samples", "visqol_lr", "visqol_m", "visqol_s"}:
        for worse, better in zip(values(frame, metric, 2)[:2], values(frame, metric, 3)[:2], strict=True):
            assert (better > worse) == METRICS[metric].higher_is_better, metric
    assert all(4 < value < 4.74 for value in values(frame, "visqol_lr", 3)[:2])
    write_records(frame, tmp_path / "scores.csv")
    means = track_means(read_records(tmp_path / "scores.csv"))
    assert set(means[means["track"] == "a"]["segments"]) == {2}


def test_the_decoded_audio_is_kept(segments: list[Segment], tmp_path: Path) -> None:
    evaluate("rounding", RoundingCodec(), segments, levels=[2], visqol=None, audio_folder=tmp_path)
    assert sorted(file.name for file in (tmp_path / "rounding" / "2").iterdir()) == ["a-0.flac", "a-1.flac", "b-0.flac"]
    audio, rate = soundfile.read(tmp_path / "rounding" / "2" / "a-1.flac", dtype="float32", always_2d=True)
    assert rate == SAMPLE_RATE
    assert soundfile.info(tmp_path / "rounding" / "2" / "a-1.flac").subtype == "PCM_24"
    assert torch.allclose(torch.from_numpy(audio.T), (segments[1].audio * 128).round() / 128, atol=1e-6)


def test_without_a_pool_visqol_is_missing_and_says_so(segments: list[Segment]) -> None:
    frame = evaluate("rounding", RoundingCodec(), segments[:1], levels=[1], visqol=None, audio_folder=None)
    visqol = frame[frame["metric"].str.startswith("visqol")]
    assert set(visqol["reason"]) == {"ViSQOL was not run"}
    assert visqol["value"].isna().all()


def test_clipping_is_counted_and_bounded_in_the_file(segments: list[Segment], tmp_path: Path) -> None:
    loud = Decoding(lambda audio: torch.cat([torch.full_like(audio[..., :7], -1.5), audio[..., 7:]], dim=-1))
    frame = evaluate("loud", loud, segments[:1], levels=[2], visqol=None, audio_folder=tmp_path)
    assert values(frame, "clipped_samples", 2) == [14.0]
    audio, _ = soundfile.read(tmp_path / "loud" / "2" / "a-0.flac")
    assert audio[:7].max() == -1.0


def test_output_that_is_not_finite_is_missing_with_its_bits_counted(segments: list[Segment], tmp_path: Path) -> None:
    broken = Decoding(lambda audio: audio / 0.0)
    frame = evaluate("broken", broken, segments[:2], levels=[1], visqol=None, audio_folder=tmp_path)
    assert frame["value"].isna().all()
    assert set(frame["reason"]) == {"the output is not finite"}
    assert set(frame["kbps"]) == {2 * 4 * 48.0}
    assert not list(tmp_path.iterdir())


def test_a_codec_that_changes_the_length_breaks_the_contract(segments: list[Segment]) -> None:
    shorter = Decoding(lambda audio: audio[..., 1:])
    with pytest.raises(ValueError, match=r"shorter/1/a-0: decoded \[1, 2, 47999\] from \[1, 2, 48000\]"):
        evaluate("shorter", shorter, segments, levels=[1], visqol=None, audio_folder=None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"levels": [0]}, r"levels is \[0\]; x has 1 .. 3"),
        ({"levels": [4]}, r"levels is \[4\]; x has 1 .. 3"),
        ({"levels": [1, 1]}, "each asked for once"),
        ({"levels": []}, "nothing to evaluate"),
        ({"segments": []}, "nothing to evaluate"),
        ({"system_name": "a/b"}, "'a/b' names a folder"),
        (
            {"segments": [Segment("t", "s", torch.zeros(2, 9)), Segment("u", "s", torch.zeros(2, 9))]},
            "more than once: ",
        ),
        ({"segments": [Segment("t", "s", torch.zeros(1, 9))]}, r"segment s: audio is \[2, samples\]"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(change, complaint: str, segments: list[Segment]) -> None:
    asked = {"system_name": "x", "segments": segments, "levels": [1], "visqol": None, "audio_folder": None, **change}
    with pytest.raises(ValueError, match=complaint):
        evaluate(codec=RoundingCodec(), **asked)


def test_another_sample_rate_is_refused(segments: list[Segment]) -> None:
    codec = RoundingCodec()
    codec.sample_rate = 44100
    with pytest.raises(ValueError, match="2 channels at 44100 Hz; systems are compared on 2 channels at 48000 Hz"):
        evaluate("dac", codec, segments, levels=[1], visqol=None, audio_folder=None)


def test_the_protocol_names_what_computes_the_scores() -> None:
    ours = protocol()
    assert set(ours.versions) == {"torch", "torchaudio", "scipy", "visqol-python"}
    assert "+" not in "".join(ours.versions.values())
    assert ours.metrics == tuple(METRICS)
    assert protocol(5.0).hash != ours.hash


def test_the_settings_of_the_metrics_are_those_of_the_studies_on_disk() -> None:
    """It changes only with a metric, a setting or METRICS_VERSION: scores before and after are then not comparable."""
    # Versions belong to an installation.
    assert dataclasses.replace(protocol(10.0), versions={}).hash == "78f7c9850bf0"
