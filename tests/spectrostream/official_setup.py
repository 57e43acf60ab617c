"""Small official folders and a small codec, for the tests of weights from files and from a hub."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig

FIXTURES = Path(__file__).parent.parent / "fixtures"
QUANTIZER = QuantizerConfig(levels=3, codebook_size=16, initial_vectors=16)
SMALL = SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=4, quantizer=QUANTIZER)


def fixture_params(name: str) -> dict[str, np.ndarray]:
    arrays = np.load(FIXTURES / f"oracle_{name}.npz")
    return {key.removeprefix("param/"): arrays[key] for key in arrays if key.startswith("param/")}


def write_official(params: dict[str, np.ndarray], folder: Path) -> Path:
    """The fixtures' parameters as the release lays them out, written without our own writer."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"params/{path}": value for path, value in params.items()}
    codebooks = named["params/quantizer/embedding"]
    encoder = {path: value for path, value in named.items() if path.startswith("params/encoder")}
    save_file(encoder, folder / "encoder.safetensors")
    save_file({path: value for path, value in named.items() if path not in encoder}, folder / "decoder.safetensors")
    save_file({"params/soundstream/quantizer/embedding": codebooks}, folder / "quantizer.safetensors")
    return folder


def small_codec(seed: int = 0) -> SpectroStream:
    torch.manual_seed(seed)
    return SpectroStream(SMALL).eval()
