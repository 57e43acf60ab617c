"""What a worker does at a time: a track to a FLAC file, or some tracks to a shard. What returns is fit for the log."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.audio.opening import AudioFileError
from datamodules.corpora.manifest import file_path, table_name
from datamodules.preparing.transcoding import Source, Transcoded, transcode
from datamodules.shards.encodings import ENCODINGS, Encoding
from datamodules.shards.packing import PIECE_OVERHEAD_BYTES, ShardPacker
from spectrostream.atomic_files import copy_whole

# Changes whenever the same input would give other bytes: what an older version made is then made again.
_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """What is made of every track.

    encoding: a key of `ENCODINGS`. as_shards: else a file for each track. sample_rate: Hz. channels: mono stays mono.
    shard_bytes: about the size of a shard. piece_seconds: the longest member of a shard.
    """

    encoding: str
    as_shards: bool
    sample_rate: int = 48000
    channels: int = 2
    shard_bytes: int = 256 * 10**6
    piece_seconds: float = 300.0

    @property
    def coding(self) -> Encoding:
        """The encoding itself."""
        return ENCODINGS[self.encoding]


@dataclass(frozen=True)
class TrackToPrepare:
    """A row of the manifest on its way.

    name: of what becomes of it, below the output folder, as `manifest.table_name` writes names.
    sources: its files, as names below `root`. notes: what a shard says beside the audio. content_hash: of the samples
    in its files; "" where unknown. source_name, source_hash: what it was called when it was scanned, and the hash of
    the samples then, however often it was prepared since.
    """

    name: str
    root: str
    sources: tuple[str, ...]
    frames: int
    sample_rate: int
    channels: int
    size_bytes: int | None
    modified_ns: int | None
    notes: Mapping[str, Any]
    content_hash: str = ""
    source_name: str = ""
    source_hash: str = ""

    @property
    def seconds(self) -> float:
        """Length, as the manifest has it."""
        return self.frames / self.sample_rate

    def expected_bytes(self, settings: Settings) -> int:
        """Of what becomes of it, with all that a shard needs beside it."""
        samples = math.ceil(self.seconds * settings.sample_rate)
        pieces = math.ceil(self.seconds / settings.piece_seconds) if settings.as_shards else 0
        size = settings.coding.expected_bytes(samples, min(self.channels, settings.channels))
        return size + pieces * (PIECE_OVERHEAD_BYTES + settings.coding.header_bytes)

    def source(self) -> Source:
        """The files to read."""
        paths = tuple(file_path(self.root, name) for name in self.sources)
        return Source(paths, self.frames, self.sample_rate, self.size_bytes, self.modified_ns, self.content_hash)


@dataclass(frozen=True)
class Job:
    """Some tracks, and the file that they become: `name` without its number or extension where it is a shard."""

    name: str
    tracks: tuple[TrackToPrepare, ...]
    settings: Settings

    @property
    def seconds(self) -> float:
        """Of music."""
        return sum(track.seconds for track in self.tracks)

    def identity(self) -> str:
        """Equal where the same would be made of the same files, as far as their manifest tells."""
        content = {"version": _VERSION, **asdict(self)}
        for track in content["tracks"]:
            # Size and time say what the files are; these came later, and what was made before is as good.
            for later in ("content_hash", "source_name", "source_hash"):
                del track[later]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class MadeFile:
    """A finished file below the output folder."""

    name: str
    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class Made:
    """What became of a job.

    files: finished ones. rows: columns of the new manifest or index that differ from the old one's, by the name of the
    track; more than one row where it was divided. problems: by name, why a track was passed over.
    """

    files: tuple[MadeFile, ...]
    rows: tuple[tuple[str, dict[str, Any]], ...]
    problems: Mapping[str, str]

    def to_line(self, job: Job) -> dict[str, Any]:
        """For the log."""
        sources = {track.name: [track.source_name, track.source_hash] for track in job.tracks}
        return {"job": job.identity(), "name": job.name, "sources": sources, **asdict(self)}

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Made:
        """From the log; KeyError, TypeError or ValueError if it is none of ours."""
        files = tuple(MadeFile(**file) for file in line["files"])
        return cls(files, tuple((name, dict(row)) for name, row in line["rows"]), dict(line["problems"]))


def do_job(job: Job, out: Path, known_problems: Mapping[str, str], note: Path) -> Made:
    """Makes the job's file or shards below `out`, which appear whole or not at all.

    known_problems: tracks that are not tried again. note: a file that names the track that is being read, so that it
    is known which one ended the process, if one does.

    Raises OSError and ReadBackError, which concern the disk that is written to. A track that cannot be read is a
    problem of that track.
    """
    problems = dict(known_problems)

    def attempt(track: TrackToPrepare, use: Callable[[Transcoded, list[BinaryIO]], None]) -> None:
        if track.name in problems:
            return
        note.write_text(track.name, encoding="utf-8")
        try:
            _transcoded(track, job.settings, out, use)
        except AudioFileError as error:
            problems[track.name] = error.reason
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            problems[track.name] = f"would become {track.name!r}, which is a folder's name too; rename it"

    made = _make_shards(job, out, attempt) if job.settings.as_shards else _make_file(job, out, attempt)
    note.unlink(missing_ok=True)
    return Made(*made, problems)


_Attempt = Callable[[TrackToPrepare, Callable[[Transcoded, list[BinaryIO]], None]], None]
_Rows = tuple[tuple[str, dict[str, Any]], ...]


def _transcoded(
    track: TrackToPrepare, settings: Settings, folder: Path, use: Callable[[Transcoded, list[BinaryIO]], None]
) -> None:
    opened: list[BinaryIO] = []

    def new_file() -> BinaryIO:
        # Nameless: nothing of it is left when the process is killed.
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed below
        opened.append(file)
        return file

    try:
        transcoded, files = transcode(
            track.source(),
            settings.coding,
            new_file,
            sample_rate=settings.sample_rate,
            channels=settings.channels,
            longest_seconds=settings.piece_seconds if settings.as_shards else math.inf,
        )
        use(transcoded, files)
    finally:
        for file in opened:
            file.close()


def _make_file(job: Job, out: Path, attempt: _Attempt) -> tuple[tuple[MadeFile, ...], _Rows]:
    files: list[MadeFile] = []
    rows: list[tuple[str, dict[str, Any]]] = []
    (track,) = job.tracks

    def keep(transcoded: Transcoded, pieces: list[BinaryIO]) -> None:
        path = file_path(table_name(out), track.name)
        pieces[0].seek(0)
        copy_whole(pieces[0], path)
        made = made_file(path, track.name)
        files.append(made)
        columns = {"size_bytes": made.size_bytes, "modified_ns": made.modified_ns, "sha256": made.sha256}
        rows.append((track.name, {**_columns(transcoded, job.settings, transcoded.lengths[0]), **columns}))

    attempt(track, keep)
    return tuple(files), tuple(rows)


def _make_shards(job: Job, out: Path, attempt: _Attempt) -> tuple[tuple[MadeFile, ...], _Rows]:
    rows: list[tuple[str, dict[str, Any]]] = []
    with ShardPacker(out, job.name, job.settings.shard_bytes, job.settings.coding.extension) as packer:

        def pack(track: TrackToPrepare, transcoded: Transcoded, pieces: list[BinaryIO]) -> None:
            start = 0
            for number, (file, samples) in enumerate(zip(pieces, transcoded.lengths, strict=True)):
                columns = _columns(transcoded, job.settings, samples)
                columns |= {"piece": number, "piece_start_seconds": start / transcoded.sample_rate}
                shared = {key: columns[key] for key in _SAID_IN_SHARDS}
                member = packer.add(track.name, number, file, {**track.notes, "name": track.name, **shared})
                rows.append((track.name, {**columns, **member}))
                start += samples

        for track in job.tracks:
            attempt(track, lambda transcoded, files, track=track: pack(track, transcoded, files))  # type: ignore[misc]
        shards = {name: made_file(out / name, name) for name in packer.finish()}
    for _, row in rows:
        shard = shards[row["shard"]]
        row |= {"shard_bytes": shard.size_bytes, "shard_sha256": shard.sha256}
    return tuple(shards.values()), tuple(rows)


_SAID_IN_SHARDS = ("sample_rate", "channels", "frames", "gain_db", "piece", "piece_start_seconds")


def _columns(transcoded: Transcoded, settings: Settings, samples: int) -> dict[str, Any]:
    peak = transcoded.peak
    return {
        "sample_rate": transcoded.sample_rate,
        "channels": transcoded.channels,
        "frames": samples,
        "duration_seconds": samples / transcoded.sample_rate,
        "container": settings.coding.container,
        "subtype": settings.coding.subtype,
        "peak_dbfs": 20 * math.log10(peak) if peak else None,
        "gain_db": transcoded.gain_db,
        "encoding": settings.encoding,
    }


def made_file(path: Path, name: str) -> MadeFile:
    """A finished file as it lies on the disk, read once more for its SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = path.stat()
    return MadeFile(name, status.st_size, status.st_mtime_ns, digest)


def is_as_made(out: Path, made: MadeFile, *, by_hash: bool) -> bool:
    """Whether the file is what was made: by size and time, else (as after copying the folder) by its SHA-256."""
    path = file_path(table_name(out), made.name)
    try:
        status = path.stat()
        if status.st_size != made.size_bytes:
            return False
        return (not by_hash and status.st_mtime_ns == made.modified_ns) or (
            made_file(path, made.name).sha256 == made.sha256
        )
    except OSError:
        return False
