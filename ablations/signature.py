"""The identity of a run: a hash of all that its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ablations.schema import ExperimentConfig
from spectrostream.added_keys import identity_of

# Raised with every change of the code that changes what a training computes: finished runs are then run again.
TRAINING_VERSION = 3
# What does not change the result of training: how fast it runs, what is written about it, how it is judged afterwards.
NOT_IN_SIGNATURE = (
    "evaluation",
    "trainer.threads",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.keep_best",
    "trainer.samples_every",
    "trainer.sample_clips",
    "trainer.tensorboard",
    "trainer.validate_every",
    "trainer.wandb",
    "trainer.wandb_project",
    "training.start_from",  # the weights count by their fingerprint, wherever they are
    "data.root",  # the corpus counts by its fingerprint, however its folder is written
    "data.manifests",
    "data.num_workers",
    "data.read_timeout_seconds",
    "data.shards",
    "data.shard_cache",
    "data.shard_cache_gigabytes",
    "data.s3_endpoint",
    "data.evaluation_segments",
    "data.cache_audio",
    "data.validation_crops",
    "data.evaluation_segment_seconds",
)


def is_in_signature(key: str) -> bool:
    """True if a dotted key counts for the identity of a run."""
    return not any(key == one or key.startswith(f"{one}.") for one in NOT_IN_SIGNATURE)


def signature(config: ExperimentConfig, data_fingerprint: str, start_fingerprint: str = "") -> str:
    """Identity of a training run: a hash of the resolved configuration less `NOT_IN_SIGNATURE`, and of the corpus.

    start_fingerprint: of the weights that it starts from, if it does.
    """
    plain = _counted(identity_of(config))
    plain["data"]["split"] = config.data.chosen_split  # whether it was typed or not
    plain["data_fingerprint"] = data_fingerprint
    if start_fingerprint:
        plain["start_fingerprint"] = start_fingerprint
    plain["training_version"] = TRAINING_VERSION
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _counted(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Only the keys that are in the signature, and only sections that have such keys."""
    kept: dict[str, Any] = {}
    for key, value in plain.items():
        if not is_in_signature(f"{prefix}{key}"):
            continue
        if not isinstance(value, dict):
            kept[key] = value
        elif inner := _counted(value, f"{prefix}{key}."):
            kept[key] = inner
    return kept
