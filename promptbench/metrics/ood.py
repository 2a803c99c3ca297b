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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from promptbench.config import unknown
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
    sums = []
    for chunk in scores.split(images):
        part = chunk.float()
        sums.append((part - part.amax(dim=-1, keepdim=True)).exp_().sum(dim=-1))
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
    from torchmetrics.functional import classification

    known, others = _finite("in-distribution", id_scores), _finite("OOD", ood_scores)
    ranks = _ranks(torch.cat([known, others]))
    is_known = (torch.arange(len(ranks)) < len(known)).long()
    with _float64_by_default():
        mistaken, accepted, _ = classification.binary_roc(ranks, is_known)
        lost, found, _ = classification.binary_roc(1 - ranks, 1 - is_known)
        precision, recall, _ = classification.binary_precision_recall_curve(1 - ranks, 1 - is_known)
        shares = {
            "auroc": classification.binary_auroc(ranks, is_known),
            "fpr95": mistaken[_nearest(accepted)],
            "aupr": classification.binary_average_precision(ranks, is_known),
            "fpr95_ood": lost[_first(found >= _LEVEL)],
            "aupr_ood": -torch.trapezoid(precision, recall),  # the recall falls from 1 to 0
        }
    return {name: 100 * float(share) for name, share in shares.items()}


def _finite(kind: str, scores: Tensor) -> Tensor:
    """(N,) float64, on the CPU."""
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"Detection takes at least one {kind} score, as (N,), not {tuple(scores.shape)}.")
    if not bool(scores.isfinite().all()):
        raise ValueError(f"Some {kind} scores are NaN or infinite, so there is no detection to measure.")
    return scores.detach().cpu().double()


def _ranks(scores: Tensor) -> Tensor:
    """Numbers from 0 to 1 in the order of the scores, equal where those are: (N,) float64.

    torchmetrics takes scores outside of that for logits, and its sigmoid makes large ones equal.
    """
    distinct, ranks = scores.unique(return_inverse=True)
    return ranks.double() / max(1, len(distinct) - 1)


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """torchmetrics counts and divides in torch's default dtype: seven digits in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _nearest(recall: Tensor) -> int:
    """Index of the threshold with the recall nearest to 0.95, by the rule of the authors' code.

    Thresholds are tried from the lowest that is needed for a recall of 1 upwards, so of equally near ones the lowest,
    with the most false positives, is taken.

    Args:
        recall: (T,) float64, of falling thresholds: it rises to 1.
    """
    full = _first(recall == 1)
    upwards = recall[: full + 1].flip(0)
    return full - int((upwards - _LEVEL).abs().argmin())


def _first(flags: Tensor) -> int:
    """Index of the first that is set."""
    return int(flags.int().argmax())
