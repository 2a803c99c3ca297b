from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from promptbench.config import UsageError
from promptbench.suite import DatasetEntry, load_suite, parse_entry, suite_names

MINIMAL = "title: T\nbackbone: mini\nroles: {base2new: [dtd]}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_package_ships_mini_and_clip11() -> None:
    assert {"mini", "clip11"} <= set(suite_names())


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_package_loads(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name and suite.title and suite.roles


def test_mini_says_what_it_is_and_ranks_nothing() -> None:
    mini = load_suite("mini")
    assert mini.note == (
        "rendered smoke-and-teaching benchmark; designed to show these effects; its ranking does not predict clip11"
    )
    assert not mini.ranked
    assert mini.companions == ("zeroshot", "zeroshot@generic")
    assert (mini.backbone, mini.shots, mini.seeds, mini.threads) == ("mini", 16, (1,), 1)
    assert len(mini.datasets("base2new")) == 7
    assert set(mini.datasets("source")).isdisjoint(mini.datasets("targets"))


def test_clip11_holds_the_eleven_datasets_of_the_field() -> None:
    clip11 = load_suite("clip11")
    assert (clip11.backbone, clip11.shots, clip11.seeds, clip11.threads) == (
        "ViT-B-16-quickgelu:openai",
        16,
        (1, 2, 3),
        None,
    )
    assert len(clip11.datasets("base2new")) == len(set(clip11.datasets("base2new"))) == 11
    assert set(clip11.datasets("source")) | set(clip11.datasets("targets")) == set(clip11.datasets("base2new"))
    assert clip11.datasets("ood") == ("inaturalist", "sun", "places", "textures")
    assert clip11.datasets("near_ood") == ("ssb_hard", "ninco")
    assert clip11.datasets("far_ood") == ("inaturalist", "textures", "openimage_o")
    assert clip11.datasets("shifted") == clip11.datasets("domains")
    assert clip11.ranked and not clip11.companions and not clip11.note


def test_a_file_is_a_suite_named_by_its_stem(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, MINIMAL))
    assert suite == load_suite(str(tmp_path / "mine.yaml"))
    assert (suite.name, suite.shots, suite.datasets("base2new")) == ("mine", 16, ("dtd",))


def test_datasets_are_names_or_folders_or_mappings(tmp_path: Path) -> None:
    text = """
title: T
backbone: mini
roles:
  base2new:
    - dtd
    - folder:/data/cats
    - {name: birds, dataset: folder, root: /path, template: "a photo of a {}, a bird."}
    - dataset: eurosat
"""
    suite = load_suite(written(tmp_path, text))
    assert suite.roles["base2new"] == (
        DatasetEntry(name="dtd", dataset="dtd"),
        DatasetEntry(name="cats", dataset="folder", options={"root": "/data/cats"}),
        DatasetEntry(name="birds", dataset="folder", options={"root": "/path", "template": "a photo of a {}, a bird."}),
        DatasetEntry(name="eurosat", dataset="eurosat"),
    )
    assert suite.entry("birds").options["root"] == "/path"


def test_a_role_takes_other_datasets_of_the_suite_or_new_ones(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, MINIMAL)).with_datasets("base2new", ["dtd", "folder:/data/cats"])
    assert suite.datasets("base2new") == ("dtd", "cats")
    assert suite.entry("cats").dataset == "folder"


def test_unknown_roles_and_datasets_are_refused_with_the_nearest_one(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, MINIMAL))
    with pytest.raises(UsageError, match="Unknown role 'base2mew'. Did you mean 'base2new'?"):
        suite.datasets("base2mew")
    with pytest.raises(UsageError, match="Unknown dataset 'dtt'. Did you mean 'dtd'?"):
        suite.entry("dtt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "shot: 4\n", "mine.yaml: Unknown key 'shot'. Did you mean 'shots'? Keys: backbone, companions,"),
        (
            MINIMAL + "xyz: 4\n",
            "extends, few_shots, lineup, methods, note, ranked, recipe, roles, seeds, shots, split, thr",
        ),
        (MINIMAL + "shots: many\n", "mine.yaml: 'shots' takes an integer, not 'many'."),
        (MINIMAL + "shots: 0\n", "mine.yaml: 'shots' must be at least 1, not 0."),
        (MINIMAL + "threads: 0\n", "mine.yaml: 'threads' must be at least 1"),
        (MINIMAL + "threads: 100000\n", "mine.yaml: 'threads' must be at most 1024"),
        (MINIMAL + f"seeds: [{10**20}]\n", "mine.yaml: 'seeds' takes a list (each item an integer), not"),
        (MINIMAL + f"shots: {10**20}\n", "(it is beyond 64 bits)"),
        (MINIMAL + "seeds: []\n", "mine.yaml: 'seeds' must be different integers"),
        (MINIMAL + "seeds: [1, 1]\n", "mine.yaml: 'seeds' must be different integers"),
        (MINIMAL + "name: other\n", "mine.yaml: a suite is named by its file"),
        (MINIMAL + "methods: {coop: {recipes: {}}}\n", "mine.yaml: methods.coop: Unknown key 'recipes'. Did you mean"),
        ("title: T\nroles: {base2new: [dtd]}\n", "mine.yaml: 'backbone' must be given."),
        ("title: T\nbackbone: mini\n", "mine.yaml: 'roles' takes a mapping"),
        ("title: T\nbackbone: mini\nroles: [dtd]\n", "mine.yaml: 'roles' takes a mapping"),
        ("title: T\nbackbone: mini\nroles: {source: []}\n", "mine.yaml: the role 'source' lists no dataset"),
        (
            "title: T\nbackbone: mini\nroles: {source: [dtd, dtd]}\n",
            "mine.yaml: the role 'source' lists a dataset twice",
        ),
        ("title: T\nbackbone: mini\nroles: {source: [3]}\n", "mine.yaml: a dataset is a name or a mapping"),
        ("title: T\nbackbone: mini\nroles: {source: [{name: x}]}\n", "mine.yaml: roles.source: 'dataset' takes text"),
        ("title: T\nbackbone: mini\nroles: {source: ['folder:']}\n", "'folder:' is no dataset"),
        (
            "title: T\nbackbone: mini\nroles: {source: ['folder:/a/x'], targets: ['folder:/b/x']}\n",
            "mine.yaml: the dataset 'x' is listed twice with different options",
        ),
        ("title: T\nroles: [dtd\n", "mine.yaml:3: this is no YAML"),
        ("- a\n", "mine.yaml: a suite is a mapping"),
        ("", "mine.yaml: a suite is a mapping"),
        ("title: \x00\n", "mine.yaml: the suite cannot be read"),
    ],
)
def test_a_wrong_file_is_told_with_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_suite(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_suites_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown suite 'mimi'. Did you mean 'mini'?"):
        load_suite("mimi")
    with pytest.raises(UsageError, match="none.yaml: the suite cannot be read \\(No such file or directory\\)"):
        load_suite(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_suite(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"title: \xff\n")
    with pytest.raises(UsageError, match="cannot be read"):
        load_suite(tmp_path / "latin.yaml")


def test_a_folder_entry_is_named_by_its_last_part() -> None:
    assert parse_entry("folder:/data/birds/") == DatasetEntry(
        name="birds", dataset="folder", options={"root": "/data/birds/"}
    )


def test_the_current_folder_is_an_entry_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    assert parse_entry("folder:.").name == parse_entry("folder:../cats").name == "cats"
    for wrong in ("folder:", "folder:/", ":x", ""):
        with pytest.raises(UsageError, match="is no dataset"):
            parse_entry(wrong)


def test_reading_suites_imports_no_torch() -> None:
    code = "import sys, promptbench.suite as s; s.load_suite('mini'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
