"""The house: imports run downwards from room to room, no module and no room imports in a circle, no plugin is named.

A room is a folder of `promptbench/`, or a module directly in it. Imports within functions and for type checkers count
like all others, and relative ones are resolved. The lists of what is still against the rules only become shorter.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType

import pytest

from promptbench import registry

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "promptbench"
PLUGINS = ("methods", "datasets", "protocols", "scores")
PACKAGES = {"scores": "metrics.scores"}  # of kinds that are not called like their package

DOWNWARDS = (
    "api",
    "cli",
    "experiment",
    "checks",
    "show",
    "sweep",
    "runs",
    "checkpoints",
    "training",
    "results",
    "protocols",
    "protocol",
    "metrics",
    "method",
    "recipe",
    "data",
    "clip",
    "mini",
    "storage",
    "registry",
    "suite",
    "config",
)
"""The rooms; each imports what stands below it."""

FACES = {"dataset", "prompts"}
"""Modules that only pass on what has moved into a room, for plugins of other people."""

STILL_FLAT: set[str] = set()
"""Modules directly in `promptbench/` that have no room yet."""

UPWARDS: set[tuple[str, str]] = set()
"""Pairs of modules, the first of which imports the second though it stands above it."""

CIRCLES: set[tuple[str, ...]] = set()
"""Groups of modules that import each other."""

NO_TORCH = ("cli.", "results.result", "results.spec", "show.tables", "registry", "suite", "config")
"""What lists and tables need; nothing that these import at their top, directly or not, is heavy."""

HEAVY = {"torch", "torchvision", "torchmetrics", "open_clip", "pytorch_lightning", "safetensors", "PIL"}

KNOW_OPEN_CLIP = {"clip", "mini", "checks"}
FOR_METHODS = {"method", "recipe", "config", "prompts", "clip", "data.class_names"}
FOR_SCORES = {"metrics.ood", "clip", "config", "data.class_names"}
FOR_DATASETS = {"data", "dataset", "config", "storage", "mini"}

NAMES_ALLOWED = {
    "cli.flags": {"base2new"},
    "runs.request": {"base2new", "coop"},
    "results.papers": {"base2new", "cross_dataset", "domain_generalization", "few_shot", "imagenet", "ood"},
    **dict.fromkeys(("show.plots", "plots"), {"base2new", "few_shot", "ood", "robustness", "zeroshot"}),
    "show.evidence": {"base2new", "robustness", "zeroshot"},
    **dict.fromkeys(("data.selection", "results.spec", "runs.plan"), {"coop"}),
}
"""Defaults, the protocols of papers' figures, plots and pages, and CoOp's rule of sampling, called like the method."""


def name_of(path: Path) -> str:
    """The dotted name of a module below `promptbench`; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes_of(tree: ast.AST, at_the_top: bool = False) -> Iterator[ast.AST]:
    """All nodes; with `at_the_top` only what runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if at_the_top and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if at_the_top and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from nodes_of(node, at_the_top)


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    package = [*path.relative_to(REPOSITORY).with_suffix("").parts]
    return ".".join([*package[: -node.level], *(node.module or "").split(".")]).rstrip(".")


def imports(path: Path, at_the_top: bool = False) -> set[str]:
    """The modules that a file imports, `from promptbench.clip import block` as `promptbench.clip.block`."""
    found: set[str] = set()
    for node in nodes_of(tree_of(path), at_the_top):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.add(whole if whole.removeprefix("promptbench.") in MODULES else module)
    return found


def own(path: Path, at_the_top: bool = False) -> set[str]:
    """The modules of the framework that a file imports, without `promptbench.`."""
    named = {name.removeprefix("promptbench.") for name in imports(path, at_the_top) if name.startswith("promptbench.")}
    return {name for name in named if name in MODULES}


def stem_of(name: str) -> str:
    """`show.plots` of `show.plots.gain`."""
    return name.rpartition(".")[0]


def room_of(name: str) -> str:
    return name.partition(".")[0]


def is_above(name: str, other: str) -> bool:
    """Whether a module stands above another one, or beside it in a room that is no room of its own."""
    rooms = room_of(name), room_of(other)
    if rooms[0] == rooms[1] or not all(room in DOWNWARDS for room in rooms):
        return False
    return DOWNWARDS.index(rooms[0]) < DOWNWARDS.index(rooms[1])


def stands_in(name: str, allowed: set[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in allowed | STILL_FLAT)


def graph() -> dict[str, set[str]]:
    """Module to the modules that it imports; packages, which hold a docstring alone, apart."""
    return {name: own(path) - {name} for name, path in MODULES.items() if name}


def circles_in(arrows: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """The groups of names that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        waiting, seen = [start], set()
        while waiting:
            for target in arrows.get(waiting.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        reached[start] = seen
    groups = set()
    for name in arrows:
        group = sorted(other for other in reached[name] if name in reached.get(other, ()))
        if group:
            groups.add(tuple(group))
    return groups


def test_every_module_has_a_room() -> None:
    flat = {name for name in MODULES if name and "." not in name and name not in DOWNWARDS}
    assert flat - {name for name in FACES if name not in STILL_FLAT} - {"__main__"} == STILL_FLAT
    assert len(list(PACKAGE.glob("*.py"))) <= 14 + len(STILL_FLAT)


def test_imports_run_downwards() -> None:
    found = set()
    for name, targets in graph().items():
        if room_of(name) in FACES | {"__main__"}:
            continue
        found |= {(name, other) for other in targets if is_above(other, name)}
    assert found == UPWARDS


def test_no_command_imports_another() -> None:
    for name, targets in graph().items():
        if name.startswith("cli.commands."):
            assert not {other for other in targets if other.startswith("cli.commands.")}, name


def test_only_commands_know_flags() -> None:
    parsing = {name for name, path in MODULES.items() if "argparse" in imports(path)}
    assert {room_of(name) for name in parsing} <= {"cli", "mini"}


def test_no_modules_import_each_other() -> None:
    assert circles_in(graph()) == CIRCLES


def test_no_rooms_import_each_other() -> None:
    arrows: dict[str, set[str]] = {}
    for name, targets in graph().items():
        if room_of(name) not in FACES:
            arrows.setdefault(room_of(name), set()).update(map(room_of, targets))
    for room, targets in arrows.items():
        targets.discard(room)
    upwards = {(room_of(name), room_of(other)) for name, other in UPWARDS}
    for room, other in upwards:
        arrows[room].discard(other)
    assert not circles_in(arrows) or STILL_FLAT


@pytest.mark.parametrize("name", sorted(name for name in MODULES if stands_in(name, set(NO_TORCH))))
def test_what_lists_and_tables_need_imports_nothing_heavy(name: str) -> None:
    waiting, seen = [name], {name}
    while waiting:
        for other in own(MODULES[waiting.pop()], at_the_top=True) - seen:
            seen.add(other)
            waiting.append(other)
    for other in seen:
        tops = {imported.partition(".")[0] for imported in imports(MODULES[other], at_the_top=True)}
        assert not tops & HEAVY, other


@pytest.mark.parametrize("name", sorted(MODULES))
def test_few_rooms_know_open_clip(name: str) -> None:
    if room_of(name) not in KNOW_OPEN_CLIP | STILL_FLAT:
        assert not {module for module in imports(MODULES[name]) if module.partition(".")[0] == "open_clip"}


def plugins(kind: str) -> list[Path]:
    within = PACKAGE.joinpath(*PACKAGES.get(kind, kind).split("."))
    folder = within if within.is_dir() else REPOSITORY / kind
    return [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", plugins("methods"), ids=lambda path: path.stem)
def test_methods_import_their_contract_alone(path: Path) -> None:
    assert not {name for name in own(path) if not stands_in(name, FOR_METHODS)}


@pytest.mark.parametrize("path", plugins("datasets"), ids=lambda path: path.stem)
def test_datasets_import_neither_methods_nor_runs(path: Path) -> None:
    assert not {name for name in own(path) if not stands_in(name, FOR_DATASETS)}


@pytest.mark.parametrize("path", plugins("scores"), ids=lambda path: path.stem)
def test_scores_import_their_contract_alone(path: Path) -> None:
    assert not {name for name in own(path) if not stands_in(name, FOR_SCORES)}


@pytest.mark.parametrize(
    "name", sorted(set(MODULES) - {name_of(path) for kind in ("protocols", "scores") for path in plugins(kind)})
)
def test_the_framework_names_and_imports_no_plugin(name: str) -> None:
    imported = imports(MODULES[name])
    packages = tuple(f"promptbench.{PACKAGES.get(kind, kind)}." for kind in PLUGINS)
    assert not {module for module in imported if module.startswith(packages)}
    if room_of(name) in {"mini", "checks", "commands", "verification"} | STILL_FLAT or name.startswith("cli.commands"):
        return  # the embedded sets, the authors' figures, and examples in helps are about plugins
    known = {plugin for kind in PLUGINS for plugin in registry.names(kind)}
    literals = {node.value for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.Constant)}
    assert not (literals & known) - NAMES_ALLOWED.get(name, set()) - NAMES_ALLOWED.get(stem_of(name), set())


@pytest.mark.parametrize("kind", PLUGINS)
def test_what_a_plugin_adds_to_its_contract_has_a_docstring(kind: str) -> None:
    """ruff does not ask it of plugins, where a method that the contract documents need not say it again."""
    silent = []
    for name in registry.names(kind):
        cls = registry.load(kind, name)
        for attribute, value in vars(cls).items():
            is_method = isinstance(value, (FunctionType, property, classmethod, staticmethod))
            if is_method and not attribute.startswith("_") and not documented(cls, attribute):
                silent.append(f"{cls.__name__}.{attribute}")
    assert silent == []


def documented(cls: type, attribute: str) -> bool:
    """Whether a class or one of those it derives from says what an attribute is, there or in its own docstring."""
    for base in cls.__mro__:
        if getattr(vars(base).get(attribute), "__doc__", None) or f" {attribute}: " in (base.__doc__ or ""):
            return True
    return False


@pytest.mark.parametrize("name", ["datasets", "methods"])
def test_the_folders_cannot_be_mistaken_for_packages(name: str) -> None:
    code = f"import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: This folder is promptbench.{name} and cannot be imported as '{name}'" in done.stderr


def test_nothing_named_datasets_is_installed(tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('datasets', 'methods', 'benchmarks') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_everything_can_be_imported_where_there_is_no_unix() -> None:
    names = [f"promptbench.{name}" for name in MODULES if name and not name.endswith("__main__")]
    unix = ("resource", "fcntl", "pwd", "grp", "termios", "syslog")
    code = (
        "import importlib, sys, torch, open_clip, pytorch_lightning, pandas, rich.console\n"  # not ours
        f"for name in {unix!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "from promptbench.training.numerics import peak_memory; assert peak_memory('cpu') >= 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
