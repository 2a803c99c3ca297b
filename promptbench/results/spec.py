"""What decides a run, in one value, and what follows from it: its name, the key of its training, who reads which field.

Every field says in its metadata what it is to its readers, and they go through the fields: the names of files, the keys
of trainings, the groups of runs that share work, the rows of tables, the pairs of a diff, the columns of CSV and the
sections of the report. A new field is one line here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, get_type_hints

from promptbench.data.class_names import FROM_DATASET
from promptbench.storage.versions import other_code
from promptbench.suite import ALPHABETICAL

CONTEXT = "ctx_init"
"""The field of every method's Config that says what a learned context starts from."""

PLACE, SEED, SETTING, MACHINE, DATA, SOURCE = "place", "seed", "setting", "machine", "data", "source"
"""Where a figure stands in a table, what it is averaged over, what was chosen, where it was computed, what it was
computed on, and what that was made of."""


def decides(
    role: str, *, trains: bool = False, renews: str = "", later: bool = False, by_dataset: bool = False, **options: Any
) -> Any:
    """A field of `Spec`.

    Args:
        role: What it is to readers.
        trains: Whether it changes what is learned.
        renews: Why a finished run with another value is done again, where the field does not name the run's files but
            is found out before it is done; may hold fields of the spec in braces.
        later: Whether it is younger than the names of files, which it changes only where it says something.
        by_dataset: Whether it follows from the dataset, so that rows of a table may differ in it from one to the next.
        options: Of `dataclasses.field`.
    """
    said = {"role": role, "trains": trains, "renews": renews, "later": later, "by_dataset": by_dataset}
    return field(**options, metadata=said)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that decides a run, resolved: two runs with equal specs give the same numbers.

    Digests are SHA-256 in hex; "" or no entry where nobody has found it out, such as in results of earlier versions.

    Attributes:
        plugin: Digest of the source of a method that is not built in; "" for a built-in one.
        config: The method's fields, resolved.
        recipe: Epochs, learning rate, batch and so on, resolved, with the recipe's `origin`.
        shots: Training images per class; None for all of them, 0 for a method that sees none.
        sampler: Rule that draws them, or `file:` and the digest of a stored sample.
        split: Which classes are base and which new: `alphabetical`, as in the papers, or `random:N`.
        data_seed: Seed of the few-shot draw.
        train_seed: Seed of initialisation, order and augmentation.
        precision: Of the training, one of `numerics.PRECISIONS`; images are scored in float32.
        threads: CPU threads of the run, which change the last bits of a sum.
        deterministic: Whether torch was held to algorithms that always give the same bits.
        dataset_options: The dataset's own fields, resolved.
        evaluated: What is evaluated besides that dataset: name to plugin and its fields, resolved.
        dataset_plugin: The plugin of that dataset where it is not called the same; "" otherwise.
        scores: Scores of images besides the protocol's: name to its settings, resolved, files by their content.
        trained_by: The protocol whose training is evaluated, where it is not this one's own.
        corruption: What the images evaluated are corrupted by, such as `fog:3`, several separated by spaces; "" for
            nothing.
        limit: The most images scored of each split that is evaluated, for a quick look; 0 for all of them.
        temperature: Whether a temperature was fitted on validation images, and calibration measured after it too.
        condition: `noise` where that stands in the place of what an image-conditional method makes prompts of, in
            training and evaluation: a control.
        prompts: `random` where such of the same norms stand in the place of the learned ones, at evaluation: a control.
        weights_hash: Digest of the backbone's weights.
        architecture: Digest of what the backbone computes with them; see `Backbone.architecture`.
        split_digest: Digest of the dataset's splits: paths, labels and names.
        sample_digest: Digest of the images trained on: paths, labels and bytes.
        trained_names: Digest of the class names and the template trained with.
        class_names: Digest of the class names shown, by evaluation.
        templates: The words around them, by evaluation.
        contents: Digest of the images scored, by evaluation: paths, labels and bytes; `validation` are those that a
            temperature was fitted on.
        method_code: Digest of what the method's module does, with all that it imports; see `versions.code_digest`.
        data_code: The same of the module of the dataset trained on.
        training_code: The same of the framework's training.
        evaluation_code: The same of the framework's evaluation, of the protocol and of the datasets evaluated.
    """

    suite: str = decides(PLACE)
    protocol: str = decides(PLACE)
    dataset: str = decides(PLACE, trains=True)
    method: str = decides(PLACE, trains=True)
    preset: str = decides(PLACE, default="")
    plugin: str = decides(SETTING, trains=True, renews="made with another file of '{method}'", default="")
    config: Mapping[str, Any] = decides(SETTING, trains=True, default_factory=dict)
    recipe: Mapping[str, Any] = decides(SETTING, trains=True, default_factory=dict)
    shots: int | None = decides(SETTING, trains=True)
    sampler: str = decides(SETTING, trains=True, default="coop")
    split: str = decides(SETTING, trains=True, later=True, default=ALPHABETICAL)
    data_seed: int = decides(SEED, trains=True)
    train_seed: int = decides(SEED, trains=True)
    backbone: str = decides(PLACE)
    precision: str = decides(MACHINE, trains=True, default="32")
    threads: int = decides(MACHINE, trains=True, by_dataset=True)
    device: str = decides(MACHINE, trains=True, default="cpu")
    deterministic: bool = decides(MACHINE, trains=True, later=True, default=False)
    dataset_options: Mapping[str, Any] = decides(DATA, trains=True, by_dataset=True, default_factory=dict)
    dataset_plugin: str = decides(DATA, trains=True, later=True, by_dataset=True, default="")
    evaluated: Mapping[str, Any] = decides(DATA, later=True, by_dataset=True, default_factory=dict)
    scores: Mapping[str, Any] = decides(SETTING, later=True, default_factory=dict)
    trained_by: str = decides(SETTING, later=True, default="")
    corruption: str = decides(DATA, later=True, default="")
    limit: int = decides(DATA, later=True, default=0)
    temperature: bool = decides(SETTING, later=True, default=False)
    condition: str = decides(SETTING, trains=True, later=True, default="")
    prompts: str = decides(SETTING, later=True, default="")
    weights_hash: str = decides(
        MACHINE, trains=True, renews="made with other weights of '{backbone}' than today's", default=""
    )
    split_digest: str = decides(
        DATA, trains=True, by_dataset=True, renews="made with other splits of '{dataset}' than today's", default=""
    )
    class_names: Mapping[str, Any] = decides(
        DATA, by_dataset=True, renews="made with other class names of '{dataset}' than today's", default_factory=dict
    )
    templates: Mapping[str, Any] = decides(
        DATA, by_dataset=True, renews="made with other templates of '{dataset}' than today's", default_factory=dict
    )
    architecture: str = decides(
        SOURCE, trains=True, renews="made with another architecture of '{backbone}'", default=""
    )
    sample_digest: str = decides(
        SOURCE, trains=True, renews="made from other training images of '{dataset}' than today's", default=""
    )
    trained_names: str = decides(
        SOURCE, trains=True, renews="trained with other class names or templates of '{dataset}'", default=""
    )
    contents: Mapping[str, Any] = decides(
        SOURCE, renews="made on other images of '{dataset}' than today's", default_factory=dict
    )
    method_code: str = decides(SOURCE, trains=True, renews="made before the code of '{method}' was changed", default="")
    data_code: str = decides(
        SOURCE, trains=True, renews="made before the code of the dataset '{dataset}' was changed", default=""
    )
    training_code: str = decides(SOURCE, trains=True, renews="made before the code of training was changed", default="")
    evaluation_code: str = decides(SOURCE, renews="made before the code of evaluation was changed", default="")

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            if kind is dict:  # so that equal specs compare equal, given (1, 2) or [1, 2]
                object.__setattr__(self, name, to_plain(getattr(self, name)))
            if name != "shots" or self.shots is not None:
                expect(getattr(self, name), kind, f"spec.{name}")

    @classmethod
    def stored(cls, stored: Mapping[str, Any]) -> Spec:
        """The spec that a file of any age holds.

        Raises:
            TypeError, ValueError: It is none, or several devices shared the training, which no run can repeat today.
        """
        expect(stored, dict, "spec")
        if stored.get("devices", 1) != 1:
            raise ValueError("several devices shared the training, which this version cannot repeat.")
        return cls(**{name: value for name, value in stored.items() if name != "devices"})

    @property
    def label(self) -> str:
        """The method as typed on the command line: `ivlp` or `ivlp@maple`."""
        return f"{self.method}@{self.preset}" if self.preset else self.method

    @property
    def from_dataset(self) -> bool:
        """Whether its context starts from the words of the dataset trained on."""
        return bool(self.config.get(CONTEXT) == FROM_DATASET)

    @property
    def halved_dataset(self) -> str:
        """The dataset, and how its classes are halved where not as in the papers: `dtd split random:1`."""
        return self.dataset if self.split == ALPHABETICAL else f"{self.dataset} split {self.split}"

    @property
    def seeds(self) -> tuple[int, int]:
        """Data seed and training seed."""
        return self.data_seed, self.train_seed

    def values(self, *roles: str) -> dict[str, Any]:
        """The fields with these roles, or all, by name."""
        return {item.name: getattr(self, item.name) for item in fields_of(self, *roles)}

    def naming(self) -> dict[str, Any]:
        """The fields that name the run's files: what was asked for; younger ones count where they say something."""
        named = {}
        for item in fields_of(self):
            value = getattr(self, item.name)
            if item.name == "plugin":
                named[item.name] = ""  # it named runs before it renewed them
            elif not item.metadata["renews"] and not (item.metadata["later"] and value == _default(item)):
                named[item.name] = value
        return named

    def training(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The fields that change what is learned; a recipe's origin changes nothing.

        Args:
            without: Fields of the config that change nothing either.
        """
        values = {item.name: getattr(self, item.name) for item in fields_of(self) if item.metadata["trains"]}
        values["recipe"] = {name: value for name, value in self.recipe.items() if name != "origin"}
        values["config"] = {name: value for name, value in self.config.items() if name not in without}
        return values

    def subject(self, without: Collection[str] = ()) -> str:
        """Equal for runs that may share a training or features: what their plans say of what is learned.

        Args:
            without: As in `training`.
        """
        planned = self.training(without)
        for item in fields_of(self):
            if item.metadata["renews"] or item.metadata["role"] == MACHINE:
                planned.pop(item.name, None)
        return _ENCODER.encode(planned)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what names the run, 64 hex digits."""
        return hashlib.sha256(_ENCODER.encode(self.naming()).encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """Where the run is filed: `protocol/dataset/method[@preset]-hash`, safe as a relative path."""
        return f"{_safe(self.protocol)}/{_safe(self.dataset)}/{_safe(self.label)}-{self.digest[:12]}"


def fields_of(spec: Spec | type[Spec], *roles: str) -> Iterator[Field[Any]]:
    """The fields with these roles, or all, in order."""
    return (item for item in fields(spec) if not roles or item.metadata["role"] in roles)


def cause_of(before: Spec, now: Spec) -> str:
    """Why a run with the first spec is done again where it has the second one today, in words; "" where it is not."""
    for item in fields_of(now):
        renews = item.metadata["renews"]
        old, new = getattr(before, item.name, None), getattr(now, item.name)
        if not renews or not old or not new:
            continue
        of_a_kind = item.name.endswith("_code") or item.name == "architecture"  # which the text before the colon says
        differs = other_code(old, new) if of_a_kind else old != new
        if differs:
            return str(renews).format(**now.values())
    return ""


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def names_of(spec: Spec | type[Spec], *roles: str) -> tuple[str, ...]:
    """The names of the fields with these roles, or of all, in order."""
    return tuple(item.name for item in fields_of(spec, *roles))


_KINDS: dict[type, dict[str, Any]] = {}


def _kinds(cls: type) -> dict[str, Any]:
    """The type that a value of each field has as JSON gives it back."""
    if cls not in _KINDS:
        hints = get_type_hints(cls)
        plain = {str: str, bool: bool, int: int, int | None: int, float: (int, float)}
        _KINDS[cls] = {item.name: plain.get(hints[item.name], dict) for item in fields(cls)}
    return _KINDS[cls]


def to_plain(value: Any) -> Any:
    """The value as JSON gives it back: dataclasses and mappings as dicts, tuples as lists, keys as text.

    Raises:
        ValueError: If a number is not finite.
        TypeError: If something has no JSON form.
    """
    return json.loads(_ENCODER.encode(value))


def _opened(value: Any) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot be stored: {value!r}.")


_ENCODER = json.JSONEncoder(default=_opened, allow_nan=False, sort_keys=True, separators=(",", ":"))


def expect(value: object, kind: type | tuple[type, ...], name: str) -> None:
    """Raises TypeError unless the value is of that kind; a bool is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"{name} must be {wanted}, not {repr(value)[:100]}.")


def _safe(name: str) -> str:
    """A name that is one path component on any system; what it loses, the hash behind it still tells apart."""
    return re.sub(r"[^A-Za-z0-9._@+-]", "_", name)[:80].lstrip(".") or "_"
