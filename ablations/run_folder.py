"""The folder of a run: the names of all its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.workers.unreadable_files import FAILURE_LIST
from lightning_modules.run_files import BAD_BATCHES, CHECKPOINTS, LOGS, TENSORBOARD, WANDB_ID
from spectrostream.weight_files.hub import OWN_NAME


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files, also of files that do not exist yet; `NAMES` has the bare names."""

    path: Path

    @property
    def weights(self) -> Path:
        """The trained codec; exists when training is done."""
        return self.path / OWN_NAME

    @property
    def config(self) -> Path:
        """The whole configuration as YAML."""
        return self.path / "config.yaml"

    @property
    def facts(self) -> Path:
        """What the run was made with: command, revisions, versions, corpus."""
        return self.path / "run.json"

    @property
    def readme(self) -> Path:
        """The same facts for people."""
        return self.path / "README.md"

    @property
    def signature(self) -> Path:
        """The identity of a run of `train`."""
        return self.path / "signature.json"

    @property
    def start(self) -> Path:
        """The weights that a run, or the runs of a study, start from."""
        return self.path / "start.json"

    @property
    def trained(self) -> Path:
        """The result of the training; exists when training is done."""
        return self.path / "trained.json"

    @property
    def lock(self) -> Path:
        """Locked while a process uses the folder."""
        return self.path / "lock"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints that a training resumes from."""
        return self.path / CHECKPOINTS

    @property
    def samples(self) -> Path:
        """Folder of the segments that were decoded during training."""
        return self.path / "samples"

    @property
    def bad_batches(self) -> Path:
        """Folder of the music of skipped updates."""
        return self.path / BAD_BATCHES

    @property
    def unreadable(self) -> Path:
        """List of the music files that could not be read."""
        return self.path / FAILURE_LIST

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard logs."""
        return self.path / TENSORBOARD

    @property
    def wandb_id(self) -> Path:
        """The name of the run at Weights & Biases."""
        return self.path / WANDB_ID

    def log(self, attempt: str) -> Path:
        """The metrics that one start of the training logged; `attempt` has three digits, or is a pattern."""
        return self.path / LOGS / f"attempt-{attempt}" / "metrics.csv"

    def logs(self) -> list[Path]:
        """The metrics of every start, the oldest first."""
        return sorted(self.path.glob(str(NAMES.log("*"))))

    @property
    def records(self) -> Path:
        """The scores of a run of a study."""
        return self.path / "records.csv"

    def card(self, system: str) -> Path:
        """The numbers that describe a system: the run's codec, or one that it is checked against."""
        return self.path / f"card-{system}.json"

    def cards(self) -> list[Path]:
        """The existing cards."""
        return sorted(self.path.glob(str(NAMES.card("*"))))

    @property
    def audio(self) -> Path:
        """Folder of the decoded held-out segments: `<system>/<levels>/<segment>.flac`."""
        return self.path / "audio"

    @property
    def reference_audio(self) -> Path:
        """Folder of the held-out segments before coding: `<segment>.flac`."""
        return self.audio / "reference"

    def references(self) -> Iterator[Path]:
        """The existing files of held-out segments before coding."""
        return self.reference_audio.glob("*.flac")

    @property
    def done(self) -> Path:
        """Says that a run of a study was trained, and how it was evaluated."""
        return self.path / "DONE.json"

    @property
    def failed(self) -> Path:
        """Says why a run of a study failed."""
        return self.path / "failed.json"


NAMES = RunFolder(Path())
"""The paths relative to the folder of a run."""
