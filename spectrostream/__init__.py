"""The SpectroStream codec in pure PyTorch; works without Lightning, OmegaConf, pandas and matplotlib."""
