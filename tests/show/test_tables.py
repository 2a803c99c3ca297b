"""Tables: averages against hand calculations, configurations kept apart, text that survives odd names."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest

from promptbench import registry
from promptbench.cli import main
from promptbench.config import UsageError
from promptbench.protocol import Column
from promptbench.protocols.base2new import Base2New
from promptbench.results.result import Result, Spec, write_result
from promptbench.results.spec import CONTEXT, DATA, MACHINE, SETTING, names_of, to_plain
from promptbench.show.tables.formats.texts import column_legend
from promptbench.show.tables.rows import build_tables, rows
from promptbench.show.tables.show import View, show, table
from promptbench.show.tables.table import TableLayout
from promptbench.show.tables.views import sort_by, with_differences

LAYOUT = TableLayout(Base2New(), "accuracy")


def make(
    base: float,
    new: float | None,
    *,
    seed: int = 1,
    conditions: Mapping[str, Any] | None = None,
    notes: Mapping[str, str] | None = None,
    **spec: Any,
) -> Result:
    facts: dict[str, Any] = {
        "suite": "mini",
        "protocol": "base2new",
        "dataset": "shapes",
        "method": "maple",
        "config": {"n_ctx": 2},
        "recipe": {"epochs": 5, "origin": "paper"},
        "shots": 16,
        "data_seed": seed,
        "train_seed": seed,
        "backbone": "mini",
        "threads": 2,
    }
    metrics = {"base/accuracy": base} | ({"new/accuracy": new} if new is not None else {})
    return Result(
        spec=Spec(**{**facts, **spec}),
        conditions=conditions or {},
        metrics=Base2New().summarize(metrics),
        notes=notes or {},
        versions={},
        commit="",
        created="2026-01-02T03:04:05+00:00",
    )


def render(results: list[Result], layout: TableLayout, fmt: str = "md", *, plain: bool = False, **options: Any) -> str:
    return show(build_tables(results, layout, **options), View(format=fmt, plain=plain))


def cells(results: list[Result], **options: Any) -> dict[tuple[str, str], dict[str, str]]:
    """The CSV by (dataset, method and settings)."""
    found = {}
    for line in csv.DictReader(io.StringIO(render(results, LAYOUT, "csv", **options))):
        label = f"{line['method']} ({line['settings']})" if line["settings"] else line["method"]
        assert (line["dataset"], label) not in found
        found[line["dataset"], label] = line
    return found


def twice(results: list[Result]) -> list[Result]:
    """The results, and those of a second seed whose base accuracy is 2 points more."""
    again = []
    for result in results:
        metrics = {**result.metrics, "base/accuracy": result.metrics["base/accuracy"] + 2}
        spec = replace(result.spec, data_seed=2, train_seed=2)
        again.append(replace(result, spec=spec, metrics=Base2New().summarize(metrics)))
    return [*results, *again]


def labels(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(label for _, label in cells(results)))


# Hand calculation, two datasets and two seeds:
#   shapes: base 80, 90 -> 85, std 5; new 60, 60 -> 60, std 0; H = 2*85*60/145 = 70.344827...
#   icons:  base 70, 70 -> 70;        new 40, 60 -> 50, std 10; H = 2*70*50/120 = 58.333333...
#   average base (85+70)/2 = 77.5, per seed 75 and 80 -> std 2.5; average new 55, per seed 50 and 60 -> std 5
#   average H = 2*77.5*55/132.5 = 64.339622..., per seed 2*75*50/125 = 60, 2*80*60/140 = 68.571428... -> std 4.285714...
#   mean of per-dataset H = (70.344827... + 58.333333...)/2 = 64.339080...
BY_HAND = [
    make(80, 60, seed=1, dataset="shapes"),
    make(90, 60, seed=2, dataset="shapes"),
    make(70, 40, seed=1, dataset="icons"),
    make(70, 60, seed=2, dataset="icons"),
]


def test_a_dataset_shows_seed_means_and_h_of_them() -> None:
    line = cells(BY_HAND)["shapes", "maple"]
    assert float(line["base/accuracy"]) == 85
    assert float(line["base/accuracy/std"]) == 5
    assert float(line["new/accuracy/std"]) == 0
    assert float(line["h"]) == pytest.approx(2 * 85 * 60 / 145)
    per_seed = 2 * 80 * 60 / 140, 2 * 90 * 60 / 150
    assert float(line["h/std"]) == pytest.approx(abs(per_seed[0] - per_seed[1]) / 2)
    assert (line["n"], line["seeds"], line["shots"]) == ("2", "1 2", "16")


def test_the_average_h_is_h_of_the_averages() -> None:
    line = cells(BY_HAND)["average", "maple"]
    assert float(line["base/accuracy"]) == 77.5
    assert float(line["base/accuracy/std"]) == 2.5
    assert float(line["new/accuracy"]) == 55
    assert float(line["new/accuracy/std"]) == 5
    assert float(line["h"]) == pytest.approx(64.33962264150944)
    assert float(line["h/std"]) == pytest.approx((68.57142857142857 - 60) / 2)


def test_the_mean_of_per_dataset_h_stands_under_its_own_name() -> None:
    line = cells(BY_HAND)["mean of per-dataset H", "maple"]
    assert float(line["h"]) == pytest.approx((70.34482758620690 + 58.33333333333333) / 2)
    seeds = (68.57142857142857 + 50.90909090909091) / 2, (72.0 + 64.61538461538461) / 2
    assert float(line["h/std"]) == pytest.approx((seeds[1] - seeds[0]) / 2)
    assert line["base/accuracy"] == ""


@pytest.mark.parametrize(("base", "new", "expected"), [(82.28, 75.14, "78.5"), (80.47, 71.69, "75.8")])
def test_published_averages_follow(base: float, new: float, expected: str) -> None:
    # MaPLe and CoCoOp over eleven datasets: 78.55 (78.5469... before rounding) and 75.83.
    results = [make(base + shift, new - shift, dataset=name) for name, shift in (("a", 5), ("b", -5))]
    average = cells(results)["average", "maple"]
    assert float(average["h"]) == pytest.approx({"78.5": 78.55, "75.8": 75.83}[expected], abs=0.005)
    assert f"| {base:.1f} | {new:.1f} | {expected} |" in re.sub(" +", " ", render(results, LAYOUT))


def test_markdown_reads_in_a_terminal() -> None:
    zero = [make(70, 65, seed=1, method="zeroshot", recipe={}, shots=0, dataset=name) for name in ("shapes", "icons")]
    text = render([*BY_HAND, *zero], LAYOUT, notes={"mini": "A toy."}, methods=["zeroshot", "maple"])
    assert (
        text
        == """\
### base2new on mini, backbone mini, 16 shots, seeds 1, 2

| dataset               | method         | selection | text prior |       base |         new |          H |  n |
| --------------------- | -------------- | --------- | ---------- | ---------: | ----------: | ---------: | -: |
| icons                 | Zero-shot CLIP | none      | unknown    |       70.0 |        65.0 |       67.4 |  1 |
|                       | MaPLe          | unknown   | unknown    | 70.0 ± 0.0 | 50.0 ± 10.0 | 58.3 ± 6.9 |  2 |
| shapes                | Zero-shot CLIP | none      | unknown    |       70.0 |        65.0 |       67.4 |  1 |
|                       | MaPLe          | unknown   | unknown    | 85.0 ± 5.0 |  60.0 ± 0.0 | 70.3 ± 1.7 |  2 |
| average               | Zero-shot CLIP | none      | unknown    |       70.0 |        65.0 |       67.4 |  1 |
|                       | MaPLe          | unknown   | unknown    | 77.5 ± 2.5 |  55.0 ± 5.0 | 64.3 ± 4.3 |  2 |
| mean of per-dataset H | Zero-shot CLIP | none      | unknown    |            |             |       67.4 |  1 |
|                       | MaPLe          | unknown   | unknown    |            |             | 64.3 ± 4.3 |  2 |

selection: on which images settings were chosen: none = nothing to choose, or fixed beforehand; unknown = nobody says.

text prior: words told besides class names (rows are ranked and judged within one): unknown = the result does not say.

base, new, H: %, 0 to 100, higher is better.

shots: images of each class that are trained on; n: number of seeds.

± is the population standard deviation over n seeds (ddof 0).

Average H is computed from the averages beside it; the mean of per-dataset H stands apart.

base: accuracy on images of the classes trained on, among their names; new: on images of the other classes, among \
theirs; H: the harmonic mean of both.

A toy.
"""
    )


def test_one_dataset_has_no_average_and_one_seed_no_spread() -> None:
    text = render([make(80, 60)], LAYOUT)
    assert "average" not in text.lower()
    assert "±" not in text
    assert "seed 1\n" in text


def test_the_table_does_not_depend_on_the_order_of_results() -> None:
    results = [make(80 + i, 60 + i, seed=i % 3, dataset=f"d{i % 4}", method=f"m{i % 5}") for i in range(60)]
    for fmt in ("md", "csv", "latex"):
        shuffled = random.Random(1).sample(results, len(results))
        assert render(results, LAYOUT, fmt) == render(shuffled, LAYOUT, fmt)


def test_datasets_and_methods_come_in_the_order_asked_for() -> None:
    results = [make(80, 60, dataset=d, method=m) for d in ("a", "b", "c") for m in ("x", "y", "z")]
    found = list(cells(results, datasets=["c", "a", "c"], methods=["z", "y"]))[:4]
    assert found == [("c", "z"), ("c", "y"), ("c", "x"), ("a", "z")]


def test_a_row_without_every_dataset_has_no_average() -> None:
    results = [make(80, 60, dataset=name, method="maple") for name in ("a", "b", "c")]
    results += [make(70, 50, dataset=name, method="coop") for name in ("a", "c")]
    text = render(results, LAYOUT)
    assert text.count("n/a (2 of 3 datasets)") == 4  # base, new, H, mean of per-dataset H
    assert "CoOp has no results on b, so no average." in text
    assert cells(results)["average", "coop"]["base/accuracy"] == ""
    assert float(cells(results)["average", "maple"]["base/accuracy"]) == 80


def test_unequal_seeds_give_an_average_without_spread_and_say_so() -> None:
    results = [make(80, 60, seed=1, dataset="a"), make(90, 60, seed=2, dataset="a"), make(70, 50, dataset="b")]
    average = cells(results)["average", "maple"]
    assert (average["base/accuracy"], average["base/accuracy/std"], average["n"]) == ("77.5", "", "1-2")
    assert "MaPLe has other seeds on some datasets than on others, so its averages have no ±." in render(
        results, LAYOUT
    )


def test_a_figure_that_cannot_be_is_a_dash_with_the_reason() -> None:
    reason = "it cannot score new classes"
    results = [make(80, 60, dataset=d, method="maple") for d in ("a", "b")]
    results += [make(90, None, dataset=d, method="csc", notes={"new/accuracy": reason}) for d in ("a", "b")]
    text = render(results, LAYOUT)
    assert text.count("– [1]") == 7  # new and H of two datasets and of the average, and the mean of per-dataset H
    assert f"\n[1] {reason}\n" in text
    line = cells(results)["average", "csc"]
    assert (float(line["base/accuracy"]), line["new/accuracy"], line["h"], line["remark"]) == (90, "", "", reason)


def test_a_figure_missing_in_places_is_not_averaged_over_the_rest() -> None:
    results = [make(80, 60, dataset="a"), make(80, None, dataset="b")]
    assert render(results, LAYOUT).count("n/a (1 of 2 datasets)") == 3
    results = [make(80, 60, seed=1), make(80, None, seed=2)]
    assert render(results, LAYOUT).count("n/a (1 of 2 seeds)") == 2


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"config": {"n_ctx": 16}}, {"config": {"n_ctx": 4}}, ["maple (n_ctx=4)", "maple (n_ctx=16)"]),
        ({"config": {"init": "a photo"}}, {"config": {"init": ""}}, ["maple (init=)", "maple (init=a photo)"]),
        ({"config": {"csc": True}}, {"config": {}}, ["maple (csc=none)", "maple (csc=true)"]),
        ({"recipe": {"epochs": 5}}, {"recipe": {"epochs": 50}}, ["maple (epochs=5)", "maple (epochs=50)"]),
        ({"config": {"csc": True}}, {"config": {"csc": 1}}, ["maple (csc=1)", "maple (csc=true)"]),
        ({"config": {"at": [1, 2]}}, {"config": {"at": [1]}}, ["maple (at=[1, 2])", "maple (at=[1])"]),
        (
            {"conditions": {"transform": {"a": 1}}},
            {"conditions": {"transform": {"a": True}}},
            ['maple (transform={"a": 1})', 'maple (transform={"a": true})'],
        ),
        ({"scores": {}}, {"scores": {"neg": {"words": "file:a"}}}, ["maple (neg=none)", "maple (neg=bee325f9)"]),
        (
            {"scores": {"neg": {"words": "file:a"}}},
            {"scores": {"neg": {"words": "file:b"}}},
            ["maple (neg=bee325f9)", "maple (neg=3c92bf54)"],
        ),
        ({"shots": 4}, {"shots": 16}, ["maple (shots=4)", "maple (shots=16)"]),
        ({"sampler": "coop"}, {"sampler": "strata"}, ["maple (sampler=coop)", "maple (sampler=strata)"]),
        ({"precision": "32"}, {"precision": "16"}, ["maple (precision=16)", "maple (precision=32)"]),
        ({"threads": 1}, {"threads": 2}, ["maple (threads=1)", "maple (threads=2)"]),
        ({"preset": "a"}, {"preset": "b"}, ["maple@a", "maple@b"]),
        (
            {"split_digest": "ab" * 32},
            {"split_digest": "cd" * 32},
            ["maple (split_digest=abababab...)", "maple (split_digest=cdcdcdcd...)"],
        ),
        (
            {"config": {"a": 1, "b": 2}, "shots": 4},
            {"config": {"a": 2, "b": 2}, "shots": 8},
            ["maple (a=1, shots=4)", "maple (a=2, shots=8)"],
        ),
    ],
)
def test_configurations_are_never_mixed(one: dict[str, Any], other: dict[str, Any], expected: list[str]) -> None:
    assert labels([make(80, 60, seed=1, **one), make(70, 50, seed=2, **other)]) == expected
    assert all(
        line["n"] == "1" for line in cells([make(80, 60, seed=1, **one), make(70, 50, seed=2, **other)]).values()
    )


@pytest.mark.parametrize("name", names_of(Spec, SETTING, MACHINE, DATA))
def test_every_setting_machine_and_data_set_rows_apart(name: str) -> None:
    one = make(80, 60, seed=1)
    others: dict[type, Any] = {bool: True, int: 3, str: "other", dict: {"more": 1}}
    facts: dict[str, Any] = {name: others[type(getattr(one.spec, name))]}
    assert len(labels([one, make(70, 50, seed=2, **facts)])) == 2


def test_a_configuration_joins_its_row_on_every_dataset() -> None:
    results = [make(80, 60, dataset="a", config={"n_ctx": n}) for n in (4, 16)]
    results += [make(70, 50, dataset="b", config={"n_ctx": 16})]
    found = cells(results)
    assert float(found["average", "maple (n_ctx=16)"]["base/accuracy"]) == 75
    assert found["average", "maple (n_ctx=4)"]["base/accuracy"] == ""


def test_other_configurations_on_other_datasets_are_not_averaged() -> None:
    results = [make(80, 60, dataset="a", config={"n_ctx": 4}), make(70, 50, dataset="b", config={"n_ctx": 16})]
    assert labels(results) == ["maple (n_ctx=4)", "maple (n_ctx=16)"]


def test_methods_compared_under_other_conditions_say_so() -> None:
    results = [make(80, 60, method="a"), make(80, 60, method="b", shots=4)]
    assert labels(results) == ["a (shots=16)", "b (shots=4)"]
    results = [make(80, 60, method=m, split_digest=m, conditions={"transform": {"training": m}}) for m in ("a", "b")]
    assert labels(results) == ["a (split_digest=a)", "b (split_digest=b)"]
    results = [make(80, 60, method=m, config={m: 1}, threads=n) for m, n in (("a", 1), ("b", 2))]
    assert labels(results) == ["a", "b"]


def told(**sources: str) -> dict[str, Any]:
    return {"provenance": {name.replace("__", "."): source for name, source in sources.items()}}


def test_what_recipes_say_per_dataset_is_one_configuration() -> None:
    results = [make(80, 60, dataset="a", recipe={"epochs": 200}), make(70, 50, dataset="b", recipe={"epochs": 50})]
    assert labels(results) == ["maple"]
    results = [
        make(80, 60, dataset="a", config={"std": 30}, conditions=told(config__std="default (paper)")),
        make(70, 50, dataset="b", config={"std": 45}, conditions=told(config__std="recipe (paper)")),
    ]
    assert labels(results) == ["maple"]
    digests = [{"split_digest": name * 32, "class_names": {"base": name}, "templates": {"base": name}} for name in "ab"]
    assert labels([make(80, 60, dataset=str(d["split_digest"]), **d) for d in digests]) == ["maple"]


def test_a_recipe_changed_by_hand_on_one_dataset_is_another_configuration() -> None:
    by_recipe, by_hand = told(recipe__epochs="recipe (paper)"), told(recipe__epochs="--set")
    results = [
        make(80, 60, dataset="a", recipe={"epochs": 5}, conditions=by_hand),
        make(70, 50, dataset="b", recipe={"epochs": 200}, conditions=by_recipe),
        make(70, 50, dataset="c", recipe={"epochs": 50}, conditions=by_recipe),
    ]
    assert labels(results) == ["maple (epochs=5)", "maple (epochs by recipe)"]
    assert cells(results)["b", "maple (epochs by recipe)"]["n"] == "1"
    assert labels([make(80, 60, dataset=d, recipe={"epochs": 5}, conditions=by_hand) for d in "ab"]) == ["maple"]


def test_steps_that_follow_from_shots_are_one_configuration() -> None:
    """Of a few-shot table, whose shots lie along the columns; other steps for each shot are another one."""

    def run(shots: int, per_shot: int) -> Result:
        conditions = told(recipe__steps="steps_per_shot, --set", recipe__lr="recipe (authors)")
        recipe = {"steps": shots * per_shot, "lr": 0.1}
        return make(80, 60, protocol="few_shot", shots=shots, recipe=recipe, conditions=conditions)

    def apart(*results: Result) -> list[str]:
        return [row.apart for row in rows(results, along="shots")]

    assert apart(run(1, 10), run(2, 10), run(4, 10)) == [""]
    assert apart(run(1, 10), run(1, 20)) == ["steps=10", "steps=20"]
    assert [row.apart for row in rows([run(2, 10), replaced_steps(run(4, 10))], along="shots")] == [
        "steps=99",
        "steps by recipe",
    ]


def replaced_steps(result: Result) -> Result:
    """The result with steps that somebody asked for."""
    return replace(
        result,
        spec=replace(result.spec, recipe={"steps": 99, "lr": 0.1}),
        conditions=told(recipe__steps="--set", recipe__lr="recipe (authors)"),
    )


def test_origin_and_source_of_a_recipe_are_no_settings() -> None:
    recipes = [{"epochs": 5, "origin": origin, "source": origin, "overrides": {}} for origin in ("paper", "ours")]
    results = [make(80, 60, seed=seed, recipe=recipe) for seed, recipe in enumerate(recipes)]
    assert labels(results) == ["maple"]
    assert cells(results)["shapes", "maple"]["origin"] == "ours paper"


def test_suites_and_backbones_have_tables_of_their_own() -> None:
    results = [make(80, 60), make(70, 50, backbone="ViT-B-16"), make(60, 40, suite="clip11", shots=None)]
    text = render(results, LAYOUT, notes={"mini": "A toy."})
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### base2new on clip11, backbone mini, all shots, seed 1",
        "### base2new on mini, backbone ViT-B-16, 16 shots, seed 1",
        "### base2new on mini, backbone mini, 16 shots, seed 1",
    ]
    assert text.count("A toy.") == 2


def test_the_heading_names_data_and_training_seeds_where_they_differ() -> None:
    assert "seeds 1, 1/2" in render([make(80, 60), make(80, 60, train_seed=2)], LAYOUT)


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="base2new/shapes/maple-.* is there twice"):
        render([make(80, 60), make(80, 60)], LAYOUT)


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(UsageError, match="no results to make a table of"):
        render([], LAYOUT)
    with pytest.raises(UsageError, match="not base2new and few_shot"):
        render([make(80, 60), make(80, 60, protocol="few_shot")], LAYOUT)
    with pytest.raises(UsageError, match="latex"):
        render([make(80, 60)], LAYOUT, "latx")


def test_recipes_that_are_not_the_authors_are_marked() -> None:
    results = [make(80, 60, dataset=d, recipe={"epochs": 5, "origin": "transferred"}) for d in ("a", "b")]
    results += [make(80, 60, method="coop", recipe={"origin": "ours"}), make(80, 60, method="vpt")]
    text = render(results, LAYOUT)
    assert "MaPLe† " in text
    assert "CoOp‡ " in text
    assert "VPT " in text
    assert "† recipe transferred" in text
    assert "† recipe" not in render(results[2:], LAYOUT)


def test_the_best_figure_is_bold_only_where_ranks_mean_something() -> None:
    results = twice([make(80, 60, method="a"), make(70, 61, method="b"), make(80.04, 50, method="c")])
    assert "**" not in render(results, LAYOUT)
    bold = re.findall(r"\*\*(.*?)\*\*", render(results, LAYOUT, ranked={"mini"}))
    assert bold == ["81.0 ± 1.0", "68.9 ± 0.4", "61.0 ± 0.0", "81.0 ± 1.0"]  # a and c read the same: both are bold
    second = re.findall(r" _(.*?)_ ", render(results, LAYOUT, ranked={"mini"}))
    assert second == ["60.0 ± 0.0", "65.6 ± 0.4"]  # none where two are best
    assert "_" not in render(twice([make(80, 60, method="a"), make(70, 61, method="b")]), LAYOUT, ranked={"mini"})
    assert "**" not in render(results, LAYOUT, ranked={"clip11"})
    text = render(results, LAYOUT, "latex", ranked={"mini"})
    assert r"\textbf{61.0{\tiny$\pm$0.0}}" in text and r"\underline{60.0{\tiny$\pm$0.0}}" in text


def test_bold_is_what_the_paired_test_does_not_separate_from_the_best() -> None:
    # differences of b to a, seed by seed: 1 in the mean, t(0.975, 2) = 4.30, so that 1 ± 4.30 * 1 / sqrt(3) holds 0
    figures = {"a": (80, 81, 82), "b": (79, 81, 80), "c": (60, 61, 62), "d": (59, 60, 61)}
    results = []
    for method, values in figures.items():
        results += [make(value, 50, method=method, seed=seed) for seed, value in enumerate(values, start=1)]
    text = render(results, LAYOUT, ranked={"mini"})
    assert [cell for cell in column(text, 5)[1:] if "*" in cell or "_" in cell] == ["**81.0 ± 0.8**", "**80.0 ± 0.8**"]
    assert "what the paired test does not separate from it" in text
    close = render([one for one in results if one.spec.method in "ab"], LAYOUT, ranked={"mini"})
    assert "**" not in close  # nothing is separated
    one_seed = render([one for one in results if one.spec.train_seed == 1], LAYOUT, ranked={"mini"})
    assert "**" not in one_seed and "fewer than two common seeds" in one_seed
    assert "Bold: " not in render(results, LAYOUT)


def test_figures_that_read_the_same_are_not_ranked() -> None:
    results = [make(80, 60, method=name) for name in "abc"]
    text = render(results, LAYOUT, ranked={"mini"})
    assert "**" not in text and "_" not in text


def test_the_lowest_figure_is_the_best_where_less_is_better() -> None:
    class Errors(Base2New):
        def columns(self, *_: Any) -> list[Column]:
            return [Column("base/accuracy", "error", lower=True)]

    layout = TableLayout(Errors(), "accuracy")
    results = twice([make(value, 60, method=name) for name, value in zip("abc", (10, 20, 30), strict=True)])
    text = render(results, layout, ranked={"mini"})
    assert "**11.0 ± 1.0**" in text and "_21.0 ± 1.0_" in text


HOSTILE = r"""a|b & 50% $x_1$ #{~^\} [1] <b>""" + "\n\x1b[31m,\"'"


def test_markdown_survives_odd_names() -> None:
    text = render([make(80, 60, dataset=HOSTILE, method=HOSTILE)], LAYOUT)
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}


def test_csv_survives_odd_names_and_keeps_every_digit() -> None:
    text = render([make(100 / 3, 60, dataset=HOSTILE)], LAYOUT, "csv")
    line = next(csv.DictReader(io.StringIO(text)))
    assert line["dataset"] == HOSTILE.replace("\n", " ").replace("\x1b", " ")
    assert float(line["base/accuracy"]) == 100 / 3
    assert "\r" not in text


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1", " =1", "＝1"])
def test_no_cell_of_csv_is_a_formula(name: str) -> None:
    results = [make(80, 60, dataset=name, method=name), make(70, 50, dataset=f"{name}'s", method="coop")]
    results = [replace(result, metrics={**result.metrics, f"{name}/accuracy": -0.25}) for result in results]
    for fmt in ("csv", "csv-long"):
        head, *lines = csv.reader(io.StringIO(render(results, LAYOUT, fmt)))
        said = f"'{name.replace(chr(9), ' ').replace(chr(13), ' ')}"
        assert any(said in line for line in lines)
        for cell in [*head, *(cell for line in lines for cell in line)]:
            assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝")) or float(cell) == -0.25


def test_a_number_of_csv_stays_one() -> None:
    metrics = {"base/accuracy": 30.0, "new/accuracy": 50.0, "h": 37.5, "base/extra": -1e-07, "new/extra": -0.3}
    result = replace(make(1, 1, dataset="-7"), metrics=metrics)
    lines = list(csv.DictReader(io.StringIO(render([result], LAYOUT, "csv-long"))))
    assert {line["metric"]: float(line["value"]) for line in lines} == metrics and lines[0]["dataset"] == "-7"


def test_latex_is_balanced_and_escapes_odd_names() -> None:
    results = [make(80, 60, seed=s, dataset=d, method=HOSTILE) for s in (1, 2) for d in (HOSTILE, "b")]
    text = render(results, LAYOUT, "latex", notes={"mini": "100% & more_of it"}, plain=True)
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    bare = re.sub(r"\\[&%$#_{}\\]|^%.*", "", text)
    assert bare.count("{") == bare.count("}")
    assert not set("%#_~<>|") & set(bare)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {7}
    assert not any(re.match(r"\s*\[", row) for row in rows)  # would be read as an argument of \\
    assert r"100\% \& more\_of it" in text
    assert r"80.0 $\pm$ 0.0" in text


def test_two_thousand_results_make_a_table_within_two_seconds() -> None:
    config = {f"field{i}": i for i in range(10)}
    results = [
        make(50 + i % 37, 40 + i % 31, seed=i % 10, dataset=f"d{i // 10 % 10}", method=f"m{i // 100}", config=config)
        for i in range(2000)
    ]
    start = time.process_time()
    render(results, LAYOUT)
    assert time.process_time() - start < 2.0  # measured: 0.4 s on a busy core


@pytest.mark.slow
def test_two_thousand_files_are_read_and_tabulated_within_two_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(to_plain(make(50, 40, conditions=told(**{f"config__f{i}": "default" for i in range(10)}))))
    raw = json.loads(text)
    for i in range(2000):
        spec = {**raw["spec"], "dataset": f"d{i // 10 % 10}", "method": f"m{i // 100}"}
        spec |= {"data_seed": i % 10, "train_seed": i % 10}
        (tmp_path / f"{i}.json").write_text(json.dumps({**raw, "spec": spec}), encoding="utf-8")
    start = time.process_time()
    assert main.main(["table", "--results", str(tmp_path)]) == 0
    assert time.process_time() - start < 2.0  # measured: 0.9 s on a busy core; 10,000 files 4.6 s
    assert capsys.readouterr().out.count("\n| ") == 2 + 20 * 12


@pytest.mark.slow
def test_importing_tables_does_not_import_torch() -> None:
    code = "import sys, promptbench.show.tables.show; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_datasets_with_options_of_different_kinds_share_a_row() -> None:
    own = {"root": "birds", "split_seed": 1}
    results = [make(80, 60, dataset_options={"render_seed": 1}), make(70, 50, dataset="birds", dataset_options=own)]
    assert labels(results) == ["maple"]
    assert cells(results)["average", "maple"]["base/accuracy"] == "75.0"
    both = [*results, make(60, 40, dataset="birds", dataset_options={**own, "split_seed": 2})]
    assert labels(both) == [f"maple (split_seed={value})" for value in ("1", "2", "none")]


def test_an_edited_plugin_has_a_row_of_its_own() -> None:
    results = [make(80, 60, method="mine", plugin="ab" * 32), make(70, 50, method="mine", plugin="cd" * 32)]
    assert labels(results) == ["mine (plugin=abababab...)", "mine (plugin=cdcdcdcd...)"]


WORDS = {"n_ctx": 4, "ctx_init": "a photo of a"}
FROM_DATASET = {"n_ctx": None, "ctx_init": "dataset"}
GENERIC = {"template": "a photo of a {}."}


def started(dataset: str, shift: int = 0) -> list[Result]:
    """Two methods that start from words and from those of their dataset, one of the latter alone, and zero-shot."""
    generic = [(80, "maple", WORDS), (70, "coop", WORDS)]
    of_dataset = [(95, "maple", FROM_DATASET), (90, "coop", FROM_DATASET), (85, "ivlp", FROM_DATASET)]
    trained = [make(base + shift, 60, method=name, config=config, dataset=dataset) for base, name, config in generic]
    trained += [
        make(base + shift, 60, method=name, config=config, dataset=dataset) for base, name, config in of_dataset
    ]
    return [*trained, make(75, 60, method="zeroshot", config=GENERIC, recipe={}, shots=0, dataset=dataset)]


def column(text: str, place: int) -> list[str]:
    return [line.split("|")[place].strip() for line in text.splitlines() if line.startswith("| ")][1:]


def test_what_started_from_its_dataset_s_words_is_a_block_behind_the_others() -> None:
    text = render(started("shapes"), LAYOUT, methods=["zeroshot", "coop", "maple"])
    names = ["CoOp (ctx_init=dataset)", "MaPLe (ctx_init=dataset)", "IVLP (ctx_init=dataset)"]
    assert column(text, 2)[1:] == ["Zero-shot CLIP", "CoOp", "MaPLe", *names]
    assert column(text, 1)[1:] == ["shapes", "", "", "shapes", "", ""]
    assert text.count("ctx_init=dataset: the context starts from the template of the dataset trained on") == 1
    assert "the context starts" not in render(started("shapes")[:2], LAYOUT)
    assert column(render(started("shapes")[2:3], LAYOUT), 2)[1:] == ["MaPLe (ctx_init=dataset)"]


def test_blocks_are_ranked_apart() -> None:
    text = render(twice(started("shapes")), LAYOUT, ranked={"mini"}, methods=["zeroshot", "coop", "maple"])
    shown = [figure.replace(" ± 1.0", "") for figure in column(text, 5)[1:]]
    assert shown == ["_76.0_", "71.0", "**81.0**", "_91.0_", "**96.0**", "86.0"]


def test_several_datasets_have_such_a_block_each_and_one_of_averages() -> None:
    results = [*started("shapes"), *started("icons", shift=2)]
    text = render(results, LAYOUT, methods=["zeroshot", "coop", "maple"], datasets=["shapes", "icons"])
    groups = [name for name in column(text, 1)[1:] if name]
    assert groups[::2] == groups[1::2] == ["shapes", "icons", "average", "mean of per-dataset H"]
    found = cells(results)
    assert float(found["average", "maple (ctx_init=dataset)"]["base/accuracy"]) == 96
    assert float(found["average", "maple"]["base/accuracy"]) == 81


def test_a_difference_stands_by_what_its_own_row_knew() -> None:
    (differing,) = with_differences(build_tables(knowing(), LAYOUT), "zeroshot")
    found = {line.label: (str(line.selection), line.text_prior) for line in differing.lines if line.versus}
    assert found["Δ CoOp − Zero-shot CLIP"] == ("pseudo-new classes (9)", "generic")
    assert found["Δ CLAP − Zero-shot CLIP"] == ("unknown (each)", "ensemble")


def test_every_format_shows_the_block() -> None:
    results = [*started("shapes"), *started("icons")]
    panels = render(results, LAYOUT, "latex")
    assert panels.count(r"\begin{minipage}") == 3 and "(a) Average over 2 datasets" in panels
    assert [panel.count(r"\midrule") for panel in panels.split(r"\begin{minipage}")[1:]] == [2, 2, 2]
    plain = render(started("shapes"), LAYOUT, "latex", plain=True)
    assert re.search(r"Zero-shot CLIP .*\n  \\midrule\n  shapes & CoOp \(ctx\\_init=dataset\)", plain)
    assert render(started("shapes"), LAYOUT, "html").count("<tbody>") == 2
    (table,) = json.loads(render(started("shapes"), LAYOUT, "json"))["tables"]
    settings = [line["settings"] for line in table["lines"]]
    assert settings == ["", "", "", *["ctx_init=dataset"] * 3]


def test_other_settings_set_rows_of_the_block_apart_as_elsewhere() -> None:
    configs = [{**start, "depth": depth} for start, depth in product((WORDS, FROM_DATASET), (1, 9))]
    results = [make(80, 60, config=config) for config in configs]
    told = ["ctx_init=dataset, depth=1", "ctx_init=dataset, depth=9"]
    assert labels(results) == [f"maple ({said})" for said in ("depth=1", "depth=9", *told)]
    assert labels([results[0], results[3]]) == ["maple", "maple (ctx_init=dataset)"]


def test_the_block_stays_whole_in_other_views() -> None:
    (table,) = build_tables(started("shapes"), LAYOUT)
    (ordered,) = sort_by([table], "base")
    assert [line.row.method for line in ordered.lines] == ["maple", "zeroshot", "coop", "maple", "coop", "ivlp"]
    (differing,) = with_differences([ordered], "coop")
    shown = [line.label for line in chain.from_iterable(differing.parts)]
    behind = [
        "Δ MaPLe (ctx_init=dataset) − CoOp",
        "Δ CoOp (ctx_init=dataset) − CoOp",
        "Δ IVLP (ctx_init=dataset) − CoOp",
    ]
    assert (
        shown[:5] == ["MaPLe", "Zero-shot CLIP", "CoOp", "Δ MaPLe − CoOp", "Δ Zero-shot CLIP − CoOp"]
        and shown[-3:] == behind
    )


def test_stored_results_say_it_as_methods_take_it() -> None:
    for name in registry.names("methods"):
        fields = dataclasses.fields(registry.load("methods", name).Config)
        assert {field.name for field in fields if field.metadata.get("template")} <= {CONTEXT}
    assert make(1, 2, config={CONTEXT: "dataset"}).spec.from_dataset
    assert not make(1, 2, config={CONTEXT: "a photo of a", "teacher": "dataset"}).spec.from_dataset


def test_a_reconstruction_has_its_title_and_a_mark_and_is_never_ranked() -> None:
    ours = {"title": "Other-R", "reconstructed": True}
    made = [
        make(70.0, 60.0),
        make(50.0, 40.0, method="coop"),
        make(90.0, 80.0, method="other", preset="r2", conditions=ours),
    ]
    results = twice(made)
    for fmt, bold, mark in (("md", "**{}**", "Other-R (r2)§"), ("latex", r"\textbf{{{}}}", r"Other-R (r2)\S{}")):
        text = render(results, LAYOUT, fmt, ranked={"mini"})
        assert mark in text and "reconstructed without its authors' code" in text
        spread = " ± 1.0" if fmt == "md" else r"{\tiny$\pm$1.0}"
        assert bold.format(f"91.0{spread}") not in text and bold.format(f"71.0{spread}") in text


def test_zero_shot_with_other_weights_is_not_compared_silently() -> None:
    results = [
        make(80, 60, weights_hash="a"),
        make(70, 60, method="zeroshot", shots=0, weights_hash="b"),
    ]
    assert labels(results) == ["maple (weights_hash=a)", "zeroshot (weights_hash=b)"]
    agreed = [results[0], make(70, 60, method="zeroshot", shots=0, weights_hash="a")]
    assert labels(agreed) == ["maple", "zeroshot"]  # other shots are no other setting: it sees no image


def test_generated_splits_and_images_left_out_are_said() -> None:
    text = render(
        [make(80, 60, conditions={"split_source": "generated (rule, seed 1)", "skipped": {"base": ["x"]}})], LAYOUT
    )
    assert "Split generated for want of a split file, so not the papers': shapes." in text
    assert "Unreadable images were left out in runs on shapes." in text


def test_machines_with_other_numbers_of_cores_share_a_row_across_datasets() -> None:
    assert labels([make(80, 60, threads=8), make(70, 50, dataset="icons", threads=16)]) == ["maple"]


KNOWING: dict[str, dict[str, Any]] = {
    "zeroshot": {"texts_told": "template", "selection": {"kind": "none", "trials": 0, "by_dataset": False}},
    "coop": {"texts_told": "generic", "selection": {"kind": "pseudo-new classes", "trials": 9, "by_dataset": False}},
    "clap": {"texts_told": "ensemble", "selection": {"kind": "unknown", "trials": 0, "by_dataset": True}},
    "tip_adapter": {"texts_told": "dataset", "chosen_on": "few", "chosen_among": 4000},
}


def knowing() -> list[Result]:
    figures = {"zeroshot": 80.0, "coop": 90.0, "clap": 95.0, "tip_adapter": 85.0}
    return [make(base, 70.0, method=name, conditions=KNOWING[name]) for name, base in figures.items()]


def test_a_row_says_how_settings_were_chosen_and_what_it_was_told() -> None:
    text = render(knowing(), LAYOUT)
    assert column(text, 2)[1:] == ["CoOp", "Tip-Adapter", "Zero-shot CLIP", "CLAP"]
    said = ["pseudo-new classes (9)", "few-shot validation (4000 each)", "none", "unknown (each)"]
    assert column(text, 3)[1:] == said
    assert column(text, 4)[1:] == ["generic", "dataset", "dataset", "ensemble"]
    (legend,) = [line for line in text.splitlines() if line.startswith("selection: ")]
    assert (
        "how many were tried (each: anew for every dataset): none = nothing to choose, or fixed beforehand; " in legend
    )
    assert (
        "min(shots, 4) validation images a class; unknown = nobody says." in legend and "all validation" not in legend
    )
    (legend,) = [line for line in text.splitlines() if line.startswith("text prior: ")]
    assert legend.endswith(
        "generic = nothing of the dataset; dataset = each dataset's template; ensemble = several templates, averaged."
    )


def test_bold_figures_hold_within_one_text_prior() -> None:
    text = render(twice(knowing()), LAYOUT, ranked={"mini"})
    shown = [figure.replace(" ± 1.0", "") for figure in column(text, 5)[1:]]
    assert shown == ["91.0", "**86.0**", "81.0", "96.0"]
    told = {"texts_told": "dataset"}
    again = [make(base, 70.0, method=name, conditions=told) for name, base in (("coop", 90.0), ("zeroshot", 80.0))]
    assert column(render(twice(again), LAYOUT, ranked={"mini"}), 5)[1:] == ["**91.0 ± 1.0**", "81.0 ± 1.0"]


def test_data_formats_have_both_in_columns_of_their_own() -> None:
    (line,) = [line for line in cells(knowing()).values() if line["method"] == "tip_adapter"]
    known = [line[name] for name in ("selection", "trials", "settings by dataset", "text prior")]
    assert known == ["few-shot validation", "4000", "yes", "dataset"]
    assert cells(knowing())["shapes", "zeroshot"]["trials"] == ""
    long = list(csv.DictReader(io.StringIO(render(knowing(), LAYOUT, "csv-long"))))
    assert {(line["method"], line["selection"], line["text prior"]) for line in long} >= {
        ("coop", "pseudo-new classes", "generic"),
        ("clap", "unknown", "ensemble"),
    }
    (table,) = json.loads(render(knowing(), LAYOUT, "json"))["tables"]
    coop = next(line for line in table["lines"] if line["method"] == "coop")
    assert coop["selection"] == {"kind": "pseudo-new classes", "trials": 9, "by_dataset": False}
    assert coop["text_prior"] == "generic"
    panels = render([*knowing(), make(60.0, 50.0, dataset="icons", method="coop")], LAYOUT, "latex")
    assert r"\par\footnotesize text prior: " in panels and "pseudo-new classes (9): CoOp" in panels


def test_settings_seen_to_differ_from_dataset_to_dataset_are_chosen_anew_for_each() -> None:
    epochs = [make(80, 60, dataset=name, recipe={"epochs": n}) for n, name in ((5, "shapes"), (50, "icons"))]
    assert set(column(render(epochs, LAYOUT), 3)[1:]) == {"unknown (each)"}
    origins = [make(80, 60, dataset=d, recipe={"epochs": 5, "origin": d}) for d in ("authors", "paper")]
    assert set(column(render(origins, LAYOUT), 3)[1:]) == {"unknown"}


def test_a_table_of_one_selection_has_those_rows_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for result in knowing():
        write_result(tmp_path, result)
    call = ["table", "--results", str(tmp_path), "--selection"]
    assert main.main([*call, "none"]) == 0
    assert column(capsys.readouterr().out, 2)[1:] == ["Zero-shot CLIP"]
    assert main.main([*call, "few-shot-validation"]) == 0
    assert column(capsys.readouterr().out, 2)[1:] == ["Tip-Adapter"]
    assert main.main([*call, "ful validation"]) == 2
    assert "Unknown selection 'ful validation'. Did you mean 'full validation'?" in capsys.readouterr().err
    assert main.main([*call, "test"]) == 2
    assert (
        "No result has settings chosen so: test; these are here: none, pseudo-new classes," in capsys.readouterr().err
    )
    assert [line.label for line in table(knowing(), selection="pseudo-new classes").tables[0].lines] == ["CoOp"]


def test_columns_say_unit_range_and_direction() -> None:
    text = render([make(80, 60)], LAYOUT)
    assert "\nbase, new, H: %, 0 to 100, higher is better.\n" in text
    columns = [Column("a/ece", "a", lower=True), *(Column(f"{n}/accuracy", str(n)) for n in range(5))]
    assert column_legend(columns) == ("a: %, 0 to 100, lower is better; other figures: %, 0 to 100, higher is better.")
    assert column_legend([Column("x/nll", "NLL", lower=True, unit="nats", range="0 and more", digits=3)]) == (
        "NLL: nats, 0 and more, lower is better."
    )
