"""How a method is trained, and where every number of it comes from.

A method carries recipes, keyed by (protocol, dataset or "*"), and named presets, chosen as `method@preset`. The
settings of one run are laid in layers, later ones win:

    method default < recipe < suite < preset < suite's entry for that very preset < command line

`resolve` returns the outcome with the origin of each value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, get_args

from promptbench.config import UsageError, build, describe_fields, typed, unknown
from promptbench.data.transforms import SCALE
from promptbench.suite import Suite

Origin = Literal["paper", "authors", "transferred", "ours"]
Selection = Literal["none", "pseudo-new classes", "few-shot validation", "full validation", "test", "unknown"]
Layer = tuple[str, Mapping[str, Any]]  # where the values come from, and the values by field

_DASSL = "Dassl's default, set by no method"


def later(default: Any, source: str = "") -> Any:
    """A field of `Recipe` that is younger than the names of files, which it changes only where it says something."""
    return field(default=default, metadata={"source": source, "later": True})


BY_SHOT = "steps_per_shot"
LENGTHS = ("epochs", "steps", BY_SHOT)
"""Fields that say how long a training is, one of them; the others are 0."""
CHOICE = ("selection", "trials")
"""Fields that say how the others were chosen."""
PROSE = ("origin", "source", *CHOICE)
"""Fields that say where the others come from, and change nothing."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training of one method under one protocol: optimiser, cosine schedule with constant warm-up, views, length.

    Attributes:
        epochs: Passes over the training images, warm-up included; 0 where steps are counted.
        steps: Of the optimiser, in the place of epochs; the last pass then ends where they do.
        steps_per_shot: Steps for each image of a class, in the place of both; `at` makes steps of them.
        lr: Learning rate at the start of the cosine.
        lr_end: Learning rate that the cosine goes down to.
        schedule: Whether the rate changes with every `epoch`, as in Dassl, or with every `step`.
        batch: Images per step.
        drop_last: Whether a last batch of an epoch with fewer images is left out, if it is not the only one.
        optimizer: `sgd` without Nesterov, `adam` with the decay in the gradient, `adamw` with the decay apart from it.
        weight_decay: On the learned tensors; a group of `Method.parameter_groups` may have its own.
        momentum: Of SGD.
        betas: Of Adam, for the first and the second moment.
        eps: Of Adam, beside the root of the second moment.
        warmup_epochs: First epochs, at the constant rate `warmup_lr`.
        warmup_lr: See there.
        augment: Random crops and flips; without it training images get the test transform.
        crop_scale: Smallest and largest share of an image's area that a random crop takes.
        train_views: Random views of each image, drawn once and seen in turn; 0 for a new one every epoch.
        origin: `paper`, `authors` (their repository), `transferred` (theirs, for another protocol or backbone), `ours`.
        source: The file or table it was read from.
        selection: By which figures it was chosen; `none` where it was by none.
        trials: How many settings were tried for that; 0 where nobody says.
        overrides: Fields of the method's Config that this recipe sets, such as a depth.
        epochs_at: Epochs at other numbers of shots, by shots; `at` puts them in.
        overrides_at: Fields of the Config that it sets at some numbers of shots alone, by shots; `at` adds them.

    Raises:
        UsageError: A number is out of its range.
    """

    epochs: int = 0
    lr: float
    batch: int
    weight_decay: float = field(default=5e-4, metadata={"source": _DASSL})
    momentum: float = field(default=0.9, metadata={"source": _DASSL})
    steps: int = later(0)
    steps_per_shot: int = later(0)
    lr_end: float = later(0.0)
    schedule: Literal["epoch", "step"] = later("epoch", source=_DASSL)
    drop_last: bool = later(True, source=_DASSL)
    optimizer: Literal["sgd", "adam", "adamw"] = later("sgd", source=_DASSL)
    betas: tuple[float, float] = later((0.9, 0.999), source="torch's default")
    eps: float = later(1e-8, source="torch's default")
    crop_scale: tuple[float, float] = later(SCALE, source="authors' configs of CoOp, CoCoOp, MaPLe")
    warmup_epochs: int = field(default=1, metadata={"source": "authors' configs of CoOp, CoCoOp, MaPLe"})
    warmup_lr: float = field(default=1e-5, metadata={"source": "authors' configs of CoOp, CoCoOp, MaPLe"})
    augment: bool = field(default=True, metadata={"source": "authors' configs: random_resized_crop, random_flip"})
    train_views: int = later(0, source="every paper's code: a new view every epoch")
    origin: Origin
    source: str = ""
    selection: Selection = "unknown"
    trials: int = 0
    overrides: Mapping[str, object] = field(default_factory=dict)
    epochs_at: Mapping[int, int] = field(default_factory=dict)
    overrides_at: Mapping[int, Mapping[str, object]] = field(default_factory=dict)

    def at(self, shots: int | None) -> Recipe:
        """The recipe for a number of shots, None being all images.

        Raises:
            UsageError: It counts steps for each shot, and there is no number of shots.
        """
        overrides = {**self.overrides, **({} if shots is None else self.overrides_at.get(shots, {}))}
        if self.steps_per_shot:
            if shots is None:
                raise UsageError("'steps_per_shot' needs a number of shots; with all images, set steps.")
            steps = shots * self.steps_per_shot
            return replace(self, steps=steps, steps_per_shot=0, epochs_at={}, overrides=overrides, overrides_at={})
        epochs = self.epochs if shots is None else self.epochs_at.get(shots, self.epochs)
        return replace(self, epochs=epochs, epochs_at={}, overrides=overrides, overrides_at={})

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole training, of so many in an epoch."""
        return self.steps or self.epochs * steps_per_epoch

    def passes(self, steps_per_epoch: int) -> int:
        """Epochs of the whole training, the last of which may be cut short."""
        return math.ceil(self.total_steps(steps_per_epoch) / steps_per_epoch)

    def __post_init__(self) -> None:
        given = [name for name in LENGTHS if getattr(self, name)]
        for name in given or ["epochs"]:
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        if len(given) > 1:
            raise UsageError(f"{' and '.join(map(repr, given))} both say how long the training is; leave one out.")
        _check("lr", self.lr, self.lr > 0, "more than 0")
        _check("batch", self.batch, self.batch >= 1, "at least 1")
        _check("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and less than 1")
        _check("lr_end", self.lr_end, 0 <= self.lr_end <= self.lr, "at least 0 and at most lr")
        for beta in self.betas:
            _check("betas", beta, 0 <= beta < 1, "two numbers of at least 0 and less than 1")
        _check("eps", self.eps, self.eps >= 0, "at least 0")
        smallest, largest = self.crop_scale
        _check("crop_scale", smallest, 0 < smallest <= largest <= 1, "two shares of the area, the smaller first")
        _check("warmup_epochs", self.warmup_epochs, self.warmup_epochs >= 0, "at least 0")
        _check("warmup_lr", self.warmup_lr, self.warmup_lr >= 0, "at least 0")
        _check("train_views", self.train_views, self.train_views >= 0, "at least 0")
        if self.train_views and not self.augment:
            raise UsageError(
                "'train_views' needs 'augment': without it every epoch sees the same view; set augment=true too, or "
                "leave train_views out."
            )
        _check("trials", self.trials, self.trials >= 0, "at least 0")
        for name, kind in (("origin", Origin), ("selection", Selection)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name!r} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}.")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named variant of a method, `method@preset`: only what sets it apart.

    Attributes:
        config: Fields of the method's Config.
        recipe: Fields of its Recipe.
        sampler: The few-shot sampler, unless the command line names another; "" for the usual one.
        condition: `noise` for a control that tells an image-conditional method nothing of its images, in training and
            evaluation: the same network stays, what it reads of an image goes.
        prompts: `random` for a control that evaluates the same training as the method, with random prompts of the
            norms of the learned ones.
        source: Where it comes from; shown by `describe`.
    """

    config: Mapping[str, object] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)
    sampler: str = ""
    condition: Literal["", "noise"] = ""
    prompts: Literal["", "random"] = ""
    source: str = ""


NOISE: Final = "noise"
RANDOM: Final = "random"
CONTROLS: Mapping[str, Preset] = {
    NOISE: Preset(condition=NOISE, source="control: trained and evaluated on noise in the place of the image"),
    RANDOM: Preset(prompts=RANDOM, source="control: the method's training, with random prompts of the learned norms"),
}
"""Presets that every method has which is image-conditional, or which learns prompts."""


class _Part(NamedTuple):
    """One layer: where it comes from, what it sets in the Config and in the Recipe."""

    origin: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]


class Resolved(NamedTuple):
    """The outcome of layers: values by field, and by field where the value came from, such as "suite mini"."""

    values: dict[str, Any]
    provenance: dict[str, str]


class Settings(NamedTuple):
    """Config and recipe of one run, with the origin of every value.

    Attributes:
        config: Instance of the method's Config.
        recipe: Its Recipe, or None where the method trains nothing.
        provenance: `config.<field>` and `recipe.<field>` to where the value came from.
        explicit: Fields of the Config that the suite or the command line chose; one that the backbone cannot carry is
            an error, while a paper's value is capped.
    """

    config: Any
    recipe: Recipe | None
    provenance: dict[str, str]
    explicit: frozenset[str]


def parse_label(label: str) -> tuple[str, str]:
    """`"coop@200"` as `("coop", "200")`, method and preset; `"coop"` as `("coop", "")`."""
    method, at, preset = label.partition("@")
    if not method or "@" in preset or (at and not preset):
        raise UsageError(f"{label!r} is no method; write a method's name, or method@preset, as in coop@200.")
    return method, preset


def find_recipe(method: Any, protocol: str, dataset: str) -> Recipe:
    """The method's recipe for a dataset under a protocol: its own, else the protocol's, else the one for everything.

    Args:
        method: A class with `recipes`, keyed (protocol, dataset), each part a name or "*".

    Raises:
        UsageError: The method has none of the three.
    """
    for key in ((protocol, dataset), (protocol, "*"), ("*", "*")):
        if key in method.recipes:
            return method.recipes[key]
    known = ", ".join(sorted({key[0] for key in method.recipes})) or "no protocol"
    raise UsageError(
        f"{method.__name__} has no recipe for the dataset {dataset!r} under the protocol {protocol!r} "
        f'(it has recipes for {known}); add ("{protocol}", "*") to its recipes.'
    )


def find_preset(method: Any, name: str, preset: str) -> Preset:
    """The preset of that name of the method called `name`.

    Raises:
        UsageError: The method has no such preset.
    """
    if preset not in method.presets:
        raise unknown(f"preset of {name}", preset, method.presets)
    return method.presets[preset]


def settings_by_dataset(method: Any, protocol: str) -> set[str]:
    """The settings in which a method's recipes for a protocol differ from dataset to dataset, such as `recipe.epochs`.

    Args:
        method: A class with `recipes`.
        protocol: Its name.
    """
    own = [recipe for (of, _), recipe in method.recipes.items() if of == protocol]
    fields = [name for name in vars(own[0]) if name not in PROSE] if own else []
    differing = {f"recipe.{name}" for name in fields if any(getattr(one, name) != getattr(own[0], name) for one in own)}
    overridden = set().union(*(one.overrides for one in own))
    return differing | {
        f"config.{name}"
        for name in overridden
        if any(one.overrides.get(name) != own[0].overrides.get(name) for one in own)
    }


def resolve_config(cls: type, layers: Sequence[Layer]) -> Resolved:
    """The fields of a settings class after all layers, each with its origin; one without any value stays out.

    Args:
        cls: A dataclass: a method's Config, or Recipe.
        layers: From the weakest to the strongest.

    Raises:
        UsageError: A layer has an unknown key or a value that does not fit; the sentence begins with its origin.
    """
    facts = [fact for fact in describe_fields(cls) if fact.default is not MISSING]
    values = {fact.name: fact.default for fact in facts}
    provenance = {fact.name: f"default ({fact.source})" if fact.source else "default" for fact in facts}
    for origin, mapping in layers:
        given = typed(cls, mapping, origin)
        values |= given
        provenance |= dict.fromkeys(given, origin)
    return Resolved(values, provenance)


def resolve_recipe(recipe: Recipe, layers: Sequence[Layer]) -> Resolved:
    """The fields of a recipe after all layers.

    A layer that changes any without naming an origin makes the recipe "ours", and no later layer undoes that: an
    authors' preset on top of a suite's learning rate is not the authors' recipe. How settings were chosen is unknown
    after such a layer, unless it says so.

    Raises:
        UsageError: As `resolve_config`.
    """
    values = {fact.name: getattr(recipe, fact.name) for fact in describe_fields(Recipe)}
    stated = {fact.name: values[fact.name] for fact in describe_fields(Recipe) if values[fact.name] != fact.default}
    marked: list[Layer] = []
    ours = False
    for origin, mapping in layers:
        given = {"origin": "ours", "source": origin, "selection": "unknown", "trials": 0} | typed(
            Recipe, mapping, origin
        )
        if any(given.get(name) for name in LENGTHS):  # it says how long the training is in another way
            given = dict.fromkeys(LENGTHS, 0) | given
        if given.get("augment") is False and values["train_views"]:  # nor any of the weaker layers' random views
            given = {"train_views": 0} | given
        changes = any(values[name] != value for name, value in given.items() if name not in PROSE)
        if ours or not (changes or "origin" in mapping):
            del given["origin"], given["source"]
        if not (changes or "selection" in mapping):
            del given["selection"], given["trials"]
        ours = ours or given.get("origin") == "ours"
        values |= given
        marked.append((origin, given))
    return resolve_config(Recipe, [(f"recipe ({recipe.origin})", stated), *marked])


def resolve(
    method: Any,
    label: str,
    *,
    protocol: str,
    dataset: str,
    shots: int | None = None,
    suite: Suite | None = None,
    assignments: Mapping[str, Any] | None = None,
) -> Settings:
    """Config and recipe of one run, each value with its origin.

    Args:
        method: The method's class.
        label: How the method was asked for: `coop` or `coop@200`.
        protocol: Name of the protocol.
        dataset: Plugin name of the dataset (or source) trained on.
        shots: Training images per class; None for all.
        suite: None for the method's own settings alone.
        assignments: What the command line sets, by field: names of the Config, or of the Recipe.

    Raises:
        UsageError: No such preset or recipe, an unknown field, or a value that does not fit or is out of range.
    """
    recipe = find_recipe(method, protocol, dataset) if getattr(method, "trains", True) else None
    if recipe is not None and not (recipe.steps_per_shot and shots is None):  # which a layer may still mend
        recipe = recipe.at(shots)
    parts = _parts(method, label, suite)
    parts.append(_split_assignments(method, label, assignments or {}))
    overrides: list[Layer] = [(f"recipe ({recipe.origin})", recipe.overrides)] if recipe else []
    config = resolve_config(method.Config, [*overrides, *((part.origin, part.config) for part in parts)])
    provenance = {f"config.{name}": origin for name, origin in config.provenance.items()}
    chosen = {"--set", *([f"suite {suite.name}"] if suite else [])}
    explicit = frozenset(name for name, origin in config.provenance.items() if origin in chosen)
    built = build(method.Config, config.values, label)
    if recipe is None:
        return Settings(built, None, provenance, explicit)
    training = resolve_recipe(recipe, [(part.origin, part.recipe) for part in parts])
    provenance |= {f"recipe.{name}": origin for name, origin in training.provenance.items()}
    trained = build(Recipe, training.values, label)
    if trained.steps_per_shot:
        provenance["recipe.steps"] = f"{BY_SHOT}, {provenance['recipe.steps_per_shot']}"
    return Settings(built, trained.at(shots), provenance, explicit)


def _parts(method: Any, label: str, suite: Suite | None) -> list[_Part]:
    """The layers between a method's recipe and the command line."""
    name, preset = parse_label(label)
    parts = []
    if preset:
        found = find_preset(method, name, preset)
        parts.append(_Part(f"preset {label}", found.config, found.recipe))
    if suite is None:
        return parts
    origin = f"suite {suite.name}"
    own = {key: _Part(origin, settings.config, settings.recipe) for key, settings in suite.methods.items()}
    before = [_Part(origin, {}, suite.recipe), *([own[name]] if name in own else [])]
    return [*before, *parts, *([own[label]] if preset and label in own else [])]


def settable(method: Any) -> tuple[set[str], set[str]]:
    """The fields of a method's Config, and those of its Recipe that a call may set, if it trains."""
    of_config = {fact.name for fact in describe_fields(method.Config)}
    of_recipe = {fact.name for fact in describe_fields(Recipe)} if getattr(method, "trains", True) else set()
    return of_config, of_recipe - {*PROSE, "overrides", "epochs_at", "overrides_at"}


def _split_assignments(method: Any, label: str, assignments: Mapping[str, Any]) -> _Part:
    """The command line's layer; a name that both the Config and the Recipe have belongs to the Config."""
    of_config, of_recipe = settable(method)
    for name in assignments:
        if name not in of_config | of_recipe:
            raise UsageError(f"--set: {unknown(f'setting of {label}', name, of_config | of_recipe)}")
    return _Part(
        "--set",
        {name: value for name, value in assignments.items() if name in of_config},
        {name: value for name, value in assignments.items() if name not in of_config},
    )


def _check(name: str, value: float, holds: bool, must: str) -> None:
    if not holds or not math.isfinite(value):
        raise UsageError(f"{name!r} must be {must}, not {value}.")
