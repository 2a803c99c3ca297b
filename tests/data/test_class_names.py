"""Other class names from a file: both forms, what they change, what stays, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make_fake
import pytest

from promptbench.cli.main import main
from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, open_dataset
from promptbench.data.selection import Selection, open_selection, shown_names
from promptbench.results.result import read_results

OWN = ("banded", "blotchy", "braided")
SYNONYMS = ("striped", "spotty", "woven")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("dtd", "imagenet"):
        make_fake.make(name, root)
    return root


def opened(root: Path, names: Any, dataset: str = "dtd") -> Dataset:
    return open_dataset(dataset, {"class_names": names}, [root])


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("a.txt", "striped\nspotty\nwoven\n", SYNONYMS),
        ("a.txt", "striped\r\n spotty \r\nwoven", SYNONYMS),
        ("a.yaml", "[striped, spotty, woven]", SYNONYMS),
        ("a.yaml", "banded: striped\nBraided: many words here\n", ("striped", "blotchy", "many words here")),
        ("a.yml", "banded: blotchy\nblotchy: banded\n", ("blotchy", "banded", "braided")),
    ],
)
def test_names_are_replaced(file: str, text: str, expected: tuple[str, ...], root: Path, tmp_path: Path) -> None:
    dataset = opened(root, written(tmp_path / file, text))
    assert tuple(dataset.names_shown) == expected and tuple(dataset.class_names) == OWN
    assert dataset.names_shown.template == dataset.class_names.template
    assert dataset.names_shown.dataset == "dtd"
    for split in ("train", "test"):
        chosen = open_selection(lambda _: dataset, Selection(dataset="dtd", split=split, classes="base"), 1)
        assert tuple(chosen.class_names) == expected[:2]
    names, _ = shown_names(lambda _: dataset, Selection(dataset="dtd", split="test"), chosen)
    assert tuple(names) == expected


def test_images_labels_and_splits_stay(root: Path) -> None:
    usual, other = open_dataset("dtd", {}, [root]), opened(root, list(SYNONYMS))
    assert other.split_digest() == usual.split_digest()
    assert other.items("train") == usual.items("train")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a", "b"], "there are 2 names for 3 classes"),
        (["a", "b", "c", "d"], "there are 4 names for 3 classes"),
        (["a", "b", "A"], "the classes 0 'a' and 2 'A' read the same"),
        (["a", " ", "c"], "the class 'blotchy' gets an empty name"),
        ({"bandid": "striped"}, "Unknown class 'bandid'. Did you mean 'banded'?"),
        ({"banded": "striped", "Banded": "lined"}, "'Banded' is renamed twice"),
        ({"banded": "braided"}, "the classes 0 'braided' and 2 'braided' read the same"),
        ({"banded": ""}, "the class 'banded' gets an empty name"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: Any, says: str, root: Path) -> None:
    with pytest.raises(UsageError, match=r"^The dataset 'dtd', class_names: ") as caught:
        _ = opened(root, names).names_shown
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["banded: 3", "3: striped", "{", "- [a]", "word", ""])
def test_yaml_of_something_else_is_refused(text: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.yaml") as caught:
        opened(root, written(tmp_path / "a.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_dataset_whose_own_list_has_pairs_may_keep_them(root: Path) -> None:
    dataset = opened(root, {"tench": "carp"}, "imagenet")
    assert dataset.names_shown[0] == "carp" and list(dataset.names_shown).count("missile") == 2


# --- through the command


@pytest.fixture
def call(root: Path, tiny_name: str, tmp_path: Path) -> list[str]:
    words = ["--suite", "clip11", "--method", "coop", "--dataset", "dtd", "--backbone", tiny_name, "--device", "cpu"]
    short = ["--shots", "2", "--seeds", "1", "--threads", "1", "--data-root", str(root)]
    return ["run", *words, *short, "--output", str(tmp_path / "runs"), "--set", "coop.epochs=1", "coop.batch=4"]


@pytest.mark.slow
def test_names_decide_the_run_and_no_path_is_recorded(
    call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names.txt"
    assert main(call) == 0
    for names in (SYNONYMS, ("lined", "spotty", "woven")):
        file.write_text("\n".join(names))
        assert main([*call, f"dtd.class_names={file}"]) == 0
    results = [result for result in read_results(tmp_path / "runs") if result.spec.method == "coop"]
    recorded = sorted(json.dumps(result.spec.dataset_options) for result in results)
    assert recorded == [
        '{"class_names": ["lined", "spotty", "woven"]}',
        '{"class_names": ["striped", "spotty", "woven"]}',
        "{}",
    ]
    for field in ("trained_names", "class_names"):
        assert len({json.dumps(getattr(result.spec, field)) for result in results}) == 3
    assert len({result.spec.split_digest for result in results}) == 1
    assert str(tmp_path) not in "".join(json.dumps(dict(result.spec.dataset_options)) for result in results)
    capsys.readouterr()
    assert main(["table", "--results", str(tmp_path / "runs")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "class_names=" in line]
    assert all(row.count("class_names=") == 1 for row in rows if row.startswith("|"))
    assert len(set(rows)) == 3 and sum("class_names=none" in row for row in rows) == 1


def test_the_command_refuses_in_one_line(call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, says in (("a\nb", "2 names for 3 classes"), (None, "Cannot read")):
        file = tmp_path / f"{says[:6]}.txt"
        if text is not None:
            file.write_text(text)
        assert main([*call, f"dtd.class_names={file}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
