"""Scores that tell images of known classes (in-distribution, ID) from others (OOD), and how well they do so.

A score is one module of `promptbench.metrics.scores`, or a file of one's own, with one class. Every score is larger for
in-distribution images: what papers and code have with the other sign, such as the energy, is negated where it is
implemented.

Letters: B images, K classes, P patches, D joint dimension, N negative labels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from promptbench import registry
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError, build, path_of, text_of, to_mapping
from promptbench.data.class_names import ClassNames
from promptbench.data.selection import FILE
from promptbench.method import Prediction

_CHUNK = 2**20  # numbers whose exponentials are held at once
_LEVEL = 0.95  # share of positives that FPR95 keeps
_ABSENT = {"logits": "logits", "cosines": "unscaled cosines", "local": "cosines of the patches"}
NEGATIVES = "negatives"


class Score:
    """Base class of scores.

    Attributes:
        title: What tables call it.
        files: The texts of the files that its settings name, by setting; "" where one names none.
        needs: What `of` takes, in this order, any float dtype: `logits` (B, K), `cosines` (B, K) and `local` (B, P, K)
            of a `Prediction`; `negatives` (B, N), the cosines of the images and the texts of `negative_features`.
        of: Takes those and returns (B,) float32, larger for in-distribution images.
    """

    plugin_kind: ClassVar[str] = "score"
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    of: Callable[..., Tensor]

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """A score has no settings unless it says so. A field that names a file has `file` in its metadata."""

    def __init__(self, config: Any = None) -> None:
        """Remembers the settings and reads the files that they name.

        Args:
            config: An instance of `Config`; its defaults without one.

        Raises:
            UsageError: A file cannot be read.
        """
        self.config: Any = config if config is not None else self.Config()
        self.files = {item.name: self._read(item.name) for item in fields(self.config) if item.metadata.get("file")}

    @property
    def name(self) -> str:
        """As in the names of metrics: the module's."""
        return type(self).__module__.rpartition(".")[2]

    def negative_features(self, names: ClassNames, backbone: Backbone) -> Tensor:
        """Text features (N, D) of labels that are none of these classes, for a score that needs `negatives`."""
        raise NotImplementedError(f"{type(self).__name__} needs negatives and defines no negative_features()")

    def _read(self, setting: str) -> str:
        """The text of the file that a setting names; "" where it names none."""
        given = getattr(self.config, setting)
        if not given:
            return ""
        try:
            return text_of(path_of(given))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"score '{self.name}': {setting}: {given} cannot be read ({reason}).") from error

    @cached_property
    def asked(self) -> dict[str, Any]:
        """Its settings as a spec names them, files by their content, wherever they lie."""
        named = to_mapping(self.config)
        for setting, text in self.files.items():
            if text:
                named[setting] = f"{FILE}{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        return named


def open_score(name: str, settings: Mapping[str, Any] | None = None) -> Score:
    """The score of that name.

    Args:
        name: As listed by `promptbench list scores`.
        settings: Values of its `Config`.

    Raises:
        UsageError: The name or a setting is unknown, a value does not fit, or a file cannot be read.
    """
    cls = registry.load("scores", name)
    return cls(build(cls.Config, dict(settings or {}), f"score '{name}'"))


def open_scores(names: Iterable[str]) -> dict[str, Score]:
    """Scores by name, with their default settings; raises as `open_score` does."""
    return {name: open_score(name) for name in names}


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


def missing(prediction: Prediction, scores: Mapping[str, Score]) -> dict[str, str]:
    """The scores that a prediction cannot give, with the reason, by name."""
    reasons = {}
    for name, score in scores.items():
        absent = [_ABSENT[part] for part in score.needs if part != NEGATIVES and getattr(prediction, part) is None]
        if absent:
            reasons[name] = f"{score.title} needs {absent[-1]}, which this method does not give"
    return reasons


def scores_of(
    prediction: Prediction, scores: Mapping[str, Score], negatives: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Scores (B,) float32 of a prediction by name, without those that `missing` names.

    Args:
        prediction: Of B images.
        scores: By name.
        negatives: Cosines (B, N) with the negative labels of each score that needs them, by its name.
    """
    absent = missing(prediction, scores)
    found = {}
    for name, score in scores.items():
        if name not in absent:
            parts = [
                (negatives or {})[name] if part == NEGATIVES else getattr(prediction, part) for part in score.needs
            ]
            found[name] = score.of(*parts)
    return found


def cosines_with(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines (B, N) of image features (B, D) and text features (N, D), in float32 under any precision."""
    with torch.autocast(images.device.type, enabled=False):
        return F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).mT


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
