"""L-MCM: the largest probability that MCM's softmax gives any class in any patch.

Lafon et al., "GalLoP: Learning Global and Local Prompts for Vision-Language Models", ECCV 2024, arXiv:2407.01400.
Code by the authors: https://github.com/MarcLafon/gallop

    max_p max_c softmax_c(s_p),   s_pc the cosine of patch p and class c, over all patches
"""

from __future__ import annotations

from torch import Tensor

from promptbench.metrics.ood import Score, local_max_softmax


class LMCM(Score):
    """MCM of the patches alone."""

    title = "L-MCM"
    needs = ("cosines", "local")

    def of(self, cosines: Tensor, local: Tensor) -> Tensor:
        return local_max_softmax(local)
