"""Class names with the template that turns them into sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from promptbench.config import UsageError

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
