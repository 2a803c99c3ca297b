"""From base to new classes: train on the first half of the classes, evaluate on both halves apart.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
Code by the authors: https://github.com/KaiyangZhou/CoOp (`scripts/cocoop`)
Base test images are scored against the base class names only, new ones against the new names only. The harmonic mean is

    H = 2 * base * new / (base + new)

Halves are the field's, by the order of the labels; `split: random:N` draws others, with the seed N.
`joint` scores all test images against all names, as Zhou et al., "DeCoOp", ICML 2024, arXiv:2406.00345, report it.
`open_world_auc` asks of pairs of a base and a new image whether both are recognised among the names of their half, and
the base image seems to be the base one; see `metrics.classification.OpenWorld`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from promptbench.data.selection import Selection
from promptbench.metrics.classification import OpenWorld, harmonic_mean, open_world
from promptbench.protocol import Column, Evaluation, Outcome, Plan, Protocol, metric_column
from promptbench.suite import Suite

OPEN_WORLD = "open_world_auc"
EVALUATIONS = ("base", "new", "joint")
HELP = (
    "base: accuracy on images of the classes trained on, among their names; new: on images of the other classes, among "
    "theirs; H: the harmonic mean of both."
)
HELP_JOINT = "joint: accuracy on base and new images together, among all names."
HELP_OPEN_WORLD = (
    "OpenworldAUC: the share of pairs of a base and a new image in which both are recognised among the names of their "
    "half, and the base image is the one that seems to be base."
)


class Base2New(Protocol):
    """What a method gains on the classes that it is trained on, and what it loses on others: half of a dataset's
    classes, `base`, are trained on, and images of both halves are classified. Accuracy on base and on new classes, each
    among its own names, is summed up by their harmonic mean H, which is low where either is."""

    role = "base2new"
    halves = True
    metrics = (*Protocol.metrics, OPEN_WORLD)

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per dataset of the suite's role `base2new` and split of its classes."""
        plans = []
        for dataset in suite.datasets("base2new"):
            plans += [_plan(dataset, suite.shots, halves) for halves in suite.split]
        return plans

    def measure(self, outcomes: Mapping[str, Outcome], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
        """Adds `open_world_auc` where base, new and joint images are all scored."""
        metrics, notes = super().measure(outcomes, plan)
        missing = [name for name in EVALUATIONS if name not in outcomes]
        if not missing:
            metrics[OPEN_WORLD] = paired(*(outcomes[name] for name in EVALUATIONS)).auc()
        elif {evaluation.name for evaluation in plan.evaluations}.issuperset(EVALUATIONS):
            notes[OPEN_WORLD] = f"OpenworldAUC needs {' and '.join(missing)} images scored, which this method cannot do"
        return metrics, notes

    def summarize(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Adds `h` where both accuracies are there; a method that cannot score new classes has none."""
        derived = dict(metrics)
        if "base/accuracy" in metrics and "new/accuracy" in metrics:
            derived["h"] = harmonic_mean(metrics["base/accuracy"], metrics["new/accuracy"])
        return derived

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """Base, new, H and joint; of another metric there is no H, and OpenworldAUC is one figure of all three."""
        if metric == OPEN_WORLD:
            return [Column(OPEN_WORLD, "OpenworldAUC", help=HELP_OPEN_WORLD)]
        found = [metric_column(f"{name}/{metric}", name) for name in EVALUATIONS]
        if metric != "accuracy":
            return found
        base, new, joint = found
        h = Column("h", "H", derived=True)
        return [*(column._replace(help=HELP) for column in (base, new, h)), joint._replace(help=HELP_JOINT)]


def paired(base: Outcome, new: Outcome, joint: Outcome) -> OpenWorld:
    """Base and new images among the names of their half and, the same images in the same order, among all names.

    Raises:
        ValueError: The joint images are not the base and the new ones.
    """
    known = joint.classes or tuple(range(joint.logits.shape[1]))
    own = set(base.classes or range(base.logits.shape[1]))
    is_base = joint.labels.new_tensor([label in own for label in known]).bool()  # (K,)
    of_base = is_base[joint.labels]  # (N,)
    if int(of_base.sum()) != len(base.labels) or len(joint.labels) != len(base.labels) + len(new.labels):
        raise ValueError("OpenworldAUC takes joint images that are those of base and new.")
    columns = is_base.nonzero().flatten().tolist()
    of_all = (joint.logits[of_base], joint.logits[~of_base])
    return open_world((base.logits, base.labels), (new.logits, new.labels), of_all, columns)


def _plan(dataset: str, shots: int, halves: str) -> Plan:
    tests = {name: Selection(dataset=dataset, split="test", classes=name, halves=halves) for name in ("base", "new")}
    tests["joint"] = Selection(dataset=dataset, split="test")
    return Plan(
        dataset=dataset,
        train=Selection(dataset=dataset, split="train", classes="base", shots=shots, halves=halves),
        evaluations=tuple(Evaluation(name=name, selection=selection) for name, selection in tests.items()),
    )
