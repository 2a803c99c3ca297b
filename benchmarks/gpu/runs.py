"""Whole runs on a GPU, by the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from .part import Row, Setting, case

UNTRAINED, *TRAINED = METHODS = ("zeroshot@generic", "coop", "maple")
ONE, MAIN = "mini_diagrams", ("mini_diagrams", "mini_neon")
ON_GPUS = 35  # seconds of a command there, fewer than its part has, so that none outlives it
GAINED = 5.0  # points of accuracy on base classes, mean over the sets, at least: on a CPU 26 (coop) and 16 (maple)


def whole_run(setting: Setting) -> Iterator[Row]:
    """Base-to-new on mini, from images to a table."""
    datasets = [ONE] if setting.short else list(MAIN)
    with tempfile.TemporaryDirectory() as folder:
        yield case("run", partial(base2new, setting, Path(folder), datasets))


def base2new(setting: Setting, folder: Path, datasets: list[str]) -> Row:
    """Accuracies on base and new classes, mean over the datasets, and whether training did anything."""
    methods = METHODS[:2] if setting.short else METHODS
    trained = [method for method in methods if method in TRAINED]
    called(setting, "run", "--method", *methods, "--dataset", *datasets, "--seeds", "1", *common(setting, folder))
    found = {method: mean(of_method(folder, method)) for method in methods}
    gained = min(found[method]["base/accuracy"] for method in trained) - found[UNTRAINED]["base/accuracy"]
    row: Row = {"accuracy": found, "gained": gained, "limits": {"gained": GAINED}}
    return {"passed": setting.short or gained >= GAINED, **row}  # two epochs gain nothing


def two_at_once(setting: Setting) -> Iterator[Row]:
    """Two processes that share the card, and the same runs one after the other: the same figures."""
    with tempfile.TemporaryDirectory() as folder:
        yield case("--jobs 2 --runs-per-gpu 2", partial(side_by_side, setting, Path(folder)))


def side_by_side(setting: Setting, folder: Path) -> Row:
    """Figures of both, under `--deterministic`."""
    what = ("--method", "coop", "--dataset", ONE, "--seeds", "1", "2", "--deterministic", "--set", "coop.epochs=3")
    called(setting, "run", *what, *common(setting, folder / "two"), "--jobs", "2", "--runs-per-gpu", "2")
    called(setting, "run", *what, *common(setting, folder / "one"), "--jobs", "1")
    two = [record["metrics"] for record in of_method(folder / "two", "coop")]
    one = [record["metrics"] for record in of_method(folder / "one", "coop")]
    return {"passed": two == one and len(two) == 2, "metrics": two, "one_after_the_other": one}


def common(setting: Setting, folder: Path) -> list[str]:
    """Flags of all calls; a short one trains for two epochs."""
    epochs = ["--set", "coop.epochs=2"] if setting.short else []
    return ["--device", setting.device, "--output", str(folder), *epochs]


def called(setting: Setting, *words: str) -> None:
    """Do a command of promptbench, and raise an error with what it said last if it fails."""
    environment = {**os.environ, "PROMPTBENCH_CACHE": tempfile.gettempdir() + "/promptbench-gpu-cache"}
    command, most = [sys.executable, "-m", "promptbench", *words], ON_GPUS if setting.on_gpu else None
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=most)
    if done.returncode:
        raise RuntimeError(f"`promptbench {' '.join(words)}` ended with {done.returncode}: {done.stderr[-300:]}")


def of_method(folder: Path, method: str) -> list[dict[str, Any]]:
    """The results of a method, in the order of their files' names."""
    paths = sorted((folder / "results").rglob("*.json"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    name, _, preset = method.partition("@")
    return [record for record in records if (record["spec"]["method"], record["spec"]["preset"]) == (name, preset)]


def mean(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean accuracies over results."""
    names = ("base/accuracy", "new/accuracy")
    return {name: fmean(record["metrics"][name] for record in records) for name in names}
