"""What is computed from scores: accuracy and the harmonic mean, in percent."""

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
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Accuracy takes logits (N, K) and labels (N,), not {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if len(labels) == 0:
        raise ValueError("Accuracy needs at least one image.")
    if bool(logits.isnan().any()):
        raise ValueError("Some logits are NaN, so there is no accuracy to report.")
    correct = int((logits.argmax(dim=1) == labels).sum())
    return 100.0 * correct / len(labels)


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new), on the scale of its arguments; 0 when either is 0.

    Raises:
        ValueError: If an argument is negative or not a number.
    """
    if not (base >= 0 and new >= 0):
        raise ValueError(f"The harmonic mean takes two numbers of at least 0, not {base} and {new}.")
    return 2 * base * new / (base + new) if base + new > 0 else 0.0
