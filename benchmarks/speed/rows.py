"""The figures that a report gives: both sides' seconds, their ratios, and what they have to reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

from .evaluations import plain_seconds
from .measure import MAIN, RECIPE_BATCH, VIT_B16
from .plain import PLAIN


@dataclass(frozen=True)
class Row:
    """A figure of both sides.

    Attributes:
        what: In words.
        plain: Median seconds of the plain path; None where it was not run.
        ours: Median seconds of ours.
        value: What is judged: plain over ours, or a figure of its own.
        unit: Behind the value.
        bar: What it has to reach; None where nothing is asked.
        most: Whether the bar is an upper one.
        estimated: Whether a part of `plain` was counted, not timed; the table says how.
    """

    what: str
    plain: float | None
    ours: float | None
    value: float | None
    unit: str = "x"
    bar: float | None = None
    most: bool = False
    estimated: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one or without a value."""
        if self.bar is None or self.value is None:
            return None
        return self.value <= self.bar if self.most else self.value >= self.bar


@dataclass(frozen=True)
class Step:
    """The training step of a method at one size.

    Attributes:
        images: `cached` or `images`, on both sides.
        plain: What was timed of the plain path, with `factor` to be multiplied by; None if it was not run.
        ours: What was timed of ours: `first`, `seconds`, `peak_gib`.
    """

    method: str
    classes: int
    images: str
    batch: int
    plain: Mapping[str, Any] | None
    factor: int
    ours: Mapping[str, Any]

    def row(self, groups: Sequence[Mapping[str, Any]]) -> Row:
        """Both sides and their ratio; where plain was not run at so many classes, from what it takes at fewer."""
        ours = median(self.ours["seconds"])
        plain, estimated = None, self.factor > 1
        if self.plain:
            plain = median(self.plain["seconds"]) * self.factor
        else:
            plain, estimated = extrapolated(self, groups), True
        return Row("", plain, ours, plain and plain / ours, estimated=estimated and plain is not None)


def steps(groups: Iterable[Mapping[str, Any]]) -> list[Step]:
    """Every step of ours, with the plain one beside it."""
    found = []
    for group in groups:
        for name, ours in group["pieces"].items():
            side, images, batch = name.split("-")
            if side == "ours":
                plain, factor = group["pieces"].get(f"plain-{images}-{batch}"), 1
                if plain is None and batch != "1" and PLAIN[group["method"]].per_image:  # one image after the other
                    plain, factor = group["pieces"].get(f"plain-{images}-1"), int(batch)
                found.append(Step(group["method"], group["classes"], images, int(batch), plain, factor, ours))
    return found


def extrapolated(step: Step, groups: Sequence[Mapping[str, Any]]) -> float | None:
    """Plain's seconds on a straight line through those at two smaller numbers of classes."""
    known = sorted(
        (other.classes, median(other.plain["seconds"]) * other.factor)
        for other in steps(groups)
        if (other.method, other.images, other.batch) == (step.method, step.images, step.batch) and other.plain
    )
    if len(known) < 2 or step.classes <= known[-1][0]:
        return None
    (few, low), (many, high) = known[-2:]
    return high + (high - low) / (many - few) * (step.classes - many)


def evaluation_seconds(evaluation: Mapping[str, Any], methods: Iterable[str] | None = None) -> tuple[float, float]:
    """Plain's and our seconds over methods and seeds."""
    chosen = [evaluation["methods"][name] for name in methods or evaluation["methods"]]
    plain = sum(plain_seconds(method["plain"]) for method in chosen) * len(evaluation["seeds"])
    return plain, sum(sum(method["ours"]) for method in chosen)


def bars(report: Mapping[str, Any]) -> list[Row]:
    """What the project wants to reach, for a CLIP of ViT-B/16's size and 100 classes; empty if that was not run."""
    found = report["backbones"].get(VIT_B16)
    if found is None or found["main_classes"] != MAIN:
        return []
    groups = [group for group in found["groups"] if group["classes"] in (MAIN, 0)]
    seconds = {(g["method"], name): median(p["seconds"]) for g in groups for name, p in g["pieces"].items()}
    rows = []

    def ratio(what: str, method: str, plain: str, ours: str, bar: float, times: int = 1) -> None:
        one, other = seconds.get((method, plain)), seconds.get((method, ours))
        value = one * times / other if one and other else None
        rows.append(Row(what, one and one * times, other, value, bar=bar, estimated=times > 1))

    ratio("CoOp step, batch 32, ours cached, plain encodes", "coop", "plain-images-32", "ours-cached-32", 25)
    ratio("CoOp step, batch 32, cached on both sides", "coop", "plain-cached-32", "ours-cached-32", 16)
    ratio("CoOp step, batch 32, encoded on both sides", "coop", "plain-images-32", "ours-images-32", 2.4)
    ratio("CoCoOp step, batch 8", "cocoop", "plain-images-1", "ours-images-8", 12, times=8)
    ratio("MaPLe step, batch 4", "maple", "plain-images-4", "ours-images-4", 4.5)
    if any(group["method"] == "clip_lora" for group in groups):  # the others were measured before it was there
        ratio("CLIP-LoRA step, batch 32", "clip_lora", "plain-images-32", "ours-images-32", 5)
        ratio("CLIP-LoRA step, batch 4", "clip_lora", "plain-images-4", "ours-images-4", 5)
    if any(group["method"] == "tip_adapter_f" for group in groups):
        what = "Tip-Adapter-F step, batch 256, ours cached, plain encodes"
        ratio(what, "tip_adapter_f", "plain-images-256", "ours-cached-256", 20)
    three = [rows[index].value for index in (1, 3, 4)]
    mean = prod(value or 0 for value in three) ** (1 / 3) if all(three) else None
    rows.append(Row("geometric mean: CoOp cached, CoCoOp, MaPLe", None, None, mean, bar=9.5))
    for evaluation in found["evaluations"]:
        plain, ours = evaluation_seconds(evaluation)
        what = f"evaluation, {len(evaluation['methods'])} methods x {len(evaluation['seeds'])} seeds"
        rows.append(Row(what, plain, ours, plain / ours, bar=10, estimated=True))
    rows.append(Row("FLOP/s over those of a matrix product, CoOp cached", None, None, share(found), "%", 50))
    if "memory" in report:
        gib = report["memory"]["gib_over_weights"]
        rows.append(Row("CoCoOp, 1000 classes, batch 8, over the weights", None, None, gib, " GiB", 2.5, most=True))
    return rows


def share(found: Mapping[str, Any]) -> float | None:
    """Percent of the matrix product's FLOP/s in the CoOp step on cached features: the smaller of the two counts."""
    name = f"ours-cached-{RECIPE_BATCH['coop']}"
    for group in found["groups"]:
        if group["method"] == "coop" and group["classes"] == found["main_classes"] and name in group["pieces"]:
            work = min(found["work"]["counted_gflop"], found["work"]["useful_gflop"])
            return 100 * work / median(group["pieces"][name]["seconds"]) / median(group["matmul"])
    return None


def matmul_rates(report: Mapping[str, Any]) -> list[list[float]]:
    """GFLOP/s of the matrix product, group by group, in order."""
    found = report["backbones"].values()
    return [part["matmul"] for one in found for part in (*one["groups"], *one["evaluations"])]
