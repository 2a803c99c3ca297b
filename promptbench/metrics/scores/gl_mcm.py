"""GL-MCM: MCM of the whole image plus that of its best patch.

Miyai et al., "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot Out-of-Distribution Detection", IJCV
2025, arXiv:2304.04521.
Code by the authors: https://github.com/AtsuMiyai/GL-MCM

    max_c softmax_c(s) + max_p max_c softmax_c(s_p),   s_pc the cosine of patch p and class c, over all patches
"""

from __future__ import annotations

from torch import Tensor

from promptbench.metrics.ood import Score, local_max_softmax, max_softmax


class GLMCM(Score):
    """MCM of image and patches."""

    title = "GL-MCM"
    needs = ("cosines", "local")

    def of(self, cosines: Tensor, local: Tensor) -> Tensor:
        return max_softmax(cosines) + local_max_softmax(local)
