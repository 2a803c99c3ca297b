"""How settings were chosen and what was told of the text, of results that say it and of those that came before."""

from __future__ import annotations

from typing import Any

import pytest
from shared_paths import REPOSITORY

from promptbench.config import UsageError
from promptbench.recipe import Recipe, Selection
from promptbench.results.knowledge import (
    ORDER,
    SELECTIONS,
    TEXT_PRIORS,
    Choice,
    heaviest,
    most_told,
    selection_named,
    selection_of,
    text_prior,
)
from promptbench.results.result import Result, Spec, read_results
from promptbench.suite import load_suite

TUNED = Choice("pseudo-new classes", 9)


def make(conditions: dict[str, Any] | None = None, **spec: Any) -> Result:
    facts: dict[str, Any] = {
        "suite": "mini",
        "protocol": "base2new",
        "dataset": "shapes",
        "method": "mine",
        "config": {},
        "recipe": {"epochs": 5, "origin": "authors"},
        "shots": 16,
        "data_seed": 1,
        "train_seed": 1,
        "backbone": "mini",
        "threads": 1,
    }
    return Result(
        spec=Spec(**{**facts, **spec}), conditions=conditions or {}, metrics={}, versions={}, commit="", created=""
    )


def of_suite(**changes: Any) -> Result:
    """An earlier result with what the suite mini sets for a method, but for changes to its recipe."""
    recipe = {"epochs": 80, "lr": 0.017, "batch": 16, "origin": "ours", "momentum": 0.9, **changes}
    return make({"provenance": {"recipe.origin": "suite mini"}}, method="kgcoop", recipe=recipe)


def test_what_a_result_stores_of_its_selection_holds() -> None:
    assert selection_of(make({"selection": TUNED._asdict()})) == TUNED
    assert selection_of(make()) == Choice()


@pytest.mark.parametrize(
    ("before", "own", "expected"),
    [
        (Choice("none"), "few", Choice("few-shot validation", 7, True)),
        (TUNED, "few", Choice("few-shot validation", 7, True)),
        (Choice(), "few", Choice("few-shot validation", 7, True)),
        (TUNED, "all", Choice("full validation", 7, True)),
        (Choice("full validation", 3), "few", Choice("full validation", 3, True)),
        (Choice("test", 3), "all", Choice("test", 3, True)),
    ],
)
def test_what_a_method_chooses_itself_counts_besides(before: Choice, own: str, expected: Choice) -> None:
    conditions = {"selection": before._asdict(), "chosen_on": own, "chosen_among": 7}
    assert selection_of(make(conditions)) == expected


def test_an_earlier_result_with_its_suite_s_settings_was_chosen_as_the_suite_says() -> None:
    assert selection_of(of_suite()) == TUNED
    assert selection_of(of_suite(lr=0.5)) == Choice("pseudo-new classes")  # an earlier entry: who knows of how many
    other = make({"provenance": {}}, method="kgcoop", recipe={**of_suite().spec.recipe, "lr": 0.5})
    assert selection_of(other) == Choice()
    assert selection_of(make(of_suite().conditions, method="mine", recipe=of_suite().spec.recipe)) == Choice()
    assert selection_of(make({}, suite="elsewhere", method="kgcoop", recipe=of_suite().spec.recipe)) == Choice()


def test_what_a_call_sets_is_chosen_nobody_knows_how_but_for_words_that_the_text_prior_says() -> None:
    for name, config, expected in (("lr", {}, Choice()), ("ctx_init", {"ctx_init": "dataset"}, TUNED)):
        place = f"config.{name}" if config else f"recipe.{name}"
        result = of_suite()
        conditions = {"provenance": {**result.conditions["provenance"], place: "--set"}}
        assert selection_of(make(conditions, method="kgcoop", recipe=result.spec.recipe, config=config)) == expected


def test_what_trains_on_nothing_has_no_settings_to_choose() -> None:
    assert selection_of(make(shots=0, recipe={})) == Choice("none")
    assert selection_of(make({"provenance": {"config.template": "--set"}}, shots=0, recipe={})) == Choice()


def test_several_ways_of_choosing_are_said_as_the_one_that_saw_most() -> None:
    assert heaviest([TUNED, Choice("pseudo-new classes", 27), Choice("none", by_dataset=True)]) == Choice(
        "pseudo-new classes", 27, True
    )
    assert heaviest([Choice("full validation", 5), Choice()]).kind == "unknown"
    assert heaviest([Choice("test"), Choice()]).kind == "test"


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (Choice("none"), "none"),
        (Choice(), "unknown"),
        (Choice(by_dataset=True), "unknown (each)"),
        (TUNED, "pseudo-new classes (9)"),
        (Choice("full validation", 4000, True), "full validation (4000 each)"),
        (Choice("test", 0, True), "test (? each)"),
    ],
)
def test_a_choice_reads_in_a_cell(choice: Choice, text: str) -> None:
    assert str(choice) == text


def test_kinds_are_those_of_recipes_and_are_found_by_name() -> None:
    assert set(SELECTIONS) == set(Selection.__args__)  # type: ignore[attr-defined]
    assert set(ORDER) == set(TEXT_PRIORS)
    assert {selection_named(kind.replace(" ", "-")) for kind in SELECTIONS} == set(SELECTIONS)
    with pytest.raises(UsageError, match="Unknown selection 'pseudo-new'. Did you mean 'pseudo-new classes'"):
        selection_named("pseudo-new")


@pytest.mark.parametrize(
    ("told", "config", "prior"),
    [
        ("generic", {}, "generic"),
        ("dataset", {"template": "a photo of a {}."}, "dataset"),
        ("template", {}, "dataset"),  # as results said it at first
        ("ensemble", {"template": "dataset"}, "ensemble"),
        ("generic", {"teacher": "dataset"}, "dataset"),  # read in training alone, which may be from a file
        (None, {"ctx_init": "dataset"}, "dataset"),
        (None, {"ctx_init": "a photo of a", "teacher": "dataset"}, "dataset"),
        (None, {"ctx_init": "a photo of a"}, "generic"),
        (None, {"ctx_init": ""}, "generic"),
        (None, {"template": "a {} fabric."}, "generic"),
        (None, {"depth": 3, "answer": "mean"}, "unknown"),
    ],
)
def test_the_text_prior_is_what_a_result_says_or_what_its_settings_show(
    told: str | None, config: dict[str, Any], prior: str
) -> None:
    assert text_prior(make({"texts_told": told} if told else {}, config=config)) == prior


def test_the_text_prior_of_several_is_the_most_that_any_was_told() -> None:
    assert most_told(["generic", "dataset", "ensemble", "dataset"]) == "ensemble"
    assert most_told(["generic", "unknown"]) == "unknown"
    assert most_told([]) == "unknown"


def test_the_suite_mini_says_how_every_recipe_was_chosen() -> None:
    for label, settings in load_suite("mini").methods.items():
        assert settings.recipe["selection"] == "pseudo-new classes", label
        assert Recipe(**{"batch": 1, "lr": 1.0, **settings.recipe}).trials in (0, 9, 27)  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_committed_result_of_a_trained_method_is_of_unknown_selection() -> None:
    results = read_results(REPOSITORY / "results" / "mini")
    unknown = {result.spec.label for result in results if selection_of(result).kind == "unknown"}
    assert unknown <= {"linear_probe", "tip_adapter"}
