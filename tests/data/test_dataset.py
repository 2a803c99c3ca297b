"""Datasets: every registered one reads, and whatever can be wrong with a user's data is said in one sentence."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import make_fake
import numpy as np
import pytest
from shared_paths import REPOSITORY
from short_cases import slow_but

from promptbench import registry
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames, refuse_same_names
from promptbench.data.dataset import Dataset, DatasetInfo, Item, contents_digest, data_roots, open_dataset
from promptbench.data.selection import Selection, class_labels, open_selection
from promptbench.data.splits import read_class_names, read_split_json, subfolders
from promptbench.runs.request import options_of
from promptbench.storage import atomic, cache
from promptbench.suite import DatasetEntry

PUBLIC = tuple(make_fake.PLACES)
MINI = tuple(name for name in registry.names("datasets") if name.startswith("mini_"))
WITH_TRAINING = [name for name in MINI if not re.match(r"mini_(shapes_|ood_)", name)]

# As in the papers: classes and zero-shot template.
TEMPLATES = {
    "imagenet": (1000, "a photo of a {}."),
    "caltech101": (100, "a photo of a {}."),
    "oxford_pets": (37, "a photo of a {}, a type of pet."),
    "stanford_cars": (196, "a photo of a {}."),
    "oxford_flowers": (102, "a photo of a {}, a type of flower."),
    "food101": (101, "a photo of {}, a type of food."),
    "fgvc_aircraft": (100, "a photo of a {}, a type of aircraft."),
    "sun397": (397, "a photo of a {}."),
    "dtd": (47, "{} texture."),
    "eurosat": (10, "a centered satellite photo of {}."),
    "ucf101": (101, "a photo of a person doing {}."),
    "imagenetv2": (1000, "a photo of a {}."),
    "imagenet_sketch": (1000, "a photo of a {}."),
    "imagenet_a": (200, "a photo of a {}."),
    "imagenet_r": (200, "a photo of a {}."),
    "inaturalist": (1, "a photo of a {}."),
    "sun": (1, "a photo of a {}."),
    "places": (1, "a photo of a {}."),
    "textures": (1, "a photo of a {}."),
    "ssb_hard": (1, "a photo of a {}."),
    "ninco": (1, "a photo of a {}."),
    "openimage_o": (1, "a photo of a {}."),
}


@pytest.fixture(autouse=True, scope="module")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("PROMPTBENCH_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data root in each laboratory's tree."""
    made = {layout: tmp_path_factory.mktemp(layout) for layout in make_fake.LAYOUTS}
    for layout, path in made.items():
        for name in PUBLIC:
            make_fake.make(name, path, layout)
        make_fake.make_split_folders(path / "birds")
    return made


@pytest.fixture
def root(roots: dict[str, Path]) -> Path:
    return roots["coop"]


def opened(name: str, root: Path) -> Dataset:
    return open_dataset(name, {"root": "birds"} if name == "folder" else {}, roots=[root])


# --- every registered dataset


def test_every_dataset_is_known_to_these_tests() -> None:
    assert set(registry.names("datasets")) == {*PUBLIC, *MINI, "folder"}


def expected_sizes(name: str, classes: int) -> list[int]:
    if name in make_fake.OOD:
        return [0, 0, make_fake.OOD_IMAGES]
    train, val, test = make_fake.PER_CLASS.values()
    if name in make_fake.VARIANTS:
        return [0, 0, test * classes]
    return [train * classes, 0 if name == "imagenet" else val * classes, test * classes]


@pytest.mark.parametrize("layout", make_fake.LAYOUTS)
@pytest.mark.parametrize("name", [*PUBLIC, "folder"])
def test_a_dataset_reads_its_real_layout(name: str, layout: str, roots: dict[str, Path]) -> None:
    dataset = opened(name, roots[layout])
    names = dataset.class_names
    assert dataset.name == name
    assert names.template == dataset.info.template
    splits = {split: dataset.items(split) for split in ("train", "val", "test")}
    assert [len(items) for items in splits.values()] == expected_sizes(name, len(names))
    every = [item for items in splits.values() for item in items]
    dataset.check(every)
    assert all(item.class_name == names[item.label] for item in every)
    image = dataset.open(every[-1])
    assert image.mode == "RGB" and image.size == (20, 16)
    assert len({dataset.identity(item) for item in every}) == len(every)
    split_file = make_fake.SPLIT_JSON[name].split_file if name in make_fake.SPLIT_JSON else "its own"
    assert dataset.split_source == split_file


@pytest.mark.parametrize("name", PUBLIC)
def test_both_trees_give_the_same_split(name: str, roots: dict[str, Path]) -> None:
    assert len({opened(name, root).split_digest() for root in roots.values()}) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_facts_are_those_of_the_papers_and_readable_without_import(name: str) -> None:
    info = registry.facts("datasets", name).attributes["info"]
    assert (info["classes"], info["template"]) == TEMPLATES[name]
    assert info["title"] and info["paper"] and info["url"].startswith("https://")


# Counted in the authors' split files: train, val and test images.
REAL_SPLITS = {
    "caltech101": (4128, 1649, 2465),
    "dtd": (2820, 1128, 1692),
    "eurosat": (13500, 5400, 8100),
    "oxford_flowers": (4093, 1633, 2463),
    "oxford_pets": (2944, 736, 3669),
    "stanford_cars": (6509, 1635, 8041),
    "ucf101": (7639, 1898, 3783),
}


@pytest.mark.parametrize("name", REAL_SPLITS)
def test_a_real_split_file_reads(name: str, tmp_path: Path) -> None:
    folder, split_file = make_fake.PLACES[name][0][0], make_fake.SPLIT_JSON[name].split_file
    source = Path(os.environ.get("PROMPTBENCH_TEST_SPLITS", ""), split_file)
    if not source.is_file() or not os.environ.get("PROMPTBENCH_TEST_SPLITS"):
        pytest.skip(f"PROMPTBENCH_TEST_SPLITS names no folder with {split_file}")
    (tmp_path / folder).mkdir()
    shutil.copyfile(source, tmp_path / folder / split_file)
    dataset = opened(name, tmp_path)
    assert tuple(len(dataset.items(split)) for split in ("train", "val", "test")) == REAL_SPLITS[name]
    assert len(dataset.class_names) == dataset.info.classes
    with pytest.raises(UsageError, match=f"lacks {REAL_SPLITS[name][0]} of {REAL_SPLITS[name][0]} images"):
        dataset.check(dataset.items("train"))


def test_the_order_of_the_split_file_is_kept(root: Path) -> None:
    written = json.loads((root / "dtd" / "split_zhou_DescribableTextures.json").read_text())
    dataset = opened("dtd", root)
    for split, rows in written.items():
        assert [list(item) for item in dataset.items(split)] == rows


def test_digest_follows_the_split_and_not_the_place(root: Path, tmp_path: Path) -> None:
    make_fake.make("dtd", tmp_path)
    digest = opened("dtd", root).split_digest()
    assert opened("dtd", tmp_path).split_digest() == digest
    path = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    split = json.loads(path.read_text())
    split["train"].reverse()
    path.write_text(json.dumps(split))
    assert opened("dtd", tmp_path).split_digest() != digest


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    make_fake.make("dtd", tmp_path)
    dataset = opened("dtd", tmp_path)
    item = dataset.items("train")[0]
    before = dataset.identity(item)
    make_fake.write_image(dataset.image_root / item.image, size=(30, 30))
    assert dataset.identity(item) != before


def test_reading_writes_nothing(tmp_path: Path) -> None:
    make_fake.make("imagenet", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    dataset = opened("imagenet", tmp_path)
    dataset.open(dataset.items("train")[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_imagenet_keeps_two_classes_of_one_name(root: Path) -> None:
    assert opened("imagenet", root).class_names == tuple(make_fake.IMAGENET.values())
    assert tuple(make_fake.IMAGENET.values()).count("missile") == 2


@pytest.mark.parametrize("name", make_fake.VARIANTS)
def test_a_variant_is_labelled_in_its_own_classes(name: str, root: Path) -> None:
    dataset = opened(name, root)
    own = {"imagenet_a": ("goldfish", "banana"), "imagenet_r": ("goldfish", "missile", "banana")}
    assert dataset.class_names == own.get(name, opened("imagenet", root).class_names)
    items = dataset.items("test")
    assert [item.image.partition("/")[0] for item in items] == [f for f in make_fake.VARIANTS[name] for _ in range(3)]
    assert [item.label for item in items] == [label for label in range(len(dataset.class_names)) for _ in range(3)]


def test_a_number_of_imagenetv2_counts_lines_and_a_wnid_its_sorted_place(tmp_path: Path) -> None:
    for name in ("imagenetv2", "imagenet_sketch"):
        make_fake.make(name, tmp_path)
        folder = tmp_path / make_fake.PLACES[name][0][0]
        lines = (folder / "classnames.txt").read_text().splitlines()
        (folder / "classnames.txt").write_text("\n".join(reversed(lines)))
    assert opened("imagenetv2", tmp_path).class_names == tuple(reversed(make_fake.IMAGENET.values()))
    assert opened("imagenet_sketch", tmp_path).class_names == tuple(make_fake.IMAGENET.values())


def test_a_class_without_images_shifts_no_label(tmp_path: Path) -> None:
    make_fake.make("imagenet_sketch", tmp_path)
    before = opened("imagenet_sketch", tmp_path).items("test")
    shutil.rmtree(tmp_path / "imagenet-sketch" / "images" / "n01440764")
    dataset = opened("imagenet_sketch", tmp_path)
    assert dataset.items("test") == before[3:] and len(dataset.class_names) == len(make_fake.IMAGENET)


def test_a_variant_says_what_it_lacks(tmp_path: Path) -> None:
    make_fake.make("imagenet_a", tmp_path, layout="gallop")
    with pytest.raises(UsageError, match=r"'imagenet_a' lacks classnames\.txt \(looked in \S+domains/imagenet-a\)"):
        opened("imagenet_a", tmp_path).items("test")
    make_fake.make("imagenet", tmp_path)
    assert opened("imagenet_a", tmp_path).class_names == ("goldfish", "banana")
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01443537 goldfish\n")
    with pytest.raises(UsageError, match=r"classnames\.txt has no name for the class folder 'n07753592'"):
        opened("imagenet_a", tmp_path).items("test")
    shutil.rmtree(tmp_path / "domains" / "imagenet-a" / "n07753592")
    shutil.rmtree(tmp_path / "domains" / "imagenet-a" / "n01443537")
    with pytest.raises(UsageError, match="was not found"):
        opened("imagenet_a", tmp_path).items("test")
    (tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / "1000").mkdir(parents=True)
    with pytest.raises(UsageError, match="folder .*/1000 is not among"):
        opened("imagenetv2", tmp_path).items("test")


def test_out_of_distribution_images_may_lie_at_any_depth(tmp_path: Path) -> None:
    folder = tmp_path / "Places"
    for image in ("b.jpg", "z/y/c.JPEG", "z/a.png", ".hidden/d.jpg", "z/.e.jpg"):
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    (folder / "z" / "list.txt").touch()
    dataset = opened("places", tmp_path)
    assert dataset.items("test") == [Item(image, 0, "thing") for image in ("b.jpg", "z/a.png", "z/y/c.JPEG")]
    assert dataset.items("train") == dataset.items("val") == [] and dataset.class_names == ("thing",)


def test_a_folder_without_images_is_no_out_of_distribution_set(tmp_path: Path) -> None:
    (tmp_path / "SUN" / "images" / "empty").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"'sun' has no images below \S+SUN/images; extract them there"):
        opened("sun", tmp_path).items("test")
    (tmp_path / "SUN" / "images" / "again").symlink_to(tmp_path / "SUN")
    with pytest.raises(UsageError, match=r"again/images is a link to a folder that it lies in"):
        opened("sun", tmp_path).items("test")


def test_a_list_says_which_out_of_distribution_images_are_taken(root: Path, tmp_path: Path) -> None:
    lines = ["openimage_o/images/openimage_o_4.jpg -1", "openimage_o/images/openimage_o_1.jpg -1", ""]
    place = tmp_path / "benchmark_imglist" / "imagenet" / "test_openimage_o.txt"
    place.parent.mkdir(parents=True)
    place.write_text("\n".join(lines))
    listing = "benchmark_imglist/imagenet/test_openimage_o.txt"
    for named, roots in ((str(place), [root]), (listing, [root, tmp_path])):
        taken = open_dataset("openimage_o", {"listing": named}, roots=roots).items("test")
        assert taken == [Item(f"openimage_o_{index}.jpg", 0, "thing") for index in (4, 1)]
    place.write_text("openimage_o/images/absent.jpg -1\n")
    with pytest.raises(UsageError, match=r"test_openimage_o.txt, image 1: the dataset has no image .*absent.jpg"):
        open_dataset("openimage_o", {"listing": str(place)}, roots=[root]).items("test")
    with pytest.raises(UsageError, match="'openimage_o': the list nowhere.txt cannot be read as text"):
        open_dataset("openimage_o", {"listing": "nowhere.txt"}, roots=[root]).items("test")


def test_a_list_that_nobody_asked_for_changes_no_name() -> None:
    assert options_of(DatasetEntry(name="sun", dataset="sun")) == {}
    listed = DatasetEntry(name="sun", dataset="sun", options={"listing": "some.txt"})
    assert options_of(listed) == {"listing": "some.txt"}


def test_textures_are_found_in_dtd(root: Path, tmp_path: Path) -> None:
    make_fake.make("dtd", tmp_path)
    dataset = opened("textures", tmp_path)
    every = {item.image for split in ("train", "val", "test") for item in opened("dtd", tmp_path).items(split)}
    assert [item.image for item in dataset.items("test")] == sorted(every)


def test_an_alias_names_the_dataset(root: Path) -> None:
    assert open_dataset("folder", {"root": "birds"}, roots=[root], alias="my_birds").name == "my_birds"


# --- data roots


def test_roots_come_from_the_argument_or_else_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMPTBENCH_DATA", os.pathsep.join(["/a", "/b", ""]))
    assert data_roots() == (Path("/a").absolute(), Path("/b").absolute())
    assert data_roots([tmp_path]) == (tmp_path,)


def test_the_first_root_that_has_the_dataset_wins(root: Path, tmp_path: Path) -> None:
    assert open_dataset("dtd", roots=[tmp_path, root]).folder == root / "dtd"


def test_without_a_root_the_dataset_and_the_flag_are_named() -> None:
    with pytest.raises(UsageError, match=r"'dtd' needs a data root.*'dtd'.*--data-root.*PROMPTBENCH_DATA"):
        open_dataset("dtd").items("train")


def test_missing_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    make_fake.make("eurosat", tmp_path)
    dataset = opened("eurosat", tmp_path)
    items = dataset.items("train")
    for item in items[:4]:
        (dataset.image_root / item.image).unlink()
    first = r"AnnualCrop/AnnualCrop_1\.jpg, \S+2\.jpg, \S+3\.jpg, \.\.\."
    with pytest.raises(UsageError, match=f"'eurosat' lacks 4 of 15 images that its split names: {first}"):
        dataset.check(items)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_dataset_without_its_images_says_so_in_one_sentence(name: str, tmp_path: Path) -> None:
    make_fake.make(name, tmp_path)
    for folder in subfolders(tmp_path.joinpath(*make_fake.PLACES[name][0])):
        shutil.rmtree(tmp_path.joinpath(*make_fake.PLACES[name][0], folder))
    for image in [*tmp_path.rglob("*.jpg")]:
        image.unlink()
    dataset = opened(name, tmp_path)
    with pytest.raises(UsageError, match=r"^The dataset '\w+' (lacks|was not found|has no).*[^.]\.$") as caught:
        dataset.check(dataset.items("test"))
    assert name in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_dataset_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'eurosat'"):
        open_dataset("eurosta")


def test_an_unknown_option_gets_the_nearest_name(root: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset 'folder'.*Did you mean 'split_seed'"):
        open_dataset("folder", {"root": "birds", "splitseed": 2}, roots=[root])


@pytest.mark.parametrize("name", [b"caf\xe9/1.png", b"jay/caf\xe9.png"])
def test_a_name_that_is_no_text_is_refused(name: bytes, tmp_path: Path) -> None:
    for file in (b"owl/0.png", b"owl/1.png", os.path.dirname(name) + b"/0.png", name):
        path = tmp_path / os.fsdecode(file)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(UsageError, match=r"The name b'caf\\xe9(.png)?' in /.* is no utf-8, as this locale"):
        open_dataset("folder", {"root": str(tmp_path)}).items("train")


def test_an_unknown_split_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="Unknown split 'valid'"):
        opened("dtd", root).items("valid")


# --- split files

ROW = ["a.jpg", 0, "cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", 'lists "train", "val" and "test"'),
        ({"train": [ROW]}, 'lists "train", "val" and "test"'),
        ({"train": {}, "test": [ROW]}, "expected a list of"),
        ({"train": [["a.jpg", "0", "cat"]], "test": [ROW]}, "'train', entry 0: .* integer label"),
        ({"train": [ROW, ["a.jpg", True, "cat"]], "test": [ROW]}, "'train', entry 1: .* integer label"),
        ({"train": [["a.jpg", 0]], "test": [ROW]}, "integer label"),
        ({"train": [], "test": [ROW]}, "no train images"),
        ({"train": [ROW], "test": []}, "no test images"),
        ({"train": [["a.jpg", 1, "cat"]], "test": [ROW]}, "0 has no image"),
        ({"train": [ROW, ["b.jpg", 0, "dog"]], "test": [ROW]}, "label 0 has two names, 'cat' and 'dog'"),
        ({"train": [ROW], "val": [["b.jpg", 0, "dog"]], "test": [ROW]}, "label 0 has two names"),
        ({"train": [ROW], "test": [["b.jpg", 3, "dog"]]}, "label 3 of 'test' has no training image"),
    ],
)
def test_a_malformed_split_file_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError, match=message) as caught:
        read_split_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "image", ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "..\\a.jpg", "C:\\a.jpg", "\\a.jpg", "", "a\0"]
)
def test_a_path_that_leaves_the_dataset_is_refused(image: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [[image, 0, "cat"]], "test": [ROW]}))
    with pytest.raises(UsageError, match="must stay inside"):
        read_split_json(path)


def test_a_split_file_may_leave_out_val_and_use_dots_in_names(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [["a..b/.c.jpg", 0, "cat"]], "test": [ROW]}))
    assert read_split_json(path)["val"] == []


# --- a user's own images


def test_split_folders_are_read_in_sorted_order(tmp_path: Path) -> None:
    make_fake.make_split_folders(tmp_path, names=("wren", "blue_jay"), val=False)
    (tmp_path / "train" / ".DS_Store").write_text("")
    (tmp_path / "train" / "wren" / "notes.txt").write_text("")
    dataset = open_dataset("folder", {"root": str(tmp_path), "template": "a drawing of a {}."})
    assert dataset.class_names == ("blue_jay", "wren")
    assert dataset.class_names.template == "a drawing of a {}."
    assert dataset.items("train")[0] == Item("train/blue_jay/00.png", 0, "blue_jay")
    assert [len(dataset.items(split)) for split in ("train", "val", "test")] == [10, 0, 6]


def test_one_folder_is_split_by_fractions_per_class(tmp_path: Path) -> None:
    make_fake.make_folder(tmp_path, count=10)
    dataset = open_dataset("folder", {"root": str(tmp_path)})
    splits = {split: dataset.items(split) for split in ("train", "val", "test")}
    for label in range(3):
        assert [sum(item.label == label for item in items) for items in splits.values()] == [5, 2, 3]
    images = [item.image for items in splits.values() for item in items]
    assert len(set(images)) == 30
    again = open_dataset("folder", {"root": str(tmp_path)})
    assert again.split_digest() == dataset.split_digest()
    assert open_dataset("folder", {"root": str(tmp_path), "split_seed": 2}).split_digest() != dataset.split_digest()


def test_a_new_class_leaves_the_split_of_the_others_alone(tmp_path: Path) -> None:
    make_fake.make_folder(tmp_path, count=10)
    before = {item.image for item in open_dataset("folder", {"root": str(tmp_path)}).items("train")}
    make_fake.make_folder(tmp_path, names=("albatross",), count=10)
    after = {item.image for item in open_dataset("folder", {"root": str(tmp_path)}).items("train")}
    assert before < after


@pytest.mark.parametrize("fractions", [[0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0], [1.5, -1.0, 0.5], [0.5, 0.5]])
def test_fractions_that_are_none_are_refused(fractions: list[float]) -> None:
    with pytest.raises(UsageError, match="fractions"):
        open_dataset("folder", {"root": ".", "fractions": fractions})


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    make_fake.make_folder(tmp_path, names=("n01", "two words"))
    (tmp_path / "names.txt").write_text("n01\tgreat auk\ntwo words\tmany words here\n")
    dataset = open_dataset("folder", {"root": str(tmp_path), "class_names": "names.txt"})
    assert dataset.class_names == ("great auk", "many words here")
    (tmp_path / "names.txt").write_text("n01 great auk\n")
    with pytest.raises(UsageError, match="not 'two words'"):
        open_dataset("folder", {"root": str(tmp_path), "class_names": "names.txt"}).items("train")
    (tmp_path / "names.txt").write_text("n01\n")
    with pytest.raises(UsageError, match="line 1"):
        read_class_names(tmp_path / "names.txt")


def test_folders_that_make_no_dataset_are_refused(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        open_dataset("folder", {"root": str(path)}).items("train")

    with pytest.raises(UsageError, match="not found"):
        read(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no class folders"):
        read(tmp_path / "empty")
    make_fake.make_folder(tmp_path / "half" / "train")
    with pytest.raises(UsageError, match="both a 'train' and a 'test'"):
        read(tmp_path / "half")
    make_fake.make_folder(tmp_path / "single", count=1)
    with pytest.raises(UsageError, match="has one image"):
        read(tmp_path / "single")
    make_fake.make_folder(tmp_path / "hollow")
    (tmp_path / "hollow" / "void").mkdir()
    with pytest.raises(UsageError, match=r"hollow/void holds no images"):
        read(tmp_path / "hollow")
    make_fake.make_split_folders(tmp_path / "odd")
    make_fake.make_folder(tmp_path / "odd" / "test", names=("dodo",))
    with pytest.raises(UsageError, match=r"test/dodo is not among the training classes"):
        read(tmp_path / "odd")


def test_folder_must_be_told_its_root() -> None:
    with pytest.raises(UsageError, match="'root' must be given"):
        open_dataset("folder")


# --- class names


def test_two_names_that_read_the_same_are_refused(tmp_path: Path) -> None:
    make_fake.make_folder(tmp_path, names=("blue_jay", "Blue jay", "wren"))
    with pytest.raises(UsageError, match=r"'folder'.*'Blue jay'.*'blue_jay' read the same"):
        _ = open_dataset("folder", {"root": str(tmp_path)}).class_names
    refuse_same_names(["blue_jay", "bluejay"], "here")


def test_class_names_keep_their_template() -> None:
    names = ClassNames(["c", "a", "b"], template=("a {}.", "the {}."))
    assert names.select([2, 0, 2]) == ("c", "b") and names.select([0]).template == ("a {}.", "the {}.")
    for template in ("a photo.", "{} {}", ("a {}", "none")):
        with pytest.raises(UsageError, match="exactly once"):
            ClassNames(["a"], template=template)
    with pytest.raises(UsageError, match="Class 1 has an empty name"):
        ClassNames(["a", "_ "])


# --- rendered datasets


@pytest.mark.parametrize("name", MINI)
def test_a_rendered_dataset_says_what_its_set_says(name: str) -> None:
    from promptbench.mini.sets import SETS

    dataset, rendered = open_dataset(name), SETS[name.removeprefix("mini_")]
    facts = registry.facts("datasets", name).attributes["info"]
    assert facts["title"]
    assert facts["classes"] == len(rendered.class_names) == len(dataset.class_names)
    assert dataset.class_names.template == rendered.template == dataset.info.template
    refuse_same_names(dataset.class_names, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MINI)
def test_a_rendered_dataset_draws_its_splits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from promptbench.mini.sets import SETS

    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path))  # of its own, since so few images are no others'
    per_class: Any = SETS[name.removeprefix("mini_")].per_class
    for split, number in {"train": 2, "val": 1, "test": 3}.items():
        if split in per_class:
            monkeypatch.setitem(per_class, split, number)
    dataset = open_dataset(name)
    sizes = [len(dataset.items(split)) for split in ("train", "val", "test")]
    classes = len(dataset.class_names)
    assert sizes == ([2 * classes, classes, 3 * classes] if name in WITH_TRAINING else [0, 0, 3 * classes])
    item = dataset.items("test")[-1]
    images = dataset.array("test")  # type: ignore[attr-defined]
    assert images.shape == (sizes[2], 48, 48, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(dataset.open(item)), images[-1])
    for split in dataset.splits:  # type: ignore[attr-defined]
        drawn = dataset._arrays(split)[1]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(dataset._drawn_labels(split), drawn)  # type: ignore[attr-defined]


def test_nothing_is_drawn_to_know_what_a_rendered_dataset_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptbench.datasets import _mini

    monkeypatch.setattr(_mini, "_rendered", None)
    dataset = open_dataset("mini_colours")
    assert len(dataset.split_digest()) == 64 and len(dataset.items("train")) == 960
    with pytest.raises(TypeError):
        dataset.open(dataset.items("train")[0])


def test_rendered_images_come_from_the_cache_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset("mini_fabrics").array("test")  # type: ignore[attr-defined]
    from promptbench.datasets import _mini

    _mini._rendered.cache_clear()
    monkeypatch.setattr("promptbench.mini.sets.images", None)
    second = open_dataset("mini_fabrics").array("test")  # type: ignore[attr-defined]
    np.testing.assert_array_equal(first, second)


def test_images_that_cannot_be_kept_are_drawn_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from promptbench.datasets import _mini

    def full(path: Path, write: object) -> None:
        raise OSError(28, "No space left on device")

    expected = open_dataset("mini_fabrics").array("test")  # type: ignore[attr-defined]
    _mini._rendered.cache_clear()
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(_mini, "write_atomically", full)
    np.testing.assert_array_equal(open_dataset("mini_fabrics").array("test"), expected)  # type: ignore[attr-defined]
    (said,) = caplog.messages
    assert said.startswith("rendered images cannot be kept in ") and said.endswith("(No space left on device)")
    _mini._rendered.cache_clear()


@pytest.mark.slow
def test_another_render_seed_draws_other_images() -> None:
    one, two = open_dataset("mini_fabrics"), open_dataset("mini_fabrics", {"render_seed": 2})
    assert not np.array_equal(one.array("test"), two.array("test"))  # type: ignore[attr-defined]
    assert one.identity(one.items("test")[0]) != two.identity(two.items("test")[0])
    assert one.split_digest() != two.split_digest()


@pytest.mark.parametrize("name", slow_but(["mini_fabrics", "mini_digits"], "mini_fabrics"))
def test_swapped_halves_change_places_and_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptbench.mini.sets import SETS

    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path))  # of its own, since so few images are no others'
    for split, number in {"train": 3, "val": 1, "test": 2}.items():
        monkeypatch.setitem(SETS[name.removeprefix("mini_")].per_class, split, number)  # type: ignore[arg-type]
    usual, swapped = open_dataset(name), open_dataset(name, {"swapped": True})
    names = usual.class_names
    assert class_labels(swapped, "base") == class_labels(usual, "base") == [0, 1, 2, 3, 4]
    assert [*swapped.class_names] == [*names[5:], *names[:5]] and swapped.class_names.template == names.template

    for split in ("train", "val", "test"):
        assert pixels_by_class(swapped, split) == pixels_by_class(usual, split)
        labels = [item.label for item in swapped.items(split)]
        assert labels == sorted(labels) and [*dict.fromkeys(labels)] == list(range(10))
        assert {swapped.class_names[item.label] == item.class_name for item in swapped.items(split)} == {True}
    assert swapped.split_digest() != usual.split_digest()
    chosen = [Selection(dataset=name, split="train", classes=half, shots=2) for half in ("base", "new")]
    base, new = (open_selection(lambda _: swapped, selection, 1) for selection in chosen)
    assert [*base.class_names] == [*names[5:]] and [*new.class_names] == [*names[:5]]
    sample = open_selection(lambda _: usual, chosen[0], 1)
    assert contents_digest(swapped, base.items) != contents_digest(usual, sample.items)
    assert open_dataset(name, {"swapped": False}).split_digest() == usual.split_digest()


def pixels_by_class(dataset: Dataset, split: str) -> dict[str, list[bytes]]:
    """Class name to the images of the class, in order; each is known by the same key in both orders of the halves."""
    found: dict[str, list[bytes]] = {}
    for item in dataset.items(split):
        image = np.asarray(dataset.open(item)).tobytes()
        found.setdefault(item.class_name, []).append(dataset.identity(item).encode() + image)
    return found


def test_the_renderer_digest_covers_every_module_that_draws() -> None:
    from promptbench.datasets import _mini

    folder = REPOSITORY / "promptbench" / "mini"
    reached, todo = set(), ["sets"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += re.findall(r"promptbench\.mini\.(\w+)", (folder / f"{module}.py").read_text())
    assert {f"{module}.py" for module in reached} <= set(_mini._DRAWING)


# --- cache


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    atomic.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "own"))
    assert cache.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("PROMPTBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "promptbench"


def test_an_unwritable_cache_gives_a_temporary_one_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        folder = cache.cache_dir()
        assert cache.cache_dir() == folder
    atomic.write_atomically(folder / "a", lambda file: file.write(b"x"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "PROMPTBENCH_CACHE" in caplog.text


# --- the folders' names


@pytest.mark.parametrize("folder", ["datasets", "methods"])
def test_the_source_folders_cannot_be_imported_at_top_level(folder: str) -> None:
    with pytest.raises(ImportError, match=f"promptbench.{folder}"):
        runpy.run_path(str(REPOSITORY / folder / "__init__.py"), run_name=folder)
    assert f"promptbench.{folder}" in sys.modules or importlib.util.find_spec(f"promptbench.{folder}")


class Odd(Dataset):
    """A dataset of somebody's own, whose items are given."""

    info = DatasetInfo(title="Odd", classes=1)
    given: Any = ()

    def read(self, split: str) -> Any:
        return self.given


@pytest.mark.parametrize(
    "odd",
    [
        *(None, 5, "text", [None], [()], [["a.png", 0, "a"]], [("a.png", 0, "a")], {1: 2}),
        *([Item("a.png", label, "a")] for label in (None, "a", 1.0, float("nan"), True, -1, 2**70)),
        *([Item(image, 0, "a")] for image in (None, 5, Path("a.png"))),  # type: ignore[arg-type]
        *([Item("a.png", 0, name)] for name in (None, b"a", ["x" * 10_000])),
    ],
)
def test_what_is_no_item_of_a_dataset_of_ones_own_is_said(odd: Any) -> None:
    dataset = Odd()
    dataset.given = odd
    with pytest.raises(UsageError, match="among the items of 'train'; give each image as an Item of a path") as caught:
        dataset.items("train")
    assert len(str(caught.value)) < 400
    dataset.given = iter([Item("a.png", 0, "a")])
    assert dataset.items("train") == [Item("a.png", 0, "a")]
