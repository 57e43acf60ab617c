from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from corpus_tables import corpus_of_rows, table_of_rows

from datamodules.corpus import EmptyCorpusError
from datamodules.crops import RandomCrops
from datamodules.data_config import DataConfig, DataConfigError
from datamodules.manifest import typed, write_manifest
from datamodules.manifest_corpus import load_manifests, track_weights
from datamodules.spans import Spans
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


def shares(rows: list[dict[str, object]], weights: tuple[str, ...] = (), balance: str | None = None) -> list[float]:
    """How often each track is drawn."""
    corpus = corpus_of_rows(rows)
    spans = Spans(np.arange(len(rows)), np.zeros(len(rows)), corpus.durations)
    factors = track_weights(corpus, weights, balance)
    crops = RandomCrops(spans, crop_seconds=1.0, sample_rate=48000, weights=factors)
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


def test_weights_that_are_impossible() -> None:
    corpus = corpus_of_rows(ROWS)
    assert track_weights(corpus, (), None) is None
    with pytest.raises(DataConfigError, match=r"data\.balance='mood' is no column; allowed are corpus, "):
        track_weights(corpus, (), "mood")
    with pytest.raises(DataConfigError, match="gives every track the weight 0"):
        track_weights(corpus, ("0 where frames > 0",), None)
    for text in ("genre == 'Rock'", "-1 where frames > 0", "nan where frames > 0", "2 where "):
        with pytest.raises(DataConfigError, match=r"data\.weights: .* is not possible; type a number"):
            DataConfig(manifests=("m.csv",), weights=(text,))
    with pytest.raises(DataConfigError, match=r"data\.manifests=\[FILE\.parquet\] beside it"):
        DataConfig(balance="genre")
