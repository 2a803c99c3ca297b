"""What a run of the benchmark measures, as data; nothing is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.clip.load import load_backbone

from .evaluations import time_evaluations
from .machine import facts
from .plain import PLAIN
from .reading import time_reading
from .steps import floating_point_work, time_group
from .timing import Matmul, Turns, allocator, tune

SCHEMA = 1
VIT_B16 = "ViT-B-16-quickgelu:random"
SMALL = 256  # a narrower text tower is cheap enough for everything to be run
# Batches of the recipes, and others that are timed besides.
OF_RECIPES = {
    "coop": 32,
    "cocoop": 1,
    "gallop": 32,
    "vpt": 4,
    "ivlp": 4,
    "maple": 4,
    "promptsrc": 4,
    "mutual": 1,
    "dpl": 4,
    "kgcoop": 128,
    "prograd": 32,
    "tcp": 32,
    "locoop": 32,
    "tip_adapter_f": 256,
    "clip_adapter": 32,
    "taskres": 256,
    "clap": 256,
    "clip_lora": 32,
    "mma": 16,
}
CACHED = ("coop", "kgcoop", "prograd", "tcp", "tip_adapter_f", "clip_adapter", "taskres", "clap")
"""Methods that train on image features, known beforehand where images are shown in a fixed number of views."""
BY_CHOICE = ("kgcoop", "prograd", "tcp", "locoop", "clip_adapter", "taskres", "clap", "mma")
"""Methods whose steps are timed on a large backbone where they are named alone."""
RECIPE_BATCH = {label: batch for label, batch in OF_RECIPES.items() if label in registry.names("methods")}
OTHER_BATCH = {"coop": 256, "cocoop": 8, "mutual": 8, "maple": 16, "clip_lora": 4}
MAIN = 100  # classes that the bars are for


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        backbones: Names, as `--backbone` of promptbench takes them.
        classes: Numbers of classes.
        methods: Those whose steps are timed on a large backbone; on a small one, all are.
        rounds: Turns of each group of steps, after the first calls.
        turn: Seconds that a step may take of a round, if it is to be taken more than once in it.
        plain_limit: The most class texts in a step of the plain path on a large backbone; beyond it, its seconds are
            computed from those at fewer classes.
        check_limit: The most classes that the steps of both paths are compared with on a large backbone.
        test_images: Images of an evaluation.
        seeds: Of an evaluation.
        matmul: Rows of the matrices whose product measures the machine.
        memory: Whether the memory of CoCoOp's step is measured in a process of its own.
        steps_only: Whether neither that nor reading nor evaluations are measured.
        tuned: Whether glibc keeps freed memory, for both sides.
    """

    backbones: tuple[str, ...] = (VIT_B16, "mini")
    classes: tuple[int, ...] = (20, MAIN, 1000)
    methods: tuple[str, ...] = tuple(label for label in RECIPE_BATCH if label not in BY_CHOICE)
    rounds: int = 2
    turn: float = 10.0
    plain_limit: int = 160
    check_limit: int = 20
    test_images: int = 100
    seeds: tuple[int, ...] = (1, 2, 3)
    matmul: int = 2048
    memory: bool = True
    steps_only: bool = False
    tuned: bool = False


def measure(settings: Settings, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Everything that the settings ask for; `tell` hears what is being done."""
    if settings.tuned:
        tune()
    matmul = Matmul(settings.matmul)
    for _ in range(5):
        matmul()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": facts(),
        "allocator": allocator(settings.tuned),
        "settings": asdict(settings),
        "backbones": {},
    }
    if settings.memory and not settings.steps_only:
        tell("memory of cocoop, 1000 classes, batch 8")
        report["memory"] = memory("cocoop", classes=1000, batch=8)
    for name in settings.backbones:
        report["backbones"][Path(name).name] = on_backbone(name, settings, matmul, tell)
    return report


def on_backbone(name: str, settings: Settings, matmul: Matmul, tell: Callable[[str], None]) -> dict[str, Any]:
    """The figures of one backbone."""
    backbone = load_backbone(name)
    small = backbone.text_width < SMALL
    turns = Turns(matmul, settings.rounds, settings.turn)
    main = main_classes(settings.classes)
    found: dict[str, Any] = {"main_classes": main, "groups": [], "evaluations": []}
    for label, classes, names in plan(settings, small):
        tell(f"{Path(name).name}: steps of {label}, {classes} classes")
        checked = classes if small else settings.check_limit
        found["groups"].append(time_group(label, backbone, classes, names, turns, checked))
    if not settings.steps_only:
        tell(f"{Path(name).name}: reading images")
        found["groups"].append(time_reading(backbone, RECIPE_BATCH["coop"], turns))
    found["work"] = floating_point_work(backbone, main, RECIPE_BATCH["coop"])
    evaluated = settings.classes if small else (main,)
    for classes in () if settings.steps_only else evaluated:
        tell(f"{Path(name).name}: evaluations, {classes} classes")
        found["evaluations"].append(time_evaluations(backbone, classes, settings.test_images, settings.seeds, matmul))
    return found


def main_classes(classes: Sequence[int]) -> int:
    """The number of classes that everything is measured with."""
    return MAIN if MAIN in classes else max(classes)


def plan(settings: Settings, small: bool) -> Iterator[tuple[str, int, list[str]]]:
    """Method, classes and names of the steps of each group, as `Pair.piece` reads them."""
    most = main_classes(settings.classes)

    def whole(label: str, classes: int) -> bool:
        """Whether the plain path is run."""
        return small or classes * PLAIN[label].prompts_per_class <= settings.plain_limit

    for classes in settings.classes:
        for label in RECIPE_BATCH:
            others = ("coop", "cocoop", "clip_lora", *(["maple"] * whole("maple", classes)))  # at other numbers
            if not whole(label, most) and classes < most:
                others = (*others, label)
            if (small or label in settings.methods) and (classes == most or label in others):
                yield label, classes, list(pieces(label, classes == most, small, whole(label, classes)))


def pieces(label: str, main: bool, small: bool, whole: bool) -> Iterator[str]:
    """Names of the steps: side, where image features come from, batch."""
    batch, other = RECIPE_BATCH[label], OTHER_BATCH.get(label)
    cached = label in CACHED
    if whole and cached:
        yield f"plain-cached-{batch}"
    if cached:
        yield f"ours-cached-{batch}"
    if main or not cached:
        if whole:
            yield f"plain-images-{batch}"
        yield f"ours-images-{batch}"
    if other and whole and (main or label == "cocoop"):
        source = "cached" if cached else "images"
        if not PLAIN[label].per_image:
            yield f"plain-{source}-{other}"
        yield f"ours-{source}-{other}"


def memory(method: str, *, classes: int, batch: int) -> dict[str, Any]:
    """What `promptbench.benchmarks.speed.memory` measures, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "memory.json"
        sizes = ["--classes", str(classes), "--batch", str(batch), "-o", str(report)]
        command = [sys.executable, "-m", "promptbench.benchmarks.speed.memory", "--method", method, *sizes]
        subprocess.run(command, check=True, capture_output=True)
        (row,) = json.loads(report.read_text())
    return row  # type: ignore[no-any-return]
