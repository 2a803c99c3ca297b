"""Cross-dataset transfer: train on the source, all classes; evaluate the same prompts on other datasets.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557, section 4.2.
Code by the authors: https://github.com/KaiyangZhou/CoOp (`scripts/cocoop/xd_*.sh`)
Each target's whole test split is scored against all of its class names; the average is over the targets.
"""

from __future__ import annotations

from ._transfer import Transfer


class CrossDataset(Transfer):
    """Whether what was learned on one dataset, the source, helps on others: all classes of the source are trained on,
    and the same prompts classify the images of each target among its own class names. The figure that sums it up is the
    average accuracy over the targets, the source apart."""

    targets = "targets"
