"""Deterministic sound with the traits that metrics look at: chords, attacks, panning, noise of each channel's own."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE_RATE = 48000


def music(seconds: float = 1.5, seed: int = 0) -> Tensor:
    """`[2, samples]` float32: a new chord every quarter of a second, each note with its own pan and six partials."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * SAMPLE_RATE), dtype=torch.float64) / SAMPLE_RATE
    audio = 0.002 * torch.randn(2, time.numel(), dtype=torch.float64, generator=generator)
    for start in torch.arange(0, seconds, 0.25).tolist():
        since = (time - start).clamp(min=0)
        envelope = (time >= start) * (1 - torch.exp(-200 * since)) * torch.exp(-6 * since)
        for root in (110.0, 277.2, 659.3):
            pitch = root * 2 ** (float(torch.randint(0, 12, (), generator=generator)) / 12)
            pan = float(torch.rand((), generator=generator)) * torch.pi / 2
            note = sum(torch.sin(2 * torch.pi * pitch * k * time) / k for k in range(1, 7))
            gains = torch.tensor([pan, torch.pi / 2 - pan], dtype=torch.float64).sin()
            audio += 0.08 * gains[:, None] * envelope * note
    return audio.float()


def phase_jitter(audio: Tensor, *, common: bool, seed: int = 1) -> Tensor:
    """Turn each time-frequency tile by a random angle (sd 0.5 radians), the same in both channels or independent."""
    window = torch.hann_window(2048)
    tiles = torch.stft(audio, 2048, 512, window=window, return_complex=True)
    generator = torch.Generator().manual_seed(seed)
    angles = 0.5 * torch.randn(tiles.shape, generator=generator)
    if common:
        angles = angles[:1].expand_as(tiles)
    turned = tiles * torch.polar(torch.ones_like(angles), angles)
    return torch.istft(turned, 2048, 512, window=window, length=audio.shape[-1])
