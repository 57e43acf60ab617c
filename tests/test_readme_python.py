"""The Python example of the README runs unchanged."""

import re
from pathlib import Path

import pytest
import torch

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.weights import save_codec

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_of_the_readme(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    quantizer = QuantizerConfig(levels=64, codebook_size=16, initial_vectors=16)
    codec = SpectroStream(SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=8, quantizer=quantizer))
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    save_codec(codec, folder / "codec.safetensors")
    monkeypatch.chdir(tmp_path)
    # 16 entries are 4 bits: the same number of levels as 8 kbps at 10 bits.
    names: dict[str, object] = {}
    exec(code.replace("kbps=8.0", "kbps=3.2"), names)
    assert names["codes"].shape == (1, 32, 25)
    assert names["decoded"].shape == (1, 2, 48000)
    assert names["output"].shape == (1, 2, 1920)
    assert names["end"].shape == (1, 2, 3840)
