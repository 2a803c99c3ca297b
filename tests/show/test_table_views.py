"""What a reader may ask of tables: seeds, order, differences, groups, outliers, marks, papers' figures beside ours."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from promptbench.cli import main
from promptbench.config import UsageError
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result, Spec, write_result
from promptbench.show.tables.rows import outliers
from promptbench.show.tables.show import View, show, tables_of
from promptbench.suite import load_suite

CLIP11 = load_suite("clip11")
ELEVEN = CLIP11.datasets("base2new")


def make(metrics: dict[str, float], **facts: Any) -> Result:
    known: dict[str, Any] = {
        "suite": "clip11",
        "protocol": "base2new",
        "dataset": "dtd",
        "method": "maple",
        "config": {"n_ctx": 2, "depth": 9},
        "recipe": {"epochs": 5, "origin": "authors"},
        "shots": 16,
        "data_seed": 1,
        "train_seed": 1,
        "backbone": "ViT-B-16-quickgelu:openai",
        "precision": "16-mixed",
        "threads": 1,
    }
    conditions = facts.pop("conditions", {})
    if "seed" in facts:
        facts["data_seed"] = facts["train_seed"] = facts.pop("seed")
    spec = Spec(**{**known, **facts})
    return Result(spec=spec, conditions=conditions, metrics=metrics, versions={}, commit="", created="")


def pair(base: float, new: float, **facts: Any) -> Result:
    return make({"base/accuracy": base, "new/accuracy": new, "h": harmonic_mean(base, new)}, **facts)


def shown(results: Sequence[Result], **view: Any) -> str:
    wanted = View(**view)
    return show(tables_of(results, [CLIP11, load_suite("mini")], (), (), wanted), wanted)


def lines(results: Sequence[Result], **view: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(shown(results, format="csv", **view))))


def rows(results: Sequence[Result], **view: Any) -> list[list[str]]:
    """The cells of the Markdown, without heads."""
    found = [line for line in shown(results, **view).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in found]
    return [row for row in cells if row[1] != "method" and set(row[0]) != {"-"}]


class TestOutliers:
    @pytest.mark.parametrize(
        ("values", "far"),
        [
            ((54.9, 87.0, 87.2), (0,)),  # median 87.0, deviations 32.1, 0, 0.2: 3 sigma is 0.9, so points rule
            ((70.0, 79.9, 70.0), ()),  # 9.9 points
            ((70.0, 80.1, 70.0), (1,)),
            ((70.0, 70.0, 70.0, 70.0, 72.9), ()),
            ((70.0, 70.0, 70.0, 70.0, 73.1), (4,)),
            ((60.0, 70.0, 90.0), ()),  # deviations 10, 0, 20: 3 sigma is 44.5
            ((60.0, 70.0), ()),
            ((70.0, 71.0, 72.0, 73.0, 90.0), (4,)),  # median 72, MAD 1, limit 4.4
        ],
    )
    def test_the_rule(self, values: Sequence[float], far: Sequence[int]) -> None:
        assert outliers({(seed, seed): value for seed, value in enumerate(values)}) == tuple((s, s) for s in far)

    def test_a_flag_names_dataset_seed_and_value(self) -> None:
        results = [pair(base, 60, seed=seed) for seed, base in ((1, 54.9), (2, 87.0), (3, 87.2))]
        text = shown(results)
        assert "| 76.4 ± 15.2! | 60.0 ± 0.0 |" in text
        assert re.search(r"^! a seed lies farther .*: MaPLe on DTD, base: seed 1 54\.9\.$", text, re.MULTILINE)
        assert [row[4] for row in rows(results, per_seed=True)] == ["54.9!", "87.0", "87.2"]

    def test_nothing_is_flagged_among_two(self) -> None:
        text = shown([pair(base, 60, seed=seed) for seed, base in ((1, 54.9), (2, 87.0))])
        assert "!" not in text.partition("<!--")[0]


class TestPerSeed:
    def test_a_line_is_a_seed_and_nothing_is_ranked(self) -> None:
        results = [pair(70 + seed, 60, seed=seed, dataset=d) for seed in (1, 2) for d in ("dtd", "ucf101")]
        results += [pair(50, 40, seed=seed, dataset=d, method="coop") for seed in (1, 2) for d in ("dtd", "ucf101")]
        text = shown(results, per_seed=True)
        assert "±" not in text and "**" not in text and "**" in shown(results)
        found = [row for row in rows(results, per_seed=True) if row[1] == "MaPLe"]
        assert [row[4] for row in found[:4]] == ["71.0", "72.0", "71.0", "72.0"] and found[0][-1] == "1"
        average = [line for line in lines(results, per_seed=True) if line["kind"] == "average"]
        assert [(line["method"], line["seeds"], float(line["h"])) for line in average[2:]] == [
            ("maple", str(seed), pytest.approx(harmonic_mean(70 + seed, 60))) for seed in (1, 2)
        ]

    def test_data_and_training_seed_are_told_apart(self) -> None:
        results = [pair(70, 60, data_seed=1, train_seed=seed) for seed in (1, 2)]
        assert [row[-1] for row in rows(results, per_seed=True)] == ["1", "1/2"]


class TestSort:
    RESULTS = [
        pair(base, new, dataset=d, method=m)
        for d in ("dtd", "ucf101")
        for m, base, new in (("a", 70, 60), ("b", 90, 50), ("c", 80, 70))
    ]

    def test_methods_come_by_the_average_of_a_column(self) -> None:
        assert [row[1] for row in rows(self.RESULTS, sort="base")] == ["b", "c", "a"] * 4
        assert [row[1] for row in rows(self.RESULTS, sort="new/accuracy")] == ["c", "a", "b"] * 4

    def test_a_method_without_an_average_comes_last(self) -> None:
        results = [*self.RESULTS, pair(99, 99, dataset="dtd", method="d")]
        assert [row[1] for row in rows(results, sort="H")][:4] == ["c", "a", "b", "d"]

    def test_lower_is_first_where_lower_is_better(self) -> None:
        results = [make({"base/ece": v, "new/ece": v}, method=m) for m, v in (("a", 9.0), ("b", 3.0))]
        assert [row[1] for row in rows(results, sort="base", metric="ece")] == ["b", "a"]

    def test_an_unknown_column_is_refused(self) -> None:
        with pytest.raises(UsageError, match="Unknown column 'bases'. Did you mean 'base'"):
            shown(self.RESULTS, sort="bases")


class TestMetrics:
    def test_figures_that_are_no_percentages_have_more_digits_and_the_lower_one_is_best(self) -> None:
        figures = [("a", 0.51239, 2.0), ("b", 0.51241, 0.1), ("c", 0.5134, 1.0)]
        results = []
        for (method, nll, brier), seed in product(figures, (1, 2)):
            metrics = {"base/nll": nll, "base/brier": brier, "base/nll_scaled": brier}
            results.append(make(metrics, method=method, seed=seed))
        shown = [row[4].replace(" ± 0.000", "") for row in rows(results, metric="nll")]
        assert shown == ["**0.512**", "**0.512**", "0.513"]
        shown = [row[4].replace(" ± 0.000", "") for row in rows(results, metric="brier")]
        assert shown == ["2.000", "**0.100**", "_1.000_"]
        assert [row[1] for row in rows(results, metric="nll_scaled", sort="base")] == ["b", "c", "a"]
        (row,) = [row for row in rows(results, metric="nll", delta="a") if row[1] == "Δ c − a"]
        assert row[4].startswith("+0.001")

    def test_open_world_auc_is_one_column_whose_gap_is_explained(self) -> None:
        note = {"open_world_auc": "OpenworldAUC needs new and joint images scored, which this method cannot do"}
        without = replace(make({"base/accuracy": 50.0}, method="linear_probe"), notes=note)
        text = shown([make({"open_world_auc": 61.25}), without], metric="open_world_auc")
        head, _, first, second = [line for line in text.splitlines() if line.startswith("|")]
        assert [cell.strip() for cell in head.split("|")[1:-1]][-2:] == ["OpenworldAUC", "n"]
        assert "– [1]" in first and "61.2" in second and f"[1] {note['open_world_auc']}" in text

    def test_results_from_before_a_metric_have_no_figure(self) -> None:
        assert [row[4:] for row in rows([pair(70, 60)], metric="nll")] == [["–", "–", "–", "1"]]
        assert [row[4:] for row in rows([pair(70, 60)], metric="open_world_auc")] == [["–", "1"]]


class TestDifferences:
    def test_a_difference_is_taken_seed_by_seed(self) -> None:
        results = [pair(base, 60, seed=seed, method="a") for seed, base in ((1, 70), (2, 80))]
        results += [pair(base, 50, seed=seed, method="b") for seed, base in ((1, 71), (2, 85))]
        found = lines(results, delta="a")
        (line,) = [line for line in found if line["kind"] == "block difference"]
        assert line["method"] == "Δ b − a"
        assert (float(line["base/accuracy"]), float(line["base/accuracy/std"])) == (3, 2)  # differences 1 and 5
        assert (float(line["new/accuracy"]), float(line["new/accuracy/std"])) == (-10, 0)
        h = harmonic_mean(78, 50) - harmonic_mean(75, 60)
        assert float(line["h"]) == pytest.approx(h)
        assert "| +3.0 ± 2.0 | −10.0 ± 0.0 |" in re.sub(" +", " ", shown(results, delta="a"))

    def test_other_seeds_leave_no_spread(self) -> None:
        results = [pair(70, 60, seed=1, method="a"), pair(80, 60, seed=2, method="a"), pair(71, 50, method="b")]
        (line,) = [line for line in lines(results, delta="a") if "difference" in line["kind"]]
        assert (line["base/accuracy"], line["base/accuracy/std"]) == ("-4.0", "")

    def test_differences_are_never_ranked(self) -> None:
        results = [pair(70 + 5 * n, 60, method=m) for n, m in enumerate("abc")]
        marked = [row for row in rows(results, delta="a") if row[1].startswith("Δ")]
        assert len(marked) == 2 and not any("*" in cell or "_" in cell for row in marked for cell in row)

    def test_the_reference_must_be_one_row(self) -> None:
        results = [pair(70, 60, config={"n_ctx": n}) for n in (2, 4)]
        with pytest.raises(UsageError, match=r"has several rows; take differences to one of MaPLe \(n_ctx=2\), MaPLe"):
            shown(results, delta="maple")
        assert "Δ MaPLe (n_ctx=4) − MaPLe (n_ctx=2)" in shown(results, delta="maple (n_ctx=2)")
        with pytest.raises(UsageError, match="Did you mean 'maple"):
            shown(results, delta="mapel")


class TestGroupBy:
    def test_values_become_rows_in_order(self) -> None:
        results = [pair(70, 60, config={"n_ctx": 2, "depth": depth}) for depth in (12, 3, 9)]
        names = [f"MaPLe (depth={depth})" for depth in (3, 9, 12)]
        assert [row[1] for row in rows(results, group_by="maple.depth")] == names

    @pytest.mark.parametrize("setting", ["depth", "maple.depth", "epochs", "maple.epochs", "sampler", "shots"])
    def test_a_single_value_is_shown_too(self, setting: str) -> None:
        value = {"depth": "9", "epochs": "5", "sampler": "coop", "shots": "16"}[setting.rpartition(".")[2]]
        ((_, name, *_),) = rows([pair(70, 60)], group_by=setting)
        assert name == f"MaPLe ({setting.rpartition('.')[2]}={value})"

    def test_other_methods_keep_their_name(self) -> None:
        zero = pair(60, 60, method="zeroshot", config={}, recipe={}, shots=0)
        found = rows([pair(70, 60), pair(65, 60, method="coop"), zero], group_by="maple.depth")
        assert {row[1] for row in found} == {"MaPLe (depth=9)", "CoOp", "Zero-shot CLIP"}
        assert {row[1] for row in rows([pair(70, 60), zero], group_by="epochs")} == {
            "MaPLe (epochs=5)",
            "Zero-shot CLIP",
        }

    def test_what_differs_by_recipe_is_told_apart_when_asked(self) -> None:
        results = [pair(70, 60, dataset=d, recipe={"epochs": e}) for d, e in (("dtd", 5), ("ucf101", 50))]
        assert [row[1] for row in rows(results)] == ["MaPLe"] * 4
        names = [row[1] for row in rows(results, group_by="epochs")]
        assert names[:2] == ["MaPLe (epochs=5)", "MaPLe (epochs=50)"]

    def test_an_unknown_setting_is_refused(self) -> None:
        with pytest.raises(UsageError, match="Unknown setting 'maple.depht'. Did you mean 'maple.depth'"):
            shown([pair(70, 60)], group_by="maple.depht")
        with pytest.raises(UsageError, match="Unknown setting 'mapel.depth'. Did you mean 'maple.depth'"):
            shown([pair(70, 60)], group_by="mapel.depth")
        with pytest.raises(UsageError, match="Unknown setting 'epoch'. Did you mean 'epochs'"):
            shown([pair(70, 60)], group_by="epoch")


class TestMarks:
    def test_another_sampler_is_marked_and_not_ranked_with_others(self) -> None:
        results = []
        for seed in (1, 2):
            results += [pair(90, 80, method="gallop", preset="authors", sampler="stratified", seed=seed)]
            results += [pair(70, 60, method="a", seed=seed), pair(60, 50, method="b", seed=seed)]
        text = shown(results)
        assert "GalLoP (authors, sampler=stratified)¶ |" in text
        assert "**70.0 ± 0.0**" in text and "**90.0 ± 0.0**" not in text
        assert "¶ few-shot images drawn by the sampler stratified, not by CoOp's" in text
        both = product((("a", 70), ("b", 80)), (1, 2))
        alone = shown([pair(value, 60, method=m, sampler="stratified", seed=seed) for (m, value), seed in both])
        assert "**80.0 ± 0.0**" in alone

    def test_scores_over_patches_that_are_not_the_authors_are_marked(self) -> None:
        metrics = {"id/accuracy": 70.0, **{f"sun/{score}/auroc": 80.0 for score in ("mcm", "gl_mcm", "l_mcm", "msp")}}
        facts: dict[str, Any] = {"protocol": "ood", "dataset": "imagenet", "evaluated": {"sun": {}}}
        results = [
            make(metrics, method=m, conditions={"images": {"id": 9, "sun": 9}, **dense}, **facts)
            for m, dense in (("a", {"dense_scores": False}), ("b", {"dense_scores": True}), ("old", {}))
        ]
        marked = [(row[0], row[1]) for row in rows(results) if "‖" in row[1]]
        assert marked == [("GL-MCM", "a‖"), ("L-MCM", "a‖")]
        assert "‖ dense features as CLIP's frozen value path gives them; not the authors' score." in shown(results)


def test_columns_without_any_figure_are_left_out() -> None:
    assert "joint" not in shown([pair(70, 60)])
    assert "joint" in shown([pair(70, 60), make({"base/accuracy": 70.0, "joint/accuracy": 50.0}, method="b")])


def whole(method: str, base: float, new: float, seeds: Sequence[int] = (1, 2, 3), **facts: Any) -> list[Result]:
    """Figures of all eleven datasets whose averages are these."""
    return [
        pair(base + 5 - n, new - 5 + n, dataset=dataset, method=method, seed=seed, **facts)
        for n, dataset in enumerate(ELEVEN)
        for seed in seeds
    ]


class TestPublished:
    def test_our_average_stands_beside_the_papers(self) -> None:
        """MaPLe's own table: base 82.28, new 75.14, H 78.55."""
        results = whole("maple", 82.28, 75.14)
        average = next(line for line in lines(results, published=True) if line["kind"] == "average")
        for key, value in (("base/accuracy", 82.28), ("new/accuracy", 75.14), ("h", 78.55)):
            assert float(average[f"{key}/paper"]) == value and average[f"{key}/verdict"] == "reproduced"
            assert float(average[f"{key}/gap"]) == pytest.approx(0, abs=0.005)
        text = shown(results, published=True)
        assert "### beside published figures" in text
        assert re.search(r"\| average +\| MaPLe +\| +base \| 82\.28 \| 82\.3 ± 0\.0 \| +3 \| .* reproduced \|", text)
        assert re.search(r"maple\.csv, line \d+ \|$", text, re.MULTILINE)

    def test_a_gap_is_judged_by_what_is_shown(self) -> None:
        results = [r for n, seed in enumerate((1, 2, 3)) for r in whole("maple", 72.28 + n, 75.14 - n, (seed,))]
        average = next(line for line in lines(results, published=True) if line["kind"] == "average")
        assert float(average["h/gap"]) == pytest.approx(float(average["h"]) - 78.55)
        assert average["base/accuracy/verdict"] == "differs"

    def test_what_may_not_be_compared_says_why(self) -> None:
        average = next(line for line in lines(whole("maple", 82, 75, sampler="stratified"), published=True))
        assert average["base/accuracy/verdict"] in ("not comparable", "")
        found = {line["h/why"] for line in lines(whole("maple", 82, 75, shots=4), published=True)}
        assert "4 shots here, 16 there" in found

    def test_unequal_seeds_are_not_judged(self) -> None:
        results = [*whole("maple", 82, 75, (1, 2)), pair(80, 70, dataset="dtd", seed=3)]
        average = next(line for line in lines(results, published=True) if line["kind"] == "average")
        assert (average["h/verdict"], average["h/why"]) == ("not comparable", "seeds differ from dataset to dataset")

    def test_rows_of_papers_alone_are_marked_and_never_ranked_or_averaged(self) -> None:
        results = [*whole("maple", 50, 50), *whole("vpt", 40, 40)]
        text = shown(results, published=True)
        (line,) = [line for line in text.splitlines() if "CoCoOp (published)" in line and "80.5" in line]
        assert "71.7" in line and "75.8" in line and "*" not in line
        assert "MaPLe (published)" not in text and "**50.0 ± 0.0**" in text
        assert "published: a paper's figures, not measured here; in no average, and never ranked with ours." in text
        found = [line for line in lines(results, published=True) if line["kind"] == "published"]
        assert found and all(line["base/accuracy"] == "" and line["n"] for line in found)
        ours = [line for line in lines(results, published=True) if line["kind"] == "average"]
        assert [line["h"] for line in ours] == [line["h"] for line in lines(results) if line["kind"] == "average"]
        document = json.loads(shown(results, published=True, format="json"))["tables"][0]["lines"]
        assert all(line["published"] for line in document if line["kind"] == "published")

    def test_figures_of_transfer_and_shots_and_scores_find_theirs(self) -> None:
        targets = CLIP11.datasets("domains")
        metrics = {"source/accuracy": 70.72, **{f"{name}/accuracy": 60.0 for name in targets}, "average/accuracy": 60.0}
        facts: dict[str, Any] = {"dataset": "imagenet", "evaluated": {name: {} for name in targets}}
        images = {"images": dict.fromkeys(("source", *targets), 9)}
        moved = make(metrics, protocol="domain_generalization", conditions=images, **facts)
        (line,) = [line for line in lines([moved], published=True) if line["kind"] == "block"]
        assert (line["source/accuracy/paper"], line["average/accuracy/paper"]) == ("70.72", "60.26")
        assert line["source/accuracy/why"] == "1 of 3 seeds"
        few = make({"test/accuracy": 92.0}, protocol="few_shot", dataset="caltech101", method="coop")
        (line,) = [line for line in lines([few], published=True) if line["kind"] == "block"]
        assert line["16/accuracy/paper"] == "92.00 ± 0.15" and "RN50" in line["16/accuracy/why"]
        metrics = {"id/accuracy": 70.0, "inaturalist/gl_mcm/fpr95": 13.7, "inaturalist/gl_mcm/auroc": 97.0}
        facts = {"protocol": "ood", "dataset": "imagenet", "method": "gallop", "preset": "authors"}
        strange = make(
            metrics, evaluated={"inaturalist": {}}, conditions={"images": {"id": 1, "inaturalist": 1}}, **facts
        )
        found = [line for line in lines([strange], published=True, metric="fpr95") if line["kind"] == "block"]
        by_score = {line["dataset"]: line for line in found}
        assert by_score["GL-MCM"]["inaturalist/fpr95/paper"] == "13.7"

    def test_mini_is_compared_with_nothing(self) -> None:
        text = shown([pair(70, 60, suite="mini", backbone="mini")], published=True)
        assert "Published figures: not comparable, the mini suite is no public benchmark." in text
        assert "beside published" not in text and "(published)" not in text
        text = shown([pair(70, 60, suite="own", backbone="RN999:openai")], published=True)
        assert "no paper's base2new figures are known of the backbone RN999:openai" in text


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        few = make({"test/accuracy": 50.0}, protocol="few_shot")
        for result in (pair(70, 60), pair(60, 50, method="coop"), few):
            write_result(tmp_path, result)
        return tmp_path

    def run(self, folder: Path, *flags: str) -> int:
        return main.main(["table", "--results", str(folder), *flags])

    def test_all_protocols_have_their_tables(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(folder, "--protocol", "all") == 0
        out = capsys.readouterr()
        assert re.findall(r"^### (\w+) ", out.out, re.MULTILINE) == ["base2new", "few_shot"] and not out.err
        assert self.run(folder, "--protocol", "few_shot", "base2new", "--format", "json") == 0
        assert [t["protocol"] for t in json.loads(capsys.readouterr().out)["tables"]] == ["few_shot", "base2new"]

    @pytest.mark.slow
    def test_every_flag_works_with_every_format(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = ["--sort", "H", "--delta", "coop", "--per-seed", "--group-by", "epochs", "--with-published"]
        for fmt in ("md", "csv", "csv-long", "latex", "html", "json"):
            for chosen in (flags, flags[:2], flags[2:4], flags[-1:]):
                assert self.run(folder, "--format", fmt, "--methods", "maple", "coop", *chosen) in (0, 2)
        capsys.readouterr()

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--protocol", "few_shots"], "Unknown protocol 'few_shots'. Did you mean 'few_shot'?"),
            (["--protocol", "base2new", "ood"], "There are no ood results in"),
            (["--format", "htm"], "Unknown format 'htm'. Did you mean 'html'?"),
            (["--layout", "plane"], "Unknown layout 'plane'. Did you mean 'plain'?"),
            (["--cite"], "--cite is for --format latex, not md"),
            (["--sort", "Hh"], "Unknown column 'Hh'."),
            (["--delta", "zeroshot"], "Unknown row to take differences to 'zeroshot'."),
            (["--bib", "/nowhere/x.bib"], "The BibTeX file /nowhere/x.bib cannot be written"),
            (["--methods", "vpt"], "There is no base2new result of 'vpt' in"),
        ],
    )
    def test_mistakes_are_one_sentence(
        self, folder: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(folder, *flags) == 2
        out = capsys.readouterr()
        assert said in out.err and out.err.count("\n") == 1 and not out.out


COST = {"learned_parameters": 1000, "train_seconds": 10.0, "eval_seconds": 2.0, "peak_memory_mb": 500.0}


def costly(
    base: float, conditions: dict[str, Any] | None = None, cost: dict[str, Any] | None = None, **facts: Any
) -> Result:
    known = {"images": {"base": 300, "new": 100}, **(conditions or {})}
    return replace(pair(base, 60, conditions=known, **facts), cost={**COST, **(cost or {})})


class TestCost:
    HEAD = ("parameters", "training", "evaluation", "memory")

    def test_costs_are_means_over_the_runs_of_a_line(self) -> None:
        results = [costly(70, cost={"train_seconds": s}, seed=n, dataset="dtd") for n, s in ((1, 10.0), (2, 20.0))]
        results += [costly(80, cost={"train_seconds": 30.0}, seed=n, dataset="ucf101") for n in (1, 2)]
        text = shown(results, cost=True)
        assert f"| {' | '.join(self.HEAD)} |" in text.replace("   ", " ").replace("  ", " ")
        by_group = {row[0]: row[-5:] for row in rows(results, cost=True)}
        assert by_group["DTD"] == ["1,000", "15.0", "5.00", "500", "2"]  # 2 s for 400 images are 5 ms each
        assert by_group["average"] == ["1,000", "22.5", "5.00", "500", "2"]
        assert by_group["mean of per-dataset H"] == ["", "", "", "", "2"]
        assert "training: seconds a run, 0 and more, lower is better" in text
        assert "Costs: measured on cpu, 1 thread; no other machine's are comparable." in text
        assert not any(word in shown(results) for word in ("Costs:", *self.HEAD))

    def test_a_measured_figure_goes_before_one_that_follows(self) -> None:
        assert rows([costly(70, cost={"eval_ms_per_image": 4.5})], cost=True)[0][-3] == "4.50"
        refused = replace(costly(70), notes={"new/": "it cannot"})
        assert rows([refused], cost=True)[0][-3] == "6.67"  # of the 300 images that it scored

    def test_what_was_not_measured_is_a_dash(self) -> None:
        bare = {"learned_parameters": None, "peak_memory_mb": None, "eval_seconds": None}
        assert rows([costly(70, cost=bare)], cost=True)[0][-5:-1] == ["–", "10.0", "–", "–"]
        half = [costly(70, seed=1), costly(70, cost={"peak_memory_mb": None}, seed=2)]
        assert rows(half, cost=True)[0][-2] == "n/a (1 of 2 runs)"

    def test_costs_are_sorted_and_compared_and_never_bold(self) -> None:
        cheap = costly(60, cost={"train_seconds": 1.0}, method="coop")
        results = [costly(70), cheap]
        assert [row[1] for row in rows(results, cost=True, sort="training")] == ["CoOp", "MaPLe"]
        assert rows(results, cost=True, delta="maple")[-1][-4] == "−9.0"
        assert {cell for row in rows(results, cost=True) for cell in row[-5:] if "*" in cell} == set()

    def test_numbers_of_shots_along_the_columns_share_a_cost(self) -> None:
        few = [
            make({"test/accuracy": 50.0}, protocol="few_shot", shots=shots, conditions={"images": {"test": 100}})
            for shots in (1, 16)
        ]
        results = [replace(one, cost={**COST, "train_seconds": 10.0 * n}) for n, one in enumerate(few, start=1)]
        assert rows(results, cost=True)[0][-5:-1] == ["1,000", "15.0", "20.00", "500"]

    def test_they_are_there_through_the_command_and_per_seed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for seed in (1, 2):
            write_result(tmp_path, costly(70, seed=seed, cost={"train_seconds": 5.0 * seed}))
        call = ["table", "--results", str(tmp_path), "--cost", "--format", "csv"]
        assert main.main(call) == 0
        (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert float(line["cost/train_seconds"]) == 7.5 and float(line["cost/eval_ms_per_image"]) == 5
        assert main.main([*call, "--per-seed"]) == 0
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [float(line["cost/train_seconds"]) for line in lines] == [5, 10]
