"""The figures that a report gives: both sides' seconds, their ratios, and what they have to reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .evaluations import plain_seconds
from .limit import CACHED, ENCODED, KNOWN
from .measure import CACHED as FROM_FEATURES
from .measure import MAIN, RECIPE_BATCH, VIT_B16
from .plain import PLAIN

WITHOUT_TOWERS = ("tip_adapter_f", "clip_adapter", "taskres", "clap")
"""Methods whose steps, on cached features, run no tower."""
LEAST_SHARE = 70.0
"""Percent of its limit that every step has to reach."""
RISING = 1.25
"""Times the seconds that the larger of two steps has to take, if more classes are to be counted from the two."""
RATIOS = (
    ("CoOp step, batch 32, ours cached, plain encodes", ("coop", CACHED, ENCODED, 32), 30),
    ("CoOp step, batch 32, cached on both sides", ("coop", CACHED, CACHED, 32), 16),
    ("CoOp step, batch 32, encoded on both sides", ("coop", ENCODED, ENCODED, 32), 2.4),
    ("CoCoOp step, batch 1, encoded on both sides", ("cocoop", ENCODED, ENCODED, 1), 13),
    ("CoCoOp step, batch 1, ours cached, plain encodes", ("cocoop", CACHED, ENCODED, 1), 20),
    ("CoCoOp step, batch 8", ("cocoop", ENCODED, ENCODED, 8), 12),
    ("MaPLe step, batch 4", ("maple", ENCODED, ENCODED, 4), 5.5),
    ("PromptSRC step, batch 4, frozen features known to ours", ("promptsrc", KNOWN, ENCODED, 4), 5),
    ("CLIP-LoRA step, batch 32", ("clip_lora", ENCODED, ENCODED, 32), 5),
    ("CLIP-LoRA step, batch 4", ("clip_lora", ENCODED, ENCODED, 4), 5),
    ("Tip-Adapter-F step, batch 256, ours cached, plain encodes", ("tip_adapter_f", CACHED, ENCODED, 256), 20),
)
"""What is asked of steps: in words; method, our images, plain's images, batch; the least ratio."""


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
    """The training step of a method at one size, beside the plain one.

    Attributes:
        images: Where our image features come from: `images`, `known` or `cached`.
        plain_images: The same of the plain path.
        ours: What was timed of ours: `first`, `seconds`, `peak_gib`, `gflop` and, of some, `operations`.
        rate: GFLOP/s of the matrix product in turn with it.
        plain: Seconds of the plain path, or None.
        estimated: Whether a part of them was counted.
        plain_gib: Memory of the plain path; None where that very step was not run.
    """

    method: str
    classes: int
    images: str
    plain_images: str
    batch: int
    ours: Mapping[str, Any]
    rate: float
    plain: float | None
    estimated: bool
    plain_gib: float | None

    @property
    def seconds(self) -> float:
        """Of ours."""
        return median(self.ours["seconds"])

    @property
    def ratio(self) -> float | None:
        """Plain seconds over ours."""
        return self.plain and self.plain / self.seconds

    @property
    def limit(self) -> float | None:
        """Seconds of the least there is to compute, at the rate of the matrix product."""
        return self.ours["gflop"] / self.rate if "gflop" in self.ours else None

    @property
    def share(self) -> float | None:
        """Percent of the limit that is reached."""
        return self.limit and 100 * self.limit / self.seconds

    @property
    def as_trained(self) -> bool:
        """Whether the batch is the recipe's, and images are as a training gets them."""
        usual = CACHED if self.method in FROM_FEATURES else ENCODED
        return self.batch == RECIPE_BATCH.get(self.method) and self.images == usual == self.plain_images


@dataclass(frozen=True)
class PlainSteps:
    """What was timed of the plain path on one backbone, and what follows from it."""

    groups: Sequence[Mapping[str, Any]]

    def piece(self, method: str, classes: int, images: str, batch: int) -> Mapping[str, Any] | None:
        """What was timed of one step, if it was."""
        for group in self.groups:
            if (group["method"], group["classes"]) == (method, classes):
                return group["pieces"].get(f"plain-{images}-{batch}")  # type: ignore[no-any-return]
        return None

    def timed(self, method: str, classes: int, images: str, batch: int) -> tuple[float | None, bool]:
        """Seconds at a number of classes that it was run with, and whether they were counted from a smaller step."""
        found = self.piece(method, classes, images, batch)
        if found is not None:
            return median(found["seconds"]), False
        if batch > 1 and method in PLAIN and PLAIN[method].per_image:  # one image after the other
            found = self.piece(method, classes, images, 1)
            return (found and batch * median(found["seconds"])), True
        return None, True

    def seconds(self, method: str, classes: int, images: str, batch: int) -> tuple[float | None, bool]:
        """Seconds, and whether a part of them was counted; None where nothing says them."""
        found, estimated = self.timed(method, classes, images, batch)
        if found is None:
            found = self.on_a_line(method, classes, images, batch)
        if found is None and images == ENCODED and method in FROM_FEATURES:
            beside, of_image = self.seconds(method, classes, CACHED, batch)[0], self.of_image()
            found = None if beside is None or of_image is None else beside + batch * of_image
        return found, estimated

    def on_a_line(self, method: str, classes: int, images: str, batch: int) -> float | None:
        """Seconds on a straight line through those at two smaller numbers of classes.

        None where these hardly differ: what a class costs is lost in what the rest took this time and the other.
        """
        sizes = sorted({group["classes"] for group in self.groups if group["method"] == method})
        timed = [(size, self.timed(method, size, images, batch)[0]) for size in sizes if size < classes]
        known = [(size, seconds) for size, seconds in timed if seconds is not None]
        if len(known) < 2:
            return None
        (few, low), (many, high) = known[-2:]
        if high < RISING * low:
            return None
        return high + (high - low) / (many - few) * (classes - many)

    def of_image(self) -> float | None:
        """Seconds of the frozen image tower for one image: a step that encodes without one that does not."""
        for group in self.groups:
            for name, piece in group["pieces"].items():
                side, images, batch = name.split("-")
                beside = group["pieces"].get(f"plain-{CACHED}-{batch}")
                if side == "plain" and images == ENCODED and beside:
                    return (median(piece["seconds"]) - median(beside["seconds"])) / int(batch)
        return None


def steps(groups: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Every step of ours, beside the plain one on the same images and, where ours has features, one that encodes."""
    plain, found = PlainSteps(groups), []
    for group in groups:
        method, classes = group["method"], group["classes"]
        for name, ours in group["pieces"].items():
            side, images, batch = name.split("-")
            if side != "ours":
                continue
            for of_plain in dict.fromkeys((images, ENCODED)):
                seconds, estimated = plain.seconds(method, classes, of_plain, int(batch))
                if seconds is None and of_plain != images:
                    continue
                piece = plain.piece(method, classes, of_plain, int(batch)) or {}
                rate, peak = median(group["matmul"]), piece.get("peak_gib")
                sizes = (method, classes, images, of_plain, int(batch))
                found.append(Step(*sizes, ours, rate, seconds, estimated and seconds is not None, peak))
    return [step for step in found if step.plain is not None or not has_sibling(step, found)]


def has_sibling(step: Step, others: Sequence[Step]) -> bool:
    """Whether the same step of ours is beside another plain one, that was timed."""
    return any(other.ours is step.ours and other.plain is not None for other in others)


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
    here = [step for step in steps(found["groups"]) if step.classes == MAIN]
    rows = [ratio_row(here, *asked) for asked in RATIOS]
    rows += [evaluation_row(evaluation) for evaluation in found["evaluations"]]
    rows += least_share(here)
    if "memory" in report:
        gib = report["memory"]["gib_over_weights"]
        rows.append(Row("CoCoOp, 1000 classes, batch 8, over the weights", None, None, gib, " GiB", 2.2, most=True))
    return rows


def ratio_row(here: Sequence[Step], what: str, sizes: tuple[str, str, str, int], bar: float) -> Row:
    """Plain over ours, of a method, where our and plain's image features come from, and a batch; empty if not run."""
    for step in here:
        if (step.method, step.images, step.plain_images, step.batch) == sizes:
            return Row(what, step.plain, step.seconds, step.ratio, bar=bar, estimated=step.estimated)
    return Row(what, None, None, None, bar=bar)


def evaluation_row(evaluation: Mapping[str, Any]) -> Row:
    """Plain over ours, of all methods evaluated."""
    plain, ours = evaluation_seconds(evaluation)
    what = f"evaluation, {len(evaluation['methods'])} methods x {len(evaluation['seeds'])} seeds"
    return Row(what, plain, ours, plain / ours, bar=14, estimated=True)


def least_share(here: Sequence[Step]) -> list[Row]:
    """Of CoOp, and the smallest of all methods that run a tower: the others' steps are thousandths of a second."""
    shares = {step.method: step.share for step in here if step.as_trained and step.share is not None}
    rows = [Row("share of the limit, CoOp cached", None, None, shares.get("coop"), "%", LEAST_SHARE)]
    of_towers = {method: share for method, share in shares.items() if method not in WITHOUT_TOWERS}
    if len(of_towers) > 1:
        worst = min(of_towers, key=lambda method: of_towers[method] or 0.0)
        what = f"share of the limit, the least of {len(of_towers)} methods ({worst})"
        rows.append(Row(what, None, None, of_towers[worst], "%", LEAST_SHARE))
    return rows


def matmul_rates(report: Mapping[str, Any]) -> list[list[float]]:
    """GFLOP/s of the matrix product, group by group, in order."""
    found = report["backbones"].values()
    return [part["matmul"] for one in found for part in (*one["groups"], *one["evaluations"])]
