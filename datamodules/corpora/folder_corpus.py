"""Make a corpus of a folder from the headers of its files; `spectrostream data scan` also measures them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas

from datamodules.audio.files import AudioFileError, verify_ends
from datamodules.audio.find_files import AUDIO_EXTENSIONS, SkippedFile, audio_below
from datamodules.corpora.corpus import Corpus, EmptyCorpusError
from datamodules.corpora.manifest import table_name

logger = logging.getLogger(__name__)

_SHOWN = 3
_PROBING_THREADS = 8


def demo_corpus_root() -> Path:
    """Return the folder of the six freely licensed tracks that come with the package."""
    return Path(__file__).parent.parent / "demo_corpus"


def scan_folder(root: str | Path, *, minimum_seconds: float = 0.0, channels: int = 2) -> Corpus:
    """Find the usable audio below `root`, in an order that depends on the names only.

    Links are followed, each folder and file counts once, hidden names are skipped. So are files that are broken, empty,
    shorter than `minimum_seconds` or with another number of channels than 1 or `channels`; the log says how many.

    Raises:
        EmptyCorpusError: `root` is no folder, or has no usable audio.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise EmptyCorpusError(
            f"The music folder {str(root)!r} {kind}. Type data.root=/path/to/music with a folder that exists."
        )
    candidates = audio_below(root)
    with ThreadPoolExecutor(_PROBING_THREADS) as pool:
        outcomes = list(pool.map(lambda path: _header_row(root, path, minimum_seconds, channels), candidates.paths))
    rows = [outcome for outcome in outcomes if not isinstance(outcome, SkippedFile)]
    broken = [outcome for outcome in outcomes if isinstance(outcome, SkippedFile)]
    skipped = tuple(sorted((*candidates.skipped, *broken), key=lambda file: str(file.path)))
    if not rows:
        raise EmptyCorpusError(_nothing_found(root, skipped, candidates.seen))
    if skipped:
        logger.warning("%r: %d of %d files skipped: %s", str(root), len(skipped), candidates.seen, _first_of(skipped))
    return Corpus(str(root), pandas.DataFrame(rows), skipped)


def _header_row(root: Path, path: Path, minimum_seconds: float, channels: int) -> Mapping[str, str | int] | SkippedFile:
    """Return the columns of a manifest that need no measurement."""
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
    return {
        "corpus": "folder",
        "root": table_name(root),
        "name": table_name(path.relative_to(root)),
        "group": info.album,
        "artist": info.artist,
        "album": info.album,
        "genre": info.genre,
        "sample_rate": info.sample_rate,
        "channels": info.channels,
        "frames": info.frames,
        "size_bytes": size,
    }


def _first_of(skipped: Sequence[SkippedFile]) -> str:
    shown = "; ".join(f"{str(file.path)!r} {file.reason}" for file in skipped[:_SHOWN])
    return shown + ("; ..." if len(skipped) > _SHOWN else "")


def _nothing_found(root: Path, skipped: Sequence[SkippedFile], seen: int) -> str:
    lines = [
        f"No usable audio below {str(root)!r}: {seen} files seen, {len(skipped)} skipped.",
        f"Looked for {' '.join(sorted(AUDIO_EXTENSIONS))} in this folder and all below it.",
    ]
    if skipped:
        lines.append(f"Skipped: {_first_of(skipped)}")
    lines.append("Type data.root=/path/to/music with a folder that has music in it.")
    return "\n".join(lines)
