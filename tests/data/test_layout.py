"""Where a dataset is looked for: in both laboratories' trees, the split file and the images apart if need be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import make_fake
import pytest

from promptbench.config import UsageError
from promptbench.data.dataset import open_dataset

SPLIT = "split_zhou_DescribableTextures.json"


def test_a_missing_dataset_says_everywhere_it_looked(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(UsageError) as caught:
        open_dataset("dtd", roots=[tmp_path, absent]).items("train")
    others = f"dtd/images, dataset_suite/dtddataset/dtd/{SPLIT}, dataset_suite/dtddataset/dtd/images"
    assert str(caught.value) == (
        f"The dataset 'dtd' was not found: looked for dtd/{SPLIT} in {tmp_path}, {absent} (not a folder) "
        f"and there for {others}; put it there or give another folder with --data-root or in the environment variable "
        "PROMPTBENCH_DATA. Its images are at https://www.robots.ox.ac.uk/~vgg/data/dtd/; layout and split files: "
        "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md."
    )


@pytest.mark.parametrize("name", make_fake.PLACES)
def test_a_missing_dataset_names_both_trees(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was not found") as caught:
        open_dataset(name, roots=[tmp_path]).items("test")
    for folder, images in make_fake.PLACES[name]:
        assert (Path(folder) / images).as_posix() in str(caught.value)
    with pytest.raises(
        UsageError, match=f"needs a data root: give the folder that holds '{make_fake.PLACES[name][0][0]}'"
    ):
        open_dataset(name).items("test")


def test_the_first_root_wins_whatever_its_tree(tmp_path: Path) -> None:
    for root, layout in (("a", "gallop"), ("b", "coop")):
        make_fake.make("dtd", tmp_path / root, layout)
    roots = [tmp_path / "a", tmp_path / "b"]
    assert open_dataset("dtd", roots=roots).folder == tmp_path / "a" / "dataset_suite" / "dtddataset" / "dtd"
    assert open_dataset("dtd", roots=roots[::-1]).folder == tmp_path / "b" / "dtd"


def test_a_split_file_may_lie_in_another_root_than_the_images(tmp_path: Path) -> None:
    make_fake.make("dtd", tmp_path / "images", "gallop")
    stored = tmp_path / "images" / "dataset_suite" / "dtddataset" / "dtd" / SPLIT
    (tmp_path / "splits" / "dtd").mkdir(parents=True)
    shutil.move(stored, tmp_path / "splits" / "dtd" / SPLIT)
    for roots in (["images", "splits"], ["splits", "images"]):
        dataset = open_dataset("dtd", roots=[tmp_path / root for root in roots])
        assert dataset.split_source == SPLIT and dataset.folder == tmp_path / "splits" / "dtd"
        dataset.check(dataset.items("test"))


def test_an_empty_image_folder_is_no_hit(tmp_path: Path) -> None:
    make_fake.make("eurosat", tmp_path / "full", "gallop")
    (tmp_path / "empty" / "eurosat" / "2750").mkdir(parents=True)
    dataset = open_dataset("eurosat", roots=[tmp_path / "empty", tmp_path / "full"])
    assert dataset.image_root == tmp_path / "full" / "dataset_suite" / "EuroSAT_RGB"


@pytest.mark.parametrize("tree", [("train", "val"), ("images/train", "images/val")])
def test_imagenet_may_have_its_folders_at_the_top(tree: tuple[str, str], tmp_path: Path) -> None:
    make_fake.make("imagenet", tmp_path)
    for found, wanted in zip(("images/train", "images/val"), tree, strict=True):
        os.renames(tmp_path / "imagenet" / found, tmp_path / "imagenet" / wanted)
    dataset = open_dataset("imagenet", roots=[tmp_path])
    dataset.check(dataset.items("train") + dataset.items("test"))
    assert dataset.items("train")[0].image == "train/n01440764/n01440764_0.JPEG"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    make_fake.make("sun", tmp_path)
    (tmp_path / "SUN" / "images").chmod(0)
    with pytest.raises(UsageError, match=r"Cannot read the folder \S+SUN/images: Permission denied"):
        open_dataset("sun", roots=[tmp_path]).items("test")
    (tmp_path / "SUN" / "images").chmod(0o755)
