"""Where and how a run executes, as data."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("32-true", "bf16-mixed")
WANDB_MODES = ("disabled", "offline", "online")


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how a run executes; nothing here changes what it computes, apart from precision.

    devices: processes per node, one for each accelerator (or CPU process). threads: of each process, 0 leaves torch's
    own. validate_every, checkpoint_every, log_every: in generator updates; 0 turns validation off.
    keep_checkpoints: the last ones that stay, 2 or more: one to fall back to.
    wandb: "disabled", "offline" or "online" (needs an account).
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    threads: int = 0
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 50
    wandb: str = "disabled"
    wandb_project: str = "spectrostream"

    def __post_init__(self) -> None:
        for key, allowed in (("precision", PRECISIONS), ("wandb", WANDB_MODES)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"trainer.{key} = {getattr(self, key)!r} is not known; allowed: {', '.join(allowed)}")
        lowest = {"devices": 1, "num_nodes": 1, "threads": 0, "validate_every": 0}
        lowest |= {"checkpoint_every": 1, "keep_checkpoints": 2, "log_every": 1}
        for key, value in lowest.items():
            if getattr(self, key) < value:
                raise ValueError(f"trainer.{key} = {getattr(self, key)} is not possible; allowed: {value} or more")
