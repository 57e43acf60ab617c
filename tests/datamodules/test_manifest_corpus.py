from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from corpus_tables import corpus_of_rows, table_of_rows

from datamodules.audio.find_files import SkippedFile
from datamodules.corpora import manifest_corpus
from datamodules.corpora.corpus import Corpus, EmptyCorpusError
from datamodules.corpora.manifest import typed, write_manifest
from datamodules.corpora.manifest_corpus import load_manifests, range_weights, skip_reasons
from datamodules.corpora.splits import split_corpus
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.crops import Draws, RandomCrops
from datamodules.data_config import DataConfig, DataConfigError
from datamodules.shards.windows import WindowedCrops
from spectrostream.errors import UserError

ROWS = [
    {"genre": "Rock", "bandwidth_hz": 16000.0, "side_to_mid_db": -20.0, "loudness_lufs": -9.0},
    {"genre": "Rock", "bandwidth_hz": 21000.0, "side_to_mid_db": -np.inf, "loudness_lufs": -14.0},
    {"genre": "Jazz", "bandwidth_hz": 21000.0, "side_to_mid_db": -10.0, "loudness_lufs": None},
]


def manifest_of(path: Path, rows: list[dict[str, object]]) -> Path:
    write_manifest(typed(table_of_rows(rows)), path)
    return path


def names(path: Path, **options: object) -> list[str]:
    return [track.name for track in load_manifests([path], **options).tracks]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("bandwidth_hz > 18000", [1, 2]),
        ("side_to_mid_db > -40", [0, 2]),
        ("bandwidth_hz > 18000 and side_to_mid_db > -40", [2]),
        ("loudness_lufs < -10", [1]),
        ("genre == 'Rock'", [0, 1]),
        ("genre in ['Jazz', 'Blues'] or not bandwidth_hz > 18000", [0, 2]),
        ("name.str.startswith('0001')", [1]),
    ],
)
def test_tracks_are_kept_by_a_condition(tmp_path: Path, keep: str, kept: list[int]) -> None:
    path = manifest_of(tmp_path / "m.parquet", ROWS)
    assert names(path, keep=keep) == [f"{index:04d}.wav" for index in kept]


@pytest.mark.parametrize("keep", ["bandwith_hz > 1", "bandwidth_hz >", "bandwidth_hz + 1", "3 > 2", "genre > 4", "a b"])
def test_what_is_no_condition_names_the_columns(tmp_path: Path, keep: str) -> None:
    path = manifest_of(tmp_path / "m.parquet", ROWS)
    with pytest.raises(DataConfigError, match=r"data\.keep: .* is no condition .*bandwidth_hz") as caught:
        load_manifests([path], keep=keep)
    assert "Traceback" not in str(caught.value)


def test_rows_of_no_use_are_counted_with_their_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        *({"problem": "is empty (0 bytes)", "frames": None, "sample_rate": None, "channels": None} for _ in range(2)),
        {"channels": 8},
        {"frames": 100},
        {"frames": 0},
        {"genre": "Jazz"},
        {"genre": "Rock"},
    ]
    path = manifest_of(tmp_path / "m.csv", rows)
    with caplog.at_level(logging.WARNING):
        corpus = load_manifests([path], keep="genre == 'Rock'", minimum_seconds=1.0)
    assert [track.name for track in corpus.tracks] == ["0006.wav"]
    reasons = [file.reason for file in corpus.skipped]
    assert reasons[:2] == ["is empty (0 bytes)"] * 2
    assert "another number of channels than 1 or 2" in reasons[2]
    assert "less than the 1 s" in reasons[3]
    assert "no length" in reasons[4]
    assert len(reasons) == 5  # what was not asked for is not skipped
    assert "6 of 7 tracks are not used: 2 x is empty" in caplog.text
    with pytest.raises(EmptyCorpusError, match=r"None of the 7 tracks .* 6 x does not fulfil|None of the 7 tracks"):
        load_manifests([path], keep="genre == 'Polka'")


def test_skipped_files_are_made_when_they_are_looked_at(tmp_path: Path) -> None:
    """Of a large manifest there may be hundreds of thousands, and a path is slow to make."""
    rows = [{"problem": f"broken {index}"} for index in range(100)]
    skipped = load_manifests([manifest_of(tmp_path / "m.parquet", [*rows, {}])]).skipped
    assert len(skipped) == 100
    assert skipped[7] == SkippedFile(Path("/music/0007.wav"), "broken 7")
    assert skipped[7] is not skipped[7]
    assert list(skipped)[98:] == skipped[98:] == [skipped[-2], skipped[-1]]
    with pytest.raises(IndexError):
        skipped[100]
    assert load_manifests([manifest_of(tmp_path / "m.parquet", [{}])]).skipped == ()


def test_reasons_are_counted_without_a_path_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": f"broken {index % 3}"} for index in range(100)]
    skipped = load_manifests([manifest_of(tmp_path / "m.parquet", [*rows, {}])]).skipped
    assert skip_reasons(list(skipped)).most_common() == [("broken 0", 34), ("broken 1", 33), ("broken 2", 33)]
    monkeypatch.setattr(manifest_corpus, "file_path", None)
    assert skip_reasons(skipped).most_common() == [("broken 0", 34), ("broken 1", 33), ("broken 2", 33)]
    assert skip_reasons(()) == {}


def test_manifests_are_put_below_each_other(tmp_path: Path) -> None:
    one = manifest_of(tmp_path / "one.parquet", [{"corpus": "fma", "root": "/fma"}])
    two = manifest_of(tmp_path / "two.csv", [{"corpus": "maestro", "root": "/maestro"}, {"corpus": "maestro"}])
    tracks = load_manifests([one, two]).tracks
    assert [(track.name, track.path) for track in tracks] == [
        ("fma/0000.wav", Path("/fma/0000.wav")),
        ("maestro/0000.wav", Path("/maestro/0000.wav")),
        ("maestro/0001.wav", Path("/music/0001.wav")),
    ]
    with pytest.raises(UserError, match=r"1 tracks are there twice, the first 'fma/0000\.wav'"):
        load_manifests([one, one])
    assert load_manifests([one], root="/moved").tracks[0].path == Path("/moved/0000.wav")
    with pytest.raises(DataConfigError, match=r"data\.root='/moved' cannot stand for the 3 folders"):
        load_manifests([one, two], root="/moved")


def test_the_fingerprint_knows_what_crops_depend_on(tmp_path: Path) -> None:
    def fingerprint(**changes: object) -> str:
        return corpus_of_rows([ROWS[0], {**ROWS[1], **changes}]).fingerprint()

    assert fingerprint() == fingerprint(root="/elsewhere", modified_ns=5)
    changed = [
        fingerprint(**{key: value}) for key, value in (("genre", "Pop"), ("bandwidth_hz", 1.0), ("split", "test"))
    ]
    assert len({fingerprint(), *changed}) == 4


def config_of(**options: object) -> DataConfig:
    return DataConfig(manifests=("m.csv",), crop_seconds=1.0, **options)  # type: ignore[arg-type]


def weights_of(corpus: Corpus, spans: TimeRanges, config: DataConfig) -> np.ndarray | None:
    return range_weights(corpus, spans, config, sample_rate=48000)


def shares(rows: list[dict[str, object]], weights: tuple[str, ...] = (), balance: str | None = None) -> list[float]:
    """How often each track is drawn."""
    corpus = corpus_of_rows(rows)
    spans = TimeRanges(np.arange(len(rows)), np.zeros(len(rows)), corpus.durations)
    config = config_of(weights=weights, balance=balance)
    crops = RandomCrops(spans, crop_seconds=1.0, sample_rate=48000, weights=weights_of(corpus, spans, config))
    drawn = [crops.crop_for(0, step, 0) for step in range(4000)]
    for crop in drawn:
        assert 0 <= crop.start_seconds <= corpus.durations[crop.track_index] - 1.0
    starts = np.array([crop.start_seconds for crop in drawn if crop.track_index == 0]) / (corpus.durations[0] - 1)
    if len(starts) > 1000:  # uniform in time all the same
        np.testing.assert_allclose(np.histogram(starts, bins=4, range=(0, 1))[0] / len(starts), 0.25, atol=0.06)
    return [float(np.mean([crop.track_index == index for crop in drawn])) for index in range(len(rows))]


def test_weights_make_tracks_more_likely() -> None:
    assert shares(ROWS) == pytest.approx([1 / 3] * 3, abs=0.03)
    assert shares(ROWS, ("2 where genre == 'Rock'",)) == pytest.approx([0.4, 0.4, 0.2], abs=0.03)
    both = ("2 where genre == 'Rock'", "0.5 where bandwidth_hz < 18000")
    assert shares(ROWS, both) == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert shares(ROWS, ("0 where side_to_mid_db < -60",)) == pytest.approx([0.5, 0, 0.5], abs=0.03)


def test_a_column_can_be_balanced_whatever_the_lengths() -> None:
    rows = [{**ROWS[0], "frames": 4800000}, ROWS[1], ROWS[2]]
    rock, rock_too, jazz = shares(rows, balance="genre")
    assert rock + rock_too == pytest.approx(0.5, abs=0.03)
    assert jazz == pytest.approx(0.5, abs=0.03)
    assert shares(rows, ("3 where genre == 'Jazz'",), "genre")[2] == pytest.approx(0.75, abs=0.03)


def corpus_a_and(rows_of_b: list[dict[str, object]]) -> Corpus:
    rows = [{"corpus": "a", "frames": 200 * 48000} for _ in range(40)]
    return corpus_of_rows([*rows, *({"corpus": "b", **row} for row in rows_of_b)])


@pytest.mark.parametrize("draws", [RandomCrops, WindowedCrops])
@pytest.mark.parametrize(
    ("weights", "share_of_a"), [((), 0.5), (("3 where corpus == 'a'",), 0.75), (("0 where corpus == 'a'",), 0.0)]
)
@pytest.mark.parametrize(
    "rows_of_b",
    [
        [{"frames": 200 * 48000, "split": side} for side in ("train", "test", "test", "validation") * 10],
        [{"frames": 96000} for _ in range(40)],
        [{"frames": 48010} for _ in range(3)],
        [{"frames": 5 * 48000, "content_hash": "x", "split": side} for side in ("train", "test")]
        + [{"frames": 70000} for _ in range(40)],
    ],
    ids=["mostly held out", "clips of two crops", "clips of one crop", "a copy that is not used"],
)
def test_balanced_values_have_equal_shares_of_the_crops_that_are_drawn(
    rows_of_b: list[dict[str, object]], weights: tuple[str, ...], share_of_a: float, draws: type
) -> None:
    corpus = corpus_a_and(rows_of_b)
    spans = split_corpus(corpus, split="official", held_out_fraction=0.0).train
    weights_of_ranges = weights_of(corpus, spans, config_of(balance="corpus", weights=weights))
    crops: Draws = RandomCrops(spans, 1.0, 48000, weights_of_ranges)
    if draws is WindowedCrops:
        shards = np.arange(len(corpus.table)) % 8
        crops = WindowedCrops(crops, shards, batch_size=1, window_shards=2, passes=0.25)
    is_of_a = (corpus.table["corpus"] == "a").to_numpy()
    # Windows have their shares over whole rounds.
    count = 4 * crops.crops_per_round if isinstance(crops, WindowedCrops) else 6000
    drawn = [crops.crop_for(0, step, 0).track_index for step in range(count)]
    assert np.mean(is_of_a[drawn]) == pytest.approx(share_of_a, abs=0.025)


def test_a_value_that_is_not_trained_on_changes_no_share() -> None:
    corpus = corpus_a_and([{"split": "test"}, {"frames": 100 * 48000}, {"corpus": "c", "frames": 47000}])
    spans = split_corpus(corpus, split="official", held_out_fraction=0.0).train
    weights = weights_of(corpus, spans, config_of(balance="corpus"))
    mass = weights * spans.start_counts(1.0, 48000)
    of_corpus = pd.Series(mass).groupby(corpus.table["corpus"].to_numpy()[spans.tracks]).sum()
    assert of_corpus.to_dict() == pytest.approx({"a": 1.0, "b": 1.0, "c": 0.0})


def test_what_changes_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    corpus = corpus_of_rows(ROWS)
    spans = TimeRanges(np.arange(2), np.zeros(2), corpus.durations[:2])
    weights_of(corpus, spans, config_of(weights=("2 where genre == 'Rokc'",), balance="corpus"))
    assert "data.weights: no training track fulfils \"genre == 'Rokc'\"" in caplog.text
    assert "data.balance=corpus changes nothing: all training tracks have the same value" in caplog.text


def test_weights_that_are_impossible() -> None:
    corpus = corpus_of_rows(ROWS)
    spans = TimeRanges(np.arange(2), np.zeros(2), corpus.durations[:2])
    assert weights_of(corpus, spans, config_of()) is None
    with pytest.raises(DataConfigError, match=r"data\.balance='mood' is no column; allowed are corpus, "):
        weights_of(corpus, spans, config_of(balance="mood"))
    for nothing in ("0 where frames > 0", "0 where genre == 'Rock'"):
        with pytest.raises(DataConfigError, match="gives every training track the weight 0; type others, or another"):
            weights_of(corpus, spans, config_of(weights=(nothing,)))
    with pytest.raises(DataConfigError, match=r"gives a track a weight above 1e\+09; type smaller factors"):
        weights_of(corpus, spans, config_of(weights=("1e308 where frames > 0", "1e308 where frames > 0")))
    for text in ("genre == 'Rock'", "-1 where frames > 0", "nan where frames > 0", "2 where "):
        with pytest.raises(DataConfigError, match=r"data\.weights: .* is not possible; type a number"):
            DataConfig(manifests=("m.csv",), weights=(text,))
    with pytest.raises(DataConfigError, match=r"data\.manifests=\[FILE\.parquet\] beside it"):
        DataConfig(balance="genre")
