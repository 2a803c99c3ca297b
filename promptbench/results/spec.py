"""What decides a run, in one value, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that decides a run, resolved: two runs with equal specs give the same numbers.

    Attributes:
        plugin: SHA-256 of the source of a method that is not built in, so that an edited file makes new runs; "" for a
            built-in one.
        config: The method's fields, resolved.
        recipe: Epochs, learning rate, batch and so on, resolved, with the recipe's `origin`.
        shots: Training images per class; None for all of them, 0 for a method that sees none.
        sampler: Rule that draws them, or `file:` and the digest of a stored sample.
        data_seed: Seed of the few-shot draw.
        train_seed: Seed of initialisation, order and augmentation.
        precision: Of the training, one of `numerics.PRECISIONS`; images are scored in float32.
        threads: CPU threads of the run, which change the last bits of a sum.
        deterministic: Whether torch was held to algorithms that always give the same bits.
        dataset_options: The dataset's own fields, resolved.
        evaluated: What is evaluated besides that dataset: name to plugin and its fields, resolved.
        dataset_plugin: The plugin of that dataset where it is not called the same; "" otherwise.
        trained_by: The protocol whose training is evaluated, where it is not this one's own.
    """

    suite: str
    protocol: str
    dataset: str
    method: str
    preset: str = ""
    plugin: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    shots: int | None
    sampler: str = "coop"
    data_seed: int
    train_seed: int
    backbone: str
    precision: str = "32"
    threads: int
    device: str = "cpu"
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    evaluated: Mapping[str, Any] = field(default_factory=dict)
    dataset_plugin: str = ""
    trained_by: str = ""
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in (
            "suite",
            "protocol",
            "dataset",
            "method",
            "preset",
            "plugin",
            "sampler",
            "backbone",
            "precision",
            "device",
            "dataset_plugin",
            "trained_by",
        ):
            expect(getattr(self, name), str, f"spec.{name}")
        for name in ("data_seed", "train_seed", "threads") + (("shots",) if self.shots is not None else ()):
            expect(getattr(self, name), int, f"spec.{name}")
        expect(self.deterministic, bool, "spec.deterministic")
        mappings = {name: getattr(self, name) for name in ("config", "recipe", "dataset_options", "evaluated")}
        for name, value in to_plain(mappings).items():  # so that equal specs compare equal, given (1, 2) or [1, 2]
            expect(value, dict, f"spec.{name}")
            object.__setattr__(self, name, value)

    @classmethod
    def stored(cls, fields: Mapping[str, Any]) -> Spec:
        """The spec that a file of any age holds.

        Raises:
            TypeError, ValueError: It is none, or several devices shared the training, which no run can repeat today.
        """
        expect(fields, dict, "spec")
        if fields.get("devices", 1) != 1:
            raise ValueError("several devices shared the training, which this version cannot repeat.")
        return cls(**{name: value for name, value in fields.items() if name != "devices"})

    @property
    def label(self) -> str:
        """The method as typed on the command line: `ivlp` or `ivlp@maple`."""
        return f"{self.method}@{self.preset}" if self.preset else self.method

    @property
    def seeds(self) -> tuple[int, int]:
        """Data seed and training seed."""
        return self.data_seed, self.train_seed

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this spec, 64 hex digits; younger fields count where they say something."""
        facts = _opened(self)
        for name, default in _LATER.items():
            if facts[name] == default:
                del facts[name]
        return hashlib.sha256(_ENCODER.encode(facts).encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """Where the run is filed: `protocol/dataset/method[@preset]-hash`, safe as a relative path."""
        return f"{_safe(self.protocol)}/{_safe(self.dataset)}/{_safe(self.label)}-{self.digest[:12]}"


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


_LATER: dict[str, Any] = {
    "evaluated": {},
    "dataset_plugin": "",
    "trained_by": "",
    "deterministic": False,
}  # without them older runs would lose their names
_ENCODER = json.JSONEncoder(default=_opened, allow_nan=False, sort_keys=True, separators=(",", ":"))


def expect(value: object, kind: type | tuple[type, ...], name: str) -> None:
    """Raises TypeError unless the value is of that kind; a bool is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"{name} must be {wanted}, not {value!r}.")


def _safe(name: str) -> str:
    """A name that is one path component on any system; what it loses, the hash behind it still tells apart."""
    return re.sub(r"[^A-Za-z0-9._@+-]", "_", name)[:80].lstrip(".") or "_"
