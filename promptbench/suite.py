"""What is compared on what: a backbone, datasets by role, shots, seeds and settings, read from a YAML file.

The suites of the package lie in `benchmarks/` (`promptbench.benchmarks`); any other file is given by its path. A suite
is facts only: it opens no dataset and knows no plugin, so that it may name plugins which are installed elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from promptbench.config import LARGEST, UsageError, build, load_yaml, nearest, path_of, text_of, unknown

ALPHABETICAL = "alphabetical"  # halves of the classes by the order of their labels, as in the papers
MOST_THREADS = 1024  # of a run; many more bring the process down when they are started


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A dataset as a suite lists it.

    Attributes:
        name: What tables and results call it.
        dataset: Name of the dataset plugin.
        options: Fields of that plugin's Config.
    """

    name: str
    dataset: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What a suite changes for one method: fields of its Recipe and of its Config."""

    recipe: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is compared on what: a backbone, datasets by role, shots, seeds and settings of methods.

    Attributes:
        name: The file's stem.
        title: Printed above tables.
        note: Printed under every table, or "".
        backbone: As `load_backbone` takes it.
        shots: Training images per class.
        few_shots: Those of protocols that compare several.
        seeds: Seeds of a run that names none.
        split: How protocols that train on base classes halve the classes, one after the other: `alphabetical`, or
            `random:N`, drawn with the seed N.
        threads: CPU threads of a run, part of its spec; None is all cores.
        companions: Labels of methods that always run beside those asked for.
        lineup: Labels of methods that run where none is asked for.
        corruptions: `kind:severity`, or a kind for all severities, of protocols that corrupt images; () for their own.
        ranked: Whether tables may print the best in bold.
        roles: Role to datasets; a protocol names the roles it uses.
        recipe: Fields of the Recipe, for every method.
        methods: Label (`coop`, `coop@200`) to what changes for it.

    Raises:
        UsageError: A number is out of its range, or the datasets contradict each other.
    """

    name: str
    title: str
    note: str = ""
    backbone: str
    shots: int = 16
    few_shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: tuple[int, ...] = (1, 2, 3)
    split: tuple[str, ...] = (ALPHABETICAL,)
    threads: int | None = None
    companions: tuple[str, ...] = ()
    lineup: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()
    ranked: bool = True
    roles: Mapping[str, tuple[DatasetEntry, ...]]
    recipe: Mapping[str, object] = field(default_factory=dict)
    methods: Mapping[str, MethodSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise UsageError(f"'shots' must be at least 1, not {self.shots}.")
        if not self.few_shots or min(self.few_shots) < 1 or len(set(self.few_shots)) < len(self.few_shots):
            raise UsageError(f"'few_shots' must be different integers from 1 on, not {list(self.few_shots)}.")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"'threads' must be at least 1, or null for all cores, not {self.threads}.")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise UsageError(f"'threads' must be at most {MOST_THREADS}, not {self.threads}.")
        most = max(self.shots, *self.few_shots)
        if most > LARGEST:
            raise UsageError(f"'shots' must be at most {LARGEST}, not {most}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"'seeds' must be different integers from 0 on, not {list(self.seeds)}.")
        if not self.split or len(set(self.split)) < len(self.split):
            raise UsageError(
                f"'split' must be different words such as alphabetical or random:1, not {list(self.split)}."
            )
        for role, entries in self.roles.items():
            _check_role(role, entries)
        entries_by_name: dict[str, DatasetEntry] = {}
        for entry in self.entries():
            if entries_by_name.setdefault(entry.name, entry) != entry:
                raise UsageError(
                    f"the dataset {entry.name!r} is listed twice with different options; name one otherwise."
                )

    def datasets(self, role: str) -> tuple[str, ...]:
        """Names of the datasets that have a role, in the suite's order.

        Raises:
            UsageError: The suite has no such role.
        """
        if role not in self.roles:
            raise UsageError(f"Suite {self.name!r}: {unknown('role', role, self.roles)}")
        return tuple(entry.name for entry in self.roles[role])

    def entry(self, name: str) -> DatasetEntry:
        """The dataset of that name, in whatever role.

        Raises:
            UsageError: The suite lists none.
        """
        found = {entry.name: entry for entry in self.entries()}
        if name not in found:
            raise UsageError(f"Suite {self.name!r}: {unknown('dataset', name, found)}")
        return found[name]

    def entries(self) -> list[DatasetEntry]:
        """All datasets of all roles; one that has several roles appears several times."""
        return list(chain.from_iterable(self.roles.values()))

    def with_entry(self, entry: DatasetEntry) -> Suite:
        """This suite with a dataset in place of its own of that name, or under a role of no protocol."""
        roles = {
            role: tuple(entry if own.name == entry.name else own for own in entries)
            for role, entries in self.roles.items()
        }
        return replace(self, roles={**roles, "": (entry,)})

    def with_datasets(self, role: str, datasets: Iterable[str]) -> Suite:
        """This suite with other datasets in one role: names of its own, or new ones as `parse_entry` reads them."""
        known = {entry.name: entry for entry in self.entries()}
        entries = tuple(known[name] if name in known else parse_entry(name) for name in datasets)
        return replace(self, roles={**self.roles, role: entries})


def suite_names() -> tuple[str, ...]:
    """The names of the suites in the package, sorted."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")))


def load_suite(name_or_path: str | Path) -> Suite:
    """A suite of the package by name, or any other by the path of its YAML file.

    Raises:
        UsageError: There is no such suite or file, it is no YAML, or a key or value does not fit.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or Path(text).suffix in (".yaml", ".yml") or len(Path(text).parts) > 1:
        return _read(path_of(text), name=Path(text).stem, where=text)
    if text not in suite_names():
        raise UsageError(f"{unknown('suite', text, suite_names())} The path of a YAML file is a suite too.")
    return _read(_folder() / f"{text}.yaml", name=text, where=f"suite {text}")


def parse_entry(text: str) -> DatasetEntry:
    """A dataset from one word: `dtd`, or `folder:/data/birds` for a plugin and its `root`, named by the last folder."""
    dataset, colon, root = text.partition(":")
    name = os.path.basename(os.path.abspath(path_of(root))) if root else dataset
    if not dataset or not name or (colon and not root):
        raise UsageError(f"{text!r} is no dataset; write its name, or folder:PATH for a folder of images.")
    return DatasetEntry(name=name, dataset=dataset, options={"root": root} if colon else {})


def _folder() -> Path:
    return Path(str(resources.files("promptbench.benchmarks")))


def _read(file: Path, name: str, where: str) -> Suite:
    raw = _raw(file, where)
    check_keys(raw, where)
    if "extends" in raw:
        raw = {**_base(raw["extends"], where), **{key: value for key, value in raw.items() if key != "extends"}}
    return build(Suite, {**raw, "name": name, "roles": _roles(raw.get("roles"), where)}, where)


def check_keys(raw: Mapping[Any, Any], where: str) -> None:
    """Raise a UsageError where a suite has a key that there is not; it lists all there are."""
    if "name" in raw:
        raise UsageError(f"{where}: a suite is named by its file; remove the key 'name'.")
    known = sorted({"extends", *(item.name for item in fields(Suite))} - {"name"})
    for key in raw:
        if key not in known:
            raise UsageError(f"{where}: Unknown key {str(key)!r}.{nearest(key, known)} Keys: {', '.join(known)}.")


def _base(name: Any, where: str) -> Mapping[str, Any]:
    """The keys of the suite of the package that another one extends; keys that are given again replace these."""
    if name not in suite_names():
        raise UsageError(f"{where}: 'extends' names no suite of the package: {unknown('suite', name, suite_names())}")
    base = _raw(_folder() / f"{name}.yaml", f"suite {name}")
    if "extends" in base:
        raise UsageError(f"{where}: suite {name} extends another one itself; extend that one.")
    return base


def _raw(file: Path, where: str) -> Mapping[str, Any]:
    try:
        raw = load_yaml(text_of(file))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{where}{line}: this is no YAML ({error.problem or 'it cannot be read'}).") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UsageError(f"{where}: the suite cannot be read ({reason}).") from error
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where}: a suite is a mapping of keys to values; the suites in benchmarks/ are examples.")
    return raw


def _roles(raw: Any, where: str) -> Any:
    """The roles with every dataset spelt out as a mapping; what is no such thing is left for `build` to refuse."""
    if not isinstance(raw, Mapping):
        return raw
    return {
        role: [_entry(item, where) for item in items] if isinstance(items, list) else items
        for role, items in raw.items()
    }


def _entry(item: Any, where: str) -> Any:
    if isinstance(item, str):
        return parse_entry(item)
    if not isinstance(item, Mapping):
        raise UsageError(f"{where}: a dataset is a name or a mapping with 'dataset', not {item!r}.")
    options = {key: value for key, value in item.items() if key not in ("name", "dataset")}
    return {"name": item.get("name", item.get("dataset")), "dataset": item.get("dataset"), "options": options}


def _check_role(role: str, entries: tuple[DatasetEntry, ...]) -> None:
    names = [entry.name for entry in entries]
    if not names:
        raise UsageError(f"the role {role!r} lists no dataset; list one or remove the role.")
    if len(set(names)) < len(names):
        raise UsageError(f"the role {role!r} lists a dataset twice: {', '.join(names)}.")
