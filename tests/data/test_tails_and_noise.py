"""Long tails and wrong labels: counts and labels by hand, what stays as CoOp draws it, digests, files, refusals."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch

from promptbench.cli.main import main
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.data import selection
from promptbench.data.class_names import ClassNames
from promptbench.data.dataset import Dataset, contents_digest, open_dataset
from promptbench.data.selection import SelectedImages, Selection, open_selection
from promptbench.data.splits import Item
from promptbench.results.result import Result, read_results
from promptbench.runs.session import nearest_texts

NAMES = ("crow", "eagle", "finch", "gull", "heron")
TEN = [Item(f"{label}/{index}.jpg", label, f"name {label}") for label in range(10) for index in range(20)]


def drawn(sampler: str, shots: int, seed: int = 1, classes: tuple[int, ...] = tuple(range(10))) -> list[Item]:
    found: list[Item] = selection.sampler_of(sampler)(TEN, shots, seed, selection.Trained(classes))
    return found


def counts(items: list[Item]) -> list[int]:
    """Images of each class, the largest first."""
    return sorted(Counter(item.label for item in items).values(), reverse=True)


class TestLongTail:
    def test_counts_are_those_of_a_hand_calculation(self) -> None:
        """16 * 10 ** (-i / 9) is 16, 12.39, 9.59, 7.43, 5.75, 4.45, 3.45, 2.67, 2.07, 1.6."""
        assert counts(drawn("longtail:10", 16)) == [16, 12, 10, 7, 6, 4, 3, 3, 2, 2]

    def test_the_tail_is_that_of_the_classes_trained_on(self) -> None:
        """16 * 4 ** (-i / 2) is 16, 8, 4: the ratio is whole however few of all classes are trained on."""
        assert counts(drawn("longtail:4", 16, classes=(2, 5, 9))) == [16, 8, 4]

    def test_a_ratio_of_one_is_no_tail_and_halves_go_to_the_even_number(self) -> None:
        assert drawn("longtail:1", 4) == selection.coop_sample(TEN, [], 4, 1)[0]
        assert counts(drawn("longtail:2", 5, classes=(0, 1))) == [5, 2]

    def test_images_are_some_of_those_that_coop_draws(self) -> None:
        whole = selection.coop_sample(TEN, [], 16, 1)[0]
        tail = drawn("longtail:10", 16)
        assert [item for item in whole if item in tail] == tail

    def test_which_classes_have_many_images_follows_from_the_data_seed(self) -> None:
        largest = {
            Counter(item.label for item in drawn("longtail:10", 16, seed)).most_common(1)[0] for seed in range(9)
        }
        assert len(largest) > 3 and {count for _, count in largest} == {16}
        assert drawn("longtail:10", 16, 3) == drawn("longtail:10", 16, 3)

    def test_the_smallest_class_is_the_most_that_any_has(self) -> None:
        few = [item for item in TEN if item.label != 4 or item.image.endswith(("/1.jpg", "/2.jpg", "/3.jpg"))]
        found = selection.sampler_of("longtail:3")(few, 16, 1, selection.Trained(tuple(range(10))))
        assert max(counts(found)) == 3 and min(counts(found)) == 1
        others = selection.sampler_of("longtail:3")(few, 16, 1, selection.Trained((0, 1)))
        assert counts(others) == [16, 5]  # the small class is not trained on
        with pytest.raises(ValueError, match="longtail:4 needs 4 images of each class, and 'name 4' has 3"):
            selection.sampler_of("longtail:4")(few, 16, 1, selection.Trained(tuple(range(10))))
        with pytest.raises(ValueError, match="longtail:17 needs 17 images of each class, more than 16 shots"):
            drawn("longtail:17", 16)


class TestNoise:
    @pytest.mark.parametrize(("rate", "changed"), [("0", 0), ("0.1", 2), ("0.25", 4), ("0.5", 8), ("0.99", 16)])
    def test_so_many_images_of_each_class_get_another_label(self, rate: str, changed: int) -> None:
        """round(0.1 * 16) is 2, round(0.99 * 16) is 16."""
        whole = selection.coop_sample(TEN, [], 16, 1)[0]
        noisy = drawn(f"noise:{rate}", 16)
        assert [item.image for item in noisy] == [item.image for item in whole]
        wrong = [(true.label, item.label) for true, item in zip(whole, noisy, strict=True) if true.label != item.label]
        assert Counter(true for true, _ in wrong) == (dict.fromkeys(range(10), changed) if changed else {})
        assert all(item.class_name == f"name {item.label}" for item in noisy)

    def test_halves_go_to_the_even_number(self) -> None:
        """0.5 * 5 is 2.5, 0.5 * 7 is 3.5."""
        for shots, changed in ((5, 2), (7, 4)):
            whole = selection.coop_sample(TEN, [], shots, 1)[0]
            noisy = drawn("noise:0.5", shots)
            assert sum(a != b for a, b in zip(whole, noisy, strict=True)) == 10 * changed

    def test_other_labels_are_uniform_among_the_classes_trained_on(self) -> None:
        """Of 5 * 16 * 200 labels each of the 20 pairs gets 800 on average; six deviations are 152."""
        trained, pairs = (1, 3, 4, 6, 8), Counter[tuple[int, int]]()
        for seed in range(200):
            whole, noisy = selection.coop_sample(TEN, [], 16, seed)[0], drawn("noise:0.99", 16, seed, trained)
            pairs.update(
                (true.label, item.label) for true, item in zip(whole, noisy, strict=True) if true.label != item.label
            )
        assert len(pairs) == 20 and all({*pair} <= {*trained} for pair in pairs)
        assert max(abs(count - 800) for count in pairs.values()) < 152

    def test_confusable_labels_are_those_of_the_nearest_text(self) -> None:
        trained = selection.Trained((1, 3, 4), nearest=lambda: [2, 0, 1])  # by position: 1 -> 4, 3 -> 1, 4 -> 3
        noisy = selection.sampler_of("noise:0.25:confusable")(TEN, 16, 1, trained)
        symmetric = selection.sampler_of("noise:0.25")(TEN, 16, 1, trained)
        whole = selection.coop_sample(TEN, [], 16, 1)[0]
        changed = [(true.label, item.label) for true, item in zip(whole, noisy, strict=True) if true != item]
        assert Counter(changed) == {(1, 4): 4, (3, 1): 4, (4, 3): 4}
        places = [index for index, true in enumerate(whole) if noisy[index] != true]
        assert places == [index for index, true in enumerate(whole) if symmetric[index] != true]

    def test_a_single_class_has_no_other_label(self) -> None:
        with pytest.raises(ValueError, match="needs at least two classes"):
            drawn("noise:0.5", 4, classes=(3,))


def test_the_nearest_text_is_that_of_another_class(tiny: Backbone) -> None:
    names = ClassNames(("cat", "dog", "cat dog", "lorry"), ("a photo of a {}.", "one {}."))
    features = []
    for name in names:
        tokens = tiny.embed_text([template.format(name) for template in names.template])
        texts = torch.nn.functional.normalize(tiny.encode_text(tokens.embeddings, tokens.eot), dim=-1).mean(dim=0)
        features.append(torch.nn.functional.normalize(texts, dim=-1))
    expected = []
    for own in range(4):
        others = [other for other in range(4) if other != own]
        expected.append(max(others, key=lambda other: float(features[own] @ features[other])))
    assert nearest_texts(tiny, names) == expected
    assert all(other != own for own, other in enumerate(nearest_texts(tiny, names)))


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        ("longtail", "write longtail:RHO"),
        ("longtail:", "write longtail:RHO"),
        ("longtail:x", "write longtail:RHO"),
        ("longtail:0.5", "RHO is a number of at least 1, not 0.5"),
        ("longtail:nan", "RHO is a number of at least 1, not nan"),
        ("longtail:inf", "RHO is a number of at least 1, not inf"),
        ("noise", "write noise:RATE"),
        ("noise:1", "RATE is a number from 0 to below 1, not 1"),
        ("noise:-0.1", "RATE is a number from 0 to below 1, not -0.1"),
        ("noise:nan", "RATE is a number from 0 to below 1, not nan"),
        ("noise:0.2:near", "write noise:RATE"),
        ("noise:0.2:confusable:x", "write noise:RATE"),
        ("longtale:10", "Did you mean 'longtail:RHO'"),
    ],
)
def test_what_is_no_sampler_is_refused(sampler: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        selection.sampler_of(sampler)
    assert "\n" not in str(caught.value)


# --- selections of a dataset


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five classes with training, validation and test images."""
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_split_folders(folder, NAMES)
    return open_dataset("folder", {"root": str(folder)}, alias="birds")


def chosen(dataset: Dataset, seed: int = 1, **words: Any) -> SelectedImages:
    return open_selection(lambda _: dataset, Selection(**{"dataset": "birds", "split": "train", **words}), seed)


def test_labels_stay_among_the_base_classes_and_images_are_coops(birds: Dataset) -> None:
    usual = chosen(birds, classes="base", shots=4)
    noisy = chosen(birds, classes="base", shots=4, sampler="noise:0.5")
    assert [item.image for item in noisy.items] == [item.image for item in usual.items]
    assert {*noisy.labels} == {0, 1, 2} and sum(map(int.__ne__, noisy.labels, usual.labels)) == 6
    assert tuple(noisy.class_names) == NAMES[:3]


@pytest.mark.parametrize(
    ("sampler", "shots"), [("noise:0.5", 4), ("longtail:2", 4), ("noise:0.5", 1), ("longtail:1", 1)]
)
def test_validation_images_and_their_labels_are_coops(
    birds: Dataset, sampler: str, shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(split: str) -> bool:
        words = {"split": split, "classes": "base", "shots": shots}
        found = [(chosen(birds, seed, sampler=sampler, **words), chosen(birds, seed, **words)) for seed in range(5)]
        return all(ours.items == coops.items for ours, coops in found)

    assert same("held_out") and same("few_held_out")
    items = birds.items
    monkeypatch.setattr(birds, "items", lambda split: [] if split == "val" else items(split))
    assert same("held_out") and same("few_held_out")  # drawn from training images
    test = chosen(birds, split="test", classes="base", sampler=sampler)
    assert test.items == chosen(birds, split="test", classes="base").items


def test_wrong_labels_have_another_digest(birds: Dataset) -> None:
    usual, noisy = chosen(birds, shots=4), chosen(birds, shots=4, sampler="noise:0.5")
    other = chosen(birds, shots=4, sampler="noise:0.25")
    digests = {contents_digest(birds, one.pool) for one in (usual, noisy, other)}
    assert len(digests) == 3
    none = chosen(birds, shots=4, sampler="noise:0")
    assert contents_digest(birds, none.pool) in digests


# --- through the command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_fake.make_split_folders(root / "birds", NAMES)
    return root


@pytest.fixture
def call(data: Path, tiny_name: str, tmp_path: Path) -> list[str]:
    words = [
        "--suite",
        "clip11",
        "--method",
        "coop",
        "--dataset",
        f"folder:{data}/birds",
        "--backbone",
        tiny_name,
        "--device",
        "cpu",
        "--protocol",
        "base2new",
    ]
    short = ["--set", "coop.epochs=1", "coop.batch=4", "--shots", "4", "--seeds", "1", "--threads", "1"]
    return ["run", *words, *short, "--output", str(tmp_path / "runs")]


def trained(output: Path) -> dict[str, Result]:
    """The results of CoOp, by sampler."""
    return {result.spec.sampler: result for result in read_results(output) if result.spec.method == "coop"}


@pytest.mark.slow
def test_runs_say_what_they_were_trained_on(call: list[str], tmp_path: Path) -> None:
    samplers = ("coop", "longtail:2", "noise:0.5", "noise:0.5:confusable")
    for sampler in samplers:
        assert main([*call, "--sampler", sampler]) == 0
    found = trained(tmp_path / "runs")
    assert set(found) == set(samplers)
    assert len({result.spec.sample_digest for result in found.values()}) == 4
    assert len({result.conditions["training_key"] for result in found.values()}) == 4
    assert len({json.dumps(result.spec.contents) for result in found.values()}) == 1  # what is scored stays
    changed = 3 * 2  # of each base class half of its images
    assert found["longtail:2"].conditions["effective_ratio"] == 2.0
    assert found["longtail:2"].conditions["sample_size"] < found["coop"].conditions["sample_size"]
    assert found["noise:0.5"].conditions["labels_changed"] == changed
    assert found["noise:0.5:confusable"].conditions["labels_changed"] == changed
    assert not {"effective_ratio", "labels_changed"} & found["coop"].conditions.keys()


@pytest.mark.slow
def test_a_stored_sample_keeps_its_wrong_labels(
    call: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "birds.jsonl"
    sample = ["data", "sample", f"folder:{data}/birds", "--shots", "4", "--sampler", "noise:0.5"]
    assert main([*sample, "--classes", "base", "-o", str(path)]) == 0
    assert main([*call, "--sampler", "noise:0.5"]) == 0
    assert main([*call, "--sampler", f"file:{path}"]) == 0
    found = trained(tmp_path / "runs")
    (stored,) = (result for name, result in found.items() if name.startswith("file:"))
    drawn = found["noise:0.5"]
    assert stored.metrics == drawn.metrics
    assert stored.conditions["labels_changed"] == drawn.conditions["labels_changed"] > 0

    assert main([*sample, "-o", str(path)]) == 0  # over all classes
    capsys.readouterr()
    assert main([*call, "--sampler", f"file:{path}"]) == 2
    assert "--classes base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        ("longtail:0", "RHO is a number of at least 1"),
        ("noise:1.5", "RATE is a number from 0 to below 1"),
        ("longtail:5", "longtail:5 needs 5 images of each class, more than 4 shots"),
    ],
)
def test_the_command_refuses_in_one_line(
    call: list[str], sampler: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*call, "--sampler", sampler]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_stored_sample_cannot_ask_a_backbone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["data", "sample", f"folder:{data}/birds", "--shots", "4", "--sampler", "noise:0.5:confusable"]
    assert main([*sample, "-o", str(tmp_path / "a.jsonl")]) == 2
    assert "needs a backbone" in capsys.readouterr().err
