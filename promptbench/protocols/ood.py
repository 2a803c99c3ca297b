"""Out-of-distribution detection: train on the source; tell its test images from images of none of its classes.

Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations", NeurIPS 2022,
arXiv:2211.13445; Miyai et al., "LoCoOp", NeurIPS 2023, arXiv:2306.01293.
Code by the authors: https://github.com/AtsuMiyai/LoCoOp
All images are scored against the source's class names. Every score is one column of figures for all methods; none is
chosen per method. AUROC, FPR95 and AUPR take in-distribution images as positive; `fpr95_ood` and `aupr_ood` follow
OpenOOD, where out-of-distribution images are. The average is over the OOD sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from promptbench.data.selection import Selection
from promptbench.protocol import Column, Evaluation, Numbers, Outcome, Plan, Protocol, mean_over
from promptbench.suite import Suite

ID = "id"  # the evaluation on in-distribution images
LOWER = ("fpr95", "fpr95_ood")
TITLES = {
    "mcm": "MCM",
    "gl_mcm": "GL-MCM",
    "l_mcm": "L-MCM",
    "msp": "MSP",
    "max_logit": "MaxLogit",
    "energy": "Energy",
}  # of the scores in `promptbench.metrics.ood`, which needs torch


class OOD(Protocol):
    """AUROC, FPR95 and AUPR of each OOD set under each score, and accuracy on in-distribution images."""

    role = "source"
    scores = tuple(TITLES)
    metrics = ("auroc", "fpr95", "aupr", "fpr95_ood", "aupr_ood")
    blocks_are = "score"
    averaged = False

    def plan(self, suite: Suite, seed: int) -> list[Plan]:
        """One run per source."""
        return [_plan(source, suite.datasets("ood"), suite.shots) for source in suite.datasets("source")]

    def measure(self, outcomes: Mapping[str, Outcome], plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
        """`<set>/<score>/<metric>`, `average/<score>/<metric>`, and accuracy and calibration on the ID images."""
        from promptbench.metrics.ood import detection

        metrics, notes = super().measure(outcomes, plan)
        if ID not in outcomes:
            return metrics, notes
        inside = outcomes[ID]
        sets = {name: outcome for name, outcome in outcomes.items() if name != ID}
        for score, of_inside in inside.scores.items():
            for name, outside in sets.items():
                found = detection(of_inside, outside.scores[score])
                metrics |= {f"{name}/{score}/{metric}": value for metric, value in found.items()}
            for metric in self.metrics:
                metrics |= mean_over(metrics, list(sets), f"{score}/{metric}")
        for score, reason in inside.missing.items():
            notes |= {f"{name}/{score}/": reason for name in [*sets, "average"]}
        return metrics, notes

    def columns(self, metric: str, evaluations: Sequence[str], along: Sequence[int | None]) -> list[Column]:
        """ID accuracy; the metric on each set; its average, and that of FPR95."""
        sets = [Column(f"{name}/{metric}", name, lower=metric in LOWER) for name in evaluations if name != ID]
        averages = [Column(f"average/{one}", f"average {one.upper()}", lower=one in LOWER) for one in (metric, "fpr95")]
        return [Column(f"{ID}/accuracy", "ID accuracy"), *sets, *dict.fromkeys(averages)]

    def blocks(self, metric: str, dataset: str, along: int | None, metrics: Numbers) -> dict[str, Numbers]:
        """One block per score, whose figures lose the score's name."""
        accuracy = {key: value for key, value in metrics.items() if key == f"{ID}/accuracy"}
        return {
            title: accuracy | {key.replace(f"/{name}/", "/"): v for key, v in metrics.items() if f"/{name}/" in key}
            for name, title in TITLES.items()
        }


def _plan(source: str, sets: Sequence[str], shots: int) -> Plan:
    inside = Selection(dataset=source, split="test")
    strangers = [Evaluation(name=name, selection=Selection(dataset=name, split="test"), names=inside) for name in sets]
    return Plan(
        dataset=source,
        train=Selection(dataset=source, split="train", shots=shots),
        evaluations=(Evaluation(name=ID, selection=inside), *strangers),
    )
