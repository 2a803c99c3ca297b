"""Loggers that watch the runs: `--logger csv`, `tensorboard`, `wandb`, through Lightning's.

    <folder>/logs/<protocol>/<dataset>/<method[@preset]>-<hash>/

They are told the spec, of a training `loss`, `loss/<term>`, `lr` and `epoch` by step, and the run's metrics at the end;
a training that was stored has no steps. They are no part of the spec and change no number. wandb stays on this machine
unless the environment's WANDB_MODE says otherwise; `wandb sync` uploads what it wrote.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.config import UsageError
from promptbench.results.spec import Spec, to_plain

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

PROJECT = "promptbench"


class Tracker:
    """The loggers of one run."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers, self.steps = loggers, 0

    def step(self, done: int, values: Mapping[str, float]) -> None:
        """A training step, counted from 1."""
        self.steps = done
        for logger in self.loggers:
            logger.log_metrics(dict(values), done)

    def finished(self, metrics: Mapping[str, float]) -> None:
        """The metrics of the run, filed under its last step."""
        self.step(self.steps, metrics)


@contextmanager
def tracked(names: Iterable[str], folder: Path | str, spec: Spec) -> Iterator[Tracker]:
    """Opens the loggers of a run and closes them, as failed where it ends in an error.

    Args:
        names: Of `LOGGERS`.
        folder: The output folder.
        spec: Of the run.
    """
    tracker = Tracker([_opened(name, log_folder(folder, spec), spec) for name in names])
    try:
        yield tracker
    except BaseException:
        _close(tracker.loggers, "failed")
        raise
    _close(tracker.loggers, "success")


def log_folder(folder: Path | str, spec: Spec) -> Path:
    """Where the loggers of this spec write."""
    return Path(folder).absolute() / "logs" / spec.name


def check_installed(names: Iterable[str]) -> None:
    """Raises UsageError where a logger's package is missing, before anything is run."""
    for name in names:
        if name in OPTIONAL and importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--logger {name} needs the package {name}; install it with `pip install promptbench-clip[{name}]`."
            )


def _opened(name: str, folder: Path, spec: Spec) -> Logger:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the log of a run that failed before is replaced, which Lightning warns of
        folder.mkdir(parents=True, exist_ok=True)
        logger = LOGGERS[name](folder, spec)
        logger.log_hyperparams(to_plain(spec))
    return logger


def _close(loggers: Iterable[Logger], status: str) -> None:
    for logger in loggers:
        logger.finalize(status)
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:  # wandb: else the next run of the process would be written into this one
            finish(exit_code=int(status != "success"))


def _csv(folder: Path, spec: Spec) -> Logger:
    from pytorch_lightning.loggers import CSVLogger

    return CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)


def _tensorboard(folder: Path, spec: Spec) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    # purge_step hides what an earlier, failed run has left
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=0)


def _wandb(folder: Path, spec: Spec) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    return WandbLogger(
        name=spec.name,
        save_dir=folder,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings={"silent": True},
    )


LOGGERS: Mapping[str, Callable[[Path, Spec], Logger]] = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}
OPTIONAL = ("tensorboard", "wandb")  # packages, and extras of ours, named as their loggers
