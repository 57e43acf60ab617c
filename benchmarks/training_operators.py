"""Measures the time of one training step by operator and by part: `python -m benchmarks.training_operators`.

It profiles one step after a warm-up with torch's profiler, which slows small operators down. Parts are forward passes,
backward passes and updates; the time of a part inside another (the quantizer in the codec) counts for both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.profiler import profile, record_function

from benchmarks.training_case import TrainingCase
from benchmarks.training_turn import train
from benchmarks.training_watch import now, quantizer_of

PART = "part: "


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="small", help="a shipped name or a path")
    parser.add_argument("--batch-seconds", type=float, default=1.28)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16, help="operators to show")
    given = parser.parse_args()
    case = TrainingCase(given.config, batch_seconds=given.batch_seconds, threads=given.threads, steps=1)
    look = OperatorProfile(case.warm_up)
    train(case, case.experiment(), look)
    print(look.table(given.rows))


class OperatorProfile(Callback):
    """Profiles one update.

    Args:
        warm_up: Updates before it.

    Attributes:
        seconds: The time of the profiled update.
    """

    def __init__(self, warm_up: int) -> None:
        self.seconds = 0.0
        self._warm_up = warm_up
        self._profile = profile()

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        """Name the parts and start the profiler."""
        if trainer.global_step == self._warm_up:
            name_parts(module)
            self._profile.start()
            self.seconds = -now()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Stop the profiler."""
        if trainer.global_step == self._warm_up + 1:
            self.seconds += now()
            self._profile.stop()

    def table(self, rows: int) -> str:
        """Return tables of parts by their total time, and of operators by their own time."""
        events = self._profile.key_averages()
        parts = [event for event in events if event.key.startswith((PART, "Optimizer.step"))]
        operators = [event for event in events if event not in parts]
        return "\n".join(
            (
                f"One step: {self.seconds:.2f} s\n",
                _lines("part", parts, lambda event: event.cpu_time_total, self.seconds, len(parts)),
                _lines("operator", operators, lambda event: event.self_cpu_time_total, self.seconds, rows),
            )
        )


def _lines(title: str, events: Iterable[Any], microseconds: Callable[[Any], float], step: float, most: int) -> str:
    lines = [f"| {title} | calls | s | of the step |", "|---|---|---|---|"]
    for event in sorted(events, key=microseconds, reverse=True)[:most]:
        seconds = 1e-6 * microseconds(event)
        lines.append(
            f"| {event.key.removeprefix(PART)} | {event.count} | {seconds:.3f} | {100 * seconds / step:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def name_parts(module: Any) -> None:
    """Give the forward passes, losses, backward passes and updates of a `CodecTraining` names in the profile."""
    model = module.codec if hasattr(module.codec, "quantizer") else module.codec.model
    _name(module.codec, "codec, forward")
    _name(model.encoder, "encoder, forward")
    _name(quantizer_of(module.codec), "quantizer, forward")
    _name(model.decoder, "decoder, forward")
    _name(module.discriminator, "discriminator, forward")
    for owner, method, name in (
        (module, "_discriminator_turn", "discriminator's turn"),
        (module, "_generator_turn", "codec's turn"),
        (module, "_update", "both updates"),
        (module, "manual_backward", "backward, both"),
        (module.objective, "reconstruction_losses", "reconstruction losses, forward"),
        (module.objective, "adversarial_losses", "losses of the discriminator's output, forward"),
    ):
        setattr(owner, method, _named(getattr(owner, method), name))
    learning = getattr(quantizer_of(module.codec), "learning", None)
    if learning is not None:
        learning.update = _named(learning.update, "codebooks' learning")
    for part in module.discriminator.modules():
        if hasattr(part, "spectrogram"):
            part.spectrogram = _named(part.spectrogram, "discriminator's spectrograms, forward")


def _name(part: nn.Module, name: str) -> None:
    part.forward = _named(part.forward, name)  # type: ignore[method-assign]


def _named(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        with record_function(PART + name):
            return call(*given, **named)

    return run


if __name__ == "__main__":
    main()
