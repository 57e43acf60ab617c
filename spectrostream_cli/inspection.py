"""`info`: describe coded files, weights, runs and audio files."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrostream.errors import UserError
from spectrostream_cli.command import Commands, add_command

if TYPE_CHECKING:
    from rich.console import Console

_EXAMPLES = """  spectrostream info out.sps
  spectrostream info runs/tiny music.flac
  spectrostream info coded/*.sps --json

A coded file records neither the precision of the encoder nor the place of its weights."""

Facts = dict[str, Any]


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add info."""
    info = add_command(commands, "info", _info, "describe coded files, runs, weights and audio files", _EXAMPLES)
    info.add_argument("paths", nargs="+", metavar="FILE", help="coded file, weights, folder of a run, audio file")
    info.add_argument("--json", action="store_true", help="print a JSON list with one object for each file")


def _info(arguments: argparse.Namespace, console: Console) -> str:
    found: list[Facts] = []
    failed: list[str] = []
    for name in arguments.paths:
        try:
            found.append({"path": name, **_facts(Path(name))})
        except (UserError, OSError) as error:
            failed.append(f"{error}" if name in str(error) else f"{name}: {error}")
            found.append({"path": name, "kind": "unusable", "error": str(error)})
    text = json.dumps(found, indent=2) if arguments.json else _as_text(found)
    if failed:
        if arguments.json or len(found) > 1:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        raise UserError("\n".join(failed))
    return text


def _as_text(found: list[Facts]) -> str:
    return "\n".join(_LINES[facts["kind"]](facts) for facts in found if facts["kind"] in _LINES)


def _facts(path: Path) -> Facts:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.is_dir():
        return _run_facts(path) if _is_run(path) else _weights_facts(path)
    if path.suffix == ".safetensors":
        return _weights_facts(path)
    if path.suffix == ".sps":
        return _coded_facts(path)
    return _audio_facts(path)


def _coded_facts(path: Path) -> Facts:
    from spectrostream.bitstream.files import read_header
    from spectrostream_cli.coding.chunk_count import counted_chunks

    header, counted = read_header(path), counted_chunks(path)
    seconds = header.samples / header.sample_rate
    size = path.stat().st_size
    return {
        "kind": "coded",
        "seconds": seconds,
        "samples": header.samples,
        "sample_rate": header.sample_rate,
        "channels": header.channels,
        "levels": header.levels,
        "bits_per_index": header.bits_per_index,
        "frames": header.frames,
        "kbps": header.bits_per_frame * header.frames / max(seconds, 1e-9) / 1000,
        "file_bytes": size,
        "file_kbps": size * 8 / max(seconds, 1e-9) / 1000,
        "chunks": counted.chunks,
        "entropy_coded": counted.has_tables,
        "entropy_coded_chunks": counted.coded,
        "missing_frames": header.frames - counted.frames,
        "codec": header.configuration_hash.hex(),
    }


def _weights_facts(path: Path) -> Facts:
    from ablations.run_folder import RunFolder
    from spectrostream.weight_files.official_files import OFFICIAL_NAMES
    from spectrostream.weights import codec_fingerprint, load_codec, load_pretrained

    own = RunFolder(path).weights if path.is_dir() else path
    is_own = own.is_file() and own.name not in OFFICIAL_NAMES
    # Our files may hold any kind of codec, the official files a SpectroStream.
    codec = load_codec(own) if is_own else load_pretrained(path)
    latency = codec.latency_samples
    return {
        "kind": "weights",
        "configuration": dataclasses.asdict(codec.config),
        "described": str(codec.config),
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
        "levels": codec.levels,
        "kbps_per_level": codec.kbps(1),
        "kbps": codec.kbps(codec.levels),
        "latency_ms": None if latency is None else 1000 * latency / codec.sample_rate,
        "codec": codec_fingerprint(codec).hex(),
    }


def _is_run(path: Path) -> bool:
    from ablations.run_folder import RunFolder

    return RunFolder(path).config.is_file()


def _run_facts(path: Path) -> Facts:
    """Return the facts of a run's folder, finished or not."""
    from ablations.run_folder import RunFolder

    files = RunFolder(path)
    checkpoints = sorted(one.name for one in files.checkpoints.glob("step-*.ckpt"))
    trained = _read_json(files.trained)
    weights = _weights_facts(path) if files.weights.is_file() else None
    return {
        "kind": "run",
        "configuration_file": str(files.config),
        "is_trained": weights is not None,
        "steps": trained.get("steps"),
        "audio_seconds": trained.get("audio_seconds"),
        "float32_layers": trained.get("float32_layers", 0),
        "checkpoints": checkpoints,
        "failure": _read_json(files.failed).get("reason"),
        "weights": weights,
    }


def _read_json(path: Path) -> Facts:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return content if isinstance(content, dict) else {}


def _audio_facts(path: Path) -> Facts:
    from datamodules.audio.files import probe

    audio = probe(path)
    return {
        "kind": "audio",
        "seconds": audio.duration_seconds,
        "frames": audio.frames,
        "sample_rate": audio.sample_rate,
        "channels": audio.channels,
        "container": audio.container,
        "subtype": audio.subtype,
    }


def _coded_line(facts: Facts) -> str:
    coding = "packed"
    if facts["entropy_coded"]:
        coding = f"{facts['entropy_coded_chunks']} of them entropy-coded"
    missing = f", {facts['missing_frames']} frames are missing" if facts["missing_frames"] else ""
    return (
        f"{facts['path']}: {facts['seconds']:.2f} s, {facts['sample_rate']} Hz, {facts['channels']} channels, "
        f"{facts['levels']} levels x {facts['bits_per_index']} bits x {facts['frames']} frames "
        f"({facts['kbps']:.2f} kbps; the file {facts['file_kbps']:.2f} kbps, {facts['file_bytes']} bytes), "
        f"{facts['chunks']} chunks, {coding}{missing}, codec {facts['codec']}"
    )


def _weights_line(facts: Facts) -> str:
    latency = "cannot stream" if facts["latency_ms"] is None else f"latency {facts['latency_ms']:.0f} ms"
    return (
        f"{facts['path']}: {facts['described']}\n{facts['parameters']:,} parameters, {facts['levels']} levels of "
        f"{facts['kbps_per_level']:g} kbps (up to {facts['kbps']:g}), {latency}, codec {facts['codec']}"
    )


def _run_line(facts: Facts) -> str:
    steps = f" after {facts['steps']} steps" if facts["steps"] is not None else ""
    state = f"trained{steps}" if facts["is_trained"] else "not finished"
    last = f", last checkpoint {facts['checkpoints'][-1]}" if facts["checkpoints"] else ", no checkpoint"
    failure = f", failed: {facts['failure']}" if facts["failure"] else ""
    line = f"{facts['path']}: a run, {state}{last}{failure}; its configuration is {facts['configuration_file']}"
    return f"{line}\n{_weights_line({'path': facts['path'], **facts['weights']})}" if facts["weights"] else line


def _audio_line(facts: Facts) -> str:
    return (
        f"{facts['path']}: {facts['seconds']:.2f} s, {facts['sample_rate']} Hz, {facts['channels']} channels, "
        f"{facts['container']} {facts['subtype']}"
    )


_LINES = {"coded": _coded_line, "weights": _weights_line, "run": _run_line, "audio": _audio_line}
