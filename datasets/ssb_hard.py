"""SSB-hard as out-of-distribution images near ImageNet: 49 000 images of 980 other classes of ImageNet-21k.

Vaze et al., "Open-Set Recognition: A Good Closed-Set Classifier is All You Need?", ICLR 2022, arXiv:2110.06207. It is
the hard part of their Semantic Shift Benchmark: classes whose places in WordNet are close to those of ImageNet-1k.
Near-OOD in Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection", arXiv:2306.09301.
License: ImageNet's terms of access, for non-commercial research and education.
"""

from __future__ import annotations

from promptbench.data.dataset import DatasetInfo, Sources

from ._ood import OutOfDistribution


class SSBHard(OutOfDistribution):
    """SSB-hard."""

    info = DatasetInfo(
        title="SSB-hard",
        classes=1,
        images=(0, 0, 49000),
        template="a photo of a {}.",
        folder=("ssb_hard", "images_largescale/ssb_hard"),
        image_folder="",
        url="https://github.com/sgvaze/SSB",
        paper="Vaze et al., ICLR 2022, arXiv:2110.06207",
        license="non-commercial research and education, terms of access",
    )
    sources = Sources(
        by_hand=(
            "Get ssb_hard.zip by the download script at https://github.com/Jingkang50/OpenOOD, or from ImageNet-21k 50 "
            "images of each class that https://github.com/sgvaze/SSB lists as hard.",
            "Unpack it so that {folder} holds its 980 class folders, such as n00470682.",
        ),
    )
