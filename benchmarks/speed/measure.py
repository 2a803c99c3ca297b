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
from .steps import time_group
from .timing import Matmul, Turns, allocator, tune

SCHEMA = 2
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
ENCODED_TOO = ("coop",)
"""Those of them whose steps from pixels are timed as well; the others meet the same image tower."""
ALSO_KNOWN = {"cocoop": "cached", "mutual": "known", "promptsrc": "known"}
"""Methods for which the authors encode every image in every step, and what such features spare them here: all of the
image tower (`cached`), or its pass without prompts (`known`)."""
RECIPE_BATCH = {label: batch for label, batch in OF_RECIPES.items() if label in registry.names("methods")}
OTHER_BATCH = {"cocoop": 8, "mutual": 8, "clip_lora": 4}
MAIN = 100  # classes that the bars are for


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        backbones: Names, as `--backbone` of promptbench takes them.
        classes: Numbers of classes.
        methods: Those whose steps are timed.
        rounds: Turns of each group of steps, after the first calls.
        turn: Seconds that a step may take of a round, if it is to be taken more than once in it.
        slow: Seconds of a step that takes one turn alone.
        plain_limit: The most class texts in a step of the plain path on a large backbone and on a small one; beyond it,
            its seconds are computed from those at fewer classes.
        check_limit: The most classes that the steps of both paths are compared with.
        test_images: Images of an evaluation.
        seeds: Of an evaluation.
        matmul: Rows of the matrices whose product measures the machine.
        memory: Whether the memory of CoCoOp's step is measured in a process of its own.
        steps_only: Whether neither that nor reading nor evaluations are measured.
        tuned: Whether glibc keeps freed memory, for both sides.
    """

    backbones: tuple[str, ...] = (VIT_B16, "mini")
    classes: tuple[int, ...] = (20, MAIN, 1000)
    methods: tuple[str, ...] = tuple(RECIPE_BATCH)
    rounds: int = 2
    turn: float = 5.0
    slow: float = 12.0
    plain_limit: tuple[int, int] = (160, 4000)
    check_limit: int = 5
    test_images: int = 100
    seeds: tuple[int, ...] = (1, 2, 3)
    matmul: int = 2048
    memory: bool = True
    steps_only: bool = False
    tuned: bool = False


Report = dict[str, Any]


def begun(settings: Settings) -> Report:
    """A report in which nothing is measured yet."""
    return {
        "schema": SCHEMA,
        "machine": facts(),
        "allocator": allocator(settings.tuned),
        "settings": json.loads(json.dumps(asdict(settings))),
        "backbones": {},
    }


def measure(
    settings: Settings,
    tell: Callable[[str], None] = print,
    report: Report | None = None,
    keep: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Everything that the settings ask for.

    Args:
        settings: What to measure.
        tell: Hears what is being done.
        report: One that was begun with the same settings; what it has is not measured again.
        keep: Called with the report whenever something is added to it.
    """
    if settings.tuned:
        tune()
    report = begun(settings) if report is None else report
    matmul = Matmul(settings.matmul)
    for _ in range(5):
        matmul()
    for name in settings.backbones:
        found = report["backbones"].setdefault(Path(name).name, {"groups": [], "evaluations": []})
        found["main_classes"] = main_classes(settings.classes)
        measure_backbone(name, settings, matmul, tell, found, lambda: keep(report))
    if settings.memory and not settings.steps_only and "memory" not in report:
        tell("memory of cocoop, 1000 classes, batch 8")
        report["memory"] = memory("cocoop", classes=1000, batch=8)
        keep(report)
    return report


def measure_backbone(
    name: str,
    settings: Settings,
    matmul: Matmul,
    tell: Callable[[str], None],
    found: dict[str, Any],
    keep: Callable[[], None],
) -> None:
    """Adds to `found` what is not yet in it of one backbone."""
    backbone = load_backbone(name)
    small = backbone.text_width < SMALL
    turns = Turns(matmul, settings.rounds, settings.turn, settings.slow)
    main, called = found["main_classes"], Path(name).name
    known = {(group["method"], group["classes"]) for group in found["groups"]}
    for label, classes, names in plan(settings, small):
        if (label, classes) in known:
            continue
        tell(f"{called}: steps of {label}, {classes} classes")
        checked = min(classes, settings.check_limit) if classes == main else 0
        found["groups"].append(time_group(label, backbone, classes, names, turns, checked, classes == main))
        keep()
    if settings.steps_only:
        return
    if ("reading", 0) not in known:
        tell(f"{called}: reading images")
        found["groups"].append(time_reading(backbone, RECIPE_BATCH["coop"], turns))
        keep()
    evaluated = {evaluation["classes"] for evaluation in found["evaluations"]}
    for classes in settings.classes if small else (main,):
        if classes not in evaluated:
            tell(f"{called}: evaluations, {classes} classes")
            done = time_evaluations(backbone, classes, settings.test_images, settings.seeds, matmul)
            found["evaluations"].append(done)
            keep()


def main_classes(classes: Sequence[int]) -> int:
    """The number of classes that everything is measured with."""
    return MAIN if MAIN in classes else max(classes)


def plan(settings: Settings, small: bool) -> Iterator[tuple[str, int, list[str]]]:
    """Method, classes and names of the steps of each group, as `Pair.piece` reads them; what matters most first."""
    main = main_classes(settings.classes)
    for classes in sorted(settings.classes, key=lambda classes: (classes != main, classes)):
        for label in settings.methods:
            whole = runs_whole(label, classes, settings, small)
            yield label, classes, list(pieces(label, classes == main, whole))
    fewest = min(settings.classes)
    for label in settings.methods:
        if not runs_whole(label, main, settings, small) and fewest > 1:  # a line takes two points
            yield label, fewest // 2, list(pieces(label, main=False, whole=True))


def runs_whole(label: str, classes: int, settings: Settings, small: bool) -> bool:
    """Whether the plain path of a method is run with so many classes, on a large backbone or a small one."""
    return classes * PLAIN[label].prompts_per_class <= settings.plain_limit[small]


def pieces(label: str, main: bool, whole: bool) -> Iterator[str]:
    """Names of the steps: side, where image features come from, batch; plain ones where it is run as a `whole`."""
    batch, other = RECIPE_BATCH[label], OTHER_BATCH.get(label)
    cached = label in CACHED
    sources = ["cached" if cached else "images"]
    if cached and main and label in ENCODED_TOO:
        sources.append("images")
    for source in sources:
        if whole:
            yield f"plain-{source}-{batch}"
        yield f"ours-{source}-{batch}"
    if label in ALSO_KNOWN:
        yield f"ours-{ALSO_KNOWN[label]}-{batch}"
    if other and whole and main:
        if not PLAIN[label].per_image:
            yield f"plain-{sources[0]}-{other}"
        yield f"ours-{sources[0]}-{other}"


def memory(method: str, *, classes: int, batch: int) -> dict[str, Any]:
    """What `promptbench.benchmarks.speed.memory` measures, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "memory.json"
        sizes = ["--classes", str(classes), "--batch", str(batch), "-o", str(report)]
        command = [sys.executable, "-m", "promptbench.benchmarks.speed.memory", "--method", method, *sizes]
        subprocess.run(command, check=True, capture_output=True)
        (row,) = json.loads(report.read_text())
    return row  # type: ignore[no-any-return]
