"""Full-spectrum OOD detection: shifted versions of the source are in-distribution too; OOD sets are near or far.

Yang et al., "Full-Spectrum Out-of-Distribution Detection", IJCV 2023, arXiv:2204.05306; Zhang et al., "OpenOOD v1.5:
Enhanced Benchmark for Out-of-Distribution Detection", arXiv:2306.09301.
Code by the authors: https://github.com/Jingkang50/OpenOOD
The training is that of `ood`. All images, those of shifted versions with fewer classes among them, are scored against
all class names of the source. In-distribution are the source's test images and, pooled with them image by image, those
of all shifted versions (metrics `full_auroc` and so on), or the source's test images alone (`auroc` and so on, as in
`ood`, which says what each metric is). `near` and `far` are averages over the OOD sets of a kind, `shifted` is one over
the shifted versions.
Differs from it: which versions are shifted is the suite's choice; OpenOOD's are ImageNet-V2, -C and -R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from promptbench.data.selection import Selection
from promptbench.protocol import Column, Evaluation, Numbers, Outcome, Plan, mean_over
from promptbench.suite import Suite

from .ood import ID, INSIDE, OOD, by_score, column_of, detections, plan_of, strangers

FULL = "full_"  # what metrics begin with that take shifted images for in-distribution
SHIFTED, NEAR, FAR = "shifted", "near", "far"
ROLES = {NEAR: "near_ood", FAR: "far_ood"}
HELP_SHIFTED = "shifted accuracy: the mean over shifted versions of the source, other pictures of its classes."
HELP = "FS, full spectrum: in-distribution are the source's test images and those of its shifted versions together."


class FullSpectrumOOD(OOD):
    """Whether a method notices images of none of its classes, and still takes other pictures of its classes, such as
    sketches, for its own: these shifted images count as in-distribution too. The figures are those of `ood`, averaged
    over sets that are near to the source and sets that are far from it, beside accuracy on shifted images."""

    recipes_of = "ood"
    metrics = (
        *("full_auroc", "full_fpr95", "full_aupr", "full_fpr95_ood", "full_aupr_ood"),
        *("auroc", "fpr95", "aupr", "fpr95_ood", "aupr_ood", "accuracy"),
    )
    in_all = False

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per source."""
        return [plan_of(source, suite.shots, evaluated(suite, source)) for source in suite.datasets("source")]

    def measure(self, outcomes: Mapping[str, Outcome], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
        """`<set>/<score>/<metric>` and `near` and `far` in the place of a set; accuracy and calibration on all images
        that have a class, and `shifted/accuracy`."""
        metrics, notes = super(OOD, self).measure(outcomes, plan)
        if ID not in outcomes:
            return metrics, notes
        groups = {group: members(plan, group) for group in (SHIFTED, NEAR, FAR)}
        sets = {name: outcomes[name] for name in (*groups[NEAR], *groups[FAR])}
        inside = outcomes[ID]
        for score, of_inside in inside.scores.items():
            of_shifted = [outcomes[name].scores[score] for name in groups[SHIFTED]]
            metrics |= detections(score, [of_inside, *of_shifted], sets, FULL)
            metrics |= detections(score, [of_inside], sets)
        metrics |= averages(metrics, groups, list(inside.scores))
        for score, reason in inside.missing.items():
            notes |= {f"{name}/{score}/": reason for name in [*sets, NEAR, FAR]}
        return metrics, notes

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """ID accuracy, the mean over shifted versions, the metric on each OOD set, near and far averages, and those of
        FPR95; of accuracy every shifted version."""
        said = f"{HELP_SHIFTED} {HELP}" if metric.startswith(FULL) else HELP_SHIFTED
        accuracy = [
            Column(f"{ID}/accuracy", "ID accuracy", help=INSIDE),
            Column(f"{SHIFTED}/accuracy", "shifted accuracy", help=said),
        ]
        others = [name for name in evaluations if name != ID]
        if metric == "accuracy":
            return [accuracy[0], *(Column(f"{name}/accuracy", name) for name in others), accuracy[1]]
        full = FULL if metric.startswith(FULL) else ""
        shown = dict.fromkeys([metric, f"{full}fpr95"])
        means = [titled(group, one) for one, group in product(shown, ROLES)]
        return [*accuracy, *(column(name, metric, name) for name in others), *means]

    def blocks(self, metric: str, dataset: str, along: int | None, metrics: Numbers) -> dict[str, Numbers]:
        """One block per score, whose figures lose the score's name; one of all for accuracy, which needs no score."""
        accuracy = {f"{ID}/accuracy", f"{SHIFTED}/accuracy"}
        if metric == "accuracy":
            return {"all": metrics}
        return by_score({key: value for key, value in metrics.items() if key in accuracy}, metrics)


def evaluated(suite: Suite, source: str) -> list[Evaluation]:
    """The shifted versions of a source, and the OOD sets that the suite has, near ones first.

    Raises:
        UsageError: The suite has no shifted versions, or no OOD sets.
    """
    inside = Selection(dataset=source, split="test")
    shifted = [
        Evaluation(
            name=name,
            selection=Selection(dataset=name, split="test"),
            names=inside,
            same_classes=True,
            group=SHIFTED,
        )
        for name in suite.datasets(SHIFTED)
    ]
    there = [group for group, role in ROLES.items() if role in suite.roles] or [NEAR]
    sets: list[Evaluation] = []
    for group in there:
        sets += strangers(source, suite.datasets(ROLES[group]), group)
    return [*shifted, *sets]


def members(plan: Plan, group: str) -> list[str]:
    """The evaluations of a group."""
    return [evaluation.name for evaluation in plan.evaluations if evaluation.group == group]


def averages(metrics: Numbers, groups: Mapping[str, Sequence[str]], scores: Sequence[str]) -> dict[str, float]:
    """`shifted/accuracy`, and `near/<score>/<metric>` and `far/<score>/<metric>`."""
    wanted = [(SHIFTED, "accuracy")]
    for group, score in product(ROLES, scores):
        wanted += [(group, f"{score}/{metric}") for metric in FullSpectrumOOD.metrics if metric != "accuracy"]
    found: dict[str, float] = {}
    for group, name in wanted:
        mean = mean_over(metrics, groups[group], name)
        found |= {f"{group}/{name}": value for value in mean.values()}
    return found


def column(name: str, metric: str, title: str) -> Column:
    """The column of a metric, which of the full spectrum has the direction and the help of the plain one."""
    return column_of(name, metric.removeprefix(FULL), title)._replace(key=f"{name}/{metric}")


def titled(group: str, metric: str) -> Column:
    """The column of an average, such as `near FS-AUROC`."""
    full, plain = metric.startswith(FULL), metric.removeprefix(FULL).upper()
    return column(group, metric, f"{group} {'FS-' if full else ''}{plain}")
