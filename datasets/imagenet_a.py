"""ImageNet-A: natural images that ResNet-50 gets wrong, of 200 of ImageNet's classes.

Hendrycks et al., "Natural Adversarial Examples", CVPR 2021, arXiv:1907.07174.
Code and images by the authors: https://github.com/hendrycks/natural-adv-examples
Test images only, 7 500 of them, scored against their own 200 classes: the class folders in sorted order.
License: MIT.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._imagenet import ImageNetVariant


class ImageNetA(ImageNetVariant):
    """ImageNet-A."""

    info = DatasetInfo(
        title="ImageNet-A",
        classes=200,
        images=(0, 0, 7500),
        template="a photo of a {}.",
        folder=("imagenet-adversarial", "domains/imagenet-a"),
        split_file="classnames.txt",
        image_folder=("imagenet-a", ""),
        url="https://github.com/hendrycks/natural-adv-examples",
        paper="Hendrycks et al., CVPR 2021, arXiv:1907.07174",
        license="MIT",
    )
    sources = Sources(
        by_hand=(
            "Get imagenet-a.tar, by the link at https://github.com/hendrycks/natural-adv-examples.",
            "Unpack it in {folder}, so that {folder}/imagenet-a holds n01498041 and the other 199 folders.",
            "Have classnames.txt of `imagenet` in the folder imagenet beside {folder}, or copy it into {folder}.",
        ),
    )
    own_classes = True
