"""Out-of-distribution detection: train on the source; tell its test images from images of none of its classes.

Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations", NeurIPS 2022,
arXiv:2211.13445; Miyai et al., "LoCoOp", NeurIPS 2023, arXiv:2306.01293.
Code by the authors: https://github.com/AtsuMiyai/LoCoOp
All images are scored against the source's class names. Every score is one column of figures for all methods; none is
chosen per method. The average is over the OOD sets.

Figures are in percent, 0 to 100. In-distribution images are positive in three of them, as in MCM, LoCoOp and GalLoP:

    auroc      share of pairs, one image of each kind, in which the in-distribution one scores more; higher is better
    fpr95      share of OOD images accepted at the threshold that accepts nearest to 95 % of in-distribution ones, above
               or below it, the lowest of equally near ones; lower is better
    aupr       average precision; higher is better

and OOD images in two, as in OpenOOD:

    fpr95_ood  share of in-distribution images lost at the first threshold that finds at least 95 % of OOD; lower is
               better
    aupr_ood   area under the precision-recall curve; higher is better
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from promptbench import registry
from promptbench.data.selection import Selection
from promptbench.protocol import Column, Evaluation, Numbers, Outcome, Plan, Protocol, mean_over
from promptbench.suite import Suite

if TYPE_CHECKING:
    from torch import Tensor

ID = "id"  # the evaluation on in-distribution images
LOWER = ("fpr95", "fpr95_ood")
TITLES = {
    "mcm": "MCM",
    "gl_mcm": "GL-MCM",
    "l_mcm": "L-MCM",
    "msp": "MSP",
    "max_logit": "MaxLogit",
    "energy": "Energy",
}  # of the scores that are always computed, whose modules need torch
INSIDE = (
    "ID accuracy: accuracy on in-distribution images, those of the classes trained on; the other figures say how well "
    "a score of images tells them from out-of-distribution (OOD) images, which show none of these classes."
)
HELP = {
    "auroc": "AUROC: the share of pairs, an in-distribution and an OOD image, in which the in-distribution one scores "
    "more; 0 to 100 %, 50 is chance, higher is better.",
    "aupr": "AUPR: average precision, in-distribution images are positive; 0 to 100 %, higher is better.",
    "aupr_ood": "AUPR_OOD: area under the precision-recall curve, OOD images are positive; 0 to 100 %, higher is "
    "better.",
    "fpr95": "FPR95: in-distribution images are positive; the share of OOD images accepted at the threshold that "
    "accepts nearest to 95 % of in-distribution ones; 0 to 100 %, lower is better.",
    "fpr95_ood": "FPR95_OOD: OOD images are positive, as in OpenOOD; the share of in-distribution images lost at the "
    "first threshold that finds at least 95 % of OOD images; 0 to 100 %, lower is better.",
}


class OOD(Protocol):
    """Whether a method notices images of none of its classes: it is trained on the source, and a score of each image
    should be larger for test images of the source than for those of out-of-distribution (OOD) sets. The figures say how
    well each score separates the two, with AUROC, FPR95 and AUPR, beside accuracy on the source."""

    role = "source"
    scores = tuple(TITLES)
    metrics: ClassVar[tuple[str, ...]] = ("auroc", "fpr95", "aupr", "fpr95_ood", "aupr_ood")
    blocks_are = "score"
    averaged = False
    needs_logits = False

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per source."""
        sets = suite.datasets("ood")
        return [plan_of(source, suite.shots, strangers(source, sets)) for source in suite.datasets("source")]

    def measure(self, outcomes: Mapping[str, Outcome], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
        """`<set>/<score>/<metric>`, `average/<score>/<metric>`, and accuracy and calibration on the ID images."""
        metrics, notes = super().measure(outcomes, plan)
        if ID not in outcomes:
            return metrics, notes
        inside = outcomes[ID]
        sets = {name: outcome for name, outcome in outcomes.items() if name != ID}
        for score, of_inside in inside.scores.items():
            metrics |= detections(score, [of_inside], sets)
            for metric in self.metrics:
                metrics |= mean_over(metrics, list(sets), f"{score}/{metric}")
        for score, reason in inside.missing.items():
            notes |= {f"{name}/{score}/": reason for name in [*sets, "average"]}
        return metrics, notes

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """ID accuracy; the metric on each set; its average, and that of FPR95."""
        sets = [column_of(name, metric, name) for name in evaluations if name != ID]
        averages = [column_of("average", one, f"average {one.upper()}") for one in (metric, "fpr95")]
        return [Column(f"{ID}/accuracy", "ID accuracy", help=INSIDE), *sets, *dict.fromkeys(averages)]

    def blocks(self, metric: str, dataset: str, along: int | None, metrics: Numbers) -> dict[str, Numbers]:
        """One block per score, whose figures lose the score's name."""
        accuracy = {key: value for key, value in metrics.items() if key == f"{ID}/accuracy"}
        return by_score(accuracy, metrics)


def plan_of(source: str, shots: int, evaluations: Sequence[Evaluation]) -> Plan:
    """The training on a source, and the evaluations of its test images and of others."""
    inside = Evaluation(name=ID, selection=Selection(dataset=source, split="test"))
    train = Selection(dataset=source, split="train", shots=shots)
    return Plan(dataset=source, train=train, evaluations=(inside, *evaluations))


def strangers(source: str, names: Iterable[str], group: str = "") -> list[Evaluation]:
    """Images of no class of the source, scored against its names."""
    inside = Selection(dataset=source, split="test")
    return [
        Evaluation(name=name, selection=Selection(dataset=name, split="test"), names=inside, group=group)
        for name in names
    ]


def detections(score: str, inside: Sequence[Tensor], sets: Mapping[str, Outcome], before: str = "") -> dict[str, float]:
    """`<set>/<score>/<metric>` of each set of OOD images.

    Args:
        score: A score's name.
        inside: That score (N,) of in-distribution images, of one dataset or several.
        sets: The OOD sets.
        before: What the names of metrics begin with.
    """
    import torch

    from promptbench.metrics.ood import detection

    known = torch.cat(list(inside))
    found: dict[str, float] = {}
    for name, outside in sets.items():
        values = detection(known, outside.scores[score])
        found |= {f"{name}/{score}/{before}{metric}": value for metric, value in values.items()}
    return found


def column_of(name: str, metric: str, title: str) -> Column:
    """The column of a metric of OOD detection."""
    return Column(f"{name}/{metric}", title, lower=metric in LOWER, help=HELP.get(metric, ""))


def by_score(common: Numbers, metrics: Numbers) -> dict[str, Numbers]:
    """One block per score by its title: what is common to all, and the score's own figures without its name."""
    names = dict.fromkeys(TITLES)
    names |= dict.fromkeys(parts[1] for parts in (key.split("/") for key in metrics) if len(parts) == 3)
    return {
        title_of(name): {
            **common,
            **{key.replace(f"/{name}/", "/"): value for key, value in metrics.items() if f"/{name}/" in key},
        }
        for name in names
    }


@cache
def title_of(score: str) -> str:
    """What tables call a score; its name where nobody knows it any more."""
    if score in TITLES or score not in registry.names("scores"):
        return TITLES.get(score, score)
    return str(registry.facts("scores", score).attributes.get("title", score))
