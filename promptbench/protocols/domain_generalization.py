"""Domain generalization: train on the source, all classes; evaluate the same prompts on shifted versions of it.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134, section 4.2.
Code by the authors: https://github.com/KaiyangZhou/CoOp (`scripts/coop/eval.sh`)
A domain with fewer classes than the source, such as ImageNet-A and -R, is scored against its own class names only; the
average is over the domains, the source apart.
"""

from __future__ import annotations

from ._transfer import Transfer


class DomainGeneralization(Transfer):
    """Whether what was learned on one dataset, the source, holds where its images look different: all classes of the
    source are trained on, and other pictures of these classes, such as sketches, are classified. The figure that sums
    it up is the average accuracy over these domains, the source apart."""

    targets = "domains"
