"""Which plugins exist, found by file name; nothing registers itself and nothing is imported to be listed.

A plugin is a module with one public class that subclasses its contract (`Method`, `Dataset`, `Protocol` or `Score`).
Its name is the last part of the module's name. Plugins come from three places:

* the packages `promptbench.methods`, `.datasets`, `.protocols` and `.metrics.scores`, by file name;
* the entry-point groups `promptbench.methods`, `.datasets`, `.protocols` and `.scores`, where installed packages
  announce theirs;
* files given one by one with `add_file`, as `--plugin` does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import pkgutil
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from promptbench.config import UsageError, real_path_of, unknown

_log = logging.getLogger(__name__)
_LONGEST_TITLE = 32  # letters, of what stands before the colon of a docstring

_CONTRACTS = {"methods": "Method", "datasets": "Dataset", "protocols": "Protocol", "scores": "Score"}
_PACKAGES = {kind: f"promptbench.{kind}" for kind in _CONTRACTS} | {"scores": "promptbench.metrics.scores"}
_files: dict[str, dict[str, Path]] = {}  # by kind


class PluginFacts(NamedTuple):
    """What the source of a plugin says, read without importing it.

    Attributes:
        name: Its name on the command line.
        summary: First line of the module's docstring.
        docstring: The module's docstring.
        attributes: Class attributes whose value is a literal; one that is a call, such as
            `info = DatasetInfo(title="DTD")`, appears as a dict of its literal keyword arguments.
        path: The source file.
    """

    name: str
    summary: str
    docstring: str
    attributes: dict[str, Any]
    path: Path


class _Source(NamedTuple):
    """Where a plugin's module is: its dotted name, and its file where that is known without a search."""

    module: str
    path: Path | None


def names(kind: str) -> tuple[str, ...]:
    """The names of all plugins of a kind (`methods`, `datasets`, `protocols`, `scores`), sorted."""
    return tuple(sorted(_sources(kind)))


def load(kind: str, name: str) -> type[Any]:
    """The class of a plugin; imports its module and no other plugin.

    Raises:
        UsageError: The name is unknown, the module fails to import, or it holds no or several public plugin classes.
    """
    source = _find(kind, name)
    if source.module.rpartition(".")[2] != name:
        raise UsageError(
            f"The entry point {name!r} of promptbench.{kind} names the module {source.module}; name both alike."
        )
    module = _import(kind, name, source)
    public = [value for key, value in vars(module).items() if not key.startswith("_")]
    found = {value for value in public if _is_plugin(value, kind, module)}
    if len(found) != 1:
        holds = "no class" if not found else " and ".join(sorted(cls.__name__ for cls in found))
        raise UsageError(
            f"{module.__file__} must hold one public class that subclasses {_CONTRACTS[kind]}, but holds {holds}."
        )
    return found.pop()


def facts(kind: str, name: str) -> PluginFacts:
    """What the source of a plugin says: docstring and literal class attributes; never imports it.

    Raises:
        UsageError: The name is unknown, or the file cannot be read or parsed.
    """
    path = _path(kind, name)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"The plugin {name!r} cannot be read: {_located(error, path)}.") from error
    docstring = ast.get_docstring(tree) or ""
    summary = docstring.partition("\n")[0]
    return PluginFacts(name, summary, docstring, literals(plugin_class(tree, _CONTRACTS[kind], kind)), path)


def is_built_in(kind: str, name: str) -> bool:
    """Whether a plugin is one of the package.

    Raises:
        UsageError: The name is unknown.
    """
    return _find(kind, name).module == f"{_PACKAGES[kind]}.{name}"


def titles(kind: str, names: Iterable[str], stored: Mapping[str, str] | None = None) -> dict[str, str]:
    """What papers, and so tables and plots, call some plugins: `CoOp`, `DTD`; no plugin is imported.

    It is the `title` that a plugin's source gives, of the class or in its `info`, or else what stands before the colon
    of the docstring's first line. What is no plugin, such as a folder of images, keeps its name, and so do those that
    would be called alike.

    Args:
        kind: `methods`, `datasets`, `protocols` or `scores`.
        names: Theirs.
        stored: What results say of plugins that may not be here, by name.
    """
    found = {name: _title(kind, name) or (stored or {}).get(name) or name for name in names}
    several = {title for title, count in Counter(found.values()).items() if count > 1}
    return {name: name if title in several else title for name, title in found.items()}


def _title(kind: str, name: str) -> str:
    try:
        source = facts(kind, name)
    except UsageError:  # made by a plugin that is not here
        return ""
    info = source.attributes.get("info")
    stated = source.attributes.get("title") or (info.get("title") if isinstance(info, dict) else "")
    before, colon, _ = source.summary.partition(":")
    return str(stated or (before if colon and len(before) <= _LONGEST_TITLE else ""))


def source_digest(kind: str, name: str) -> str:
    """SHA-256, in hex, of the source file of a plugin that is not built in; "" for a built-in one.

    Raises:
        UsageError: The name is unknown, or the file cannot be read.
    """
    if is_built_in(kind, name):
        return ""
    path = _path(kind, name)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"The plugin {name!r} cannot be read: {path}: {error.strerror}.") from error


def list_methods() -> dict[str, str]:
    """The methods by name, each with the first line of its docstring; no method is imported."""
    return summaries("methods")


def list_datasets() -> dict[str, str]:
    """The datasets by name, each with the first line of its docstring; no dataset is imported."""
    return summaries("datasets")


def list_protocols() -> dict[str, str]:
    """The protocols by name, each with the first line of its docstring; no protocol is imported."""
    return summaries("protocols")


def summaries(kind: str) -> dict[str, str]:
    """The plugins of a kind by name, each with the first line of its docstring."""
    return {name: facts(kind, name).summary for name in names(kind)}


def add_file(path: str | Path, kind: str = "") -> str:
    """Makes the plugin in a file known and returns its name, the file's stem.

    Args:
        path: A Python file.
        kind: `methods`, `datasets`, `protocols` or `scores`; "" for what its source says, a method where that says
            nothing.

    Raises:
        UsageError: There is no such file, its stem is no Python name, or another plugin of the kind has that name.
    """
    file = real_path_of(path)
    if file.suffix != ".py" or not file.is_file():
        raise UsageError(f"There is no plugin file {file}; --plugin takes the path of a Python file.")
    if not file.stem.isidentifier() or file.stem.startswith("_"):
        raise UsageError(
            f"The plugin file {file} cannot be named {file.stem!r}; use letters, digits and _, not _ first."
        )
    kind = kind or _kind_of(file)
    if file.stem in _sources(kind):
        if _path(kind, file.stem).resolve() != file:
            raise UsageError(f"{file.stem!r} is already one of the {kind} ({_path(kind, file.stem)}); rename {file}.")
        return file.stem
    _files.setdefault(kind, {})[file.stem] = file
    return file.stem


def added() -> list[tuple[str, Path]]:
    """Kind and path of the files that `add_file` was given, for another process."""
    pairs: list[tuple[str, Path]] = []
    for kind, files in _files.items():
        pairs += [(kind, path) for path in files.values()]
    return pairs


def _kind_of(file: Path) -> str:
    """The kind of the plugin in a file, by the contract that its source names."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # importing it says what is wrong
        return "methods"
    return next((kind for kind, name in _CONTRACTS.items() if plugin_class(tree, name, kind) is not None), "methods")


def _sources(kind: str) -> dict[str, _Source]:
    if kind not in _CONTRACTS:
        raise unknown("kind of plugin", kind, _CONTRACTS)
    found = dict(_built_in(kind))
    for entry in _entry_points(f"promptbench.{kind}"):
        if entry.name in found:
            _log.warning("The entry point %r of promptbench.%s is ignored: the name is taken.", entry.name, kind)
        else:
            found[entry.name] = _Source(entry.module, None)
    given = {name: _Source(f"promptbench_plugin.{kind}.{name}", path) for name, path in _files.get(kind, {}).items()}
    return found | given


@functools.cache
def _built_in(kind: str) -> dict[str, _Source]:
    found = {}
    package = _PACKAGES[kind]
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for _, name, is_package in pkgutil.iter_modules([folder]):
            if not name.startswith("_"):
                file = Path(folder, name, "__init__.py") if is_package else Path(folder, f"{name}.py")
                found[name] = _Source(f"{package}.{name}", file)
    return found


@functools.cache
def _entry_points(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=group))


def _find(kind: str, name: str) -> _Source:
    sources = _sources(kind)
    if name not in sources:
        raise unknown(_CONTRACTS[kind].lower(), name, sources)
    return sources[name]


def _path(kind: str, name: str) -> Path:
    """The source file of a plugin; for an entry point this imports the packages around its module, not the module."""
    source = _find(kind, name)
    if source.path is not None:
        return source.path
    try:
        spec = importlib.util.find_spec(source.module)
    except Exception as error:  # the code of a package around a third party's module
        raise UsageError(
            f"The plugin {name!r} of promptbench.{kind} cannot be found: {type(error).__name__}: {error}."
        ) from error
    if spec is None or spec.origin is None:
        raise UsageError(
            f"The entry point {name!r} of promptbench.{kind} names {source.module}, which is not installed."
        )
    return Path(spec.origin)


def _import(kind: str, name: str, source: _Source) -> ModuleType:
    folder = os.getcwd()
    try:
        if source.module.startswith("promptbench_plugin.") and source.path:
            return _execute(source.module, source.path)
        return importlib.import_module(source.module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a plugin's own code does when imported
        raise UsageError(f"The plugin {name!r} fails to import: {_located(error, _path(kind, name))}.") from error
    finally:
        os.chdir(folder)  # from which the paths are meant that follow


def _execute(name: str, path: Path) -> ModuleType:
    """The module of a file outside every package, executed once per path."""
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _located(error: BaseException, path: Path) -> str:
    """`file:line: Exception: message`, with the last line of the plugin's own file that was reached."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}:{error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"


def _is_plugin(value: object, kind: str, module: ModuleType) -> bool:
    """Whether a value is a public class made in `module` on the contract of `kind`, which its `plugin_kind` tells."""
    return (
        isinstance(value, type)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
        and getattr(value, "plugin_kind", None) == _CONTRACTS[kind].lower()
    )


def plugin_class(tree: ast.Module, contract: str, kind: str) -> ast.ClassDef | None:
    """The first public class that, as far as the source tells, subclasses the contract or another plugin."""
    contracts = {contract}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            from_sibling = bool(node.level) or module.startswith(f"{_PACKAGES[kind]}.")
            for alias in node.names:
                if from_sibling or (module.startswith("promptbench.") and alias.name in contracts):
                    contracts.add(alias.asname or alias.name)
        if isinstance(node, ast.ClassDef) and contracts & {_last_part(base) for base in node.bases}:
            if not node.name.startswith("_"):
                return node
            contracts.add(node.name)
    return None


def _last_part(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def literals(cls: ast.ClassDef | None) -> dict[str, Any]:
    """Class attributes whose value is a literal, or a call with literal keywords."""
    found: dict[str, Any] = {}
    for node in cls.body if cls else ():
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                found |= _literal(target.id, node.value)
    return found


def _literal(name: str, value: ast.expr) -> dict[str, Any]:
    """`{name: value}` where the expression is a literal or a call with keywords, else nothing."""
    if isinstance(value, ast.Call):
        arguments: dict[str, Any] = {}
        for keyword in value.keywords:
            arguments |= _literal(keyword.arg, keyword.value) if keyword.arg else {}
        return {name: arguments} if arguments else {}
    try:
        return {name: ast.literal_eval(value)}
    except (ValueError, TypeError):
        return {}


def paper_of(facts: PluginFacts) -> str:
    """Authors, title and venue of the first paper that the docstring names."""
    for paragraph in facts.docstring.split("\n\n")[1:]:
        text = " ".join(paragraph.partition("Code by")[0].split())
        if '"' in text:
            return re.split(r"(?<=arXiv:\d{4}\.\d{5})", text)[0].partition(";")[0].rstrip(".")
    return facts.summary
