from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import END, chunk, delta, midi, tones

from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.midi import read_song

quietly = settings(max_examples=200, deadline=None)


def tempo(microseconds: int, ticks: int = 0) -> bytes:
    return delta(ticks) + b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def test_times_follow_the_tempo_of_another_track() -> None:
    # 96 ticks at half a second, then 96 ticks at a quarter of a second.
    conductor = tempo(500_000) + tempo(250_000, ticks=96) + END
    notes = b"\x00\x90\x45\x64" + delta(96) + b"\x80\x45\x00" + delta(96) + b"\x91\x40\x20" + END
    song = read_song(midi(conductor, notes))
    assert [(e.kind, e.channel, e.data) for e in song.events] == [
        (0x90, 0, (69, 100)),
        (0x80, 0, (69, 0)),
        (0x90, 1, (64, 32)),
    ]
    assert [e.seconds for e in song.events] == pytest.approx([0.0, 0.5, 0.75])
    assert song.seconds == pytest.approx(0.75)


def test_a_tempo_that_changes_at_the_same_moment_counts_from_there() -> None:
    song = read_song(midi(b"\x00\x90\x45\x64" + tempo(1_000_000) + delta(96) + b"\x80\x45\x00" + END, kind=0))
    assert song.events[-1].seconds == pytest.approx(1.0)


def test_a_status_that_is_left_out_is_the_one_before() -> None:
    song = read_song(midi(b"\x00\x90\x45\x64\x60\x45\x00\x00\x40\x01" + END, kind=0))
    assert [(e.kind, e.data) for e in song.events] == [(0x90, (69, 100)), (0x90, (69, 0)), (0x90, (64, 1))]


def test_the_end_of_the_longest_track_is_the_end() -> None:
    assert read_song(midi(b"\x00\x90\x45\x64" + END, delta(192) + b"\xff\x2f\x00")).seconds == pytest.approx(1.0)


def test_system_exclusive_and_unknown_meta_events_and_chunks_are_passed_over() -> None:
    track = b"\x00\xf0\x02\x7e\xf7\x00\xff\x7f\x01\x00\x00\xc3\x07" + END
    song = read_song(midi(track, kind=0) + chunk(b"XYZ1", b"whatever"))
    assert [(e.kind, e.channel, e.data) for e in song.events] == [(0xC0, 3, (7,))]


def test_smpte_time_counts_ticks_of_frames() -> None:
    division = (256 - 25) << 8 | 40  # 25 frames of 40 ticks: a tick is a millisecond
    song = read_song(midi(delta(1500) + b"\x90\x45\x64" + END, kind=0, division=division))
    assert song.events[0].seconds == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no MIDI header"),
        (b"RIFF" + bytes(40), "no MIDI header"),
        (midi(END, kind=2), "type 2, allowed are 0 and 1"),
        (midi(END, division=0), "no unit of time"),
        (midi(END, division=0xE700), "no unit of time"),
        (midi(), "no track"),
        (tones([69])[:-3], "ends beyond the file"),
        (midi(b"\x00\x90\x45", kind=0), "ends in the middle of an event"),
        (midi(b"\x00\x45\x64" + END, kind=0), "data byte 69"),
        (midi(b"\xff\xff\xff\xff\x7f\x90\x45\x64", kind=0), "more than four bytes"),
        (midi(b"\x00\xf4\x00" + END, kind=0), "status 0xf4"),
        (midi(b"\x00\xff\x03\x7fshort", kind=0), "ends in the middle of an event"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_song(content)


@quietly
@given(ticks=st.lists(st.integers(0, 2**28 - 1), min_size=1, max_size=8), division=st.integers(1, 0x7FFF))
def test_any_times_add_up(ticks: list[int], division: int) -> None:
    track = b"".join(delta(t) + b"\x90\x45\x64" for t in ticks) + END
    song = read_song(midi(track, kind=0, division=division))
    assert song.seconds == pytest.approx(sum(ticks) * 0.5 / division)
    assert [e.seconds for e in song.events] == sorted(e.seconds for e in song.events)


@quietly
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5), cut=st.integers(0, 200))
def test_mutated_files_give_a_song_or_a_midi_error(changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(tones([69, 72, 60]))
    for position, value in changes:
        content[position % len(content)] = value
    try:
        song = read_song(bytes(content[: len(content) - cut]))
    except RecipeError:
        return
    assert math.isfinite(song.seconds)
    assert all(0 <= value < 128 for event in song.events for value in event.data)
    assert all(0 <= event.seconds <= song.seconds for event in song.events)
