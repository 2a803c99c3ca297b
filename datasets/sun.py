"""SUN as out-of-distribution images: 10 000 scenes that ImageNet does not have.

Xiao et al., "SUN Database: Large-scale Scene Recognition from Abbey to Zoo", CVPR 2010.
Chosen by Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", CVPR 2021,
arXiv:2105.01879. Not to be taken for `sun397`, whose test set it is not.
License: not known.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._ood import OutOfDistribution


class SUN(OutOfDistribution):
    """SUN."""

    info = DatasetInfo(
        title="SUN",
        classes=1,
        images=(0, 0, 10000),
        template="a photo of a {}.",
        folder=("SUN", "ood_data/SUN"),
        image_folder=("images", ""),
        url="https://github.com/deeplearning-wisc/large_scale_ood",
        paper="Xiao et al., CVPR 2010; Huang and Li, CVPR 2021, arXiv:2105.01879",
    )
    sources = Sources(
        by_hand=(
            "Get SUN.tar.gz, the set chosen by Huang and Li, by the link at "
            "https://github.com/deeplearning-wisc/large_scale_ood.",
            "Unpack it so that {folder} holds its folder images with the 10 000 images.",
        ),
    )
