"""Published figures: what the package ships, what is refused, and every verdict, by hand-computed numbers."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from promptbench import registry
from promptbench.config import UsageError
from promptbench.results.papers import (
    COLUMNS,
    LATER,
    Published,
    Verdict,
    bib_key,
    choose,
    compare,
    find,
    load,
    matches,
)
from promptbench.results.result import Result
from promptbench.results.spec import Spec
from promptbench.suite import load_suite

ELEVEN = load_suite("clip11").datasets("base2new")
LIKE_CLIP11 = {
    "suite": "clip11",
    "protocol": "base2new",
    "dataset": "dtd",
    "method": "maple",
    "recipe": {"epochs": 5, "origin": "authors"},
    "shots": 16,
    "data_seed": 1,
    "train_seed": 1,
    "backbone": "ViT-B-16-quickgelu:openai",
    "precision": "16-mixed",
    "threads": 1,
}


def make_result(conditions: dict[str, Any] | None = None, **spec: Any) -> Result:
    facts: dict[str, Any] = {**LIKE_CLIP11, **spec}
    return Result(
        spec=Spec(**facts), conditions=conditions or {}, metrics={"h": 78.55}, versions={}, commit="", created=""
    )


def make_row(value: str = "82.28", **changes: Any) -> Published:
    row = Published(
        method="MaPLe",
        labels=("maple",),
        protocol="base2new",
        backbone="ViT-B/16",
        shots=16,
        dataset="dtd",
        metric="h",
        score="",
        value=float(value),
        digits=len(value.partition(".")[2]),
        std=None,
        n_seeds=3,
        recipe="authors",
        sampler="coop",
        settings={},
        note="",
        source="a paper",
        where="here",
    )
    return replace(row, **changes)


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("alpha and beta searched on validation images", "full validation (? each)"),
        ("alpha and beta searched on validation images (ImageNet: on the test images)", "test (? each)"),
        ("the released code keeps the epoch that is best on the test images", "test (? each)"),
        ("transductive: one student a target; epoch chosen on the target's test images", "test (? each)"),
        ("uses unlabelled test images as they come; alpha and beta set per dataset", "unknown (each)"),
        ("seeds 1, 2, 3: 91.81, 92.01, 92.17", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_note_says_how_settings_were_chosen(note: str, said: str) -> None:
    assert str(make_row(note=note).selection) == said


@pytest.mark.parametrize(
    ("changes", "prior"),
    [
        ({}, "unknown"),
        ({"settings": {"ctx_init": ""}}, "generic"),
        ({"settings": {"ctx_init": "dataset"}}, "dataset"),
        ({"shots": 0}, "dataset"),
        ({"shots": 0, "recipe": ""}, "unknown"),
        ({"shots": 0, "note": "ImageNet: seven templates"}, "ensemble"),
        ({"note": 'template "a photo of a {}." for all datasets; images drawn by its own sampler'}, "generic"),
        ({"shots": 0, "recipe": "", "note": "templates not said"}, "unknown"),
    ],
)
def test_recipe_settings_and_note_say_what_was_told_of_the_text(changes: dict[str, Any], prior: str) -> None:
    assert make_row(**changes).text_prior == prior


def test_figures_of_other_text_priors_are_not_judged() -> None:
    generic = make_row(settings={"ctx_init": "a photo of a"})
    told = {"texts_told": "dataset"}
    config = {"ctx_init": "a photo of a"}
    assert matches(make_result({"texts_told": "generic"}, config=config), generic)[0]
    assert matches(make_result(told, config=config), generic) == (
        False,
        "text prior dataset here, generic there",
    )
    assert matches(make_result(told, config=config), make_row())[0]  # which does not say


def line(columns: Sequence[str] = COLUMNS, **cells: str) -> str:
    given = {
        "method": "MaPLe",
        "label": "maple",
        "protocol": "base2new",
        "shots": "16",
        "dataset": "dtd",
        "metric": "h",
        "value": "70.00",
        "source": "a paper",
    }
    return ",".join({**given, **cells}.get(column, "") for column in columns)


def written(folder: Path, *lines: str, header: str = ",".join(COLUMNS)) -> Path:
    (folder / "mine.csv").write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shipped() -> list[Published]:
    return load()


class TestShipped:
    @pytest.mark.parametrize(
        ("label", "metric", "value"),
        [
            ("zeroshot", "base/accuracy", 69.34),
            ("coop", "h", 71.66),
            ("cocoop", "new/accuracy", 71.69),
            ("vpt", "h", 76.68),
            ("maple", "base/accuracy", 82.28),
            ("ivlp", "h", 77.90),
            ("ivlp@maple", "h", 77.90),
            ("ivlp@promptsrc", "h", 77.51),
            ("promptsrc", "h", 79.97),
        ],
    )
    def test_averages_are_those_that_the_authors_print(
        self, shipped: list[Published], label: str, metric: str, value: float
    ) -> None:
        found = find(shipped, label=label, protocol="base2new", dataset="average11", metric=metric)
        assert value in [row.value for row in found if not row.secondary and row.recipe == "authors"]

    def test_every_label_is_a_method_of_ours_with_its_preset(self, shipped: list[Published]) -> None:
        for label in {label for row in shipped for label in row.labels}:
            method, _, preset = label.partition("@")
            assert method in registry.names("methods"), label
            assert not preset or preset in registry.load("methods", method).presets, label

    def test_datasets_are_those_of_clip11_and_averages_of_them(self, shipped: list[Published]) -> None:
        clip11 = load_suite("clip11")
        known = {name for role in ("base2new", "targets", "domains", "ood") for name in clip11.datasets(role)}
        assert {row.dataset for row in shipped} == known | {"average4", "average10", "average11"}

    def test_rows_whose_recipe_is_ours_have_one_of_that_origin(self, shipped: list[Published]) -> None:
        from promptbench.recipe import find_recipe

        for row in shipped:
            if row.recipe and not row.zero_shot:
                method = registry.load("methods", row.labels[0].partition("@")[0])
                datasets = ELEVEN if row.dataset.startswith("average") else (row.dataset,)
                for dataset in datasets:
                    recipe = find_recipe(method, row.protocol, dataset)
                    assert recipe is not None and recipe.origin == row.recipe, row.where

    def test_averages_follow_from_their_rows_or_have_a_note(self, shipped: list[Published]) -> None:
        tables: dict[tuple[Any, ...], dict[str, Published]] = defaultdict(dict)
        for row in shipped:
            if row.metric == "h":
                continue  # that of an average is of mean base and mean new, which the loader checks
            file = row.where.partition(",")[0]
            tables[file, row.method, row.protocol, row.shots, row.metric, row.score][row.dataset] = row
        checked = 0
        for table in tables.values():
            for name in {"average4", "average10", "average11"} & set(table):
                size = int(name.removeprefix("average"))
                parts = [row for row in table.values() if not row.average or (row.dataset == "imagenet" and size == 11)]
                if len(parts) == size:
                    average, checked = table[name], checked + 1
                    mean = sum(row.value for row in parts) / size
                    near = average.rounding + parts[0].rounding + 1e-9
                    assert abs(mean - average.value) <= near or average.note, average.where
        assert checked >= 60

    def test_sources_that_contradict_each_other_say_so(self, shipped: list[Published]) -> None:
        coop = find(shipped, label="coop", protocol="base2new", dataset="average11", metric="new/accuracy")
        assert {row.value for row in coop} == {63.22, 67.99}
        assert all(row.note and not row.recipe for row in coop if row.value == 67.99)

    def test_quoted_figures_come_last(self, shipped: list[Published]) -> None:
        assert [row.secondary for row in shipped] == sorted(row.secondary for row in shipped)

    def test_gallop_is_read_with_its_own_sampler(self, shipped: list[Published]) -> None:
        rows = find(
            shipped, label="gallop@authors", protocol="ood", dataset="inaturalist", metric="fpr95", score="gl_mcm"
        )
        assert [(row.value, row.digits, row.sampler) for row in rows] == [(13.7, 1, "stratified")]


class TestRefused:
    @pytest.mark.parametrize(
        ("cells", "said"),
        [
            ({"metric": "bse/accuracy"}, "Unknown metric of base2new 'bse/accuracy'. Did you mean 'base/accuracy'?"),
            ({"protocol": "base2old"}, "Unknown protocol 'base2old'. Did you mean 'base2new'?"),
            ({"value": "100.01"}, "'value' must be in percent, from 0 to 100, not 100.01."),
            ({"value": "-1.0"}, "'value' takes a number as it is printed, such as 82.28, not '-1.0'."),
            ({"value": "nan"}, "'value' takes a number as it is printed, such as 82.28, not 'nan'."),
            ({"source": ""}, "'source' is empty; every figure says what it is of and where it was read."),
            ({"recipe": "ours"}, "'recipe' must be paper, authors or empty, not 'ours'."),
            ({"shots": "few"}, "'shots' takes a whole number, or nothing where the source is silent, not 'few'."),
            ({"note": "a,b"}, "a row has 16 cells; put those with commas in quotes."),
        ],
    )
    def test_a_row_by_file_and_line(self, tmp_path: Path, cells: dict[str, str], said: str) -> None:
        with pytest.raises(UsageError) as error:
            load(written(tmp_path, line(), line(**cells)))
        assert str(error.value) == f"{tmp_path / 'mine.csv'}, line 3: {said}"

    def test_a_contradiction_without_a_note(self, tmp_path: Path) -> None:
        rows = (line(), line(value="70.02", source="another"))
        with pytest.raises(UsageError) as error:
            load(written(tmp_path, *rows))
        file = tmp_path / "mine.csv"
        assert str(error.value) == (
            f"{file}, line 3: MaPLe has 70.02 here and 70.00 in {file}, line 2; "
            "correct one, or say in its note why they differ."
        )
        assert len(load(written(tmp_path, rows[0], line(value="70.02", source="another", note="a typo")))) == 2
        assert len(load(written(tmp_path, rows[0], line(value="70.0", source="another")))) == 2

    def test_an_h_that_does_not_follow(self, tmp_path: Path) -> None:
        """PromptSRC's README prints 76.65 for 81.56 and 75.83, whose H is 78.59."""
        base, new = line(metric="base/accuracy", value="81.56"), line(metric="new/accuracy", value="75.83")
        with pytest.raises(UsageError) as error:
            load(written(tmp_path, base, new, line(value="76.65")))
        assert str(error.value).startswith(
            f"{tmp_path / 'mine.csv'}, line 4: the H of 81.56 and 75.83 is 78.59, not 76.65"
        )
        assert len(load(written(tmp_path, base, new, line(value="76.65", note="as printed")))) == 3

    @pytest.mark.parametrize(("h", "fits"), [("78.58", False), ("78.59", True), ("78.60", True), ("78.61", False)])
    def test_h_may_be_off_by_the_rounding_of_what_is_printed(self, tmp_path: Path, h: str, fits: bool) -> None:
        """H of 81.555 and 75.825 is 78.586, of 81.565 and 75.835 it is 78.596; 0.005 more either way when printed."""
        rows = [line(metric="base/accuracy", value="81.56"), line(metric="new/accuracy", value="75.83"), line(value=h)]
        if fits:
            assert len(load(written(tmp_path, *rows))) == 3
        else:
            with pytest.raises(UsageError, match="the H of"):
                load(written(tmp_path, *rows))

    def test_a_file_with_other_columns(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match=r"mine\.csv, line 1: the columns of published figures must be method,label,"
        ):
            load(written(tmp_path, header="method,value"))

    @pytest.mark.parametrize(
        ("cells", "said"),
        [
            ({"selection": "validation"}, "Unknown selection 'validation'. Did you mean 'full validation'?"),
            ({"by_dataset": "maybe"}, "'by_dataset' must be yes, no or empty, not 'maybe'."),
            ({"trials": "many"}, "'trials' takes a whole number, or nothing where the source is silent, not 'many'."),
            ({"note": "a,b"}, "a row has 19 cells; put those with commas in quotes."),
        ],
    )
    def test_a_row_that_says_how_settings_were_chosen(self, tmp_path: Path, cells: dict[str, str], said: str) -> None:
        columns = (*COLUMNS, *LATER)
        with pytest.raises(UsageError) as error:
            load(written(tmp_path, line(columns), line(columns, **cells), header=",".join(columns)))
        assert str(error.value).startswith(f"{tmp_path / 'mine.csv'}, line 3: {said}")

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "mine.csv").write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match=r"mine\.csv: the published figures cannot be read"):
            load(tmp_path)


class TestHowSettingsWereChosen:
    def test_it_is_read_where_a_file_says_it(self, tmp_path: Path) -> None:
        columns = (*COLUMNS, *LATER)
        searched = line(columns, selection="full validation", by_dataset="yes", trials="4000")
        (row,) = load(written(tmp_path, searched, header=",".join(columns)))
        assert (row.chosen_on, row.by_dataset, row.trials) == ("full validation", True, 4000)

    def test_it_is_unknown_where_a_file_does_not(self, tmp_path: Path) -> None:
        (row,) = load(written(tmp_path, line()))
        assert (row.chosen_on, row.by_dataset, row.trials) == ("unknown", None, None)


class TestCompare:
    """Student's t, 95 % quantile: 2.919986 with 2 degrees of freedom, 6.313752 with 1."""

    @staticmethod
    def verdict(
        ours: Sequence[float], average: bool = True, zero_shot: bool = False, paper: str = "82.28", **row: Any
    ) -> Verdict:
        return compare(make_row(paper, **row), ours, comparable=True, average=average, zero_shot=zero_shot)

    def test_nothing_published(self) -> None:
        verdict = compare(None, [82.0], comparable=True, average=True, zero_shot=False)
        assert (verdict.text, verdict.gap, verdict.interval) == ("no published value", None, None)

    def test_not_comparable_shows_no_gap(self) -> None:
        verdict = compare(make_row(), [82.0] * 3, comparable=False, average=True, zero_shot=False, why="recipe ours")
        assert (verdict.text, verdict.gap, verdict.why) == ("not comparable", None, "recipe ours")

    def test_reproduced(self) -> None:
        """s = 0.2, so 2.919986 * 0.2 / sqrt(3) = 0.337171 around 0.02."""
        verdict = self.verdict([82.1, 82.3, 82.5])
        assert (verdict.text, verdict.margin, verdict.why) == ("reproduced", 0.5, "")
        assert verdict.gap == pytest.approx(0.02)
        assert verdict.interval == pytest.approx((-0.317171, 0.357171), abs=1e-5)

    def test_an_interval_across_the_margin_is_inconclusive(self) -> None:
        """s = 0.3, so 0.505756 around 0.02: beyond 0.5, well within 1.5."""
        verdict = self.verdict([82.0, 82.3, 82.6])
        assert verdict.text == "inconclusive"
        assert verdict.interval == pytest.approx((-0.485756, 0.525756), abs=1e-5)
        other = self.verdict([82.0, 82.3, 82.6], average=False)
        assert (other.text, other.margin) == ("reproduced", 1.5)

    @pytest.mark.parametrize("shift", [-2.0, 2.0])
    def test_differs_on_either_side(self, shift: float) -> None:
        ours = [82.08 + shift, 82.28 + shift, 82.48 + shift]
        assert self.verdict(ours, average=False).text == "differs"  # 2 - 0.337171 = 1.662829 > 1.5
        assert self.verdict([value - shift / 5 for value in ours], average=False).text == "inconclusive"  # 1.262829

    def test_two_seeds_are_never_enough(self) -> None:
        """s = 0.141421, so 6.313752 * 0.1 = 0.631375."""
        verdict = self.verdict([82.2, 82.4], average=False)
        assert (verdict.text, verdict.why) == ("inconclusive", "2 of 3 seeds")
        assert verdict.interval == pytest.approx((-0.611375, 0.651375), abs=1e-5)
        assert self.verdict([70.0, 70.0]).text == "inconclusive"

    def test_one_seed_has_no_interval(self) -> None:
        verdict = compare(make_row(), [82.28], comparable=True, average=True, zero_shot=False, why="precision 32 here")
        assert (verdict.text, verdict.interval, verdict.why) == (
            "inconclusive",
            None,
            "1 of 3 seeds; precision 32 here",
        )

    def test_seeds_that_agree_exactly(self) -> None:
        assert self.verdict([82.5] * 3).interval == pytest.approx((0.22, 0.22))
        assert self.verdict([82.78] * 3).text == "reproduced"  # on the margin is inside
        assert self.verdict([82.79] * 3).text == "differs"

    @pytest.mark.parametrize(
        ("ours", "paper", "text", "interval"),
        [
            (69.40, "69.34", "reproduced", (0.055, 0.065)),
            (69.56, "69.34", "differs", (0.215, 0.225)),
            (69.12, "69.34", "differs", (-0.225, -0.215)),
            (66.90, "66.7", "inconclusive", (0.15, 0.25)),
        ],
    )
    def test_zero_shot_needs_one_run(self, ours: float, paper: str, text: str, interval: tuple[float, float]) -> None:
        verdict = self.verdict([ours], zero_shot=True, paper=paper)
        assert (verdict.text, verdict.margin) == (text, 0.2)
        assert verdict.interval == pytest.approx(interval)

    def test_a_papers_own_spread_widens_the_interval(self) -> None:
        """CoOp on Caltech101: 91.81, 92.01, 92.17, printed as 92.00 +- 0.15 (ddof 0).

        Ours: s^2 / 3 = 0.03; theirs: 0.15^2 / 2 = 0.01125; df = 0.04125^2 / (0.03^2 / 2 + 0.01125^2 / 2) = 3.315068.
        """
        from scipy.stats import t

        verdict = self.verdict([91.7, 92.0, 92.3], paper="92.00", std=0.15)
        half = t.ppf(0.95, 3.315068) * 0.04125**0.5
        assert verdict.interval == pytest.approx((-half, half), abs=1e-6)
        assert 2.131847 * 0.203101 < half < 2.353363 * 0.203101  # the quantiles with 4 and 3 degrees of freedom
        alone = self.verdict([91.7, 92.0, 92.3], paper="92.00", std=0.15, n_seeds=None)
        assert alone.interval == pytest.approx((-0.505756, 0.505756), abs=1e-5)


class TestMatches:
    def test_the_authors_recipe_on_their_samples_compares(self) -> None:
        assert matches(make_result(), make_row()) == (True, "")

    def test_another_precision_compares_and_is_said(self) -> None:
        remark = "precision 32 here, half precision in the papers"
        assert matches(make_result(precision="32"), make_row()) == (True, remark)

    @pytest.mark.parametrize(
        ("spec", "row", "reason"),
        [
            ({"suite": "mini"}, {}, "the mini suite is no public benchmark"),
            ({"method": "coop"}, {}, "coop is not MaPLe"),
            ({"protocol": "few_shot"}, {}, "protocol few_shot, not base2new"),
            ({"dataset": "eurosat"}, {}, "dataset eurosat, not dtd"),
            ({"backbone": "RN50:openai"}, {}, "backbone RN50:openai here, OpenAI's ViT-B/16 there"),
            (
                {"backbone": "ViT-B-16:laion2b_s34b_b88k"},
                {},
                "backbone ViT-B-16:laion2b_s34b_b88k here, OpenAI's ViT-B/16 there",
            ),
            (
                {"backbone": "ViT-B-16-quickgelu:/w.pt"},
                {},
                "backbone ViT-B-16-quickgelu:/w.pt here, OpenAI's ViT-B/16 there",
            ),
            ({}, {"backbone": ""}, "the source does not state the backbone"),
            ({}, {"recipe": ""}, "the source does not state the settings, or no recipe has them"),
            ({}, {"shots": None}, "the source does not state the shots"),
            ({"shots": 4}, {}, "4 shots here, 16 there"),
            ({"recipe": {"origin": "ours"}}, {}, "recipe ours here, authors there"),
            ({"recipe": {"origin": "transferred"}}, {}, "recipe transferred here, authors there"),
            ({"recipe": {}}, {}, "recipe unknown here, authors there"),
            ({}, {"sampler": ""}, "the source does not state how images were drawn"),
            ({"sampler": "coop"}, {"sampler": "stratified"}, "sampler coop here, stratified there"),
            ({"split": "random:1"}, {}, "classes halved by random:1, not as in the papers"),
            ({"dataset_options": {"class_names": ["a"]}}, {}, "other class names of dtd"),
            ({"evaluated": {"sun397": {"class_names": {"a": "b"}}}}, {}, "other class names of sun397"),
            ({"config": {"n_ctx": 4}}, {"settings": {"n_ctx": 16}}, "other settings: n_ctx=4"),
        ],
    )
    def test_other_settings_do_not_compare(self, spec: dict[str, Any], row: dict[str, Any], reason: str) -> None:
        assert matches(make_result(**spec), make_row(**row)) == (False, reason)

    @pytest.mark.parametrize(
        ("selection", "reason"),
        [
            ("none", ""),
            ("pseudo-new classes", ""),
            ("unknown", ""),
            ("few-shot validation", "its settings were chosen on a few validation images of each class"),
            ("full validation", "its settings were chosen on all validation images"),
            ("test", "its settings were chosen on test images"),
        ],
    )
    def test_rows_searched_on_other_images_are_never_judged_against(self, selection: str, reason: str) -> None:
        assert matches(make_result(), make_row(chosen_on=selection)) == (not reason, reason)

    def test_a_reconstruction_never_compares(self) -> None:
        result = make_result({"reconstructed": True})
        assert matches(result, make_row()) == (False, "reconstructed without its authors' code")

    @pytest.mark.parametrize("origin", ["--set", "suite mine"])
    def test_settings_chosen_by_hand_do_not_compare_unless_they_are_the_rows(self, origin: str) -> None:
        chosen = make_result({"provenance": {"config.n_ctx": origin, "recipe.lr": origin}}, config={"n_ctx": 16})
        assert matches(chosen, make_row()) == (False, "other settings: n_ctx=16")
        assert matches(chosen, make_row(settings={"n_ctx": 16})) == (True, "")
        by_recipe = make_result({"provenance": {"config.depth": "recipe (authors)"}}, config={"depth": 3})
        assert matches(by_recipe, make_row()) == (True, "")

    def test_zero_shot_has_no_recipe_sampler_or_shots(self) -> None:
        result = make_result(method="zeroshot", recipe={}, shots=0)
        row = make_row(method="CLIP", labels=("zeroshot",), shots=0, sampler="")
        assert matches(result, row) == (True, "")
        assert matches(result, replace(row, recipe=""))[0] is False  # another template is another method

    def test_a_transferred_model_is_filed_under_its_source(self) -> None:
        row = make_row(protocol="cross_dataset", metric="accuracy")
        assert matches(make_result(protocol="cross_dataset", dataset="imagenet"), row) == (True, "")


class TestChoose:
    def test_the_first_row_that_compares_with_all_results(self) -> None:
        rows = [make_row(recipe="", where="1"), make_row(where="2", note="doubtful"), make_row(where="3")]
        assert choose(rows, [make_result(), make_result(precision="32")]) == (
            rows[1],
            True,
            "doubtful; precision 32 here, half precision in the papers",
        )
        assert choose(rows, [make_result(), make_result(shots=1)])[1] is False

    def test_else_the_first_row_and_why_not(self) -> None:
        rows = [make_row(shots=8), make_row(sampler="stratified")]
        assert choose(rows, [make_result()]) == (rows[0], False, "16 shots here, 8 there")
        assert choose(rows, []) == (rows[0], False, "there are no results")
        assert choose([], [make_result()]) == (None, False, "")

    def test_an_average_is_over_the_papers_datasets(self, shipped: list[Published]) -> None:
        rows = find(shipped, label="maple", protocol="base2new", dataset="average11", metric="h")
        results = [make_result(dataset=dataset) for dataset in ELEVEN]
        paper, comparable, said = choose(rows, results)
        assert (paper and paper.value, comparable, said) == (78.55, True, "")
        assert choose(rows, results[1:])[2] == "the average here is over 10 datasets, not over the 11 of the papers"


class TestBibliography:
    @pytest.mark.parametrize("method", registry.names("methods"))
    def test_every_method_has_an_entry_with_the_number_that_its_module_names(self, method: str) -> None:
        text = resources.files("promptbench.published").joinpath("papers.bib").read_text(encoding="utf-8")
        entry = text.partition(f"{{{bib_key(method)},")[2].partition("\n}")[0]
        fields = dict(part.strip().rstrip(",").split("=", 1) for part in entry.strip().splitlines())
        values = {name.strip(): value.strip().strip("{}") for name, value in fields.items()}
        assert values.get("eprint", values.get("doi")) in registry.facts("methods", method).docstring

    def test_presets_may_have_a_paper_of_their_own(self) -> None:
        assert bib_key("ivlp@promptsrc") == "khattak2023promptsrc"
        assert bib_key("ivlp@maple") == bib_key("ivlp") == "khattak2023maple"
        assert bib_key("gallop@coop-samples") == "lafon2024gallop"

    def test_an_unknown_method_has_none(self) -> None:
        assert bib_key("an_adapter_of_mine") == ""


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, promptbench.results.papers; "
        "print([name for name in ('torch', 'pandas', 'scipy', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
