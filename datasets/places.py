"""Places as out-of-distribution images: 10 000 scenes that ImageNet does not have.

Zhou et al., "Places: A 10 Million Image Database for Scene Recognition", TPAMI 2018.
Chosen by Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", CVPR 2021,
arXiv:2105.01879. It is not the test set of Places365.
License: non-commercial research and education.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._ood import OutOfDistribution


class Places(OutOfDistribution):
    """Places."""

    info = DatasetInfo(
        title="Places",
        classes=1,
        images=(0, 0, 10000),
        template="a photo of a {}.",
        folder=("Places", "ood_data/Places"),
        image_folder=("images", ""),
        url="https://github.com/deeplearning-wisc/large_scale_ood",
        paper="Zhou et al., TPAMI 2018; Huang and Li, CVPR 2021, arXiv:2105.01879",
        license="non-commercial research and education",
    )
    sources = Sources(
        by_hand=(
            "Get Places.tar.gz, the set chosen by Huang and Li, by the link at "
            "https://github.com/deeplearning-wisc/large_scale_ood.",
            "Unpack it so that {folder} holds its folder images with the 10 000 images.",
        ),
    )
