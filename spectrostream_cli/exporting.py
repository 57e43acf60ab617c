"""`export`: write the codec as two ONNX graphs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spectrostream_cli.coding.many_files import require_free
from spectrostream_cli.command import Commands, add_command, add_overwrite, add_weights

if TYPE_CHECKING:
    from rich.console import Console

_NAMES = ("encoder.onnx", "decoder.onnx")
_EXAMPLES = """  spectrostream export --weights runs/tiny onnx
  spectrostream export --weights runs/tiny onnx --levels 16

Writes onnx/encoder.onnx (audio to codes, --levels of them) and onnx/decoder.onnx (codes to audio), for any batch and
any length. Needs onnx and onnxscript: pip install 'spectrostream[export]'."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add export."""
    export = add_command(commands, "export", _export, "the codec as ONNX graphs", _EXAMPLES)
    export.add_argument("output", type=Path, metavar="OUT_FOLDER", help="where encoder.onnx and decoder.onnx go")
    add_weights(export)
    export.add_argument("--levels", type=int, help="levels that the encoder's graph computes (default: all)")
    add_overwrite(export)


def _export(arguments: argparse.Namespace, console: Console) -> str:
    encoder, decoder = paths = [arguments.output / name for name in _NAMES]
    for path in paths:
        require_free(path, arguments)
    from spectrostream.export import export_decoder, export_encoder
    from spectrostream.weights import load_pretrained

    codec = load_pretrained(arguments.weights)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with console.status("exporting the encoder"):
        export_encoder(codec, encoder, levels=arguments.levels)
    with console.status("exporting the decoder"):
        export_decoder(codec, decoder)
    levels = arguments.levels or codec.levels
    sizes = " and ".join(f"{path} ({path.stat().st_size} bytes)" for path in paths)
    return f"exported: {sizes}, {levels} of {codec.levels} levels"
