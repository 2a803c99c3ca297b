"""What a run knew besides its training images: how its settings were chosen, and what it was told of the text.

Results say both since they know of it. Of earlier ones is said what follows from what they store: settings that came
from their suite were chosen as the suite says today, in as many trials where they are still the same; a setting that is
`dataset` takes the dataset's template; and what nothing shows is `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from promptbench.config import typed, unknown
from promptbench.data.class_names import FROM_DATASET
from promptbench.recipe import PROSE, Recipe
from promptbench.results.result import Result
from promptbench.results.spec import CONTEXT, Spec
from promptbench.suite import load_suite, suite_names

SELECTIONS: Mapping[str, str] = {
    "none": "nothing to choose, or fixed beforehand",
    "pseudo-new classes": "`promptbench tune` on held-out images of halves of the training classes",
    "few-shot validation": "min(shots, 4) validation images a class",
    "full validation": "all validation images",
    "unknown": "nobody says",
    "test": "test images",
}
"""How settings may have been chosen, and what that means; what stands later outweighs what stands before."""

TEXT_PRIORS: Mapping[str, str] = {
    "generic": "nothing of the dataset",
    "dataset": "each dataset's template",
    "ensemble": "several templates, averaged",
    "unknown": "the result does not say",
}
"""What may have been told besides class names, of the words around them, and what that means."""

ORDER = ("generic", "unknown", "dataset", "ensemble")  # of text priors, by how much is told
VALIDATION = {"few": "few-shot validation", "all": "full validation"}  # by `Method.validates`
BY_HAND = "--set"  # the origin of a value that a call sets


class Choice(NamedTuple):
    """How settings were chosen.

    Attributes:
        kind: One of `SELECTIONS`.
        trials: How many settings were tried; 0 where nobody says.
        by_dataset: Whether they differ from dataset to dataset.
    """

    kind: str = "unknown"
    trials: int = 0
    by_dataset: bool = False

    def __str__(self) -> str:
        """`pseudo-new classes (9)`, `full validation (4000 each)`, `none`."""
        asked = self.kind not in ("none", "unknown")
        number = [str(self.trials or "?")] if asked else []
        said = " ".join([*number, *(["each"] if self.by_dataset else [])])
        return f"{self.kind} ({said})" if said else self.kind


def selection_named(text: str) -> str:
    """The one of `SELECTIONS` that is meant, hyphens and spaces alike.

    Raises:
        UsageError: There is none.
    """
    found = {kind.replace("-", " "): kind for kind in SELECTIONS}
    plain = " ".join(text.replace("-", " ").split())
    if plain not in found:
        raise unknown("selection", text, SELECTIONS)
    return found[plain]


def selection_of(result: Result) -> Choice:
    """How the settings of a run were chosen: before it, or by the method itself on validation images."""
    conditions = result.conditions
    stored = conditions.get("selection")
    before = Choice(**stored) if stored else _as_stored(result)
    own = VALIDATION.get(conditions.get("chosen_on", ""))
    if own is None:
        return before
    if before.kind == "unknown":  # what is known of it
        return Choice(own, conditions.get("chosen_among", 0), by_dataset=True)
    return heaviest([before, Choice(own, conditions.get("chosen_among", 0), by_dataset=True)])


def heaviest(choices: Iterable[Choice]) -> Choice:
    """What has to be said of settings that were chosen in several ways: the kind that outweighs the others."""
    order = list(SELECTIONS)
    found = list(choices)
    kind = max((choice.kind for choice in found), key=order.index)
    trials = max(choice.trials for choice in found if choice.kind == kind)
    return Choice(kind, trials, any(choice.by_dataset for choice in found))


def text_prior(result: Result) -> str:
    """What a run was told of the words around class names: one of `TEXT_PRIORS`."""
    told = {"template": "dataset"}.get(said := result.conditions.get("texts_told", ""), said)
    config = result.spec.config
    if told != "ensemble" and FROM_DATASET in config.values():
        return "dataset"
    if told in TEXT_PRIORS:
        return str(told)
    words = [value for name, value in config.items() if isinstance(value, str) and (name == CONTEXT or "{}" in value)]
    return "generic" if words else "unknown"


def most_told(priors: Iterable[str]) -> str:
    """The text prior of a figure that several runs are behind."""
    return max(priors, key=ORDER.index, default="unknown")


def set_by_hand(spec: Spec, provenance: Mapping[str, str]) -> bool:
    """Whether a call set what may have been chosen by figures; the words of a dataset are said by the text prior."""
    told = {f"config.{name}" for name, value in spec.config.items() if value == FROM_DATASET}
    return any(origin == BY_HAND for name, origin in provenance.items() if name not in told)


def _as_stored(result: Result) -> Choice:
    """How settings were chosen, of a result that does not know of it yet."""
    spec = result.spec
    provenance = result.conditions.get("provenance") or {}
    if set_by_hand(spec, provenance):
        return Choice()
    if spec.shots == 0 and not spec.recipe:
        return Choice("none")
    entry = _entry(spec.suite, spec.method, spec.label) if spec.recipe.get("origin") == "ours" else None
    if entry is None:
        return Choice()
    if _has(spec, entry, provenance):
        return entry.choice
    earlier = provenance.get("recipe.origin") == f"suite {spec.suite}"
    return Choice(entry.choice.kind) if earlier else Choice()


class _Entry(NamedTuple):
    """What a suite sets for a method, and how that was chosen."""

    recipe: Mapping[str, Any]
    config: Mapping[str, Any]
    choice: Choice


@cache
def _entries(suite: str) -> Mapping[str, Any]:
    """What a suite of the package sets for methods and presets; read once, for its YAML takes long."""
    return load_suite(suite).methods if suite in suite_names() else {}


@cache
def _entry(suite: str, method: str, label: str) -> _Entry | None:
    """What a suite of the package sets for a method or its preset."""
    own = _entries(suite)
    entry = own.get(label) or own.get(method)
    if entry is None:
        return None
    recipe = typed(Recipe, entry.recipe, f"suite {suite}")
    choice = Choice(recipe.get("selection", "unknown"), recipe.get("trials", 0))
    return _Entry({name: value for name, value in recipe.items() if name not in PROSE}, entry.config, choice)


def _has(spec: Spec, entry: _Entry, provenance: Mapping[str, str]) -> bool:
    """Whether a run has the settings of a suite's entry, but for fields that a preset sets."""
    origin = f"suite {spec.suite}"
    of_suite = {name: value for name, value in entry.config.items() if provenance.get(f"config.{name}") == origin}
    own = all(spec.recipe.get(name) == value for name, value in entry.recipe.items())
    return own and all(spec.config.get(name) == value for name, value in of_suite.items())
