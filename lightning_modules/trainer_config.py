"""Where and how a run executes, as data."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
WANDB_MODES = ("disabled", "offline", "online")


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how a run executes; nothing here changes what it computes, apart from rounding."""

    accelerator: str = "auto"
    """Kind of device that trains; "auto" takes the fastest one. Allowed: auto, cpu, gpu, cuda, mps."""
    devices: int = 1
    """Processes on each machine, one for each accelerator (or CPU process). Allowed: 1 or more."""
    num_nodes: int = 1
    """Machines. Allowed: 1 or more."""
    precision: str = "32-true"
    """Arithmetic of the networks; spectra, mel and quantizer distances stay in float32. 16-mixed scales the gradients.
    Allowed: 32-true, bf16-mixed, 16-mixed."""
    threads: int = 0
    """CPU threads of each process; 0 leaves torch's own number. Allowed: 0 or more."""
    compile: bool = False
    """Whether `torch.compile` compiles codec and discriminator; the first steps take minutes and need a C++ compiler.
    """
    channels_last: bool = False
    """Whether weights and features of two-dimensional convolutions are stored channels last."""
    checkpoint_activations: bool = False
    """Whether the backward pass computes the blocks' inner features again instead of keeping them: less memory, more
    time."""
    validate_every: int = 1000
    """Generator updates between two validations; 0 turns validation off. Allowed: 0 or more."""
    checkpoint_every: int = 1000
    """Generator updates between two checkpoints. Allowed: 1 or more."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk; with two, one is left when the other is damaged. Allowed: 2 or more."""
    keep_best: bool = True
    """Whether the checkpoint with the lowest validation/mel_loss stays too."""
    log_every: int = 50
    """Generator updates between two log entries. Allowed: 1 or more."""
    samples_every: int = 0
    """Generator updates between two sets of coded samples, pictures and scores; 0 turns them off. Allowed: 0 or more.
    """
    sample_clips: int = 4
    """Held-out samples in each set. Allowed: 1 or more."""
    tensorboard: bool = False
    """Whether TensorBoard files are written too; needs the extra `tensorboard`."""
    wandb: str = "disabled"
    """Whether Weights & Biases records the run; "online" needs an account. Allowed: disabled, offline, online."""
    wandb_project: str = "spectrostream"
    """Project of Weights & Biases that the run belongs to. Allowed: a name."""

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
