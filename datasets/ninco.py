"""NINCO as out-of-distribution images near ImageNet: 5 879 images of 64 classes, each looked at by its makers.

Bitterwolf et al., "In or Out? Fixing ImageNet Out-of-Distribution Detection Evaluation", ICML 2023, arXiv:2306.00826.
No image shows an object of ImageNet-1k. Their cleaned parts of older sets and their unit tests are not part of it.
Near-OOD in Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection", arXiv:2306.09301.
Code and images by the authors: https://github.com/j-cb/NINCO
License: MIT.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._ood import OutOfDistribution


class NINCO(OutOfDistribution):
    """NINCO."""

    info = DatasetInfo(
        title="NINCO",
        classes=1,
        images=(0, 0, 5879),
        template="a photo of a {}.",
        folder=("NINCO", "ninco", "images_largescale/ninco"),
        image_folder=("NINCO_OOD_classes", ""),
        url="https://github.com/j-cb/NINCO",
        paper="Bitterwolf et al., ICML 2023, arXiv:2306.00826",
        license="MIT",
    )
    sources = Sources(
        by_hand=(
            "Get NINCO_all.tar.gz by the link at https://github.com/j-cb/NINCO, or ninco.zip by the download script at "
            "https://github.com/Jingkang50/OpenOOD.",
            "Unpack it so that {folder}/NINCO_OOD_classes holds its 64 class folders, such as amphiuma_means; with "
            "OpenOOD's archive they may lie in {folder} itself.",
        ),
    )
