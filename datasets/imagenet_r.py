"""ImageNet-R: renditions such as paintings and toys, of 200 of ImageNet's classes.

Hendrycks et al., "The Many Faces of Robustness: A Critical Analysis of Out-of-Distribution Generalization", ICCV 2021,
arXiv:2006.16241.
Code and images by the authors: https://github.com/hendrycks/imagenet-r
Test images only, 30 000 of them, scored against their own 200 classes: the class folders in sorted order.
License: not stated.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._imagenet import ImageNetVariant


class ImageNetR(ImageNetVariant):
    """ImageNet-R."""

    info = DatasetInfo(
        title="ImageNet-R",
        classes=200,
        images=(0, 0, 30000),
        template="a photo of a {}.",
        folder=("imagenet-rendition", "domains/imagenet-r"),
        split_file="classnames.txt",
        image_folder=("imagenet-r", ""),
        url="https://github.com/hendrycks/imagenet-r",
        paper="Hendrycks et al., ICCV 2021, arXiv:2006.16241",
    )
    sources = Sources(
        by_hand=(
            "Get imagenet-r.tar, by the link at https://github.com/hendrycks/imagenet-r.",
            "Unpack it in {folder}, so that {folder}/imagenet-r holds n01443537 and the other 199 folders.",
            "Have classnames.txt of `imagenet` in the folder imagenet beside {folder}, or copy it into {folder}.",
        ),
    )
    own_classes = True
