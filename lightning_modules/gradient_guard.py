"""Skips updates that would spoil the weights, counts them and keeps their batches; too many of them end the run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from lightning_modules.optimization import TrainingDivergedError
from spectrostream.atomic_files import write_whole

logger = logging.getLogger(__name__)

FORGIVEN_AFTER = 100  # good updates in a row after which earlier skipped ones no longer count
LEARNING_UPDATES = 20  # updates before the usual size of the gradients is known
KEPT_BATCHES = 20


class UpdateGuard:
    """Decides from the gradient norms whether an update is applied; all processes have the same norms and agree.

    Args:
        explosion_factor: A norm above this many times the largest one so far, of generator or discriminator, is an
            explosion; 0 turns this off. An average would not do: a discriminator that wins has a zero gradient, and its
            first gradient above zero would look like an explosion.
        max_skipped: Skipped updates that are tolerated without `FORGIVEN_AFTER` good ones in a row between them.
        folder: Where the batches of skipped updates go; None keeps none.
    """

    def __init__(self, *, explosion_factor: float, max_skipped: int, folder: Path | None = None) -> None:
        self.explosion_factor = explosion_factor
        self.max_skipped = max_skipped
        self.folder = folder
        self.skipped = 0
        self._counting = 0
        self._good_in_a_row = 0
        self._last_problem = ""
        self._bad_in_a_row = 0
        self._largest: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def problem(self, norms: Mapping[str, float]) -> str | None:
        """Say what is wrong with an update, or count it as good.

        Args:
            norms: Gradient norms of "generator" and, where it learns, of "discriminator".

        Returns:
            The problem in words; None for a good update.
        """
        for side, norm in norms.items():
            if not math.isfinite(norm):
                return f"the gradient of the {side} is not finite"
            largest = self._largest.get(side, 0.0)
            is_known = self._seen.get(side, 0) >= LEARNING_UPDATES and largest > 0
            if self.explosion_factor and is_known and norm > self.explosion_factor * largest:
                return f"the gradient of the {side} exploded: its norm is {norm:.3g}, before at most {largest:.3g}"
        self._learn(norms)
        return None

    def _learn(self, norms: Mapping[str, float]) -> None:
        for side, norm in norms.items():
            self._largest[side] = max(norm, self._largest.get(side, 0.0))
            self._seen[side] = self._seen.get(side, 0) + 1
        self._good_in_a_row += 1
        self._bad_in_a_row = 0
        if self._good_in_a_row >= FORGIVEN_AFTER:
            self._counting = 0

    def skip(self, problem: str, *, step: int, rank: int, batches: Sequence[Tensor]) -> None:
        """Count a skipped update and keep its batches.

        Args:
            problem: As `problem` returned it.
            step: The generator update.
            rank: This process.
            batches: `[batch, channels, samples]` each.

        Raises:
            TrainingDivergedError: Too many updates were skipped.
        """
        self.skipped += 1
        self._counting += 1
        self._good_in_a_row = 0
        self._bad_in_a_row += 1
        self._last_problem = f"{problem} at step {step}"
        kept = self._keep(problem, step, rank, batches)
        logger.warning("%s at step %d; the update is skipped%s", problem, step, f", see {kept}" if kept else "")
        if self._counting > self.max_skipped:
            raise self._diverged(f"{self._counting} updates had to be skipped")

    def require_good_end(self) -> None:
        """Check the last updates of a run.

        Raises:
            TrainingDivergedError: More than one update at the end was skipped: the weights are bad.
        """
        if self._bad_in_a_row > 1:
            raise self._diverged(f"the last {self._bad_in_a_row} updates had to be skipped")

    def _diverged(self, consequence: str) -> TrainingDivergedError:
        side = "discriminator" if "discriminator" in self._last_problem else "generator"
        where = f"; batches are in {self.folder}" if self.folder else ""
        return TrainingDivergedError(
            f"{self._last_problem}, and {consequence} (training.max_skipped_updates = {self.max_skipped}); try a lower "
            f"training.{side}.learning_rate or a training.{side}.gradient_clip_norm{where}"
        )

    def _keep(self, problem: str, step: int, rank: int, batches: Sequence[Tensor]) -> Path | None:
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}-rank-{rank}.safetensors"
        if len(list(self.folder.glob("*.safetensors"))) >= KEPT_BATCHES:
            return None
        audio = {f"batch_{index}": batch.detach().cpu().contiguous() for index, batch in enumerate(batches)}
        finite = [bool(torch.isfinite(value).all()) for value in audio.values()]
        facts = {"problem": problem, "step": str(step), "audio_is_finite": json.dumps(finite)}
        try:
            # Not `save_file`, whose files can be read by their owner alone.
            write_whole(path, save(audio, metadata=facts))
        except (OSError, SafetensorError) as error:  # a full disk does not end a training
            logger.warning("the batch of step %d cannot be kept: %s", step, error)
            return None
        return path

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "skipped": self.skipped,
            "counting": self._counting,
            "good_in_a_row": self._good_in_a_row,
            "bad_in_a_row": self._bad_in_a_row,
            "last_problem": self._last_problem,
            "largest": dict(self._largest),
            "seen": dict(self._seen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.skipped = state["skipped"]
        self._counting = state["counting"]
        self._good_in_a_row = state["good_in_a_row"]
        self._bad_in_a_row = state["bad_in_a_row"]
        self._last_problem = state["last_problem"]
        self._largest = dict(state["largest"])
        self._seen = dict(state["seen"])
