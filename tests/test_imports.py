"""Imports go one way: the design draws the directions, and here they are read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from promptbench import registry

REPOSITORY = Path(__file__).parent.parent
FRAMEWORK = sorted((REPOSITORY / "promptbench").glob("*.py"))
SOURCES = [
    *sorted((REPOSITORY / "promptbench").rglob("*.py")),
    *sorted((REPOSITORY / "methods").glob("*.py")),
    *sorted((REPOSITORY / "datasets").glob("*.py")),
]
METHODS = [path for path in sorted((REPOSITORY / "methods").glob("*.py")) if path.name != "__init__.py"]

KNOW_OPEN_CLIP = {"backbone", "weights", "weightless", "blocks", "text", "vision"}
FOR_METHODS = {"method", "backbone", "blocks", "prompts", "images", "config", "recipe", "classnames", "sharing"}
NO_TORCH = {
    "__init__",
    "cli",
    "config",
    "flags",
    "frame",
    "known",
    "listing",
    "registry",
    "results",
    "rows",
    "showing",
    "spec",
    "suite",
}
CARRY_FRAMES = {"frame", "rows", "showing"}  # of pandas
NAMES_ALLOWED = {
    **dict.fromkeys(("flags", "table"), {"base2new"}),
    "literature": {"base2new", "cross_dataset", "domain_generalization", "few_shot", "imagenet", "ood"},  # of papers
    "verdicts": {"base2new", "few_shot"},
    **dict.fromkeys(("planning", "protocol", "sampling", "selection", "spec"), {"coop"}),
}  # defaults; CoOp's rule of sampling


def relative_to_package(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imports(path: Path, lazy: bool = True) -> set[str]:
    """The modules that a file imports at run time, `from promptbench import x` as `promptbench.x`.

    Args:
        path: The file.
        lazy: Also those within functions.
    """
    found: set[str] = set()
    for node in walk(ast.parse(path.read_text(encoding="utf-8")), lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "promptbench" else {module}
    return found


def walk(node: ast.AST, lazy: bool) -> list[ast.AST]:
    """All nodes below, except what stands under `if TYPE_CHECKING`, and in functions if `lazy` is false."""
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not lazy:
            continue
        nodes += [child, *walk(child, lazy)]
    return nodes


def own(path: Path, lazy: bool = True) -> set[str]:
    """First names of the promptbench modules that a file imports."""
    return {name.split(".")[1] for name in imports(path, lazy) if name.startswith("promptbench.")} - {"__version__"}


def module(name: str) -> Path:
    return REPOSITORY / "promptbench" / f"{name}.py"


def reached(name: str) -> set[str]:
    """The framework's modules that importing one of them imports, directly or not."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for other in own(module(waiting.pop()), lazy=False):
            if other not in found and module(other).exists():
                found.add(other)
                waiting.append(other)
    return found


@pytest.mark.parametrize("name", ["plainyaml", "syntax", "metrics", "sampling", "known", "spec", "provenance", "cache"])
def test_the_lowest_modules_import_nothing_of_promptbench(name: str) -> None:
    assert not own(module(name))


def test_config_and_registry_import_little_more() -> None:
    assert own(module("config")) == {"plainyaml"}
    assert own(module("registry")) == {"config", "syntax"}


@pytest.mark.parametrize("name", sorted(NO_TORCH))
def test_what_lists_and_tables_need_imports_no_torch(name: str) -> None:
    heavy = {"torch", "torchvision", "open_clip", "pytorch_lightning"}
    heavy |= set() if name in CARRY_FRAMES else {"pandas", "numpy"}
    files = [module(name), *map(module, reached(name))]
    tops = {imported.partition(".")[0] for path in files for imported in imports(path, lazy=False)}
    assert not tops & heavy


@pytest.mark.parametrize("path", SOURCES, ids=relative_to_package)
def test_only_the_backbone_knows_open_clip(path: Path) -> None:
    if path.stem not in KNOW_OPEN_CLIP and path.parent.name != "mini":
        assert not {name for name in imports(path) if name.partition(".")[0] == "open_clip"}


@pytest.mark.parametrize("path", METHODS, ids=relative_to_package)
def test_methods_import_their_contract_alone(path: Path) -> None:
    assert own(path) <= FOR_METHODS


@pytest.mark.parametrize("path", sorted((REPOSITORY / "datasets").glob("*.py")), ids=relative_to_package)
def test_datasets_import_neither_methods_nor_runs(path: Path) -> None:
    assert own(path) <= {"cache", "cached", "classnames", "config", "dataset", "mini", "samples", "splits"}


OF_TABLES = {"cache", "config", "formats", "frame", "lines", "metrics", "plainyaml", "protocol", "provenance"}
OF_TABLES |= {"results", "rows", "spec"}


@pytest.mark.parametrize("name", ["results", "frame", "rows"])
def test_tables_are_made_of_results_alone(name: str) -> None:
    assert reached(name) <= OF_TABLES and own(module(name)) <= OF_TABLES


@pytest.mark.parametrize(
    "path", [path for path in FRAMEWORK if path.stem not in ("cli", "__main__")], ids=lambda p: p.stem
)
def test_nothing_imports_the_command_line(path: Path) -> None:
    assert not own(path) & ({"cli"} if path.stem == "flags" else {"cli", "flags"})


@pytest.mark.parametrize("path", [*FRAMEWORK, *METHODS], ids=relative_to_package)
def test_the_framework_imports_no_plugin(path: Path) -> None:
    plugins = tuple(f"promptbench.{kind}." for kind in ("methods", "datasets", "protocols"))
    assert not {name for name in imports(path) if name.startswith(plugins)}


@pytest.mark.parametrize("path", FRAMEWORK, ids=lambda path: path.stem)
def test_the_framework_names_no_plugin(path: Path) -> None:
    plugins = {name for kind in ("methods", "datasets", "protocols") for name in registry.names(kind)}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    literals = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not (literals & plugins) - NAMES_ALLOWED.get(path.stem, set())


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
