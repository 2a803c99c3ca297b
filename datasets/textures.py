"""Textures as out-of-distribution images: all 5 640 of the Describable Textures Dataset.

Cimpoi et al., "Describing Textures in the Wild", CVPR 2014, arXiv:1311.3618.
Taken whole by Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", CVPR 2021,
arXiv:2105.01879. Where there is no folder of its own, the images of the dataset `dtd` are the same.
License: for research.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._ood import OutOfDistribution


class Textures(OutOfDistribution):
    """Textures."""

    info = DatasetInfo(
        title="Textures",
        classes=1,
        images=(0, 0, 5640),
        template="a photo of a {}.",
        folder=("Texture", "ood_data/dtd", "dtd", "dataset_suite/dtddataset/dtd"),
        image_folder=("images", ""),
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        paper="Cimpoi et al., CVPR 2014; Huang and Li, CVPR 2021, arXiv:2105.01879",
        license="for research",
    )
    sources = Sources(
        by_hand=("Prepare `dtd`, whose images are the same and are found in its folder; nothing belongs in {folder}.",),
    )
