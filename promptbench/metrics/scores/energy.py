"""Energy: the log-sum-exp of the logits, the negated energy.

Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, arXiv:2010.03759.
Code by the authors: https://github.com/wetliu/energy_ood

    log sum_c exp(l_c),   l_c the logit of class c; the authors' energy has the other sign
"""

from __future__ import annotations

from torch import Tensor

from promptbench.metrics.ood import Score


class Energy(Score):
    """Negated free energy."""

    title = "Energy"
    needs = ("logits",)

    def of(self, logits: Tensor) -> Tensor:
        return logits.float().logsumexp(dim=-1)
