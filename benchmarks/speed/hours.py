"""An estimate of the hours that the suite of public datasets takes: all methods, five protocols, three seeds.

    python -m promptbench.benchmarks.speed.hours -o results/measured/hours

Nothing is run: runs are planned as `promptbench run` plans them, datasets have the sizes that their facts say,
operations are counted (`counted.py`), and machines are the figures of `MACHINES`. Writes a report (`.json`) and its
page (`.md`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from promptbench import registry
from promptbench.clip.backbone import Backbone
from promptbench.data.dataset import DatasetInfo
from promptbench.data.selection import Selection
from promptbench.runs.plan import Run, decisive
from promptbench.storage.versions import git_commit, library_versions
from promptbench.suite import Suite

SUITE = "clip11"
PROTOCOLS = ("base2new", "cross_dataset", "domain_generalization", "ood", "few_shot")
SEEDS = (1, 2, 3)
BACKBONE = "ViT-B-16-quickgelu:random"  # of the suite's size
READING = 0.005  # seconds of one core for one photograph: decoding, cropping and scaling; assumed


HOW = (
    "Operations are those that torch counts in our steps on a CLIP of ViT-B/16's size, at small sizes, and computed "
    "for others; datasets have the sizes that papers state, and names have three words each. Left out: what is done "
    "once before a training, such as the texts that a method is held to, and what grows with the square of the "
    "classes, as in caches. Reading, training and evaluation are added up, though they may overlap."
)


@dataclass(frozen=True)
class Machine:
    """What a machine is taken to do.

    Attributes:
        operations: A second, in float32.
        least: Seconds of a training step, however small: a GPU is told of its kernels one by one.
        cores: That read images.
        source: Where the figures come from.
    """

    operations: float
    least: float
    cores: int
    source: str


MACHINES = {
    "one H100": Machine(
        0.5 * 67e12, 0.02, 16, "half of the 67 TFLOP/s that its data sheet (SXM) states for FP32 without tensor cores"
    ),
    "one laptop": Machine(
        0.5 * 8 * 3e9 * 32, 0.0, 8, "half of what 8 cores at 3 GHz can do with two AVX2 units of multiply-adds each"
    ),
}


@dataclass
class Bill:
    """What runs of one method do.

    Attributes:
        runs: All of them.
        trainings: Those that differ; others are shared.
        steps: Of all trainings.
        training: Operations of the steps.
        evaluation: Operations of texts, scores, and images that are encoded for this method alone.
        images: That are read for it, each random view of a training one counted.
        small: Operations of a step, by their number, for steps that a machine may have a least time for.
    """

    runs: int = 0
    trainings: int = 0
    steps: int = 0
    training: float = 0.0
    evaluation: float = 0.0
    images: float = 0.0
    small: list[tuple[float, int]] = field(default_factory=list)

    def hours(self, machine: Machine) -> dict[str, float]:
        """By part, on a machine."""
        training = sum(steps * max(machine.least, work / machine.operations) for work, steps in self.small)
        return {
            "training": training / 3600,
            "evaluation": self.evaluation / machine.operations / 3600,
            "reading": self.images * READING / machine.cores / 3600,
        }


@dataclass
class Suites:
    """Counts the work of methods over the suite.

    Attributes:
        shared: (dataset, split) of images that are encoded once for all methods with a frozen image tower.
    """

    backbone: Backbone
    shared: set[tuple[str, str]] = field(default_factory=set)

    def bill(self, label: str) -> Bill:
        """Of all runs of a method."""
        from .counted import count_ours, made

        suite, runs = planned(label)
        method = made(label, self.backbone, classes=4)
        counts: dict[bool, Any] = {}
        found, trained = Bill(runs=len(runs)), set()
        for run in runs:
            info = info_of(suite, run.plan.train.dataset)
            classes = classes_of(info, run.plan.train)
            recipe = run.settings.recipe
            cached = bool(recipe) and method.frozen_image_tower and bool(recipe.train_views or not recipe.augment)
            if cached not in counts:
                counts[cached] = count_ours(label, self.backbone, cached)
            key = (
                run.plan.train,
                run.spec.data_seed,
                run.spec.train_seed,
                repr(run.settings.config),
                repr(decisive(recipe)),
            )
            if recipe is not None and counts[cached].step is not None and key not in trained:
                trained.add(key)
                self._train(run, classes, cached, counts[cached].step, found)
            self._evaluate(run, suite, method, counts[cached], found)
        found.trainings = len(trained)
        return found

    def _train(self, run: Run, classes: int, cached: bool, step: Any, found: Bill) -> None:
        """Add a training."""
        from promptbench.data.batches import count_batches

        recipe = run.settings.recipe
        assert recipe is not None
        images = classes * (run.plan.train.shots or 0)
        steps = recipe.total_steps(count_batches(images, recipe.batch, recipe.drop_last))
        work = step.at(classes, min(recipe.batch, images))
        found.steps += steps
        found.training += steps * work
        found.images += images if cached else steps * recipe.batch
        found.small.append((work, steps))

    def _evaluate(self, run: Run, suite: Suite, method: Any, counts: Any, found: Bill) -> None:
        """Add the evaluations of a run."""
        from promptbench.data.features import fits

        seen: set[tuple[str, str]] = set()
        for evaluation in run.plan.evaluations:
            selection = evaluation.selection
            info, place = info_of(suite, selection.dataset), (selection.dataset, selection.split)
            classes = classes_of(info_of(suite, evaluation.shown.dataset), evaluation.shown)
            images = images_of(info, selection)
            dense = run.reads_dense or method.reads_dense
            found.evaluation += counts.text.at(classes, 0) + counts.scores.at(classes, images)
            if method.frozen_image_tower and (not dense or fits(self.backbone, images, method.half_dense)):
                self.shared.add(place)
            elif method.frozen_image_tower or method.encodes_images_apart:
                new = images if dense or place not in seen else 0
                found.evaluation += counts.image.at(0, new)
                found.images += new
                seen.add(place)
            else:
                found.images += images


def planned(label: str) -> tuple[Suite, list[Run]]:
    """The suite, and the runs of a method on it."""
    from promptbench.cli.flags import request_of
    from promptbench.cli.main import parser
    from promptbench.runs.plan import plan_runs

    words = ["run", "--suite", SUITE, "--method", label, "--protocol", *PROTOCOLS, "--seeds", *map(str, SEEDS)]
    request = request_of(parser().parse_args(words))
    return request.suite, [run for run in plan_runs(request) if run.spec.label == label]


def info_of(suite: Suite, name: str) -> DatasetInfo:
    """The facts of a dataset of the suite."""
    found: DatasetInfo = registry.load("datasets", suite.entry(name).dataset).info
    return found


def classes_of(info: DatasetInfo, selection: Selection) -> int:
    """How many classes a selection has."""
    half = (info.classes + 1) // 2
    return {"all": info.classes, "base": half, "new": info.classes - half}[selection.classes]


def images_of(info: DatasetInfo, selection: Selection) -> int:
    """How many images a selection of a whole split has, halves taken as equal."""
    images = info.images[("train", "val", "test").index(selection.split)]
    return images if selection.classes == "all" else images // 2


def estimate(methods: Sequence[str], backbone: Backbone) -> dict[str, Any]:
    """The report: a row for each method, and one for what they share."""
    suites, rows = Suites(backbone), []
    for label in methods:
        bill = suites.bill(label)
        rows.append(row_of(label, bill))
        print(f"... {label}", flush=True)
    from .counted import count_ours

    suite, _ = planned(methods[0])
    images = sum(images_of(info_of(suite, name), Selection(dataset=name, split="test")) for name, _ in suites.shared)
    shared = Bill(evaluation=count_ours("zeroshot", backbone, cached=True).image.at(0, images), images=images)
    rows.append(row_of("images encoded once for all", shared))
    return {
        "suite": SUITE,
        "protocols": PROTOCOLS,
        "seeds": SEEDS,
        "reading": READING,
        "machines": {name: asdict(machine) for name, machine in MACHINES.items()},
        "rows": rows,
        "commit": git_commit(),
        "versions": library_versions(),
    }


def row_of(label: str, bill: Bill) -> dict[str, Any]:
    """A line of the report."""
    hours = {name: bill.hours(machine) for name, machine in MACHINES.items()}
    return {
        "method": label,
        "runs": bill.runs,
        "trainings": bill.trainings,
        "steps": bill.steps,
        "training, PFLOP": bill.training / 1e15,
        "evaluation, PFLOP": bill.evaluation / 1e15,
        "images read, thousands": bill.images / 1000,
        "hours": hours,
    }


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    machines = report["machines"]
    lines = ["# Hours of the whole suite, an estimate", ""]
    said = f"`{report['suite']}` under {', '.join(report['protocols'])}, seeds {', '.join(map(str, report['seeds']))}"
    lines += [f"**Nothing of this was run.** {said}, in float32, one run after the other. {HOW}", ""]
    for name, machine in machines.items():
        least = f", no step below {1000 * machine['least']:.0f} ms (assumed)" if machine["least"] else ""
        reading = f"{machine['cores']} cores read images, {1000 * report['reading']:.0f} ms each (assumed)"
        rate = f"{machine['operations'] / 1e12:.3g} TFLOP/s, {machine['source']}"
        lines.append(f"* {name}: {rate}{least}; {reading}.")
    head = ["method", "runs", "trainings", "steps", "training, PFLOP", "evaluation, PFLOP", "images read, thousands"]
    lines += ["", f"| {' | '.join([*head, *(f'{name}, hours' for name in machines)])} |"]
    lines.append(f"| --- |{' ---: |' * (len(head) - 1 + len(machines))}")
    totals = dict.fromkeys(machines, 0.0)
    for row in report["rows"]:
        cells = [row["method"], *(f"{row[name]:,.0f}" for name in head[1:])]
        for name in machines:
            hours = sum(row["hours"][name].values())
            totals[name] += hours
            cells.append(f"{hours:,.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| all |{' |' * (len(head) - 1)} {' | '.join(f'{hours:,.0f}' for hours in totals.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count, print, and write the report and its page."""
    parser = argparse.ArgumentParser(description="Estimate the hours of the suite of public datasets.")
    parser.add_argument("--method", nargs="+", help="default: all")
    parser.add_argument("--backbone", default=BACKBONE, help="in which operations are counted")
    parser.add_argument("--render", metavar="FILE", help="a report; its page is written beside it")
    parser.add_argument("-o", "--output", metavar="PATH", help="of the two files, without their ending")
    options = parser.parse_args()
    if options.render:
        path = Path(options.render)
        path.with_suffix(".md").write_text(page(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    from promptbench.clip.load import load_backbone

    report = estimate(options.method or registry.names("methods"), load_backbone(options.backbone))
    print(page(report))
    if options.output:
        path = Path(options.output)
        path.with_name(f"{path.name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        path.with_name(f"{path.name}.md").write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
