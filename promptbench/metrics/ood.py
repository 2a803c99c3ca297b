"""Scores that tell images of known classes (in-distribution, ID) from others (OOD), and how well they do so.

With s_c the cosine of image and class c, s_pc that of patch p and class c, and l_c the logit of class c:

    MCM        max_c softmax_c(s)              at temperature 1
    L-MCM      max_p max_c softmax_c(s_p)      at temperature 1, over all patches
    GL-MCM     MCM + L-MCM
    MSP        max_c softmax_c(l)              at the model's own temperature, which is part of its logits
    MaxLogit   max_c l_c
    energy     log sum_c exp(l_c)

Every score is larger for in-distribution images. Papers and code that have MCM, L-MCM, GL-MCM or the energy with the
other sign are negated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from promptbench.config import unknown

if TYPE_CHECKING:
    from promptbench.method import Prediction

_CHUNK = 2**20  # numbers whose exponentials are held at once
_LEVEL = 0.95  # share of positives that FPR95 keeps
_ABSENT = {"logits": "logits", "cosines": "unscaled cosines", "local": "cosines of the patches"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of images, larger for in-distribution ones.

    Attributes:
        name: As in the names of metrics.
        title: What tables call it.
        needs: The part of a `Prediction` that it is computed from; `local` stands for the patches and `cosines`.
        function: `function(logits, cosines, local)`: (B, K), (B, K), (B, P, K), any float dtype, those that it does not
            need may be None; returns (B,) float32.
        source: The paper.
    """

    name: str
    title: str
    needs: Literal["logits", "cosines", "local"]
    function: Callable[..., Tensor]
    source: str


def max_softmax(scores: Tensor) -> Tensor:
    """Largest probability of the softmax over the last axis, in float32, within (0, 1].

    It is 1 / sum_c exp(s_c - max s): no difference with a logarithm, which would lose digits near 1. The softmax is
    never held whole: the patches of a batch would take as much memory as the similarities themselves.

    Args:
        scores: (B, ..., K), any float dtype.

    Returns:
        (B, ...) float32.
    """
    images = max(1, _CHUNK // max(1, math.prod(scores.shape[1:])))
    sums = [
        (part - part.amax(dim=-1, keepdim=True)).exp_().sum(dim=-1) for part in map(Tensor.float, scores.split(images))
    ]
    return torch.cat(sums).reciprocal()


def local_max_softmax(local: Tensor) -> Tensor:
    """Largest class probability of any patch: similarities (B, P, K) to (B,) float32."""
    return max_softmax(local).amax(dim=1)


_ALL = (
    Score(
        name="mcm",
        title="MCM",
        needs="cosines",
        function=lambda logits, cosines, local: max_softmax(cosines),
        source="Ming et al., NeurIPS 2022, arXiv:2211.13445",
    ),
    Score(
        name="gl_mcm",
        title="GL-MCM",
        needs="local",
        function=lambda logits, cosines, local: max_softmax(cosines) + local_max_softmax(local),
        source="Miyai et al., IJCV 2025, arXiv:2304.04521",
    ),
    Score(
        name="l_mcm",
        title="L-MCM",
        needs="local",
        function=lambda logits, cosines, local: local_max_softmax(local),
        source="Lafon et al. (GalLoP), ECCV 2024, arXiv:2407.01400",
    ),
    Score(
        name="msp",
        title="MSP",
        needs="logits",
        function=lambda logits, cosines, local: max_softmax(logits),
        source="Hendrycks and Gimpel, ICLR 2017, arXiv:1610.02136",
    ),
    Score(
        name="max_logit",
        title="MaxLogit",
        needs="logits",
        function=lambda logits, cosines, local: logits.float().amax(dim=-1),
        source="Hendrycks et al., ICML 2022, arXiv:1911.11132",
    ),
    Score(
        name="energy",
        title="Energy",
        needs="logits",
        function=lambda logits, cosines, local: logits.float().logsumexp(dim=-1),
        source="Liu et al., NeurIPS 2020, arXiv:2010.03759",
    ),
)
SCORES: Mapping[str, Score] = {score.name: score for score in _ALL}
"""All scores by name, in the order of tables."""


def missing(prediction: Prediction, names: Iterable[str]) -> dict[str, str]:
    """The scores among `names` that a prediction cannot give, with the reason.

    Raises:
        UsageError: A name is not that of a score.
    """
    reasons = {}
    for name in names:
        if name not in SCORES:
            raise unknown("score", name, SCORES)
        needs = SCORES[name].needs
        parts = ("cosines", "local") if needs == "local" else (needs,)
        absent = [_ABSENT[part] for part in parts if getattr(prediction, part) is None]
        if absent:
            reasons[name] = f"{SCORES[name].title} needs {absent[-1]}, which this method does not give"
    return reasons


def scores_of(prediction: Prediction, names: Iterable[str]) -> dict[str, Tensor]:
    """Scores (B,) float32 of a prediction by name, without those that `missing` names.

    Raises:
        UsageError: A name is not that of a score.
    """
    names = tuple(names)
    absent = missing(prediction, names)
    batch = (prediction.logits, prediction.cosines, prediction.local)
    return {name: SCORES[name].function(*batch) for name in names if name not in absent}


def detection(id_scores: Tensor, ood_scores: Tensor) -> dict[str, float]:
    """How well a score tells in-distribution images from others, in percent from 0 to 100.

    Every distinct score is a threshold, and images of equal score are accepted together.

    * `auroc`: share of pairs, one image of each kind, in which the in-distribution one scores more; ties count half.
    * `fpr95`, `aupr`: in-distribution is positive, as in MCM, LoCoOp and GalLoP. `fpr95` is the share of OOD images
      accepted at the threshold whose recall is *nearest* to 0.95, above or below it; among equally near ones at the
      lowest. `aupr` is the average precision.
    * `fpr95_ood`, `aupr_ood`: OOD is positive, as in OpenOOD v1.5. `fpr95_ood` is the share of in-distribution images
      lost at the first threshold that finds at least 95 percent of OOD. `aupr_ood` is the area under the linearly
      interpolated precision-recall curve. OpenOOD leaves out thresholds between which its ROC curve is straight, which
      can move `fpr95_ood` where scores are tied.

    Args:
        id_scores: (N,), any float dtype, larger for in-distribution images.
        ood_scores: (M,), likewise.

    Raises:
        ValueError: Scores are not (N,) and (M,), there are none of a kind, or some are NaN or infinite.
    """
    known, others = _finite("in-distribution", id_scores), _finite("OOD", ood_scores)
    accepted, mistaken = _counts(known, others)
    found, lost = _counts(-others, -known)
    return {
        "auroc": 100 * _area_under_roc(accepted, mistaken),
        "fpr95": 100 * float(mistaken[_nearest(accepted)] / len(others)),
        "aupr": 100 * _average_precision(accepted, mistaken),
        "fpr95_ood": 100 * float(lost[np.argmax(found / len(others) >= _LEVEL)] / len(known)),
        "aupr_ood": 100 * _area_under_precision_recall(found, lost),
    }


def _finite(kind: str, scores: Tensor) -> np.ndarray:
    """(N,) float64."""
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"Detection takes at least one {kind} score, as (N,), not {tuple(scores.shape)}.")
    if not bool(scores.isfinite().all()):
        raise ValueError(f"Some {kind} scores are NaN or infinite, so there is no detection to measure.")
    return scores.detach().cpu().double().numpy()


def _counts(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, from the highest: two rising int64 arrays."""
    scores = np.concatenate([positive, negative])
    order = np.argsort(-scores)
    ordered = scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    true = np.cumsum(order < len(positive), dtype=np.int64)[last]
    return true, last + 1 - true


def _nearest(true: np.ndarray) -> int:
    """Index of the threshold with the recall nearest to 0.95, by the rule of the authors' code.

    Thresholds are tried from the lowest that is needed for a recall of 1 upwards, so of equally near ones the lowest,
    with the most false positives, is taken.
    """
    full = int(np.searchsorted(true, true[-1]))
    return full - int(np.argmin(np.abs(true[full::-1] / true[-1] - _LEVEL)))


def _area_under_roc(true: np.ndarray, false: np.ndarray) -> float:
    """In whole numbers up to the last division."""
    doubled = int(np.sum(np.diff(false, prepend=0) * (true + np.append(0, true[:-1]))))
    return doubled / (2 * int(true[-1]) * int(false[-1]))


def _average_precision(true: np.ndarray, false: np.ndarray) -> float:
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * (true / (true + false))))


def _area_under_precision_recall(true: np.ndarray, false: np.ndarray) -> float:
    """By trapezoids, from precision 1 at recall 0."""
    precision = np.append(1.0, true / (true + false))
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * (precision[1:] + precision[:-1]) / 2))
