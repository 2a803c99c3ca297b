"""Oxford-IIIT Pets: 37 breeds of cats and dogs.

Parkhi et al., "Cats and Dogs", CVPR 2012.
Split: the makers' test set; a fifth of each class of their trainval set is val, at random, by the authors of CoOp.
License: CC BY-SA 4.0.
"""

from __future__ import annotations

from promptbench.dataset import Dataset, DatasetInfo


class OxfordPets(Dataset):
    """OxfordPets."""

    info = DatasetInfo(
        title="OxfordPets",
        classes=37,
        template="a photo of a {}, a type of pet.",
        folder="oxford_pets",
        split_file="split_zhou_OxfordPets.json",
        image_folder="images",
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        paper="Parkhi et al., CVPR 2012",
        license="CC BY-SA 4.0",
    )
