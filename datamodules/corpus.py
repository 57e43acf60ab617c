"""A folder of audio files becomes a corpus: the usable tracks in order, and what was left out and why."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from datamodules.audio_files import AudioFileError, verify_ends
from datamodules.audio_walk import AUDIO_EXTENSIONS, SkippedFile, audio_below
from spectrostream.errors import UserError

logger = logging.getLogger(__name__)

_SHOWN = 3
_PROBING_THREADS = 8


class EmptyCorpusError(UserError):
    """No usable audio where it was looked for; the message tells what was seen and what to type."""


@dataclass(frozen=True)
class Track:
    """One usable audio file. `name` is its path below the corpus folder with forward slashes, unique and stable."""

    path: Path
    name: str
    duration_seconds: float
    sample_rate: int
    channels: int
    size_bytes: int


@dataclass(frozen=True)
class Corpus:
    """The usable tracks below `root`, sorted by name."""

    root: Path
    tracks: tuple[Track, ...]
    skipped: tuple[SkippedFile, ...]

    @property
    def duration_seconds(self) -> float:
        """Length of all tracks together, in seconds."""
        return sum(track.duration_seconds for track in self.tracks)

    def fingerprint(self) -> str:
        """SHA-256 over names, durations and sizes: equal for equal corpora wherever they lie."""
        digest = hashlib.sha256()
        for track in self.tracks:
            # A file name holds no zero byte, so the fields cannot run into each other.
            name = track.name.encode("utf-8", "surrogateescape")
            digest.update(b"%s\0%d\0%d\n" % (name, round(track.duration_seconds * 1e6), track.size_bytes))
        return digest.hexdigest()


def demo_corpus_root() -> Path:
    """The folder of the six freely licensed excerpts that come with the package."""
    return Path(__file__).parent / "demo_corpus"


def scan_folder(root: str | Path, *, minimum_seconds: float = 0.0, channels: int = 2) -> Corpus:
    """Find the usable audio below `root`, in an order that depends on the names only.

    Links are followed, each folder and file counts once, hidden names are passed over. A file that is broken, empty,
    shorter than `minimum_seconds` or of another channel count than 1 or `channels` is skipped; the log says how many.

    Raises:
        EmptyCorpusError: `root` is not a folder, or has no usable audio.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise EmptyCorpusError(
            f"The music folder {str(root)!r} {kind}. Type data.root=/path/to/music with a folder that exists."
        )
    candidates = audio_below(root)
    with ThreadPoolExecutor(_PROBING_THREADS) as pool:
        found = pool.map(lambda path: _probe_track(root, path, minimum_seconds, channels), candidates.paths)
        outcomes = list(found)
    tracks = sorted((o for o in outcomes if isinstance(o, Track)), key=lambda track: track.name)
    broken = [o for o in outcomes if isinstance(o, SkippedFile)]
    skipped = sorted((*candidates.skipped, *broken), key=lambda file: str(file.path))
    corpus = Corpus(root, tuple(tracks), tuple(skipped))
    if not tracks:
        raise EmptyCorpusError(_nothing_found(corpus, candidates.seen))
    if skipped:
        logger.warning(
            "%r: %d of %d files skipped: %s", str(root), len(skipped), candidates.seen, _first_of(corpus.skipped)
        )
    return corpus


def _probe_track(root: Path, path: Path, minimum_seconds: float, channels: int) -> Track | SkippedFile:
    try:
        info = verify_ends(path)
        size = path.stat().st_size
    except AudioFileError as error:
        return SkippedFile(path, error.reason)
    except OSError as error:
        return SkippedFile(path, f"cannot be opened: {error.strerror}")
    if info.channels not in (1, channels):
        return SkippedFile(path, f"has {info.channels} channels, allowed are 1 or {channels}")
    if info.duration_seconds < minimum_seconds:
        return SkippedFile(path, f"lasts {info.duration_seconds:.3f} s, at least {minimum_seconds:g} s are needed")
    name = path.relative_to(root).as_posix()
    return Track(path, name, info.duration_seconds, info.sample_rate, info.channels, size)


def _first_of(skipped: tuple[SkippedFile, ...]) -> str:
    shown = "; ".join(f"{str(file.path)!r} {file.reason}" for file in skipped[:_SHOWN])
    return shown + ("; ..." if len(skipped) > _SHOWN else "")


def _nothing_found(corpus: Corpus, seen: int) -> str:
    lines = [
        f"No usable audio below {str(corpus.root)!r}: {seen} files seen, {len(corpus.skipped)} skipped.",
        f"Looked for {' '.join(sorted(AUDIO_EXTENSIONS))} in this folder and all below it.",
    ]
    if corpus.skipped:
        lines.append(f"Skipped: {_first_of(corpus.skipped)}")
    lines.append("Type data.root=/path/to/music with a folder that has music in it.")
    return "\n".join(lines)
