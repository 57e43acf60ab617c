"""Where the numbers of a run are written: opened before training, closed after it, however it ends."""

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

from lightning_modules.trainer_config import TrainerConfig
from spectrostream.errors import UserError

_PATIENCE_SECONDS = 5.0  # for the first answer of the W&B server
_START_SECONDS = 60.0  # for the run to be made there, once it has answered
_WANDB_ID = "wandb-id.txt"


class LoggerError(UserError):
    """A logger that cannot be opened; the message says why and how to go without it."""


@contextmanager
def opened_loggers(config: TrainerConfig, folder: Path, run_name: str | None) -> Iterator[list[Logger]]:
    """CSV, TensorBoard and W&B as `trainer` asks for, all in `folder`; use it around the whole training.

    A run that is started again goes on in the same TensorBoard folder and as the same W&B run. Raises LoggerError for a
    missing package, and within seconds where W&B is to be online and is not reached.
    """
    if config.tensorboard:
        _require("tensorboard", "trainer.tensorboard = true", "trainer.tensorboard=false")
    if config.wandb != "disabled":
        _require("wandb", f"trainer.wandb = '{config.wandb}'", "trainer.wandb=disabled")
    with ExitStack() as stack:
        loggers: list[Logger] = [_csv(folder)]
        if config.tensorboard:
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False))
        if config.wandb != "disabled":
            loggers.append(stack.enter_context(_weights_and_biases(config, folder, run_name or folder.name)))
        yield loggers


def _require(package: str, given: str, otherwise: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise LoggerError(
            f"{given} needs the package {package}, which is not installed; type pip install {package}, or {otherwise}"
        )


def _csv(folder: Path) -> CSVLogger:
    # Always: it is the report's source. Each attempt has its own file, or Lightning would delete the earlier ones.
    earlier = [int(path.name.removeprefix("attempt-")) for path in (folder / "logs").glob("attempt-[0-9]*")]
    attempt = max(earlier, default=-1) + 1
    return CSVLogger(folder, name="logs", version=f"attempt-{attempt:03d}", flush_logs_every_n_steps=20)


@contextmanager
def _weights_and_biases(config: TrainerConfig, folder: Path, name: str) -> Iterator[WandbLogger]:
    """The run, begun; finished at the end, as a failed one after an error."""
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
        # Offline there is nothing to ask; parts with one id become one run when they are synchronized.
        resume="allow" if is_online else None,
        settings=wandb.Settings(console="off", quiet=True, init_timeout=_START_SECONDS),
    )
    try:
        run = logger.experiment  # in the first process; the others have a dummy
    except wandb.errors.Error as error:
        raise LoggerError(
            f"trainer.wandb = '{config.wandb}': the run cannot be started: {_one_line(error)}; type "
            f"trainer.wandb={'offline' if is_online else 'disabled'}, or remove {folder / _WANDB_ID} for a new W&B run"
        ) from error
    exit_code = 1
    try:
        yield logger
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)


def _run_id(folder: Path) -> str:
    """Of the W&B run that this folder is: kept, so that a resumed training goes on in it."""
    path = folder / _WANDB_ID
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(secrets.token_hex(4) + "\n", encoding="ascii")
        partial.replace(path)
    return path.read_text(encoding="ascii").strip()


def _check_account() -> None:
    """A key is there and the server answers; left alone, W&B tries for a minute and more."""
    import wandb

    try:
        has_key = wandb.login(prompt=False, verify=False)
    except (wandb.errors.Error, ValueError) as error:  # a key that cannot be one
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
    except urllib.error.HTTPError as answer:  # whatever it says, it answers
        answer.close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LoggerError(
            f"trainer.wandb = 'online': {server} is not reached ({reason}); type trainer.wandb=offline and later "
            "wandb sync, or mend the connection"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
