"""The identity of a run: a hash of all that its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ablations.schema import ExperimentConfig
from spectrostream.added_keys import identity_of

# Raise this with every change of the code that changes what a training computes: finished runs then run again.
TRAINING_VERSION = 3
# The keys that do not change the result of training: its speed, its logs, its evaluation.
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
    "data.root",  # the corpus counts by its fingerprint, wherever it is
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
    """Return True if a dotted key is part of the identity of a run."""
    return not any(key == one or key.startswith(f"{one}.") for one in NOT_IN_SIGNATURE)


def signature(config: ExperimentConfig, data_fingerprint: str, start_fingerprint: str = "") -> str:
    """Return the identity of a training run: a hash of the resolved configuration and of the corpus.

    Args:
        config: All its keys count except `NOT_IN_SIGNATURE`.
        data_fingerprint: Of the corpus.
        start_fingerprint: Of the weights that the run starts from; empty for none.

    Returns:
        12 hexadecimal digits.
    """
    plain = _counted(identity_of(config))
    plain["data"]["split"] = config.data.chosen_split  # the same for a default and for the typed value
    plain["data_fingerprint"] = data_fingerprint
    if start_fingerprint:
        plain["start_fingerprint"] = start_fingerprint
    plain["training_version"] = TRAINING_VERSION
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _counted(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the keys that are in the signature, without sections that have none."""
    kept: dict[str, Any] = {}
    for key, value in plain.items():
        if not is_in_signature(f"{prefix}{key}"):
            continue
        if not isinstance(value, dict):
            kept[key] = value
        elif inner := _counted(value, f"{prefix}{key}."):
            kept[key] = inner
    return kept
