from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

from promptbench import registry
from promptbench.config import UsageError
from promptbench.recipe import (
    LENGTHS,
    Preset,
    Recipe,
    find_preset,
    find_recipe,
    parse_label,
    resolve,
    resolve_config,
    resolve_recipe,
    settings_by_dataset,
)
from promptbench.runs.plan import decisive
from promptbench.suite import DatasetEntry, MethodSettings, Suite

AUTHORS = Recipe(epochs=5, lr=0.0035, batch=4, origin="authors", source="vit_b16_c2_ep5_batch4_2ctx")


class Example:
    """A method as far as recipes are concerned; the numbers are MaPLe's."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        n_ctx: int = field(default=2, metadata={"source": "authors' config"})
        depth: int = 9

        def __post_init__(self) -> None:
            if self.n_ctx < 1:
                raise UsageError(f"'n_ctx' must be at least 1, not {self.n_ctx}.")

    recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = {
        ("base2new", "*"): AUTHORS,
        ("base2new", "imagenet"): replace(AUTHORS, epochs=3),
        ("cross_dataset", "*"): replace(AUTHORS, epochs=2, lr=0.0026, overrides={"depth": 3}),
        ("*", "*"): replace(AUTHORS, origin="transferred"),
    }
    presets: ClassVar[Mapping[str, Preset]] = {
        "long": Preset(recipe={"epochs": 20, "origin": "authors"}, config={"n_ctx": 4}),
    }


class Untrained:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        template: str = ""

    trains = False
    recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = {}
    presets: ClassVar[Mapping[str, Preset]] = {"generic": Preset(config={"template": "a photo of a {}."})}


def suite(**settings: Any) -> Suite:
    roles = {"base2new": (DatasetEntry(name="dtd", dataset="dtd"),)}
    return Suite(**{"name": "tiny", "title": "tiny", "backbone": "mini", "roles": roles, **settings})


def settings_of(label: str = "example", method: Any = Example, protocol: str = "base2new", **keywords: Any) -> Any:
    return resolve(method, label, protocol=protocol, dataset="dtd", **keywords)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"batch": 0},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"warmup_epochs": -1},
        {"warmup_lr": -1e-5},
        {"origin": "somewhere"},
        {"lr_end": -1e-6},
        {"lr_end": 0.0036},  # more than lr
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.999)},
        {"betas": (float("nan"), 0.999)},
        {"eps": -1e-8},
        {"eps": float("inf")},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 0.4)},
        {"crop_scale": (0.5, 1.1)},
        {"train_views": -1},
    ],
)
def test_a_recipe_refuses_what_is_out_of_range(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=f"'{name}' must be "):
        replace(AUTHORS, **wrong)


def test_a_recipe_may_do_without() -> None:
    without = {"momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0, "warmup_lr": 0.0}
    assert replace(AUTHORS, **without, epochs=1, batch=1).warmup_lr == 0.0
    with pytest.raises(UsageError, match="'train_views' needs 'augment'"):
        replace(AUTHORS, augment=False, train_views=1)


@pytest.mark.parametrize("length", [{"steps": 5}, {"steps_per_shot": 5}, {"epochs": 5}])
def test_a_recipe_has_one_length(length: dict[str, int]) -> None:
    (name,) = length
    none = dict.fromkeys(LENGTHS, 0)
    assert getattr(replace(AUTHORS, **none | length), name) == 5
    with pytest.raises(UsageError, match=f"'{name}' must be at least 1, not -1"):
        replace(AUTHORS, **none | {name: -1})
    with pytest.raises(UsageError, match="'epochs' must be at least 1, not 0"):
        replace(AUTHORS, **none)
    for other in set(LENGTHS) - set(length):
        with pytest.raises(UsageError, match=r"'\w+' and '\w+' both say how long the training is; leave one out"):
            replace(AUTHORS, **none | length | {other: 5})


def test_steps_and_epochs_are_counted_in_each_other() -> None:
    epochs = replace(AUTHORS, epochs=3)
    assert (epochs.total_steps(7), epochs.passes(7)) == (21, 3)
    steps = replace(AUTHORS, epochs=0, steps=22)
    assert (steps.total_steps(7), steps.passes(7)) == (22, 4)  # the last is cut short
    assert (steps.total_steps(11), steps.passes(11)) == (22, 2)
    assert steps.passes(100) == 1


def test_steps_for_each_shot_are_steps_of_a_run() -> None:
    recipe = replace(AUTHORS, epochs=0, steps_per_shot=500)
    assert recipe.at(16) == replace(AUTHORS, epochs=0, steps=8000)
    with pytest.raises(UsageError, match="needs a number of shots; with all images, set steps"):
        recipe.at(None)


class BySteps(Example):
    recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = {
        ("*", "*"): replace(AUTHORS, epochs=0, steps_per_shot=500, schedule="step", optimizer="adamw")
    }


@pytest.mark.parametrize(
    ("assignments", "shots", "lengths", "origin"),
    [
        ({}, 4, (0, 2000, 0), "authors"),
        ({"lr": 0.1}, 4, (0, 2000, 0), "ours"),
        ({"epochs": 3}, 4, (3, 0, 0), "ours"),
        ({"epochs": 3}, None, (3, 0, 0), "ours"),
        ({"steps": 7}, 4, (0, 7, 0), "ours"),
        ({"steps": 7}, None, (0, 7, 0), "ours"),
        ({"steps_per_shot": 2}, 4, (0, 8, 0), "ours"),
    ],
)
def test_a_layer_may_say_the_length_in_another_way(
    assignments: dict[str, Any], shots: int | None, lengths: tuple[int, ...], origin: str
) -> None:
    settings = settings_of(method=BySteps, assignments=assignments, shots=shots)
    recipe = settings.recipe
    assert (recipe.epochs, recipe.steps, recipe.steps_per_shot) == lengths and recipe.origin == origin
    length = "epochs" if recipe.epochs else "steps"
    said = settings.provenance[f"recipe.{length}"]
    if "steps_per_shot" in assignments:
        assert said == "steps_per_shot, --set"
    else:
        assert said == ("--set" if set(assignments) & set(LENGTHS) else "recipe (authors)")


def test_steps_for_each_shot_of_a_method_that_counts_epochs() -> None:
    assert settings_of(assignments={"steps_per_shot": 10}, shots=2).recipe.steps == 20
    by_suite = suite(recipe={"steps_per_shot": 3})
    assert settings_of(suite=by_suite, shots=2).recipe.steps == 6
    assert settings_of("example@long", suite=by_suite, shots=2).recipe.epochs == 20  # the preset's, which is later
    with pytest.raises(UsageError, match="needs a number of shots"):
        settings_of(suite=by_suite)


@pytest.mark.parametrize("protocol", ["base2new", "few_shot"])
def test_no_length_is_an_error_and_two_are(protocol: str) -> None:
    with pytest.raises(UsageError, match="'epochs' and 'steps' both say how long"):
        settings_of(method=BySteps, protocol=protocol, assignments={"epochs": 3, "steps": 4}, shots=1)
    with pytest.raises(UsageError, match="needs a number of shots"):
        settings_of(method=BySteps, protocol=protocol)


def test_younger_fields_are_in_the_name_of_a_run_only_where_they_say_something() -> None:
    usual, other = decisive(AUTHORS), decisive(replace(AUTHORS, optimizer="adamw", betas=(0.9, 0.99)))
    younger = {"steps", "steps_per_shot", "lr_end", "schedule", "drop_last", "optimizer", "betas", "eps", "crop_scale"}
    assert not younger & set(usual)
    assert set(other) - set(usual) == {"optimizer", "betas"} and other["betas"] == [0.9, 0.99]


def test_labels_split_into_method_and_preset() -> None:
    assert parse_label("coop@200") == ("coop", "200")
    assert parse_label("coop") == ("coop", "")
    for wrong in ("coop@", "@200", "a@b@c", ""):
        with pytest.raises(UsageError, match="write a method's name"):
            parse_label(wrong)


def test_the_most_specific_recipe_is_found() -> None:
    assert find_recipe(Example, "base2new", "imagenet").epochs == 3
    assert find_recipe(Example, "base2new", "dtd").epochs == 5
    assert find_recipe(Example, "few_shot", "dtd").origin == "transferred"
    with pytest.raises(UsageError, match=r"Untrained has no recipe for the dataset 'dtd' under the protocol 'ood'"):
        find_recipe(Untrained, "ood", "dtd")


def test_an_unknown_preset_is_refused_with_the_nearest_one() -> None:
    assert find_preset(Example, "example", "long").config == {"n_ctx": 4}
    with pytest.raises(UsageError, match="Unknown preset of example 'lomg'. Did you mean 'long'?"):
        settings_of("example@lomg")


def test_later_layers_win_and_leave_their_name() -> None:
    values, provenance = resolve_config(Example.Config, [("suite tiny", {"depth": 3}), ("--set", {"depth": "4"})])
    assert values == {"n_ctx": 2, "depth": 4}
    assert provenance == {"n_ctx": "default (authors' config)", "depth": "--set"}
    with pytest.raises(UsageError, match="^suite tiny: Unknown key 'dept'. Did you mean 'depth'?"):
        resolve_config(Example.Config, [("suite tiny", {"dept": 3})])


def test_without_layers_a_run_has_the_method_s_own_settings() -> None:
    settings = settings_of()
    assert settings.config == Example.Config()
    assert settings.recipe == AUTHORS
    assert settings.provenance["config.depth"] == "default"
    assert settings.provenance["recipe.epochs"] == "recipe (authors)"
    assert settings.provenance["recipe.momentum"].startswith("default (Dassl's default")
    assert settings.explicit == frozenset()


def test_a_recipe_overrides_the_config_of_its_protocol() -> None:
    settings = settings_of(protocol="cross_dataset")
    assert settings.config.depth == 3
    assert settings.provenance["config.depth"] == "recipe (authors)"
    assert not settings.explicit


def test_precedence_is_default_recipe_suite_command_line() -> None:
    tiny = suite(
        recipe={"augment": False}, methods={"example": MethodSettings(recipe={"lr": 0.1}, config={"depth": 2})}
    )
    settings = settings_of(protocol="cross_dataset", suite=tiny, assignments={"epochs": 7, "n_ctx": 1})
    assert settings.config == Example.Config(n_ctx=1, depth=2)
    assert (settings.recipe.epochs, settings.recipe.lr, settings.recipe.augment) == (7, 0.1, False)
    assert settings.recipe.batch == 4
    assert settings.provenance["recipe.augment"] == settings.provenance["recipe.lr"] == "suite tiny"
    assert settings.provenance["recipe.epochs"] == settings.provenance["config.n_ctx"] == "--set"
    assert settings.explicit == {"depth", "n_ctx"}


def test_a_preset_wins_over_the_suite_s_method_but_not_over_its_own_entry() -> None:
    methods = {"example": MethodSettings(recipe={"epochs": 50, "lr": 0.1})}
    settings = settings_of("example@long", suite=suite(methods=methods))
    assert (settings.recipe.epochs, settings.recipe.lr) == (20, 0.1)
    assert settings.provenance["recipe.epochs"] == settings.provenance["config.n_ctx"] == "preset example@long"
    assert not settings.explicit
    methods["example@long"] = MethodSettings(recipe={"epochs": 30})
    assert settings_of("example@long", suite=suite(methods=methods)).recipe.epochs == 30
    assert settings_of("example", suite=suite(methods=methods)).recipe.epochs == 50


def test_a_changed_recipe_is_ours_unless_the_change_names_its_origin() -> None:
    assert resolve_recipe(AUTHORS, []).values["origin"] == "authors"
    assert resolve_recipe(AUTHORS, [("--set", {"lr": 0.0035})]).values["origin"] == "authors"
    changed = resolve_recipe(AUTHORS, [("--set", {"lr": 0.1})])
    assert (changed.values["origin"], changed.provenance["origin"]) == ("ours", "--set")
    assert changed.values["source"] == "--set"
    named = resolve_recipe(AUTHORS, [("suite tiny", {"lr": 0.0035}), ("preset p", {"epochs": 9, "origin": "paper"})])
    assert (named.values["origin"], named.provenance["origin"]) == ("paper", "preset p")


TUNED: Mapping[str, Any] = {"lr": 0.1, "origin": "ours", "selection": "pseudo-new classes", "trials": 9}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], ("full validation", 5)),
        ([{"momentum": 0.9}], ("full validation", 5)),  # which it was before
        ([{"lr": 0.1}], ("unknown", 0)),
        ([TUNED], ("pseudo-new classes", 9)),
        ([{"augment": False}, TUNED], ("pseudo-new classes", 9)),
        ([TUNED, {"augment": False}], ("unknown", 0)),
        ([TUNED, {"epochs": 20, "origin": "authors"}], ("unknown", 0)),
        ([{"selection": "test"}], ("test", 0)),
    ],
)
def test_a_change_says_how_it_was_chosen_or_nobody_knows(
    layers: list[dict[str, Any]], expected: tuple[str, int]
) -> None:
    known = replace(AUTHORS, selection="full validation", trials=5)
    values = resolve_recipe(known, [(f"layer {n}", layer) for n, layer in enumerate(layers)]).values
    assert (values["selection"], values["trials"]) == expected


def test_how_a_recipe_was_chosen_decides_no_run_and_is_no_setting() -> None:
    assert decisive(replace(AUTHORS, selection="test", trials=5)) == decisive(AUTHORS)
    assert not {"selection", "trials"} & set(decisive(AUTHORS))
    with pytest.raises(UsageError, match="Unknown setting of example 'selection'"):
        settings_of(assignments={"selection": "none"})
    with pytest.raises(UsageError, match="'selection' must be one of none, pseudo-new classes, .*, not 'luck'"):
        replace(AUTHORS, selection="luck")
    with pytest.raises(UsageError, match="'trials' must be at least 0"):
        replace(AUTHORS, trials=-1)


def test_settings_that_recipes_of_a_protocol_differ_in_are_known() -> None:
    assert settings_by_dataset(Example, "base2new") == {"recipe.epochs"}
    assert settings_by_dataset(Example, "cross_dataset") == settings_by_dataset(Example, "ood") == set()
    assert settings_by_dataset(Untrained, "base2new") == set()
    found = settings_by_dataset(registry.load("methods", "promptsrc"), "few_shot")
    assert {"config.epoch_mean", "config.epoch_std"} <= found


def test_an_authors_preset_on_top_of_a_change_of_ours_stays_ours() -> None:
    preset = ("preset p", {"epochs": 9, "origin": "authors"})
    resolved = resolve_recipe(AUTHORS, [("suite tiny", {"lr": 0.1}), preset])
    assert (resolved.values["epochs"], resolved.values["origin"]) == (9, "ours")
    assert resolve_recipe(AUTHORS, [preset, ("--set", {"lr": 0.1})]).values["origin"] == "ours"
    twice = [("suite tiny", {"lr": 0.1}), preset, ("suite tiny", {"batch": 8, "origin": "authors"})]
    assert resolve_recipe(AUTHORS, twice).values["origin"] == "ours"


def test_a_layer_without_random_views_leaves_none_of_the_weaker_ones() -> None:
    recipe = replace(AUTHORS, train_views=20)
    resolved = resolve_recipe(recipe, [("suite tiny", {"augment": False})])
    assert (resolved.values["augment"], resolved.values["train_views"]) == (False, 0)
    assert resolved.provenance["train_views"] == "suite tiny"
    again = resolve_recipe(recipe, [("suite tiny", {"augment": False}), ("--set", {"train_views": 3})])
    assert again.values["train_views"] == 3  # which the recipe then refuses
    plain = resolve_recipe(AUTHORS, [("suite tiny", {"augment": False})])
    assert plain.provenance["train_views"].startswith("default")


def test_what_a_recipe_does_not_state_is_as_in_the_papers_code() -> None:
    recipe = Recipe(epochs=1, lr=0.1, batch=1, origin="ours")
    assert (recipe.momentum, recipe.weight_decay) == (0.9, 5e-4)
    assert (recipe.warmup_epochs, recipe.warmup_lr) == (1, 1e-5)
    assert recipe.augment and recipe.train_views == 0  # a new random view of each image every epoch


def test_a_method_that_trains_nothing_has_no_recipe() -> None:
    settings = settings_of("zeroshot@generic", method=Untrained, suite=suite(recipe={"augment": False}))
    assert settings.recipe is None
    assert settings.config.template == "a photo of a {}."
    assert set(settings.provenance) == {"config.template"}
    with pytest.raises(UsageError, match="--set: Unknown setting"):
        settings_of("zeroshot", method=Untrained, assignments={"epochs": 3})


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ({"n_ctxx": 4}, "--set: Unknown setting of example 'n_ctxx'. Did you mean 'n_ctx'?"),
        ({"epoch": 4}, "--set: Unknown setting of example 'epoch'. Did you mean 'epochs'?"),
        ({"overrides": {}}, "--set: Unknown setting of example 'overrides'"),
        ({"origin": "paper"}, "--set: Unknown setting of example 'origin'"),
        ({"n_ctx": "many"}, "--set: 'n_ctx' takes an integer, not 'many'"),
        ({"n_ctx": 0}, "example: 'n_ctx' must be at least 1, not 0."),
        ({"lr": -1}, "example: 'lr' must be more than 0, not -1.0."),
    ],
)
def test_a_wrong_assignment_is_told_in_one_sentence(assignments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(assignments=assignments)
    assert str(caught.value).startswith(message)


def test_settings_may_follow_the_number_of_shots() -> None:
    class ByShots(Example):
        recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = {
            ("*", "*"): replace(AUTHORS, overrides={"depth": 3, "n_ctx": 4}, overrides_at={8: {"depth": 5}})
        }

    depths = {shots: settings_of(method=ByShots, shots=shots).config.depth for shots in (1, 8, 16, None)}
    assert depths == {1: 3, 8: 5, 16: 3, None: 3}
    settings = settings_of(method=ByShots, shots=8)
    assert settings.config.n_ctx == 4 and settings.provenance["config.depth"] == "recipe (authors)"
    assert not settings.recipe.overrides_at and not settings.explicit
    assert settings_of(method=ByShots, shots=8, assignments={"depth": 2}).config.depth == 2
    plain, by_shots = (decisive(settings_of(method=method, shots=8).recipe) for method in (Example, ByShots))
    assert plain == by_shots  # what the overrides say stands in the settings, and older runs keep their names
    with pytest.raises(UsageError, match="--set: Unknown setting of example 'overrides_at'"):
        settings_of(assignments={"overrides_at": {}})


def test_epochs_follow_the_number_of_shots_where_the_authors_say_so() -> None:
    for name in ("coop", "gallop"):
        cls = registry.load("methods", name)
        epochs = {
            shots: resolve(cls, name, protocol="few_shot", dataset="dtd", shots=shots).recipe.epochs  # type: ignore[union-attr]
            for shots in (1, 2, 4, 8, 16)
        }
        assert epochs == {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}
        one = resolve(cls, name, protocol="few_shot", dataset="imagenet", shots=1).recipe
        assert one is not None and one.epochs == 50 and one.origin == "authors" and not one.epochs_at
