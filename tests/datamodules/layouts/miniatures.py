"""Small copies of the known corpora, laid out as they are and with music of the demo corpus in them.

`miniature_fma(folder)` and its like make a corpus in a folder that is not there yet, and return it. For other tests:
put this file's folder on `sys.path`, or use the fixtures of this folder's `conftest.py`.
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import yaml

_DEMO = Path(__file__).parents[3] / "datamodules" / "demo_corpus"
SECONDS = 1.0


@cache
def _excerpt(number: int) -> tuple[np.ndarray, int]:
    """Frames `[frames, 2]` of music and their rate; each number is other music."""
    tracks = sorted(path for path in _DEMO.iterdir() if path.suffix in (".flac", ".ogg"))
    path, turn = tracks[number % len(tracks)], number // len(tracks)
    rate = soundfile.info(path).samplerate
    frames, _ = soundfile.read(path, round(SECONDS * rate), start=round((2 + turn * SECONDS) * rate))
    return frames, rate


def write_music(path: Path, number: int, **options: str) -> Path:
    """A second of music, different for each number, in the format that the file's name says.

    Numbers that differ by six are other seconds of one track, and so have one rate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames, rate = _excerpt(number)
    soundfile.write(path, frames.clip(-1, 1), rate, **options)
    return path


def miniature_musdb18hq(folder: Path) -> Path:
    """Six songs: three train (two of one artist), one validation, two test."""
    songs = {
        "train": ("Music Delta - Rock", "Music Delta - Disco", "Hop Along - Sister Cities", "Leaf - Summerghost"),
        "test": ("Al James - Schoolboy Facination", "Zeno - Signs"),
    }
    number = 0
    for side, names in songs.items():
        for name in names:
            song = folder / side / name
            write_music(song / "mixture.wav", number, subtype="PCM_16")
            for stem in ("vocals", "drums", "bass", "other"):
                write_music(song / f"{stem}.wav", number + 6, subtype="PCM_16")
            number += 1
    return folder


_FMA_COLUMNS: Mapping[str, Sequence[str]] = {
    "album": (
        *("comments", "date_created", "date_released", "engineer", "favorites", "id", "information", "listens"),
        *("producer", "tags", "title", "tracks", "type"),
    ),
    "artist": (
        *("active_year_begin", "active_year_end", "associated_labels", "bio", "comments", "date_created", "favorites"),
        *("id", "latitude", "location", "longitude", "members", "name", "related_projects", "tags", "website"),
        "wikipedia_page",
    ),
    "set": ("split", "subset"),
    "track": (
        *("bit_rate", "comments", "composer", "date_created", "date_recorded", "duration", "favorites", "genre_top"),
        *("genres", "genres_all", "information", "interest", "language_code", "license", "listens", "lyricist"),
        *("number", "publisher", "tags", "title"),
    ),
}


def fma_table(rows: Sequence[Mapping[str, str]]) -> str:
    """tracks.csv with its 53 columns and three rows of names; keys as "artist.id", the rest is filled in."""
    names = [(top, name) for top, below in _FMA_COLUMNS.items() for name in below]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["", *(top for top, _ in names)], ["", *(name for _, name in names)], ["track_id"] + [""] * 52])
    # Biographies have commas, quotation marks and line breaks.
    filling = {"artist.bio": '<p>Born in "Cádiz",\nthey\r\nplay</p>', "track.title": "Untitled", "album.id": "7"}
    for row in rows:
        values = filling | dict(row)
        writer.writerow([row["track_id"], *(values.get(f"{top}.{name}", "") for top, name in names)])
    return text.getvalue()


FMA_ROWS: Sequence[Mapping[str, str]] = [
    {
        "track_id": number,
        "set.split": split,
        "set.subset": subset,
        "artist.id": artist,
        "artist.name": name,
        "track.genre_top": genre,
    }
    for number, split, subset, artist, name, genre in (
        ("2", "training", "small", "1", "AWOL", "Hip-Hop"),
        ("5", "training", "medium", "1", "AWOL", "Hip-Hop"),
        ("140", "validation", "small", "54", "Alec K. Redfearn, and the Eyesores", "Folk"),
        ("1000", "test", "small", "232", "Ünbekannt 🎵", ""),
        ("155320", "test", "large", "240", "Spider", "Rock"),
    )
]


def miniature_fma(folder: Path) -> Path:
    """fma_small with the three tracks that belong to it, and fma_metadata with two more."""
    for number, row in enumerate(FMA_ROWS):
        if row["set.subset"] == "small":
            digits = f"{int(row['track_id']):06d}"
            write_music(folder / "fma_small" / digits[:3] / f"{digits}.mp3", number)
    table = folder / "fma_metadata" / "tracks.csv"
    table.parent.mkdir(parents=True)
    table.write_text(fma_table(FMA_ROWS), encoding="utf-8")
    return folder


_JAMENDO_HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
# Split, and the line of autotagging.tsv; the last one is in no split.
JAMENDO_ROWS: Sequence[tuple[str, str]] = (
    ("train", "track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t124.6\tgenre---punkrock\n"),
    ("train", "track_0000215\tartist_000014\talbum_000031\t15/215.mp3\t151.4\tmood/theme---dark\tgenre---metal\n"),
    ("validation", "track_1049702\tartist_008094\talbum_123636\t02/1049702.mp3\t224.0\tinstrument---piano\n"),
    ("test", "track_0786434\tartist_368880\talbum_092222\t34/786434.mp3\t460.8\tgenre---house\tgenre---groove\n"),
    ("", "track_0000241\tartist_000005\talbum_000032\t41/241.mp3\t60.0\tgenre---rock\n"),
)


def miniature_jamendo(folder: Path) -> Path:
    """raw_30s/audio and a clone of the repository's data/ beside it; one track is there in low quality only."""
    for number, (_, row) in enumerate(JAMENDO_ROWS):
        path = row.split("\t")[3]
        low = number == 3
        audio = "raw_30s/audio-low" if low else "raw_30s/audio"
        write_music(folder / audio / (path.replace(".mp3", ".low.mp3") if low else path), number)
    splits = folder / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    rows = "".join(row for _, row in JAMENDO_ROWS)
    (folder / "data" / "autotagging.tsv").write_text(_JAMENDO_HEADER + rows, encoding="utf-8")
    for split in ("train", "validation", "test"):
        rows = "".join(row for side, row in JAMENDO_ROWS if side == split)
        (splits / f"autotagging-{split}.tsv").write_text(_JAMENDO_HEADER + rows, encoding="utf-8")
    return folder


MAESTRO_TABLE = '''\
canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration
Alban Berg,Sonata Op. 1,train,2018,2018/R3_2018--1.midi,2018/R3_2018--1.wav,698.661160312
Alban Berg,Sonata Op. 1,train,2008,2008/R1_2008.midi,2008/R1_2008.wav,759.518471
Frédéric Chopin,"Étude Op. 10 No. 12, ""Revolutionary""",validation,2018,2018/R1 2018.midi,2018/R1 2018.wav,150.0
Franz Liszt,"Années de pèlerinage, S. 160",test,2008,2008/R2_2008.midi,2008/R2_2008.wav,521.4
'''


def miniature_maestro(folder: Path) -> Path:
    """Four recordings of three pieces."""
    for number, row in enumerate(csv.DictReader(io.StringIO(MAESTRO_TABLE))):
        write_music(folder / row["audio_filename"], number, subtype="PCM_16")
    (folder / "maestro-v3.0.0.csv").write_text(MAESTRO_TABLE, encoding="utf-8")
    return folder


def miniature_moisesdb(folder: Path) -> Path:
    """moisesdb_v0.1 with three songs of two or three stems; the first has two sources in one of them."""
    songs = (("Song One", "Ana", "rock"), ("Dos", "Béla", "singer/songwriter"), ("Three", "Ana", "pop"))
    stems = {"vocals": ["lead male singer"], "drums": ["kick", "snare"], "bass": ["bass guitar"]}
    for number, (title, artist, genre) in enumerate(songs):
        song = folder / "moisesdb_v0.1" / _identifier(f"song {number}")
        wanted = dict(list(stems.items())[: 3 - number % 2])
        described, place = [], 0
        for stem, kinds in wanted.items():
            sources = []
            for kind in kinds:
                identifier = _identifier(f"{number} {kind}")
                write_music(song / stem / f"{identifier}.wav", number + 6 * place, subtype="PCM_16")
                place += 1
                sources.append({"id": identifier, "trackType": kind, "extension": "wav", "has_bleed": False})
            described.append({"id": _identifier(f"{number} {stem}"), "stemName": stem, "tracks": sources})
        data = {"song": title, "artist": artist, "genre": genre, "stems": described}
        (song / "data.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def _identifier(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))


def miniature_slakh(folder: Path) -> Path:
    """The redux: two songs to train that play one MIDI file, one to validate, one to test, one omitted."""
    songs = {"train": (1, 2), "validation": (1501,), "test": (1876,), "omitted": (49,)}
    number = 0
    for side, tracks in songs.items():
        for track in tracks:
            song = folder / side / f"Track{track:05d}"
            write_music(song / "mix.flac", number)
            write_music(song / "stems" / "S00.flac", number)
            file = f"{max(track, 2):032x}"
            stem = {"audio_rendered": True, "inst_class": "Guitar", "integrated_loudness": -12.8, "program_num": 30}
            data = {"UUID": file, "audio_dir": "stems", "lmd_midi_dir": f"lmd_matched/O/O/H/TROOH/{file}.mid"}
            data |= {"midi_dir": "MIDI", "normalized": True, "overall_gain": 0.18, "stems": {"S00": stem}}
            (song / "metadata.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
            number += 1
    return folder


# By the names of `datamodules.layouts.LAYOUTS`.
MINIATURES: Mapping[str, Callable[[Path], Path]] = {
    "musdb18hq": miniature_musdb18hq,
    "fma": miniature_fma,
    "jamendo": miniature_jamendo,
    "maestro": miniature_maestro,
    "moisesdb": miniature_moisesdb,
    "slakh": miniature_slakh,
}
