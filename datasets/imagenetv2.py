"""ImageNetV2: a second test set for ImageNet, collected by its makers' procedure.

Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019, arXiv:1902.10811.
Code and images by the authors: https://github.com/modestyachts/ImageNetV2
Test images only: the 10 000 of the matched-frequency version, as in CoOp. The number of a class folder is the class's
place in `classnames.txt`, from 0.
License: MIT.
"""

from __future__ import annotations

from functools import cached_property

from promptbench.data.dataset import DatasetInfo, Sources

from ._imagenet import ImageNetVariant


class ImageNetV2(ImageNetVariant):
    """ImageNetV2."""

    info = DatasetInfo(
        title="ImageNetV2",
        classes=1000,
        images=(0, 0, 10000),
        template="a photo of a {}.",
        folder=("imagenetv2", "domains/imagenetv2-matched-frequency-format-val"),
        split_file="classnames.txt",
        image_folder=("imagenetv2-matched-frequency-format-val", ""),
        url="https://github.com/modestyachts/ImageNetV2",
        paper="Recht et al., ICML 2019, arXiv:1902.10811",
        license="MIT",
    )
    sources = Sources(
        by_hand=(
            "Get imagenetv2-matched-frequency.tar.gz, by the links at https://github.com/modestyachts/ImageNetV2.",
            "Unpack it in {folder}, so that {folder}/imagenetv2-matched-frequency-format-val holds the folders 0 to "
            "999.",
            "Have classnames.txt of `imagenet` in the folder imagenet beside {folder}, or copy it into {folder}.",
        ),
    )

    @cached_property
    def wnids(self) -> list[str]:
        """In the order of the file."""
        return list(self.listed_names)

    def classes(self) -> dict[str, str]:
        """The numbers 0, 1, ... with the names in the order of the file."""
        return {str(number): name for number, name in enumerate(self.listed_names.values())}
