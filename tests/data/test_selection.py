"""From a selection to images: halves of a drawn sample, held-out images, names that are shown, stored samples."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import make_fake
import pytest

from promptbench.config import UsageError
from promptbench.data import selection
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.data.selection import SelectedImages, Selection, open_selection, shown_names, split_base_new

NAMES = ("crow", "eagle", "finch", "gull", "heron")
BASE, NEW = NAMES[:3], NAMES[3:]


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five classes with training, validation and test images."""
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_split_folders(folder, NAMES)
    return open_dataset("folder", {"root": str(folder)}, alias="birds")


def chosen(dataset: Dataset, seed: int = 1, **words: Any) -> SelectedImages:
    return open_selection(lambda _: dataset, Selection(**{"dataset": "birds", "split": "train", **words}), seed)


def paths(selected: SelectedImages) -> list[str]:
    return [item.image for item in selected.items]


def test_a_sample_is_drawn_over_all_classes_before_a_half_is_taken(birds: Dataset) -> None:
    whole = selection.coop_sample(birds.items("train"), [], 2, seed=5)[0]
    base, new = split_base_new(range(len(NAMES)))
    for half, labels, names in (("base", base, BASE), ("new", new, NEW)):
        half_of_it = chosen(birds, seed=5, classes=half, shots=2)
        assert half_of_it.pool == whole
        assert paths(half_of_it) == [item.image for item in whole if item.label in labels]
        assert tuple(half_of_it.class_names) == names
        assert set(half_of_it.labels) == set(range(len(names)))
    assert paths(chosen(birds, seed=6, shots=2)) != [item.image for item in whole]
    assert paths(chosen(birds)) == [item.image for item in birds.items("train")]


def test_images_that_cannot_be_read_are_left_out_where_that_is_asked_for(
    birds: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = chosen(birds, classes="new")
    bad = whole.items[1].image
    monkeypatch.setattr(birds, "unreadable", lambda items: [item for item in items if item.image == bad])
    assert paths(chosen(birds, classes="new")) == paths(whole)
    monkeypatch.setattr(birds, "skip_unreadable", True)
    left = chosen(birds, classes="new")
    assert paths(left) == [image for image in paths(whole) if image != bad]
    assert [left.pool[index].image for index in left.chosen] == paths(left)
    assert left.skipped == (bad,) and not whole.skipped


def test_held_out_images_are_none_that_the_sampler_drew(birds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some samplers draw from validation images too."""
    both = birds.items("train") + birds.items("val")
    monkeypatch.setattr(birds, "few_shot_pool", lambda split, sampler: both)
    drawn = {item.image for item in selection.coop_sample(both, [], 2, seed=3)[0]}
    validation = [item.image for item in birds.items("val")]
    assert drawn & set(validation)
    held = chosen(birds, seed=3, split="held_out", shots=2)
    assert paths(held) == [image for image in validation if image not in drawn]


def test_held_out_images_are_drawn_by_the_seed(birds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    items = birds.items
    monkeypatch.setattr(birds, "items", lambda split: [] if split == "val" else items(split))
    monkeypatch.setattr(selection, "HELD_OUT_SHOTS", 1)
    for seed in (1, 2, 3):
        used = {item.image for item in selection.coop_sample(items("train"), [], 2, seed)[0]}
        left = [item for item in items("train") if item.image not in used]
        expected = selection.sample_few_shot(left, 1, random.Random(seed))
        assert paths(chosen(birds, seed=seed, split="held_out", shots=2)) == [item.image for item in expected]


def test_images_of_no_class_that_is_shown_have_no_position(birds: Dataset) -> None:
    tests = chosen(birds, split="test")
    names, positions = shown_names(lambda _: birds, Selection(dataset="birds", split="test", classes="new"), tests)
    assert tuple(names) == NEW
    assert positions == [NEW.index(item.class_name) if item.class_name in NEW else -1 for item in tests.items]
    assert set(positions) == {-1, 0, 1}
    assert shown_names(lambda _: birds, None, tests) == (tests.class_names, tests.labels)


def test_images_of_another_dataset_have_no_position(birds: Dataset, tmp_path: Path) -> None:
    make_fake.make_split_folders(tmp_path / "owls", NAMES)
    owls = open_dataset("folder", {"root": str(tmp_path / "owls")}, alias="owls")
    tests = chosen(birds, split="test")
    names, positions = shown_names(lambda _: owls, Selection(dataset="owls", split="test"), tests)
    assert tuple(names) == NAMES and positions == [-1] * len(tests.items)


def test_images_of_a_shifted_version_have_the_positions_of_their_classes(birds: Dataset, tmp_path: Path) -> None:
    make_fake.make_split_folders(tmp_path / "drawn", NEW)
    drawn = open_dataset("folder", {"root": str(tmp_path / "drawn")}, alias="drawn")
    tests = chosen(drawn, split="test")
    shown = Selection(dataset="birds", split="test")
    names, positions = shown_names(lambda _: birds, shown, tests, same_classes=True)
    assert tuple(names) == NAMES
    assert [names[position] for position in positions] == [item.class_name for item in tests.items]
    with pytest.raises(UsageError, match=r"'birds' is to have classes of 'drawn', but '\w+' \(.*\) is none of them"):
        shown_names(lambda _: drawn, Selection(dataset="drawn", split="test"), chosen(birds), same_classes=True)


@pytest.mark.parametrize("name", make_fake.VARIANTS)
def test_images_of_imagenets_variants_have_the_positions_of_their_wnids(name: str, tmp_path: Path) -> None:
    for made in ("imagenet", name):
        make_fake.make(made, tmp_path)
    source, variant = (open_dataset(made, roots=[tmp_path]) for made in ("imagenet", name))
    tests = chosen(variant, split="test")
    names, positions = shown_names(lambda _: source, Selection(dataset="x", split="test"), tests, same_classes=True)
    wnids = list(make_fake.IMAGENET)
    folders = [item.image.partition("/")[0] for item in tests.items]
    expected = [int(folder) if folder.isdigit() else wnids.index(folder) for folder in folders]
    assert positions == expected and len(set(expected)) == len(make_fake.VARIANTS[name])
    assert tuple(names) == tuple(make_fake.IMAGENET.values())  # two of which are alike


def test_a_stored_sample_has_the_shots_and_the_seed_that_are_asked_for(birds: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "sample.jsonl"
    sample = selection.coop_sample(birds.items("train"), [], 2, seed=1)[0]
    selection.write_sample(path, {"shots": 2, "seed": 1}, sample)
    assert chosen(birds, shots=2, sampler=f"file:{path}").pool == sample
    with pytest.raises(UsageError, match="a sample with shots 2, not 3"):
        chosen(birds, shots=3, sampler=f"file:{path}")
    with pytest.raises(UsageError, match="a sample with seed 1, not 2"):
        chosen(birds, seed=2, shots=2, sampler=f"file:{path}")
    selection.write_sample(path, {}, sample)  # it says nothing, and has too many of a class
    assert chosen(birds, seed=7, shots=2, sampler=f"file:{path}").pool == sample
    with pytest.raises(UsageError, match="has 2 images of a class, more than 1 shots"):
        chosen(birds, shots=1, sampler=f"file:{path}")
