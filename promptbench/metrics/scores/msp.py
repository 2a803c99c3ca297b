"""MSP: the largest softmax probability of the logits, at the model's own temperature.

Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR
2017, arXiv:1610.02136.
Code by the authors: https://github.com/hendrycks/error-detection

    max_c softmax_c(l),   l_c the logit of class c, which the temperature is part of
"""

from __future__ import annotations

from torch import Tensor

from promptbench.metrics.ood import Score, max_softmax


class MSP(Score):
    """Maximum softmax probability."""

    title = "MSP"
    needs = ("logits",)

    def of(self, logits: Tensor) -> Tensor:
        return max_softmax(logits)
