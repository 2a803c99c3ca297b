"""How well images are told apart: accuracy, also by class, the harmonic mean of two, calibration; all in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy, in percent from 0 to 100.

    ECE = sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)|, where B_b are the images whose confidence, the largest
    probability of softmax(logits), lies in the bin ((b - 1) / bins, b / bins].

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599. torchmetrics' differs, so this
    is not it: there edges belong to the bin above, a confidence of 1 has a bin of its own, and sums are float32.

    Args:
        logits: (N, K), any float dtype, scaled as the model has them.
        labels: (N,) integers from 0 to K - 1.
        bins: At least 1.

    Raises:
        ValueError: As for `accuracy`, or if a largest logit is infinite or there is no bin.
    """
    import torch

    check(logits, labels, "calibration error")
    if bins < 1:
        raise ValueError(f"A calibration error takes at least 1 bin, not {bins}.")
    logits = logits.detach().float()
    best, predicted = logits.max(dim=1)
    if not bool(best.isfinite().all()):
        raise ValueError("Some largest logits are infinite, so there is no calibration error to report.")
    confidence = (logits - best[:, None]).exp_().sum(dim=1).reciprocal()  # (N,)
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    bin_of = torch.bucketize(confidence, edges) - 1
    gaps = (predicted == labels).cpu().double() - confidence.cpu().double()
    return 100.0 * float(bin_of.cpu().bincount(gaps, minlength=bins).abs().sum()) / len(labels)
