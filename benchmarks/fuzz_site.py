"""What is valid before it is spoilt: images, a data root, runs, an export, samples and checkpoints, made once."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from promptbench.cli import main
from promptbench.dataset import Dataset, open_dataset
from promptbench.method import Method, create_method
from promptbench.resuming import PartialFile
from promptbench.samples import write_sample
from promptbench.weights import load_backbone

BIRDS = ("finch", "hawk", "owl", "wren")
SETTINGS = ("coop.epochs=2", "coop.batch=4")


class Datum:
    """Stands for `dassl.data.datasets.base_dataset.Datum`, which CoOp pickles."""

    def __init__(self, image: str, label: int, name: str) -> None:
        self._impath, self._label, self._domain, self._classname = image, label, 0, name


@dataclass(frozen=True)
class Site:
    """A folder with valid inputs; cases copy from it and never write to it.

    Attributes:
        folder: Holds `birds` (class folders), `data` (a data root with a split file), `runs`, `export` and `cache`.
        backbone: Its name.
        suite: Keys of a suite with the birds.
        method: CoOp on the birds.
        dataset: The birds.
        metrics: What the runs measured, by label.
    """

    folder: Path
    backbone: str
    suite: dict[str, Any]
    method: Method
    dataset: Dataset
    metrics: dict[str, dict[str, float]]

    def words(self, method: str, output: Path, *more: str) -> tuple[str, ...]:
        """A call of `run` on the birds."""
        settings = ("--set", *SETTINGS) if method == "coop" else ()
        return (
            "run",
            "--suite",
            str(self.folder / "suite.yaml"),
            "--method",
            method,
            *settings,
            "--output",
            str(output),
            *more,
        )

    def results(self, runs: Path, method: str = "*") -> list[Path]:
        """The result files of a copy of its runs."""
        return sorted(runs.glob(f"results/*/birds/{method}-*.json"))

    def copy(self, name: str, work: Path) -> Path:
        """A copy of one of its folders."""
        return Path(shutil.copytree(self.folder / name, work / name))


def make_site(folder: Path, backbone: str) -> Site:
    """Make everything; runs the command a few times."""
    draw_images(folder / "birds", BIRDS)
    make_root(folder / "data")
    entry = {"name": "birds", "dataset": "folder", "root": str(folder / "birds")}
    suite = {"title": "Fuzz", "backbone": backbone, "shots": 2, "seeds": [1], "threads": 1, "ranked": True}
    suite |= {"roles": {"base2new": [entry]}, "methods": {"coop": {"recipe": {"epochs": 2}, "config": {"n_ctx": 4}}}}
    (folder / "suite.yaml").write_text(json.dumps(suite))
    dataset = open_dataset("folder", {"root": str(folder / "birds")}, alias="birds")
    method = create_method("coop", load_backbone(backbone), dataset.class_names, n_ctx=4)
    site = Site(folder, backbone, suite, method, dataset, {})
    remove, PartialFile.remove = PartialFile.remove, lambda self: None  # type: ignore[method-assign, assignment]
    try:
        _must(site.words("zeroshot", folder / "runs", "--save-predictions"))
        _must(site.words("coop", folder / "runs", "--save-predictions"))
    finally:
        PartialFile.remove = remove  # type: ignore[method-assign]
    (result,) = site.results(folder / "runs", "coop")
    _must(("export", "--run", str(result), "-o", str(folder / "export")))
    for path in site.results(folder / "runs"):
        record = json.loads(path.read_text())
        site.metrics[record["spec"]["method"]] = record["metrics"]
    return site


def _must(words: tuple[str, ...]) -> None:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(words)
    if code:
        raise RuntimeError(f"{words} failed: {said.getvalue()}")


def draw_images(folder: Path, names: tuple[str, ...], each: int = 8) -> None:
    """Noise around a colour, a folder for each class."""
    generator = np.random.default_rng(0)
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 128, (24, 24, 3)) + 40 * index % 128
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{number}.png")


def make_root(root: Path) -> None:
    """A data root with four classes of DTD and their split file."""
    draw_images(root / "dtd" / "images", BIRDS, each=6)
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(split()))


def split() -> dict[str, list[list[Any]]]:
    """A split as CoOp's files have it."""
    places = {"train": range(0, 3), "val": range(3, 4), "test": range(4, 6)}
    return {
        part: [[f"{name}/{number}.png", label, name] for label, name in enumerate(BIRDS) for number in numbers]
        for part, numbers in places.items()
    }


def sample_lines(site: Site, work: Path) -> list[Any]:
    """A few-shot sample as a jsonl file has it, line by line."""
    path = work / "valid.jsonl"
    write_sample(path, {"dataset": "birds", "shots": 2, "seed": 1, "sampler": "coop"}, few(site))
    return [json.loads(line) for line in path.read_text().splitlines()]


def few(site: Site) -> list[Any]:
    """Two training images of every class."""
    items = site.dataset.items("train")
    return [item for label in range(len(BIRDS)) for item in [one for one in items if one.label == label][:2]]


def datums(site: Site) -> dict[str, list[Datum]]:
    """The same as CoOp's pickles have it."""
    listed = [Datum(f"/data/birds/{item.image}", item.label, item.class_name) for item in few(site)]
    return {"train": listed, "val": listed[:2]}


def checkpoint(site: Site) -> dict[str, Any]:
    """What an official checkpoint of CoOp holds."""
    ours = site.method.official_parameters()
    state = {name: parameter.detach().clone() for name, parameter in ours.items()}
    state["prompt_learner.token_prefix"] = torch.zeros(4, 1, 8)
    return {"state_dict": state, "epoch": 2, "optimizer": {"state": {}}, "scheduler": None, "val_result": 50.0}


class Evil:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, marker: Path, how: int) -> None:
        self.marker, self.how = str(marker), how

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        import os

        ways: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
            (open, (self.marker, "w")),
            (os.system, (f"touch {self.marker}",)),
            (eval, (f"open({self.marker!r}, 'w')",)),
            (Path.touch, (Path(self.marker),)),
            (torch.save, (0, self.marker)),
        )
        return ways[self.how % len(ways)]


def evil_pickle(marker: Path, how: int, protocol: int) -> bytes:
    """A pickle that would create a file, alone, in a list or as the state of something harmless."""
    evil = Evil(marker, how)
    held: tuple[Any, ...] = (evil, {"train": [evil]}, {"train": [], "val": evil}, {"state_dict": {"a": evil}}, [evil])
    return pickle.dumps(held[how % 5 if protocol % 2 else how // 5 % 5], protocol=protocol)


@cache
def known_backbone(name: str) -> Any:
    """A backbone, loaded once for all cases."""
    return load_backbone(name)
