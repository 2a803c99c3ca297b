"""Calibration: how far confidence is from accuracy, in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptbench.metrics.accuracy import check

if TYPE_CHECKING:
    from torch import Tensor


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
