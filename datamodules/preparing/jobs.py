"""The jobs of a worker: transcode a track to a FLAC file, or some tracks to shards."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.audio.opening import AudioFileError
from datamodules.corpora.manifest import file_path, table_name
from datamodules.preparing.transcoding import Source, Transcoded, transcode
from datamodules.shards.encodings import ENCODINGS, Encoding
from datamodules.shards.packing import PIECE_OVERHEAD_BYTES, ShardPacker
from spectrostream.atomic_files import copy_whole

# Raise this when the same input gives other bytes: files that an older version made are then made again.
_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """What is made of every track: shards of about `shard_bytes`, or a file of each track.

    `encoding` is a key of `ENCODINGS`, mono stays mono, `piece_seconds` is the length of the longest member of a shard.
    """

    encoding: str
    as_shards: bool
    sample_rate: int = 48000
    channels: int = 2
    shard_bytes: int = 256 * 10**6
    piece_seconds: float = 300.0

    @property
    def coding(self) -> Encoding:
        """The entry of `ENCODINGS`."""
        return ENCODINGS[self.encoding]


@dataclass(frozen=True)
class TrackToPrepare:
    """A row of the manifest, with its new name.

    Attributes:
        name: New name below the output folder, as `manifest.table_name` writes names.
        sources: Names of its files below `root`.
        notes: What a shard says beside the audio.
        content_hash: Of the samples in its files; "" if unknown.
        source_name: Its name at the scan, however often it was prepared since.
        source_hash: The hash of its samples at the scan.
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
        """Length in the manifest."""
        return self.frames / self.sample_rate

    def expected_bytes(self, settings: Settings) -> int:
        """Return the size of the prepared track, with all that a shard adds."""
        samples = math.ceil(self.seconds * settings.sample_rate)
        pieces = math.ceil(self.seconds / settings.piece_seconds) if settings.as_shards else 0
        size = settings.coding.expected_bytes(samples, min(self.channels, settings.channels))
        return size + pieces * (PIECE_OVERHEAD_BYTES + settings.coding.header_bytes)

    def source(self) -> Source:
        """Return the files to read."""
        paths = tuple(file_path(self.root, name) for name in self.sources)
        return Source(paths, self.frames, self.sample_rate, self.size_bytes, self.modified_ns, self.content_hash)


@dataclass(frozen=True)
class Job:
    """Some tracks and the file to make of them; the `name` of a shard has no number and no extension."""

    name: str
    tracks: tuple[TrackToPrepare, ...]
    settings: Settings

    @property
    def seconds(self) -> float:
        """Length of all tracks."""
        return sum(track.seconds for track in self.tracks)

    def identity(self) -> str:
        """Return a hash that is equal if the manifest says that the same would be made of the same files."""
        content = {"version": _VERSION, **asdict(self)}
        for track in content["tracks"]:
            # Size and time identify the files. Logs from before these fields stay valid.
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
    """The result of a job: files, the changed columns of each file or piece by track, and reasons of skipped tracks."""

    files: tuple[MadeFile, ...]
    rows: tuple[tuple[str, dict[str, Any]], ...]
    problems: Mapping[str, str]

    def to_line(self, job: Job) -> dict[str, Any]:
        """Return the line of the log."""
        sources = {track.name: [track.source_name, track.source_hash] for track in job.tracks}
        return {"job": job.identity(), "name": job.name, "sources": sources, **asdict(self)}

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Made:
        """Read a line of the log; KeyError, TypeError, AttributeError or ValueError if it is of another kind."""
        files = tuple(MadeFile(**file) for file in line["files"])
        return cls(files, tuple((name, dict(row)) for name, row in line["rows"]), dict(line["problems"]))


def do_job(job: Job, out: Path, known_problems: Mapping[str, str], note: Path) -> Made:
    """Make the job's file or shards below `out`, which appear whole or not at all.

    Args:
        job: What to make. A track that cannot be read is a problem of that track alone.
        out: The output folder.
        known_problems: Tracks that are skipped, with reasons.
        note: File with the name of the track that is being read, for the case that the process crashes.

    Raises:
        OSError: The disk that is written to is full or fails.
        ReadBackError: It returns other bytes than were written.
    """
    problems = dict(known_problems)
    tracks = _transcoded(job, out, problems, note)
    made = _make_shards(job, out, tracks) if job.settings.as_shards else _make_file(out, tracks, problems, job.settings)
    note.unlink(missing_ok=True)
    return Made(*made, problems)


_TranscodedTracks = Iterator[tuple[TrackToPrepare, Transcoded, list[BinaryIO]]]
_FilesAndRows = tuple[tuple[MadeFile, ...], tuple[tuple[str, dict[str, Any]], ...]]


def _transcoded(job: Job, folder: Path, problems: dict[str, str], note: Path) -> _TranscodedTracks:
    """Yield the transcoded tracks with files of their pieces; add the problems of the others."""
    settings = job.settings
    for track in job.tracks:
        if track.name in problems:
            continue
        note.write_text(track.name, encoding="utf-8")
        with ExitStack() as opened:
            try:
                transcoded, files = transcode(
                    track.source(),
                    settings.coding,
                    # Nameless, so that a killed process leaves nothing.
                    lambda opened=opened: opened.enter_context(tempfile.TemporaryFile(dir=folder)),  # type: ignore[misc]
                    sample_rate=settings.sample_rate,
                    channels=settings.channels,
                    longest_seconds=settings.piece_seconds if settings.as_shards else math.inf,
                )
            except AudioFileError as error:
                problems[track.name] = error.reason
            else:
                yield track, transcoded, files


def _make_file(out: Path, tracks: _TranscodedTracks, problems: dict[str, str], settings: Settings) -> _FilesAndRows:
    for track, transcoded, (file,) in tracks:
        path = file_path(table_name(out), track.name)
        file.seek(0)
        try:
            copy_whole(file, path)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            problems[track.name] = f"would become {track.name!r}, which is a folder's name too; rename it"
            continue
        made = made_file(path, track.name)
        columns = {"size_bytes": made.size_bytes, "modified_ns": made.modified_ns, "sha256": made.sha256}
        row = {**_columns(transcoded, settings, transcoded.lengths[0]), **columns}
        return (made,), ((track.name, row),)
    return (), ()


def _make_shards(job: Job, out: Path, tracks: _TranscodedTracks) -> _FilesAndRows:
    rows: list[tuple[str, dict[str, Any]]] = []
    with ShardPacker(out, job.name, job.settings.shard_bytes, job.settings.coding.extension) as packer:
        for track, transcoded, files in tracks:
            start = 0
            for number, (file, samples) in enumerate(zip(files, transcoded.lengths, strict=True)):
                columns = _columns(transcoded, job.settings, samples)
                columns |= {"piece": number, "piece_start_seconds": start / transcoded.sample_rate}
                shared = {key: columns[key] for key in _NOTED_COLUMNS}
                member = packer.add(track.name, number, file, {**track.notes, "name": track.name, **shared})
                rows.append((track.name, {**columns, **member}))
                start += samples
        shards = {name: made_file(out / name, name) for name in packer.finish()}
    for _, row in rows:
        shard = shards[row["shard"]]
        row |= {"shard_bytes": shard.size_bytes, "shard_sha256": shard.sha256}
    return tuple(shards.values()), tuple(rows)


_NOTED_COLUMNS = ("sample_rate", "channels", "frames", "gain_db", "piece", "piece_start_seconds")


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
    """Return size, time and SHA-256 of a finished file, which is read once more."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = path.stat()
    return MadeFile(name, status.st_size, status.st_mtime_ns, digest)


def is_as_made(out: Path, made: MadeFile, *, by_hash: bool) -> bool:
    """Whether a file is unchanged: by size and time, else (copies have other times) by its SHA-256."""
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
