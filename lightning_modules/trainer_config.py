"""Where and how a run executes, as data."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
WANDB_MODES = ("disabled", "offline", "online")


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how a run executes; nothing here changes what it computes, apart from rounding.

    precision: "32-true"; "bf16-mixed"; "16-mixed" with scaled gradients. Spectra, mel and quantizer distances stay in
    float32.
    compile: `torch.compile` for codec and judges; the first steps take minutes and need a C++ compiler.
    channels_last: layout of the two-dimensional convolutions' weights and features.
    checkpoint_activations: the backward pass computes the blocks' inner features again instead of keeping them.

    devices: processes per node, one for each accelerator (or CPU process). threads: of each process, 0 leaves torch's
    own. validate_every, checkpoint_every, log_every: in generator updates; 0 turns validation off.
    keep_checkpoints: the last ones that stay, 2 or more: one to fall back to. keep_best: also the one with the lowest
    validation/mel_loss.
    samples_every: updates between two sets of coded clips, pictures and scores, 0 is off; sample_clips: how many clips.
    tensorboard: writes for it too.
    wandb: "disabled", "offline" or "online" (needs an account).
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    threads: int = 0
    compile: bool = False
    channels_last: bool = False
    checkpoint_activations: bool = False
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_best: bool = True
    log_every: int = 50
    samples_every: int = 0
    sample_clips: int = 4
    tensorboard: bool = False
    wandb: str = "disabled"
    wandb_project: str = "spectrostream"

    def __post_init__(self) -> None:
        for key, allowed in (("precision", PRECISIONS), ("wandb", WANDB_MODES)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"trainer.{key} = {getattr(self, key)!r} is not known; allowed: {', '.join(allowed)}")
        lowest = {"devices": 1, "num_nodes": 1, "threads": 0, "validate_every": 0}
        lowest |= {"checkpoint_every": 1, "keep_checkpoints": 2, "log_every": 1}
        lowest |= {"samples_every": 0, "sample_clips": 1}
        for key, value in lowest.items():
            if getattr(self, key) < value:
                raise ValueError(f"trainer.{key} = {getattr(self, key)} is not possible; allowed: {value} or more")
