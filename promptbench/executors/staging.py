"""Datasets on a node's own disk: copied there once, read from there by every run on the node."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from promptbench.config import UsageError
from promptbench.runs.plan import Run
from promptbench.runs.session import Bench
from promptbench.storage.claims import alone

log = logging.getLogger(__name__)


def staged(bench: Bench, runs: Iterable[Run], stage: Path) -> Bench:
    """The bench, with the folders of the runs' datasets that lie below a data root copied below another folder.

    A dataset that cannot be copied is read from where it is.

    Args:
        stage: The folder on the node's own disk.
    """
    names = {plan.train.dataset for plan in (run.plan for run in runs)}
    names |= {evaluation.selection.dataset for run in runs for evaluation in run.plan.evaluations}
    roots: list[Path] = []
    for name in sorted(names):
        try:
            folder = bench.dataset(name).folder
            root = next((root for root in bench.roots if folder.is_relative_to(root) and folder != root), None)
            if root is not None:
                place = stage / contents(folder)
                copy(folder, place / folder.relative_to(root))
                roots.append(place)
        except UsageError:  # it is not there, which the run says, or has no folder
            continue
        except (OSError, AttributeError) as error:
            log.warning("the dataset '%s' cannot be copied to %s (%s); it is read from where it is", name, stage, error)
    return replace(bench, roots=(*roots, *bench.roots), _datasets={})


def contents(folder: Path) -> str:
    """A digest of the names, sizes and dates of the files in a folder: another one where the images were replaced."""
    digest = hashlib.sha256()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            facts = path.stat()
            digest.update(os.fsencode(f"{path.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    return digest.hexdigest()[:16]


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
