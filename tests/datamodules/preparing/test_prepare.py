"""From a manifest to FLAC files or shards: what comes out, what survives, how it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.audio.files import read_audio
from datamodules.corpora.manifest import file_path, read_manifest, table_name, typed
from datamodules.preparing import pool as prepare_pool
from datamodules.preparing.jobs import Job, Made, Settings, do_job
from datamodules.preparing.log import PrepareError, PrepareLog
from datamodules.preparing.plan import jobs_of, prepared_names
from datamodules.preparing.prepare import MANIFEST_NAME, PASSED_OVER_NAME, prepare
from datamodules.shards.index import INDEX_NAME, read_index

pytestmark = pytest.mark.processes

FLAC = Settings("flac24", as_shards=False)
SHARDS = Settings("pcm16", as_shards=True, shard_bytes=1_700_000, piece_seconds=4.0)


def all_files(folder: Path) -> dict[str, str]:
    """SHA-256 of all but the log, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name != "prepared.jsonl"
    }


@pytest.fixture(scope="module")
def music(music_folder: Path) -> pandas.DataFrame:
    files = sorted(path for path in music_folder.rglob("*") if path.is_file())
    return manifest_of(
        music_folder,
        files,
        split=["train", "train", "test", "train"],
        group=["album", "album", "", ""],
        bandwidth_hz=[20000.0, 16000.0, 20000.0, 16000.0],
        loudness_lufs=-20.0,
        content_hash=["a", "b", "c", "d"],
    )


@pytest.fixture(scope="module")
def flac(music: pandas.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flac")
    prepare(music, out, FLAC)
    return out


@pytest.fixture(scope="module")
def shards(music: pandas.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    prepare(music, out, SHARDS)
    return out


def test_flac_files_hold_the_music_and_the_manifest_is_true_of_them(music: pandas.DataFrame, flac: Path) -> None:
    table = read_manifest(flac / MANIFEST_NAME)
    assert list(table["name"]) == [
        f"folder/{name}" for name in ("a.flac", "b.ogg.flac", "deep/c.flac", "deep/d.ogg.flac")
    ]
    for before, after in zip(music.to_dict("records"), table.to_dict("records"), strict=True):
        path = file_path(after["root"], after["name"])
        info = soundfile.info(path)
        header = (info.samplerate, info.channels, info.frames, info.format, info.subtype)
        columns = ("sample_rate", "channels", "frames", "container", "subtype")
        assert header == tuple(after[column] for column in columns)
        assert header[:2] == (48000, before["channels"])
        expected = read_audio(file_path(before["root"], before["name"])) * 10 ** (after["gain_db"] / 20)
        assert np.allclose(read_audio(path), expected, atol=2.0**-22)
        assert after["peak_dbfs"] == pytest.approx(20 * np.log10(float(expected.abs().max())), abs=1e-4)
        assert after["loudness_lufs"] == pytest.approx(-20 + after["gain_db"])
        assert after["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (after["size_bytes"], after["modified_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
        for column in ("split", "group", "bandwidth_hz"):
            assert after[column] == before[column]
    # Only c.flac was 48 kHz and integer.
    assert list(table["content_hash"]) == ["a", "b", "c", "d"]  # the same music, in whatever encoding


def test_shards_never_mix_splits_and_tracks_are_divided_evenly(shards: Path, music: pandas.DataFrame) -> None:
    table = read_index((shards / INDEX_NAME).read_bytes(), "here")
    assert (table.groupby("shard")["split"].nunique() == 1).all()
    assert {name.split("-")[0] for name in table["shard"]} == {"train", "test"}
    seconds = {"a.flac": 6.0, "b.ogg": 7.0, "deep/c.flac": 8.0, "deep/d.ogg": 9.0}
    for source, rows in table.groupby("source_name"):
        rows = rows.sort_values("piece")
        assert rows["duration_seconds"].sum() == pytest.approx(seconds[source], abs=1e-4)
        assert rows["duration_seconds"].max() <= 4
        assert rows["frames"].max() - rows["frames"].min() <= 1
        assert np.allclose(rows["piece_start_seconds"], [0, *rows["duration_seconds"].cumsum()[:-1]])
        # The group is the corpus' word alone; a piece without one is known by its track.
        assert set(rows["group"]) == {dict(zip(music["name"], music["group"], strict=True))[source]}
        assert len(rows) > 1
    assert table["name"].is_unique
    for name, rows in table.groupby("shard"):
        content = (shards / name).read_bytes()
        assert len(content) <= SHARDS.shard_bytes
        assert {len(content)} == set(rows["shard_bytes"])
        assert {hashlib.sha256(content).hexdigest()} == set(rows["shard_sha256"])


def test_members_lie_where_the_index_says(shards: Path) -> None:
    table = read_index((shards / INDEX_NAME).read_bytes(), "here")
    members = {}
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                members[path.name, member.name] = (member.offset_data, member.size)
    sounds = {key: place for key, place in members.items() if not key[1].endswith(".json")}
    rows = table[["shard", "member", "offset", "member_bytes"]].itertuples(index=False)
    assert sounds == {(shard, member): (offset, size) for shard, member, offset, size in rows}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # WebDataset closes no files
def test_webdataset_reads_the_shards(shards: Path) -> None:
    table = read_index((shards / INDEX_NAME).read_bytes(), "here")
    samples = list(webdataset.WebDataset([str(path) for path in sorted(shards.glob("*.tar"))], shardshuffle=False))
    assert len(samples) == len(table)
    for sample in samples:
        row = table[table["member"] == f"{sample['__key__']}.wav"].iloc[0]
        notes = json.loads(sample["json"])
        assert f"{notes['name']}#{notes['piece']}" == row["name"]
        assert notes["split"] == row["split"]
        assert sample["wav"][:4] == b"RIFF"
        assert len(sample["wav"]) == row["member_bytes"]


@pytest.mark.parametrize("settings", [FLAC, SHARDS, replace(SHARDS, encoding="flac24")])
def test_again_gives_the_same_bytes(music: pandas.DataFrame, tmp_path: Path, settings: Settings) -> None:
    prepare(music, tmp_path / "one", settings, workers=2)
    prepare(music, tmp_path / "two", settings)
    one, two = all_files(tmp_path / "one"), all_files(tmp_path / "two")
    if settings.as_shards:
        assert one == two
    else:  # the manifest has times and the folder
        assert {k: v for k, v in one.items() if k != MANIFEST_NAME} == {
            k: v for k, v in two.items() if k != MANIFEST_NAME
        }


def test_what_is_there_is_kept_and_what_was_lost_or_damaged_is_made_again(
    music: pandas.DataFrame, tmp_path: Path
) -> None:
    first = prepare(music, tmp_path, SHARDS)
    content = all_files(tmp_path)
    assert prepare(music, tmp_path, SHARDS).made == 0
    lost, cut, flipped = sorted(tmp_path.glob("*.tar"))[:3]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-512])
    assert prepare(music, tmp_path, SHARDS).made == 2
    damaged = bytearray(flipped.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    status = flipped.stat()
    flipped.write_bytes(damaged)
    os.utime(flipped, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prepare(music, tmp_path, SHARDS).made == 0, "size and time are as they were"
    assert prepare(music, tmp_path, SHARDS, verify=True).made == 1
    assert all_files(tmp_path) == content
    assert (first.made, first.kept) == (4, 0)


def test_prepared_twice_a_track_has_the_name_that_was_scanned(
    music: pandas.DataFrame, flac: Path, tmp_path: Path
) -> None:
    once = read_manifest(flac / MANIFEST_NAME)
    assert list(once["source_name"]) == list(music["name"])
    twice = read_index(prepare(once, tmp_path / "twice", SHARDS).path.read_bytes(), "here")
    assert set(twice["source_name"]) == set(music["name"])
    # Beside tracks that were never prepared, which have no such name.
    mixed = pandas.concat([once.iloc[:1], music.iloc[1:]], ignore_index=True)
    mixed = read_index(prepare(mixed, tmp_path / "mixed", SHARDS).path.read_bytes(), "here")
    assert set(mixed["source_name"]) == set(music["name"])


def test_a_log_that_was_cut_or_scribbled_on_costs_no_more_than_its_lines(
    music: pandas.DataFrame, tmp_path: Path
) -> None:
    prepare(music, tmp_path, FLAC)
    log = tmp_path / "prepared.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:3], b'{"job": 3}', b"[]", b"\xff\xfe", b'{"job": "x"}', lines[3][:50]]))
    again = prepare(music, tmp_path, FLAC)
    assert 0 < again.made < 4
    assert again.tracks == 4


def test_another_way_into_the_same_folder_is_refused(music: pandas.DataFrame, flac: Path) -> None:
    with pytest.raises(PrepareError, match=r"sample_rate=48000, now 44100.*type another --out"):
        prepare(music, flac, replace(FLAC, sample_rate=44100))


def test_two_at_once_in_a_folder_are_refused(music: pandas.DataFrame, tmp_path: Path) -> None:
    with PrepareLog(tmp_path, FLAC), pytest.raises(PrepareError, match="Another process"):
        prepare(music, tmp_path, FLAC)


def bad_files(root: Path) -> list[Path]:
    good = noisy_tones(1.0, 48000)
    nan = good.copy()
    nan[3] = np.nan
    write_raw(root / "nan.wav", nan, 48000, subtype="FLOAT")
    write_raw(root / "eight.wav", noisy_tones(1.0, 48000, channels=8), 48000)
    whole = write_raw(root / "whole.wav", good, 48000).read_bytes()
    (root / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (root / "whole.wav").unlink()
    (root / "empty.flac").write_bytes(b"")
    (root / "text.ogg").write_text("no audio")
    (root / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(root / "pipe.wav")
    return [
        root / name for name in ("nan.wav", "eight.wav", "cut.wav", "empty.flac", "text.ogg", "loop.wav", "pipe.wav")
    ]


def strange_names(root: Path) -> list[Path]:
    names = ["a b.wav", "new\nline.wav", "🎵.wav", "back\\slash.wav", os.fsdecode(b"\xff\xfe.wav"), "x" * 250 + ".wav"]
    return [
        write_raw(root / "good", noisy_tones(1.0, 48000, 9), 48000, format="WAV").rename(root / name) for name in names
    ]


@pytest.mark.parametrize("settings", [FLAC, SHARDS])
def test_bad_files_are_listed_and_strange_names_survive(tmp_path: Path, settings: Settings) -> None:
    root = tmp_path / "music"
    good, bad = strange_names(root), bad_files(root)
    table = manifest_of(root, [path for path in good + bad if path.name != "pipe.wav"])
    pipe = table.iloc[[0]].assign(name="pipe.wav")
    vanished = table.iloc[[0]].assign(name="vanished.wav")
    known = table.iloc[[0]].assign(name="known.wav", problem="was bad before")
    table = typed(pandas.concat([table, pipe, vanished, known], ignore_index=True))
    out = tmp_path / "out"
    prepared = prepare(table, out, settings)
    passed_over = read_manifest(out / PASSED_OVER_NAME).set_index("name")["problem"]
    expected = {"nan.wav": "NaN", "eight.wav": "8 channels", "cut.wav": "cut short", "empty.flac": "empty",
                "text.ogg": "cannot be read", "loop.wav": "cannot be opened", "pipe.wav": "not a regular file",
                "vanished.wav": "cannot be opened", "known.wav": "was bad before"}  # fmt: skip
    assert set(passed_over.index) == set(expected)
    for name, reason in expected.items():
        assert reason in passed_over[name]
    assert prepared.tracks == len(good)
    made = read_manifest(prepared.path)
    assert set(made["source_name"]) == {table_name(path.relative_to(root)) for path in good}
    if not settings.as_shards:
        assert all(file_path(*row).is_file() for row in made[["root", "name"]].itertuples(index=False))
    assert prepare(table, out, settings).made == 0, "what is bad is not tried again"
    (root / "vanished.wav").write_bytes(good[0].read_bytes())
    assert prepare(table, out, settings, retry=True).tracks == len(good) + 1


def test_a_file_that_would_be_a_folder_is_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "music"
    files = [write_raw(root / name, noisy_tones(1.0, 48000), 48000) for name in ("a.wav", "a.wav.flac/b.wav")]
    prepared = prepare(manifest_of(root, files), tmp_path / "out", FLAC)
    assert (prepared.tracks, prepared.passed_over) == (1, 1)
    assert "folder's name too" in read_manifest(tmp_path / "out" / PASSED_OVER_NAME)["problem"].iloc[0]


def test_nothing_usable_is_an_error_that_says_where_the_reasons_are(tmp_path: Path) -> None:
    root = tmp_path / "music"
    root.mkdir()
    table = manifest_of(root, [root / "gone.wav"])
    with pytest.raises(PrepareError, match=r"passed-over\.csv"):
        prepare(table, tmp_path / "out", FLAC)
    with pytest.raises(PrepareError, match="column 'problem'"):
        prepare(table.assign(problem="bad"), tmp_path / "out", FLAC)


def test_no_room_is_known_before_anything_is_written(tmp_path: Path, music: pandas.DataFrame) -> None:
    with pytest.raises(PrepareError, match="GB are free"):
        prepare(music.assign(frames=10**13), tmp_path, FLAC)
    assert not list(tmp_path.rglob("*.flac"))


def _job_that_dies(job: Job, out: Path, known: dict[str, str], note: Path) -> Made:
    """Like a decoder that crashes on one file."""
    victim = job.tracks[1].name
    if victim not in known:
        note.write_text(victim, encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    return do_job(job, out, known, note)


def _job_that_dies_at_once(job: Job, out: Path, known: dict[str, str], note: Path) -> Made:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_file_that_ends_its_process_is_passed_over(
    music: pandas.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_pool, "do_job", _job_that_dies)
    settings = replace(SHARDS, shard_bytes=10**9)
    table = music.assign(split="")
    prepared = prepare(table, tmp_path, settings)
    assert prepared.tracks == 3
    problem = read_manifest(tmp_path / PASSED_OVER_NAME)["problem"].iloc[0]
    assert "ended the process that read it (exit code -9)" in problem
    assert not list(tmp_path.glob(".reading*"))


def test_a_process_that_ends_for_no_reason_is_an_error(
    music: pandas.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_pool, "do_job", _job_that_dies_at_once)
    with pytest.raises(PrepareError, match="enough memory"):
        prepare(music, tmp_path, FLAC)


def rows(**columns: object) -> pandas.DataFrame:
    return typed(pandas.DataFrame({"corpus": "folder", "root": "/m", "sample_rate": 48000, "channels": 2} | columns))


@given(
    names=st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1), min_size=1, unique=True),
    roots=st.integers(1, 3),
)
def test_names_are_unique_and_stay_in_the_folder(names: list[str], roots: int) -> None:
    table = rows(name=[table_name(name) for name in names], frames=1, root=[f"/{i % roots}" for i in range(len(names))])
    for settings in (FLAC, SHARDS):
        prepared = prepared_names(table, settings)
        assert prepared.is_unique
        for name in prepared:
            path = os.path.normpath(file_path("/out", name))
            assert path.startswith("/out/folder")
            assert max(len(os.fsencode(part)) for part in Path(path).parts) <= 255


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "\\x2e\\x2e/x", "/etc/x", "a/../../../b", "\\x2e\\x2e\\x2fx", "\\x00"]
)
def test_a_hostile_name_stays_in_the_folder(name: str) -> None:
    prepared = prepared_names(rows(name=[name], frames=[1]), FLAC).iloc[0]
    path = os.path.normpath(file_path("/out", prepared))
    assert path.startswith("/out/folder/")
    assert "\0" not in path


@given(seconds=st.lists(st.floats(0.1, 100), min_size=1, max_size=40), splits=st.integers(1, 3))
def test_every_track_is_in_one_job_and_jobs_fill_shards(seconds: list[float], splits: int) -> None:
    count = len(seconds)
    table = rows(
        name=[f"{i}.wav" for i in range(count)],
        frames=[round(48000 * length) for length in seconds],
        split=[["train", "", "test"][i % splits] for i in range(count)],
    )
    settings = replace(SHARDS, shard_bytes=5_000_000)
    jobs = jobs_of(table, prepared_names(table, settings), settings)
    assert sorted(track.name for job in jobs for track in job.tracks) == sorted(prepared_names(table, settings))
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        assert len({track.notes["split"] for track in job.tracks}) == 1
        sizes = [track.expected_bytes(settings) for track in job.tracks]
        assert sum(sizes) <= settings.shard_bytes or len(sizes) == 1


Change = Callable[[pandas.DataFrame], pandas.DataFrame]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(modified_ns=5),
        lambda table: table.assign(size_bytes=5),
        lambda table: table.assign(frames=table["frames"] + 1),
        lambda table: table.assign(genre="Rock"),
    ],
)
def test_what_changed_is_made_again(music: pandas.DataFrame, change: Change) -> None:
    def identities(table: pandas.DataFrame) -> list[str]:
        return [job.identity() for job in jobs_of(table, prepared_names(table, SHARDS), SHARDS)]

    assert identities(music) == identities(music.copy())
    assert not set(identities(music)) & set(identities(change(music)))
