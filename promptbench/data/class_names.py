"""Class names with the template that turns them into sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from promptbench.config import UsageError, load_yaml, unknown
from promptbench.data.splits import read_text

GENERIC_TEMPLATE = "a photo of a {}."
FROM_DATASET = "dataset"  # what a setting says that takes the template of the classes trained on


class ClassNames(tuple[str, ...]):
    """Class names in label order, as the dataset spells them ("_" kept), with its template.

    Attributes:
        template: The words around a class name, `{}` standing for it; a tuple of them is an ensemble.
        dataset: The name of the dataset's plugin, for methods whose authors have templates of their own; "" for none.
    """

    template: str | tuple[str, ...]
    dataset: str

    def __new__(
        cls, names: Iterable[str], template: str | Sequence[str] = GENERIC_TEMPLATE, dataset: str = ""
    ) -> ClassNames:
        """Class names with a template.

        Raises:
            UsageError: A name is empty, or a template does not hold `{}` exactly once.
        """
        self = super().__new__(cls, names)
        self.template = template if isinstance(template, str) else tuple(template)
        self.dataset = dataset
        for index, name in enumerate(self):
            if not as_read(name):
                raise UsageError(f"Class {index} has an empty name; give every class a name.")
        for text in (self.template,) if isinstance(self.template, str) else self.template:
            if text.count("{}") != 1:
                raise UsageError(f"The template {text!r} must hold {{}} exactly once, where the class name goes.")
        return self

    @classmethod
    def of(cls, names: Iterable[str]) -> ClassNames:
        """The names themselves where they have a template, else with the generic one."""
        return names if isinstance(names, ClassNames) else cls(names)

    @property
    def first_template(self) -> str:
        """The template; of an ensemble the first."""
        return self.template if isinstance(self.template, str) else self.template[0]

    def record(self) -> dict[str, Any]:
        """Names, template and dataset, as plain values."""
        return {"names": list(self), "template": self.template, "dataset": self.dataset}

    def with_more(self, names: Iterable[str]) -> ClassNames:
        """These names, and others behind them."""
        return ClassNames([*self, *names], self.template, self.dataset)

    def select(self, labels: Iterable[int]) -> ClassNames:
        """The names of the given labels, in sorted order of the labels: what `selection.select` relabels them to."""
        return ClassNames([self[label] for label in sorted(set(labels))], self.template, self.dataset)


def as_read(name: str) -> str:
    """A class name as a prompt reads it: "_" is a blank, runs of blanks and capitals do not count."""
    return " ".join(name.replace("_", " ").lower().split())


def refuse_same_names(names: Iterable[str], where: str) -> None:
    """Raises UsageError if two class names read the same in a prompt; `where` says whose names they are."""
    seen: dict[str, tuple[int, str]] = {}
    for label, name in enumerate(names):
        first, other = seen.setdefault(as_read(name), (label, name))
        if first != label:
            raise UsageError(
                f"{where}: the classes {first} {other[:80]!r} and {label} {name[:80]!r} read the same in a prompt; "
                "rename one of them."
            )


def read_names(path: Path) -> tuple[str, ...] | dict[str, str]:
    """Other class names from a file: one a line, in the order of the classes, or from YAML also old names to new ones.

    Raises:
        UsageError: It cannot be read, or is YAML of something else.
    """
    text = read_text(path)
    if path.suffix not in (".yaml", ".yml"):
        return tuple(line.strip() for line in text.strip("\r\n").split("\n"))
    try:
        content = load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path}: this is no YAML ({str(error).partition(chr(10))[0]}).") from error
    texts = [*content.keys(), *content.values()] if isinstance(content, Mapping) else content
    if not isinstance(texts, list) or not all(isinstance(name, str) for name in texts):
        raise UsageError(
            f"{path} must be a list of class names or a mapping of old names to new ones, all of them text."
        )
    return dict(content) if isinstance(content, Mapping) else tuple(content)


def renamed(names: ClassNames, others: Sequence[str] | Mapping[str, str], where: str) -> ClassNames:
    """Class names with others in their places; `where` says whose names they are.

    Args:
        others: One for each class in their order, or new names by old ones, which are found as a prompt reads them.

    Raises:
        UsageError: There are too few or too many, an old name is unknown or named twice, or a new one is empty.
    """
    if isinstance(others, Mapping):
        new = _by_old_name(names, others, where)
    elif len(others) == len(names):
        new = list(others)
    else:
        raise UsageError(f"{where}: there are {len(others)} names for {len(names)} classes; give one for each of them.")
    empty = [old for old, name in zip(names, new, strict=True) if not as_read(name)]
    if empty:
        raise UsageError(f"{where}: the class {empty[0][:80]!r} gets an empty name; give every class a name.")
    return ClassNames(new, names.template, names.dataset)


def _by_old_name(names: Sequence[str], others: Mapping[str, str], where: str) -> list[str]:
    known = set(map(as_read, names))
    by_old: dict[str, str] = {}
    for old, name in others.items():
        if as_read(old) not in known:
            raise UsageError(f"{where}: {unknown('class', old[:80], map(as_read, names))}")
        if as_read(old) in by_old:
            raise UsageError(f"{where}: the class {old[:80]!r} is renamed twice; leave one line out.")
        by_old[as_read(old)] = name
    return [by_old.get(as_read(name), name) for name in names]
