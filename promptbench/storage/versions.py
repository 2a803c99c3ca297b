"""What made a number: library versions, the code that decides it, commit, time.

The code that decides a number is the static import closure of a module within promptbench: all that it imports, at its
top or in a function, and all that these import. It is digested as syntax trees without what is only there to be read:
docstrings, annotations, comments, the texts of raised errors and the sources of settings, so that an edited sentence
costs nobody a training.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from promptbench.storage.atomic import write_atomically
from promptbench.storage.cache import cache_dir

PACKAGE = "promptbench"

DISTRIBUTIONS = {
    "numpy": "numpy",
    "open_clip": "open_clip_torch",
    "promptbench": "promptbench-clip",
    "pytorch_lightning": "pytorch-lightning",
    "torch": "torch",
    "torchmetrics": "torchmetrics",
    "torchvision": "torchvision",
}


def library_versions() -> dict[str, str]:
    """Version of Python and of every library that can change a number; "" for one that is not installed."""
    installed = {name: _installed(distribution) for name, distribution in DISTRIBUTIONS.items()}
    return {"python": platform.python_version(), **installed}


def own_version() -> str:
    """The version of this package, that of the newest tag when it was installed; "0" where it is not installed."""
    return _installed(DISTRIBUTIONS[PACKAGE]) or "0"


@cache
def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Commit of the checkout that promptbench runs from, with `-dirty` if files changed since; "" outside one."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an environment inside someone's own repository must not report theirs
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def code_digest(*modules: str) -> str:
    """A digest of what modules and all that they import within promptbench do.

    Version of Python and SHA-256, as in `3.12:ab...`, since versions read the same code differently.

    Args:
        modules: Dotted names, loaded or to be found without being imported.

    Raises:
        OSError, SyntaxError: A file cannot be read.
    """
    digests = [_file_of_code(path)["digest"] for path in closure(*modules)]
    found = hashlib.sha256(" ".join(sorted(digests)).encode()).hexdigest()
    return f"{sys.version_info.major}.{sys.version_info.minor}:{found}"


def other_code(before: str, now: str) -> bool:
    """Whether two digests say that something changed; one that is not known, or of another kind, says nothing.

    The kind is the text before the colon, such as the version of Python that read the code.
    """
    if not before or not now or before.partition(":")[0] != now.partition(":")[0]:
        return False
    return before != now


@cache
def closure(*modules: str) -> tuple[Path, ...]:
    """The files of modules and of all that they import within promptbench, sorted; packages that hold a docstring
    alone are there too."""
    waiting, seen, files = list(modules), set(modules), set()
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if path is None:
            continue
        files.add(path)
        for imported in _imported(name, path):
            if imported not in seen:
                seen.add(imported)
                waiting.append(imported)
    return tuple(sorted(files))


@cache
def _path_of(module: str) -> Path | None:
    """The file of a module, which is not imported; None where there is no such module, as of a name that is a class."""
    if module == PACKAGE or not module.startswith(f"{PACKAGE}."):  # a plugin of somebody else is loaded already
        loaded = sys.modules.get(module)
        return Path(str(loaded.__file__)).resolve() if loaded is not None and loaded.__file__ else None
    package, _, name = module.rpartition(".")
    above = _path_of(package)
    if above is None or above.name != "__init__.py":
        return None
    for path in (above.with_name(f"{name}.py"), above.parent / name / "__init__.py"):
        if path.is_file():
            return path
    if package != PACKAGE:
        return None
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module)  # methods and datasets lie elsewhere in a checkout
        if spec is not None and spec.origin:
            return Path(spec.origin).resolve()
    return None


def _imported(module: str, path: Path) -> Iterator[str]:
    """The modules within promptbench that a file imports when it runs, and the names that may be modules."""
    is_package = path.name == "__init__.py"
    for level, base, name in _file_of_code(path)["imports"]:
        parts = module.split(".")
        above = parts[: len(parts) - level + is_package] if level else []
        whole = ".".join([*above, *([base] if base else [])])
        if not level and whole.partition(".")[0] != PACKAGE:
            continue
        yield whole
        if name:
            yield f"{whole}.{name}"


@cache
def _file_of_code(path: Path) -> dict[str, Any]:
    """The digest of a file and its imports, remembered for its size and its times of change."""
    state = path.stat()
    facts = f"{path} {state.st_size} {state.st_mtime_ns} {state.st_ino} {sys.version_info[:2]} {_OWN}"
    memo = cache_dir() / "code" / hashlib.sha256(facts.encode()).hexdigest()[:32]
    with suppress(OSError, ValueError, KeyError, TypeError):
        remembered: dict[str, Any] = json.loads(memo.read_bytes())
        if remembered["checksum"] == _checksum(remembered):
            return remembered
    tree = ast.parse(path.read_bytes())
    found: dict[str, Any] = {"imports": sorted(set(_import_statements(tree)))}
    found["digest"] = hashlib.sha256(ast.dump(Bare().visit(tree)).encode()).hexdigest()
    found["imports"] = [list(item) for item in found["imports"]]
    found["checksum"] = _checksum(found)
    with suppress(OSError):
        write_atomically(memo, lambda file: file.write(json.dumps(found).encode()))
    return found


_OWN = "code/1"  # counts up where the digests below come to say something else


def _checksum(memo: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([memo["imports"], memo["digest"]]).encode()).hexdigest()


def _import_statements(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Level, module and name of all that is imported, but for what only type checkers import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, node.module or "", alias.name) for alias in node.names)
        else:
            yield from _import_statements(node)


class Bare(ast.NodeTransformer):
    """Drops what is only there to be read: docstrings, annotations, what an error says, what is called a source, and
    what a method says of its controls."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if text else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """The fields of a dataclass are those that have an annotation; which one says nothing to them."""
        of_class = "ClassVar" in ast.dump(node.annotation)
        if of_class and isinstance(node.target, ast.Name) and node.target.id in ("controls", "baseline"):
            return ast.Pass()
        keeps = ("ClassVar", "InitVar", "KW_ONLY")
        if not any(word in ast.dump(node.annotation) for word in keeps):
            node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if "TYPE_CHECKING" in ast.dump(node.test):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        for text in ast.walk(node):
            if isinstance(text, ast.JoinedStr):
                text.values = [part for part in text.values if not isinstance(part, ast.Constant)]
            elif isinstance(text, ast.Constant) and isinstance(text.value, str):
                text.value = ""
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        prose = [isinstance(key, ast.Constant) and key.value == "source" for key in node.keys]
        pairs = zip(node.values, prose, strict=True)
        node.values = [ast.Constant("") if is_prose else value for value, is_prose in pairs]
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> Any:
        if node.arg == "source":
            node.value = ast.Constant("")
        return self.generic_visit(node)
