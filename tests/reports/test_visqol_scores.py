import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from synthetic_music import music

from reports.metrics.visqol import SHORTEST, VisqolPool, VisqolWorkerError

pytestmark = pytest.mark.processes

IDENTITY = 4.7321  # the ceiling of audio mode
GOLDEN = 2.9538  # visqol-python 3.8.0


@pytest.fixture(scope="module")
def pool() -> Iterator[VisqolPool]:
    with VisqolPool(workers=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return music(1.2).numpy()


def noisy(audio: np.ndarray) -> np.ndarray:
    return audio + np.random.default_rng(0).normal(0, 0.01, audio.shape)


def test_a_copy_scores_the_ceiling(pool: VisqolPool, audio: np.ndarray) -> None:
    assert pool.submit("copy", audio[0], audio[0].copy()).result().value == pytest.approx(IDENTITY, abs=1e-4)


def test_a_known_degradation_keeps_its_score(pool: VisqolPool, audio: np.ndarray) -> None:
    assert pool.submit("noise", audio[0], noisy(audio)[0]).result().value == pytest.approx(GOLDEN, abs=2e-3)


def test_stereo_scores_both_channels_mid_and_side(pool: VisqolPool, audio: np.ndarray) -> None:
    # Only the right channel is worse; then a collapse to mono, which mid cannot see.
    right_worse = np.stack([audio[0], noisy(audio)[1]])
    worse = pool.submit_stereo("right worse", audio, right_worse).result()
    right = pool.submit("right alone", audio[1], right_worse[1]).result().value
    assert worse.lr.value == pytest.approx((IDENTITY + right) / 2, abs=1e-4)
    mono = pool.submit_stereo("mono", audio, np.broadcast_to(audio.mean(0), audio.shape)).result()
    assert mono.m.value == pytest.approx(IDENTITY, abs=1e-4)
    assert mono.lr.value < IDENTITY - 0.01
    assert mono.s.reason == "the estimate is silent"


def test_a_quiet_side_is_not_scored(pool: VisqolPool, audio: np.ndarray) -> None:
    nearly_mono = np.stack([audio[0], audio[0] + 1e-4 * audio[1]])
    scores = pool.submit_stereo("nearly mono", nearly_mono, nearly_mono).result()
    assert scores.s.reason == "the side signal of the reference is below -60 dBFS"
    assert scores.lr.value == pytest.approx(IDENTITY, abs=1e-4)


def test_a_silent_channel_has_no_mean_with_the_other(pool: VisqolPool, audio: np.ndarray) -> None:
    left_only = np.stack([audio[0], np.zeros_like(audio[0])])
    scores = pool.submit_stereo("left only", left_only, left_only).result()
    assert np.isnan(scores.lr.value)
    assert scores.lr.reason == "right: the reference is silent"


@pytest.mark.parametrize(
    ("reference", "estimate", "reason"),
    [
        (np.zeros(SHORTEST), np.ones(SHORTEST), "the reference is silent"),
        (np.ones(SHORTEST), np.zeros(SHORTEST), "the estimate is silent"),
        (np.ones(SHORTEST - 1), np.ones(SHORTEST - 1), "shorter than 0.96 s, the least that ViSQOL can score"),
        (np.ones(SHORTEST), np.full(SHORTEST, np.nan), "the output is not finite"),
    ],
)
def test_no_score_without_a_reason(pool: VisqolPool, reference, estimate, reason) -> None:
    score = pool.submit("no score", reference, estimate).result()
    assert np.isnan(score.value)
    assert score.reason == reason


def test_the_shortest_signal_is_scored(pool: VisqolPool, audio: np.ndarray) -> None:
    shortest = audio[0, :SHORTEST]
    assert pool.submit("shortest", shortest, shortest).result().value == pytest.approx(IDENTITY, abs=1e-4)


def test_stereo_is_never_flattened_nor_another_rate_guessed(pool: VisqolPool, audio: np.ndarray) -> None:
    with pytest.raises(ValueError, match="two mono signals"):
        pool.submit("stereo", audio, audio)
    with pytest.raises(ValueError, match="of one length"):
        pool.submit("lengths", audio[0], audio[0, 1:])
    with pytest.raises(ValueError, match="44100 Hz: resample"):
        pool.submit("rate", audio[0], audio[0], sample_rate=44100)
    with pytest.raises(ValueError, match="two \\[2, samples\\]"):
        pool.submit_stereo("mono", audio[0], audio[0])
    with pytest.raises(ValueError, match="at least 1"):
        VisqolPool(workers=0)


def test_more_pairs_than_may_wait(pool: VisqolPool, audio: np.ndarray) -> None:
    scores = [pool.submit(f"pair {n}", audio[0, :SHORTEST], audio[0, :SHORTEST]) for n in range(7)]
    assert [score.result().value for score in scores] == pytest.approx([IDENTITY] * 7, abs=1e-4)


def test_a_lost_worker_is_an_error_that_names_it_and_the_pair(audio: np.ndarray) -> None:
    others = set(multiprocessing.active_children())
    with VisqolPool(workers=1) as pool:
        (worker,) = set(multiprocessing.active_children()) - others
        worker.kill()
        for _ in range(2):  # and again, rather than a hang
            with pytest.raises(
                VisqolWorkerError, match=r"ViSQOL worker 1 .* exit code -9 while scoring 'the lost pair'"
            ):
                pool.submit("the lost pair", audio[0], audio[0]).result(timeout=60)


def test_an_error_in_the_block_ends_the_workers_at_once(audio: np.ndarray) -> None:
    before = len(multiprocessing.active_children())
    futures = []

    def give_up() -> None:
        with VisqolPool(workers=1) as pool:
            futures.extend(pool.submit("given up", audio[0], audio[0]) for _ in range(3))
            raise KeyError("something else failed")

    with pytest.raises(KeyError):
        give_up()
    assert all(future.done() for future in futures)
    assert len(multiprocessing.active_children()) == before


def test_the_pool_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    with VisqolPool(workers=1):
        assert dict(os.environ) == before


def test_workers_load_nothing_heavy() -> None:
    check = "import sys, reports.metrics.visqol; print({'torch', 'pandas', 'numba', 'visqol'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
