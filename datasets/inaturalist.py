"""iNaturalist as out-of-distribution images: 10 000 photographs of plants that ImageNet does not have.

Van Horn et al., "The iNaturalist Species Classification and Detection Dataset", CVPR 2018, arXiv:1707.06642.
Chosen by Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", CVPR 2021,
arXiv:2105.01879.
License: non-commercial research and education.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._ood import OutOfDistribution


class INaturalist(OutOfDistribution):
    """iNaturalist."""

    info = DatasetInfo(
        title="iNaturalist",
        classes=1,
        images=(0, 0, 10000),
        template="a photo of a {}.",
        folder=("iNaturalist", "ood_data/iNaturalist"),
        image_folder=("images", ""),
        url="https://github.com/deeplearning-wisc/large_scale_ood",
        paper="Van Horn et al., CVPR 2018; Huang and Li, CVPR 2021, arXiv:2105.01879",
        license="non-commercial research and education",
    )
    sources = Sources(
        by_hand=(
            "Get iNaturalist.tar.gz, the set chosen by Huang and Li, by the link at "
            "https://github.com/deeplearning-wisc/large_scale_ood.",
            "Unpack it so that {folder} holds its folder images with the 10 000 images.",
        ),
    )
