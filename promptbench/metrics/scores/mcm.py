"""MCM: the largest softmax probability of the cosines, at temperature 1.

Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations", NeurIPS 2022,
arXiv:2211.13445.
Code by the authors: https://github.com/deeplearning-wisc/MCM

    max_c softmax_c(s),   s_c the cosine of image and class c
"""

from __future__ import annotations

from torch import Tensor

from promptbench.metrics.ood import Score, max_softmax


class MCM(Score):
    """Maximum concept matching."""

    title = "MCM"
    needs = ("cosines",)

    def of(self, cosines: Tensor) -> Tensor:
        return max_softmax(cosines)
