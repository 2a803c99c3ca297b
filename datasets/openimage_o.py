"""OpenImage-O as out-of-distribution images: 17 632 photographs of nothing that ImageNet has a class for.

Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, arXiv:2203.10807. Picked by hand, image
by image, from the test images of Open Images.
Far-OOD in Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection", arXiv:2306.09301, which
keeps 1 763 of them for validation and tests on the other 15 869: set `listing` to its test_openimage_o.txt for these.
Code by the authors: https://github.com/haoqiwang/vim
License: CC BY 2.0, as Open Images lists its images.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._ood import OutOfDistribution


class OpenImageO(OutOfDistribution):
    """OpenImage-O."""

    info = DatasetInfo(
        title="OpenImage-O",
        classes=1,
        images=(0, 0, 17632),
        template="a photo of a {}.",
        folder=("openimage_o", "images_largescale/openimage_o"),
        image_folder=("images", ""),
        url="https://github.com/haoqiwang/vim",
        paper="Wang et al., CVPR 2022, arXiv:2203.10807",
        license="CC BY 2.0",
    )
    sources = Sources(
        by_hand=(
            "Get openimage_o.zip by the download script at https://github.com/Jingkang50/OpenOOD, or the images that "
            "https://github.com/haoqiwang/vim lists from Open Images.",
            "Unpack it so that {folder}/images holds the 17 632 images.",
        ),
    )
