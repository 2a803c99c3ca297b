"""Datasets on a node's own disk: copied there once, read from there by every run on the node."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from promptbench.bench import Bench
from promptbench.claims import alone
from promptbench.config import UsageError
from promptbench.planning import Run

log = logging.getLogger(__name__)


def staged(bench: Bench, runs: Iterable[Run], stage: Path) -> Bench:
    """The bench, with the folders of the runs' datasets that lie below a data root copied below another folder.

    A dataset that cannot be copied is read from where it is.

    Args:
        stage: The folder on the node's own disk.
    """
    names = {plan.train.dataset for plan in (run.plan for run in runs)}
    names |= {evaluation.selection.dataset for run in runs for evaluation in run.plan.evaluations}
    for name in sorted(names):
        try:
            folder = bench.dataset(name).folder
            root = next((root for root in bench.roots if folder.is_relative_to(root) and folder != root), None)
            if root is not None:
                copy(folder, stage / folder.relative_to(root))
        except UsageError:  # it is not there, which the run says, or has no folder
            continue
        except (OSError, AttributeError) as error:
            log.warning("the dataset '%s' cannot be copied to %s (%s); it is read from where it is", name, stage, error)
    return replace(bench, roots=(stage, *bench.roots), _datasets={})


def copy(folder: Path, place: Path) -> None:
    """Copy a folder with the dates of its files, whole or not at all, unless it is there; others wait."""
    with alone(place.parent / ".claims", place.name):
        if place.exists():
            return
        draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            shutil.copytree(folder, draft)
            os.rename(draft, place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
