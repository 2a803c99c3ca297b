"""SUN397: 397 kinds of scenes.

Xiao et al., "SUN Database: Large-scale Scene Recognition from Abbey to Zoo", CVPR 2010.
Split: the makers' first partition (`Training_01`, `Testing_01`); a fifth of each training class is val, at random, by
the authors of CoOp, who also turned names such as "church/outdoor" around.
License: not known.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class SUN397(Dataset):
    """SUN397."""

    info = DatasetInfo(
        title="SUN397",
        classes=397,
        template="a photo of a {}.",
        folder="sun397",
        split_file="split_zhou_SUN397.json",
        image_folder="SUN397",
        url="https://vision.princeton.edu/projects/2010/SUN/",
        paper="Xiao et al., CVPR 2010",
    )
