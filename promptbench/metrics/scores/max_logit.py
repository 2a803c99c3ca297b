"""MaxLogit: the largest logit.

Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022, arXiv:1911.11132.
Code by the authors: https://github.com/hendrycks/anomaly-seg

    max_c l_c,   l_c the logit of class c
"""

from __future__ import annotations

from torch import Tensor

from promptbench.metrics.ood import Score


class MaxLogit(Score):
    """Maximum logit."""

    title = "MaxLogit"
    needs = ("logits",)

    def of(self, logits: Tensor) -> Tensor:
        return logits.float().amax(dim=-1)
