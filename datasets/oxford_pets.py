"""Oxford-IIIT Pets: 37 breeds of cats and dogs.

Parkhi et al., "Cats and Dogs", CVPR 2012.
Split: the makers' test set; a fifth of each class of their trainval set is val, at random, by the authors of CoOp.
License: CC BY-SA 4.0.
"""

from __future__ import annotations

from promptbench.data.dataset import Dataset, DatasetInfo, Download, Item, Sources
from promptbench.data.splits import read_rows


class OxfordPets(Dataset):
    """OxfordPets."""

    info = DatasetInfo(
        title="OxfordPets",
        classes=37,
        images=(2944, 736, 3669),
        template="a photo of a {}, a type of pet.",
        folder=("oxford_pets", "dataset_suite/oxford-iiit-pet"),
        split_file="split_zhou_OxfordPets.json",
        image_folder="images",
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        paper="Parkhi et al., CVPR 2012",
        license="CC BY-SA 4.0",
    )
    sources = Sources(
        downloads=(
            Download(
                url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
                folder="images",
                target="images",
            ),
            Download(
                url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                md5="95a8c909bbe2e81eed6a22bccdf3f68f",
                folder="annotations",
                target="annotations",
            ),
        ),
        split_url="https://drive.google.com/file/d/1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs/view",
    )

    def annotated(self) -> tuple[list[Item], list[Item]]:
        """The makers' lists; the breed is the image's name without its number."""
        return self._listed("annotations/trainval.txt"), self._listed("annotations/test.txt")

    def _listed(self, file: str) -> list[Item]:
        rows = read_rows(self.annotation(file), words=2)
        return [Item(f"{image}.jpg", int(number) - 1, image.rpartition("_")[0].lower()) for image, number, *_ in rows]
