"""What a paper and its reviewer ask of a table: papers' names, what is left out, recipes, and the files behind it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import promptbench as pb
from promptbench import registry
from promptbench.cli import main
from promptbench.protocols.base2new import Base2New
from promptbench.results.result import Result, Spec, write_result
from promptbench.show.tables.formats.texts import FILES_NAMED

OURS = Path(__file__).parents[2]


def make(method: str, dataset: str = "mini_neon", seed: int = 1, base: float = 80.0, **facts: Any) -> Result:
    conditions = facts.pop("conditions", {})
    known: dict[str, Any] = {
        "suite": "mini",
        "protocol": "base2new",
        "config": {"n_ctx": 4},
        "recipe": {"epochs": 5, "lr": 0.02, "batch": 32, "weight_decay": 0.0005, "origin": "ours"},
        "shots": 16,
        "backbone": "mini",
        "threads": 1,
    }
    spec = Spec(dataset=dataset, method=method, data_seed=seed, train_seed=seed, **{**known, **facts})
    metrics = Base2New().summarize({"base/accuracy": base, "new/accuracy": 60.0})
    return Result(spec=spec, conditions=conditions, metrics=metrics, versions={}, commit="", created="")


def suite_of_two() -> list[Result]:
    results = []
    for dataset in ("mini_neon", "mini_signs"):
        results += [make("coop", dataset), make("maple", dataset), make("ivlp", dataset, preset="promptsrc")]
        results += [make("zeroshot", dataset, config={}, recipe={}, shots=0)]
        results += [make("zeroshot", dataset, preset="generic", config={}, recipe={}, shots=0)]
    return results


def printed(results: Sequence[Result], folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    for result in results:
        write_result(folder, result)
    capsys.readouterr()
    assert main.main(["table", "--results", str(folder), *flags]) == 0
    return capsys.readouterr().out


def cells(text: str, place: int) -> list[str]:
    return [line.split("|")[place].strip() for line in text.splitlines() if line.startswith("| ")][1:]


class TestNames:
    def test_methods_and_datasets_are_called_what_papers_call_them(self) -> None:
        (table,) = pb.table(suite_of_two()).tables
        names = ["Zero-shot CLIP (generic)", "Zero-shot CLIP", "CoOp", "IVLP (promptsrc)", "MaPLe"]
        assert {line.label for line in table.lines} == set(names)
        text = str(pb.table(suite_of_two()))
        assert list(dict.fromkeys(filter(None, cells(text, 1)[1:]))) == [
            "Neon",
            "Signs",
            "average",
            "mean of per-dataset H",
        ]
        assert "mini_neon" not in text and "zeroshot" not in text

    def test_every_plugin_of_a_kind_has_a_name_of_its_own_in_a_table(self) -> None:
        methods = registry.titles("methods", registry.names("methods"))
        assert len(set(methods.values())) == len(methods)
        assert not [name for name, title in methods.items() if name == title]

    def test_data_formats_have_the_typed_name_beside_it(self) -> None:
        tables = pb.table(suite_of_two())
        line = next(line for line in csv.DictReader(io.StringIO(tables.csv())) if line["method"] == "ivlp@promptsrc")
        assert (line["label"], line["dataset"], line["dataset title"]) == ("IVLP (promptsrc)", "mini_neon", "Neon")
        found = [line for line in csv.DictReader(io.StringIO(tables.csv(long=True))) if line["method"] == "coop"]
        assert {(line["label"], line["dataset"], line["dataset title"]) for line in found} == {
            ("CoOp", "mini_neon", "Neon"),
            ("CoOp", "mini_signs", "Signs"),
        }
        first = json.loads(tables.json())["tables"][0]["lines"][0]
        assert (first["method"], first["label"]) == ("zeroshot", "Zero-shot CLIP")
        assert (first["group"], first["group_title"]) == ("mini_neon", "Neon")
        frame = pb.to_frame(suite_of_two())
        assert set(zip(frame.method, frame.method_title, strict=True)) >= {("coop", "CoOp"), ("maple", "MaPLe")}
        assert set(frame.dataset_title) == {"Neon", "Signs"}

    def test_two_methods_of_one_title_keep_their_names(self, tmp_path: Path) -> None:
        registry.add_file(_plugin(tmp_path, "coop_again", "CoOp: a copy with another line."))
        labels = {line.label for line in pb.table([make("coop"), make("coop_again")]).tables[0].lines}
        assert labels == {"coop", "coop_again"}
        assert {line.label for line in pb.table([make("coop_again")]).tables[0].lines} == {"CoOp"}

    def test_what_is_no_plugin_here_has_the_title_of_its_file_or_its_name(self) -> None:
        gone = [make("away", dataset="birds", conditions={"title": "AwayNet"}), make("other", dataset="birds")]
        text = str(pb.table(gone))
        assert cells(text, 2)[1:] == ["AwayNet‡", "other‡"] and cells(text, 1)[1] == "birds"

    def test_rows_are_named_as_typed_or_as_shown(self) -> None:
        for name in ("ivlp@promptsrc", "IVLP (promptsrc)"):
            assert "Δ CoOp − IVLP (promptsrc)" in str(pb.table(suite_of_two(), delta=name))


def _plugin(folder: Path, name: str, docstring: str) -> Path:
    file = folder / f"{name}.py"
    file.write_text(f'"""{docstring}"""\n\nfrom promptbench.method import Method\n\n\nclass A(Method):\n    pass\n')
    return file


class TestLeftOut:
    def test_companions_stay_away_unless_they_are_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        results = suite_of_two()
        assert "Zero-shot CLIP" in printed(results, tmp_path, capsys, "--method", "coop")
        text = printed(results, tmp_path, capsys, "--method", "coop", "--no-companions")
        assert set(cells(text, 2)[1:]) == {"CoOp‡"}
        assert "Zero-shot CLIP" not in printed(results, tmp_path, capsys, "--no-companions")
        text = printed(results, tmp_path, capsys, "--method", "coop", "zeroshot", "--no-companions")
        assert set(cells(text, 2)[1:]) == {"CoOp‡", "Zero-shot CLIP"}

    def test_companions_alone_are_an_error_that_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_result(tmp_path, make("zeroshot", config={}, recipe={}, shots=0))
        assert main.main(["table", "--results", str(tmp_path), "--no-companions"]) == 2
        assert "There are results of companions alone; leave out --no-companions" in capsys.readouterr().err

    def test_the_mean_of_h_and_the_single_datasets_may_be_left_out(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        results = suite_of_two()
        whole = printed(results, tmp_path, capsys)
        assert "mean of per-dataset H" in cells(whole, 1)
        without = printed(results, tmp_path, capsys, "--no-means")
        assert "per-dataset H" not in without and "average" in cells(without, 1)
        averages = printed(results, tmp_path, capsys, "--no-means", "--averages")
        assert {name for name in cells(averages, 1)[1:] if name} == {"average"}
        kept = [line for line in whole.splitlines() if line.startswith("| average")]
        assert [re.sub(" +", " ", line) for line in averages.splitlines() if line.startswith("| average")] == [
            re.sub(" +", " ", line) for line in kept
        ]


class TestAppendix:
    CHOSEN = {"selection": {"kind": "pseudo-new classes", "trials": 9, "by_dataset": False}}
    LONGER = {"epochs": 50, "lr": 0.02, "batch": 32, "weight_decay": 0.0005, "optimizer": "adamw", "origin": "ours"}
    RESULTS = (
        make("coop", conditions=dict(CHOSEN)),
        make("coop", "mini_signs", recipe=LONGER, conditions=dict(CHOSEN)),
        make("zeroshot", config={}, recipe={}, shots=0),
        make("zeroshot", "mini_signs", config={}, recipe={}, shots=0),
    )
    KEY = ("epochs", "lr", "batch", "optimizer", "weight decay", "origin")

    def test_each_row_says_its_recipe_and_how_it_was_chosen(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = printed(self.RESULTS, tmp_path, capsys, "--appendix", "--format", "md")
        _, _, appendix = text.partition("### Recipes: base2new on mini")
        rows = []
        for line in appendix.splitlines():
            if line.startswith("| "):
                rows.append([cell.strip() for cell in line.split("|")[1:-1]])
        assert rows[0] == ["method", *self.KEY, "selection", "trials", "text prior"]
        coop = next(row for row in rows if row[0].startswith("CoOp"))
        assert coop[1:7] == ["5 / 50", "0.02", "32", "sgd / adamw", "0.0005", "ours"] and coop[8] == "9"
        zero = next(row for row in rows if row[0] == "Zero-shot CLIP")
        assert zero[1:7] == ["–"] * 6 and zero[8] == "–"
        assert "Settings of CoOp" in appendix and "n_ctx=4" in appendix
        assert "### Recipes" not in printed(self.RESULTS, tmp_path, capsys)

    @pytest.mark.parametrize("fmt", ["latex", "html", "json", "csv"])
    def test_other_formats_say_it_too(self, fmt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = printed(self.RESULTS, tmp_path, capsys, "--appendix", "--format", fmt)
        if fmt == "json":
            (row,) = [row for row in json.loads(text)["tables"][0]["appendix"] if row["method"] == "coop"]
            assert (row["epochs"], row["weight_decay"], row["selection"]["trials"]) == (["5", "50"], ["0.0005"], 9)
        elif fmt == "csv":
            lines = [line for line in csv.DictReader(io.StringIO(text)) if line["method"] == "coop"]
            assert [line["recipe/epochs"] for line in lines[:3]] == ["5", "50", "5 / 50"]
            assert lines[0]["recipe/config"] == "n_ctx=4"
        else:
            assert "5 / 50" in text and "sgd / adamw" in text and "Settings of CoOp" in text


class TestFilesBehind:
    def test_a_comment_names_few_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        results = [make("coop"), make("maple")]
        (comment,) = re.findall(r"<!-- (.*?) -->", printed(results, tmp_path, capsys))
        paths = comment.removeprefix("made of ").split(", ")
        assert sorted(paths) == sorted(f"results/{result.name}.json" for result in results)
        assert all((tmp_path / path).is_file() for path in paths)

    def test_of_many_it_has_a_count_and_a_digest_that_follows_their_figures(self) -> None:
        results = [make("coop", seed=seed) for seed in range(FILES_NAMED + 1)]
        (comment,) = re.findall(r"<!-- (.*?) -->", str(pb.table(results)))
        assert f"made of {FILES_NAMED + 1} files in results/base2new/*/*.json; sha256" in comment and len(comment) < 150
        (again,) = re.findall(r"<!-- (.*?) -->", str(pb.table(results[::-1])))
        (other,) = re.findall(
            r"<!-- (.*?) -->", str(pb.table([*results[:-1], make("coop", seed=FILES_NAMED, base=81)]))
        )
        assert again == comment != other

    def test_committed_tables_name_theirs(self) -> None:
        text = (OURS / "results" / "mini" / "base2new.md").read_text(encoding="utf-8")
        (number,) = re.findall(r"<!-- made of (\d+) files in results/base2new/", text)
        assert int(number) == len(list((OURS / "results" / "mini" / "results" / "base2new").rglob("*.json")))
