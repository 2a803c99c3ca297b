"""How well images are told apart, and how right a method is about how well: accuracy, calibration, the open world.

Accuracy, also by class, the harmonic mean of two, calibration errors and OpenworldAUC are in percent; the negative log
likelihood is in nats, the Brier score a sum of squares. Calibration is that of softmax(logits / T); T is 1 unless a
temperature is fitted, and changes no accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Scored = tuple[Tensor, Tensor]  # logits (N, K) and labels (N,)

ROWS = 4096
"""Images whose probabilities are computed at once."""
LOG_TEMPERATURE = (-3.0, 3.0)
"""The least and the largest log T."""


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy over images, in percent from 0 to 100.

    Correct images divided by all images (micro average), counted in integers: no rounding before the last division.
    Equal scores go to the lower class.

    Args:
        logits: (N, K), any float dtype, larger means more likely.
        labels: (N,) integers from 0 to K - 1.

    Raises:
        ValueError: If the shapes do not fit, there is no image, or a score is not a number.
    """
    from torchmetrics.functional.classification import multiclass_stat_scores

    check(logits, labels, "accuracy")
    # Counts, for torchmetrics' own accuracy is a quotient in float32.
    counts = multiclass_stat_scores(logits, labels, logits.shape[1], average="micro", validate_args=False)
    correct = int(counts[0])
    return 100.0 * correct / len(labels)


def per_class_accuracy(logits: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Share of each class's images that are recognised, in percent from 0 to 100; None for a class without images.

    Arguments and errors are those of `confusion`.
    """
    table = confusion(logits, labels, classes)
    accuracies: list[float | None] = []
    for correct, images in zip(table.diagonal().tolist(), table.sum(dim=1).tolist(), strict=True):
        accuracies.append(100.0 * correct / images if images else None)
    return accuracies


def confusion(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many images of class i (row) are taken for class j (column): (K, K) int64, on the CPU.

    Equal scores go to the lower class. It equals torchmetrics' `multiclass_confusion_matrix`, which in torch's
    deterministic mode holds N times K squared numbers at once: 25 GB for SUN397 a call.

    Args:
        logits: (N, K), any float dtype, larger means more likely.
        labels: (N,) integers from 0 to K - 1.
        classes: K.

    Raises:
        ValueError: As for `accuracy`, or if the logits are not those of K classes or a label is none of them.
    """
    check(logits, labels, "confusion")
    if logits.shape[1] != classes or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(
            f"A confusion of {classes} classes takes as many logits and labels from 0 to {classes - 1}, not "
            f"{logits.shape[1]} logits and labels from {int(labels.min())} to {int(labels.max())}."
        )
    cells = labels.long() * classes + logits.argmax(dim=1)
    return cells.cpu().bincount(minlength=classes**2).reshape(classes, classes)


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new), on the scale of its arguments; 0 when either is 0.

    Raises:
        ValueError: If an argument is negative or not a number.
    """
    if not (base >= 0 and new >= 0):
        raise ValueError(f"The harmonic mean takes two numbers of at least 0, not {base} and {new}.")
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def check(logits: Tensor, labels: Tensor, what: str) -> None:
    """Refuses logits and labels that have no metric.

    Args:
        logits: (N, K).
        labels: (N,).
        what: The metric, as it stands within a sentence.

    Raises:
        ValueError: If the shapes do not fit, there is no image, or a score is not a number.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"{what.capitalize()} takes logits (N, K) and labels (N,), "
            f"not {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if len(labels) == 0:
        raise ValueError(f"{what.capitalize()} needs at least one image.")
    if bool(logits.isnan().any()):
        raise ValueError(f"Some logits are NaN, so there is no {what} to report.")


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15, temperature: float = 1.0) -> float:
    """How far confidence is from accuracy, in percent from 0 to 100; lower is better.

    ECE = sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)|, where B_b are the images whose confidence, the largest
    probability of softmax(logits / T), lies in the bin ((b - 1) / bins, b / bins].

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599. torchmetrics' differs, so this
    is not it: there edges belong to the bin above, a confidence of 1 has a bin of its own, and sums are float32.

    Args:
        logits: (N, K), any float dtype, scaled as the model has them.
        labels: (N,) integers from 0 to K - 1.
        bins: At least 1.
        temperature: T, more than 0.

    Raises:
        ValueError: As for `accuracy`, or if a largest logit is infinite or there is no bin.
    """
    import torch

    confidence, gaps = _confidence(logits, labels, bins, temperature, torch.float32)
    counted = confidence_bins(confidence, bins).bincount(gaps, minlength=bins)
    return 100.0 * float(counted.abs().sum()) / len(labels)


def confidence_bins(confidence: Tensor, bins: int) -> Tensor:
    """The bin of each confidence, (N,) int64 from 0: the b-th of equal width is (b / bins, (b + 1) / bins]."""
    import torch

    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    return torch.bucketize(confidence, edges) - 1


def confidences(logits: Tensor, temperature: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
    """The largest probability of softmax(logits / T) of each image, (N,) on the CPU, from 1 / K to 1.

    Args:
        logits: (N, K), any float dtype, whose largest is finite.
        temperature: T, more than 0.
        dtype: What it is computed in, float32 if None.
    """
    import torch

    found = []
    for rows in _scaled(logits, temperature):
        rows = rows.to(dtype or torch.float32)
        found.append((rows - rows.amax(dim=1, keepdim=True)).exp_().sum(dim=1).reciprocal())
    return torch.cat(found).cpu()


def _confidence(
    logits: Tensor, labels: Tensor, bins: int, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The confidence of each image, (N,) of that dtype, and by how much being right exceeds it, in float64."""
    check(logits, labels, "calibration error")
    if bins < 1:
        raise ValueError(f"A calibration error takes at least 1 bin, not {bins}.")
    best, predicted = logits.max(dim=1)
    if not bool(best.isfinite().all()):
        raise ValueError("Some largest logits are infinite, so there is no calibration error to report.")
    confidence = confidences(logits, temperature, dtype)
    return confidence, (predicted == labels).cpu().double() - confidence.double()


def _scaled(logits: Tensor, temperature: float) -> Iterator[Tensor]:
    """logits / T in float64, some rows at a time: those of ImageNet would be 400 MB."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"A temperature is more than 0 and finite, not {temperature}.")
    for rows in logits.detach().split(ROWS):
        yield rows.double() / temperature


def adaptive_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15, temperature: float = 1.0) -> float:
    """How far confidence is from accuracy in bins of equal count, in percent from 0 to 100; lower is better.

    The same sum as `expected_calibration_error`, where B_b are the images in the b-th of `bins` parts of all images,
    stably sorted by their confidence: equal ones stay in their order. The parts are those of `numpy.array_split`: where
    N = q bins + r, the first r parts, of the lowest confidences, have q + 1 images and the others q. With fewer images
    than bins, each has a part of its own.

    Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing models", EMNLP
    2015, arXiv:1508.05154, bin by equal counts.

    Arguments and errors are those of `expected_calibration_error`.
    """
    import torch

    confidence, gaps = _confidence(logits, labels, bins, temperature, torch.float64)
    order = confidence.argsort(stable=True)
    parts = torch.tensor_split(gaps[order], bins)
    return 100.0 * math.fsum(abs(float(part.sum())) for part in parts) / len(labels)


def negative_log_likelihood(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """The mean of -log of the true class's probability, in nats, from 0 on; lower is better.

    Args:
        logits: (N, K), any float dtype, scaled as the model has them; softmax and sums are in float64.
        labels: (N,) integers from 0 to K - 1.
        temperature: T, more than 0.

    Raises:
        ValueError: As for `accuracy`.
    """
    check(logits, labels, "likelihood")
    total = 0.0
    for rows, truth in zip(_scaled(logits, temperature), labels.split(ROWS), strict=True):
        total -= float(rows.log_softmax(dim=1).gather(1, truth.long()[:, None]).sum())
    return total / len(labels)


def brier_score(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """The squared distance of the probabilities from the truth, mean over images, from 0 to 2; lower is better.

    sum_k (p_k - 1[k is the true class])^2, as Brier, "Verification of forecasts expressed in terms of probability",
    Monthly Weather Review 1950, has it for several classes.

    Arguments and errors are those of `negative_log_likelihood`.
    """
    check(logits, labels, "Brier score")
    total = 0.0
    for rows, truth in zip(_scaled(logits, temperature), labels.split(ROWS), strict=True):
        misses = rows.softmax(dim=1)
        misses.scatter_add_(1, truth.long()[:, None], misses.new_full((len(misses), 1), -1.0))
        total += float(misses.square().sum())
    return total / len(labels)


CALIBRATION: Mapping[str, Callable[..., float]] = {
    "ece": expected_calibration_error,
    "adaptive_ece": adaptive_calibration_error,
    "nll": negative_log_likelihood,
    "brier": brier_score,
}
"""What is measured of probabilities, by the name in a result; all take logits, labels and `temperature`."""


def calibration(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, float]:
    """All of `CALIBRATION` at a temperature, by name."""
    return {name: measure(logits, labels, temperature=temperature) for name, measure in CALIBRATION.items()}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T from exp(-3) to exp(3) that minimises the negative log likelihood of softmax(logits / T).

    It is convex in 1 / T, so that there is one minimum; scipy looks for log T by Brent's method within the bounds,
    which are taken themselves where they are best, as of images that are all recognised.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, section 4.2.

    Args:
        logits: (N, K) of images that no training has seen, any float dtype.
        labels: (N,) integers from 0 to K - 1.

    Raises:
        ValueError: As for `accuracy`.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits, labels, math.exp(log_temperature))

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-7})
    return math.exp(min(float(found.x), *LOG_TEMPERATURE, key=loss))


class OpenWorld(NamedTuple):
    """What the open world takes of n base and m new images: whether they seem to be of base classes, and are right.

    Attributes:
        base: r of each base image, (n,) float64: the largest, over base names, of its softmax over all names.
        base_right: Whether it is recognised among the base names, (n,) bool.
        new: r of each new image, (m,) float64.
        new_right: Whether it is recognised among the new names, (m,) bool.
    """

    base: Tensor
    base_right: Tensor
    new: Tensor
    new_right: Tensor

    def auc(self) -> float:
        """OpenworldAUC, in percent from 0 to 100; higher is better.

        100 / (n m) * sum_i sum_j 1[base i right] 1[new j right] (1[r_i > r_j] + 1/2 1[r_i = r_j])

        Hua et al., "OpenworldAUC: Towards Unified Evaluation and Optimization for Open-world Prompt Tuning", ICML 2025,
        arXiv:2505.05180. Pairs are counted by ranks, in integers, which takes n log m steps.
        """
        import torch

        base, new = self.base[self.base_right], self.new[self.new_right].sort().values
        below = int(torch.searchsorted(new, base).sum())  # new images with a smaller r, then those with no larger one
        up_to = int(torch.searchsorted(new, base, right=True).sum())
        return 100.0 * (below + up_to) / (2 * len(self.base) * len(self.new))

    def curve(self) -> tuple[list[float], list[float]]:
        """New side and base side at every threshold of r, from the highest on, in percent; `auc` is the area below.

        The new side is the share of new images with r below the threshold that are right among new names; the base
        side that of base images with r at or above it that are right among base names.
        """
        import torch

        base, new = self.base[self.base_right].sort().values, self.new[self.new_right].sort().values
        thresholds = torch.cat([base, new]).unique().flip(0)
        below = torch.searchsorted(new, thresholds).tolist()
        under = torch.searchsorted(base, thresholds).tolist()
        of_new = [len(new), *below]
        of_base = [0, *(len(base) - count for count in under)]
        n, m = len(self.base), len(self.new)
        return [100.0 * count / m for count in of_new], [100.0 * count / n for count in of_base]


def open_world(base: Scored, new: Scored, joint: tuple[Tensor, Tensor], columns: Sequence[int]) -> OpenWorld:
    """What OpenworldAUC is computed from.

    Args:
        base: Logits among base names and labels of the base images.
        new: Logits among new names and labels of the new images.
        joint: Logits among all names of the same base images, (n, K), and of the same new ones, (m, K).
        columns: Where the base names stand among all.

    Raises:
        ValueError: There is no image on one side, or a score is not a number.
    """
    import torch

    def shares(logits: Tensor) -> Tensor:
        chosen = torch.tensor(list(columns), device=logits.device)
        return torch.cat([rows.softmax(dim=1)[:, chosen].amax(dim=1) for rows in _scaled(logits, 1.0)]).cpu()

    right = []
    for (logits, labels), of_all in zip((base, new), joint, strict=True):
        check(logits, labels, "OpenworldAUC")
        check(of_all, labels, "OpenworldAUC")
        right.append((logits.argmax(dim=1) == labels).cpu())
    return OpenWorld(shares(joint[0]), right[0], shares(joint[1]), right[1])
