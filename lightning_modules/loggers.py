"""Opens the loggers of a run before training and closes them after it, also after an error."""

from __future__ import annotations

import importlib.util
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_modules.run_files import LOGS, TENSORBOARD, WANDB_ID
from lightning_modules.trainer_config import TrainerConfig
from spectrostream.atomic_files import write_whole
from spectrostream.errors import UserError

_PATIENCE_SECONDS = 5.0  # for the first answer of the W&B server
_START_SECONDS = 60.0  # for the run to be made there, once it has answered


class LoggerError(UserError):
    """A logger cannot be opened; the message says why and how to train without it."""


@contextmanager
def opened_loggers(config: TrainerConfig, folder: Path, run_name: str | None) -> Iterator[list[Logger]]:
    """Open the CSV logger, and TensorBoard and W&B as configured, around the whole training.

    A run that is started again continues in the same TensorBoard folder and as the same W&B run.

    Args:
        config: The section `trainer` of the configuration.
        folder: The run's folder.
        run_name: Name of the W&B run; the folder's name by default.

    Raises:
        LoggerError: A package is missing, or W&B is "online" and its server does not answer within seconds.
    """
    if config.tensorboard:
        _require("tensorboard", "trainer.tensorboard = true", "trainer.tensorboard=false")
    if config.wandb != "disabled":
        _require("wandb", f"trainer.wandb = '{config.wandb}'", "trainer.wandb=disabled")
    with ExitStack() as stack:
        loggers: list[Logger] = [_csv(folder)]
        if config.tensorboard:
            loggers.append(TensorBoardLogger(folder, name=TENSORBOARD, version="", default_hp_metric=False))
        if config.wandb != "disabled":
            loggers.append(stack.enter_context(_weights_and_biases(config, folder, run_name or folder.name)))
        yield loggers


def _require(package: str, given: str, otherwise: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise LoggerError(
            f"{given} needs the package {package}, which is not installed; type pip install {package}, or {otherwise}"
        )


def _csv(folder: Path) -> CSVLogger:
    # Always, because reports read it. Each attempt has its own file, or Lightning would delete the earlier ones.
    earlier = [int(path.name.removeprefix("attempt-")) for path in (folder / LOGS).glob("attempt-[0-9]*")]
    attempt = max(earlier, default=-1) + 1
    return CSVLogger(folder, name=LOGS, version=f"attempt-{attempt:03d}", flush_logs_every_n_steps=20)


@contextmanager
def _weights_and_biases(config: TrainerConfig, folder: Path, name: str) -> Iterator[WandbLogger]:
    """Start the W&B run, and finish it at the end; after an error it counts as failed."""
    import wandb

    is_online = config.wandb == "online"
    is_first_process = getattr(rank_zero_only, "rank", 0) == 0
    if is_online and is_first_process:
        _check_account()
    logger = WandbLogger(
        project=config.wandb_project,
        name=name,
        save_dir=folder,
        offline=not is_online,
        id=_run_id(folder) if is_first_process else None,
        # Offline there is no server to ask; attempts with one id become one run when they are synchronized.
        resume="allow" if is_online else None,
        settings=wandb.Settings(console="off", quiet=True, init_timeout=_START_SECONDS),
    )
    try:
        run = logger.experiment  # in the first process; the others have a dummy
    except wandb.errors.Error as error:
        raise LoggerError(
            f"trainer.wandb = '{config.wandb}': the run cannot be started: {_one_line(error)}; type "
            f"trainer.wandb={'offline' if is_online else 'disabled'}, or remove {folder / WANDB_ID} for a new W&B run"
        ) from error
    exit_code = 1
    try:
        yield logger
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)


def _run_id(folder: Path) -> str:
    """Id of the folder's W&B run, kept in a file so that a resumed training continues it."""
    path = folder / WANDB_ID
    if not path.exists():
        write_whole(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="ascii").strip()


def _check_account() -> None:
    """Check that there is a key and that the server answers; W&B itself would try for more than a minute."""
    import wandb

    try:
        has_key = wandb.login(prompt=False, verify=False)
    except (wandb.errors.Error, ValueError) as error:  # a malformed key
        raise LoggerError(
            f"trainer.wandb = 'online': {_one_line(error)}; type wandb login, or trainer.wandb=offline"
        ) from error
    if not has_key:
        raise LoggerError(
            "trainer.wandb = 'online' needs the key of an account and there is none (or WANDB_MODE says offline); "
            "type wandb login, or trainer.wandb=offline"
        )
    _check_connection(wandb.setup().settings.base_url)


def _check_connection(server: str) -> None:
    try:
        urllib.request.urlopen(server, timeout=_PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as answer:  # any answer shows that the server is reached
        answer.close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LoggerError(
            f"trainer.wandb = 'online': {server} is not reached ({reason}); type trainer.wandb=offline and later "
            "wandb sync, or mend the connection"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
