"""What every test gets: one thread (the suite runs in parallel processes) and fixed seeds."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from hypothesis import HealthCheck, settings

import spectrostream.torchaudio_functional  # noqa: F401  torchaudio's arrangement, before any library imports it

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
