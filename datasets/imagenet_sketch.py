"""ImageNet-Sketch: black and white sketches of ImageNet's classes.

Wang et al., "Learning Robust Global Representations by Penalizing Local Predictive Power", NeurIPS 2019,
arXiv:1905.13549.
Code and images by the authors: https://github.com/HaohanWang/ImageNet-Sketch
Test images only, 50 of each class.
License: MIT.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._imagenet import ImageNetVariant


class ImageNetSketch(ImageNetVariant):
    """ImageNet-Sketch."""

    info = DatasetInfo(
        title="ImageNet-Sketch",
        classes=1000,
        images=(0, 0, 50889),
        template="a photo of a {}.",
        folder=("imagenet-sketch", "domains/sketch"),
        split_file="classnames.txt",
        image_folder=("images", "sketch", ""),
        url="https://github.com/HaohanWang/ImageNet-Sketch",
        paper="Wang et al., NeurIPS 2019, arXiv:1905.13549",
        license="MIT",
    )
    sources = Sources(
        by_hand=(
            "Get the images, by the links at https://github.com/HaohanWang/ImageNet-Sketch.",
            "Unpack them so that {folder}/images (or {folder}/sketch) holds n01440764 and the other 999 folders.",
            "Have classnames.txt of `imagenet` in the folder imagenet beside {folder}, or copy it into {folder}.",
        ),
    )
