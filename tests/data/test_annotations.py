"""Splits made from the makers' annotations: the classes and sizes of the authors' split files, other images."""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from pathlib import Path

import make_fake
import numpy as np
import pytest
import scipy.io

from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, Item, open_dataset
from promptbench.data.splits import cut_classes, cut_val, read_matlab

SPLITS = ("train", "val", "test")
CUT = "generated (50/20/30 % of each class, seed 1)"
WITH_TEST = "generated (makers' test set, 20 % of each training class as val, seed 1)"
RULES = {
    "caltech101": CUT,
    "oxford_pets": WITH_TEST,
    "stanford_cars": WITH_TEST,
    "oxford_flowers": CUT,
    "food101": CUT,
    "sun397": WITH_TEST,
    "dtd": CUT,
    "eurosat": CUT,
    "ucf101": WITH_TEST,
}


def sizes(dataset: Dataset) -> dict[str, Counter[tuple[int, str]]]:
    """Images per class and split."""
    return {split: Counter((item.label, item.class_name) for item in dataset.items(split)) for split in SPLITS}


def members(dataset: Dataset, *splits: str) -> set[Item]:
    return {item for split in splits for item in dataset.items(split)}


@pytest.mark.parametrize("layout", make_fake.LAYOUTS)
@pytest.mark.parametrize("name", RULES)
def test_without_a_split_file_the_makers_annotations_are_split(
    name: str, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_fake.make(name, tmp_path / "split", layout)
    make_fake.make(name, tmp_path / "plain", layout, annotations=True)
    before = sorted((tmp_path / "plain").rglob("*"))
    published = open_dataset(name, roots=[tmp_path / "split"])
    generated = open_dataset(name, roots=[tmp_path / "plain"])
    assert generated.class_names == published.class_names
    assert members(generated, *SPLITS) == members(published, *SPLITS)
    assert sum(len(generated.items(split)) for split in SPLITS) == 30
    generated.check(members(generated, *SPLITS))
    if RULES[name] == WITH_TEST:
        assert generated.items("test") == published.items("test")
        assert all(sizes(generated)["val"][key] == 1 for key in sizes(published)["val"])  # round(0.2 * 7)
    else:
        assert sizes(generated) == sizes(published)
    assert generated.split_source == RULES[name] and published.split_source == make_fake.SPLIT_JSON[name].split_file
    assert caplog.text.count("figures on it do not compare with published ones") == 1
    again = open_dataset(name, roots=[tmp_path / "plain"])
    assert again.split_digest() == generated.split_digest() != published.split_digest()
    assert sorted((tmp_path / "plain").rglob("*")) == before


def test_a_split_file_goes_before_annotations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_fake.make("oxford_pets", tmp_path, annotations=True)
    make_fake.make("oxford_pets", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert open_dataset("oxford_pets", roots=[tmp_path]).split_source == "split_zhou_OxfordPets.json"
    assert not caplog.records


# --- the rules


def of_class(label: int, size: int) -> list[Item]:
    return [Item(f"{label}/{number}", label, str(label)) for number in range(size)]


# Rounded as Python does, half to even: 0.5 * 5 = 2.5 gives 2, 0.5 * 7 = 3.5 gives 4.
@pytest.mark.parametrize(("size", "train", "val"), [(3, 2, 1), (5, 2, 1), (7, 4, 1), (10, 5, 2), (13, 6, 3)])
def test_a_class_is_cut_into_rounded_shares(size: int, train: int, val: int) -> None:
    if train + val >= size:
        with pytest.raises(UsageError, match="here: the class '0' has 3 images, too few"):
            cut_classes(of_class(0, size), "here")
        return
    splits = cut_classes(of_class(0, size), "here")
    assert [len(splits[split]) for split in SPLITS] == [train, val, size - train - val]


def test_classes_are_shuffled_in_label_order_by_one_generator_of_seed_1() -> None:
    splits = cut_classes([*of_class(1, 10), *of_class(0, 10)], "here")
    generator = random.Random(1)
    drawn = [generator.sample(of_class(label, 10), 10) for label in (0, 1)]
    assert splits["train"] == drawn[0][:5] + drawn[1][:5]
    assert splits["val"] == drawn[0][5:7] + drawn[1][5:7]
    assert splits["test"] == drawn[0][7:] + drawn[1][7:]


def test_the_first_fifth_of_the_shuffled_images_is_val() -> None:
    splits = cut_val(of_class(0, 13), test=of_class(0, 2), where="here")
    drawn = random.Random(1).sample(of_class(0, 13), 13)
    assert splits == {"val": drawn[:3], "train": drawn[3:], "test": of_class(0, 2)}
    with pytest.raises(UsageError, match="here: the class '0' has 2 images, too few"):
        cut_val(of_class(0, 2), test=of_class(0, 2), where="here")


def test_the_global_generator_plays_no_part() -> None:
    random.seed(5)
    state = random.getstate()
    cut_classes(of_class(0, 10), "here")
    assert random.getstate() == state


# --- what can be wrong


def read(name: str, root: Path) -> None:
    open_dataset(name, roots=[root]).items("train")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("oxford_pets", "annotations/trainval.txt"),
        ("oxford_pets", "annotations/test.txt"),
        ("stanford_cars", "devkit/cars_train_annos.mat"),
        ("stanford_cars", "devkit/cars_meta.mat"),
        ("oxford_flowers", "imagelabels.mat"),
        ("oxford_flowers", "cat_to_name.json"),
        ("sun397", "ClassName.txt"),
        ("sun397", "Testing_01.txt"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt"),
        ("ucf101", "ucfTrainTestlist/classInd.txt"),
    ],
)
def test_a_missing_or_damaged_annotation_is_named(name: str, file: str, tmp_path: Path) -> None:
    make_fake.make(name, tmp_path, annotations=True)
    path = tmp_path / make_fake.PLACES[name][0][0] / file
    path.write_bytes(b"\x07 strange\n")
    with pytest.raises(UsageError, match=rf"{file}|annotations are not as expected"):
        read(name, tmp_path)
    path.unlink()
    split_file = make_fake.SPLIT_JSON[name].split_file
    with pytest.raises(UsageError, match=rf"'{name}' lacks {split_file} or, to make its split, {file} \(looked in "):
        read(name, tmp_path)


def test_a_matlab_file_that_would_be_large_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.mat"
    for size, compressed in ((1000, False), (2**23 - 100, True), (2**23, True), (2**23, False)):
        scipy.io.savemat(path, {"labels": np.ones((1, size), dtype=np.uint8)}, do_compression=compressed)
        if size < 2**23:
            assert len(read_matlab(path, "labels")) == size
        else:
            monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: pytest.fail("it is unpacked"))
            with pytest.raises(UsageError, match="Cannot read 'labels' from .*labels.mat"):
                read_matlab(path, "labels")


def test_a_short_line_is_named(tmp_path: Path) -> None:
    make_fake.make("oxford_pets", tmp_path, annotations=True)
    path = tmp_path / "oxford_pets" / "annotations" / "test.txt"
    path.write_text("\nAbyssinian_201\n")
    with pytest.raises(UsageError, match=r"test\.txt, line 2: expected at least 2 words, not 'Abyssinian_201'"):
        read("oxford_pets", tmp_path)


def test_lists_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    make_fake.make("sun397", tmp_path, annotations=True)
    with (tmp_path / "sun397" / "Training_01.txt").open("a") as file:
        file.write("/z/zoo/sun_1.jpg\n")
    with pytest.raises(
        UsageError, match=r"not as expected \(KeyError: 'z/zoo'\); get them again, or split_zhou_SUN397"
    ):
        read("sun397", tmp_path)


def test_folders_without_images_cannot_be_split(tmp_path: Path) -> None:
    make_fake.make("dtd", tmp_path, annotations=True)
    (tmp_path / "dtd" / "images" / "zigzagged").mkdir()
    with pytest.raises(UsageError, match="zigzagged holds no images"):
        read("dtd", tmp_path)


# --- against the authors' split files, where they are at hand


@pytest.fixture
def real(request: pytest.FixtureRequest) -> dict[str, list[tuple[str, int, str]]]:
    path = Path(os.environ.get("PROMPTBENCH_TEST_SPLITS", "absent"), make_fake.SPLIT_JSON[request.param].split_file)
    if not path.is_file():
        pytest.skip(f"PROMPTBENCH_TEST_SPLITS names no folder with {path.name}")
    return {
        split: [(image, label, name) for image, label, name in rows]
        for split, rows in json.loads(path.read_text()).items()
    }


@pytest.mark.parametrize(
    ("name", "real"), [(name, name) for name in ("caltech101", "dtd", "eurosat")], indirect=["real"]
)
def test_the_rule_gives_the_classes_and_sizes_of_the_real_split(
    name: str, real: dict[str, list[tuple[str, int, str]]], tmp_path: Path
) -> None:
    images = tmp_path.joinpath(*make_fake.PLACES[name][0])
    rows = [row for split in SPLITS for row in real[split]]
    for folder in {os.path.dirname(image) for image, *_ in rows}:
        (images / folder).mkdir(parents=True)
    for image, *_ in rows:
        os.close(os.open(images / image, os.O_CREAT))
    dataset = open_dataset(name, roots=[tmp_path])
    assert sizes(dataset) == {split: Counter(row[1:] for row in real[split]) for split in SPLITS}
    assert members(dataset, *SPLITS) == set(rows)


@pytest.mark.parametrize(("name", "real"), [("ucf101", "ucf101")], indirect=["real"])
def test_the_makers_test_set_is_that_of_the_real_split(
    name: str, real: dict[str, list[tuple[str, int, str]]], tmp_path: Path
) -> None:
    base, images = tmp_path / "ucf101", tmp_path.joinpath(*make_fake.PLACES[name][0])
    (images / "Archery").mkdir(parents=True)
    names = sorted({(label, name.replace("_", "")) for _, label, name in real["train"]})
    make_fake.ANNOTATE[name](
        base, {"train": real["val"] + real["train"], "test": real["test"]}, [name for _, name in names]
    )
    dataset = open_dataset(name, roots=[tmp_path])
    assert [tuple(item) for item in dataset.items("test")] == real["test"]
    assert members(dataset, "train", "val") == set(real["train"] + real["val"])
    assert sizes(dataset) == {split: Counter(row[1:] for row in real[split]) for split in SPLITS}
