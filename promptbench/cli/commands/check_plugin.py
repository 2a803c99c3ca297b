"""`promptbench check-plugin`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.cli.flags import add_list
from promptbench.config import UsageError, build, parse_assignment, real_path_of

if TYPE_CHECKING:
    from promptbench.checks.plugin.kit import Outcome

HELP = "check a method in a file of your own, and say what fails"
EXAMPLE = "promptbench check-plugin my_method.py --set depth=2"
KINDS = ("methods", "datasets", "protocols", "scores")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench check-plugin` to its parser."""
    parser.add_argument("file", metavar="FILE", help="a Python file with a method, or with a dataset")
    parser.add_argument("--preset", default="", metavar="P", help="one of the method's presets")
    add_list(parser, "--set", metavar="FIELD=VALUE", help="settings of its Config")
    parser.add_argument("--backbone", default="mini", metavar="B", help="mini, or ARCHITECTURE:TAG_OR_FILE")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench check-plugin`; returns the exit code, 1 where a check fails."""
    path = real_path_of(options.file)
    examine = {
        "method": examine_method,
        "dataset": examine_dataset,
        "protocol": examine_nothing,
        "score": examine_nothing,
    }
    found = plugins_in(path)
    for kind in {cls.plugin_kind for cls in found} - {"method"}:
        if options.preset:
            raise UsageError(f"--preset {options.preset}: a {kind} has no presets.")
    return max(report(cls, examine[cls.plugin_kind](cls, path.stem, options)) for cls in found)


def plugins_in(path: Path) -> list[type[Any]]:
    """The plugins of a file, which may be that of a registered one.

    Raises:
        UsageError: There is no such file, it cannot be imported, or it holds no plugin.
    """
    from promptbench import registry

    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"There is no Python file {path}; check-plugin takes the path of one that holds a method.")
    known = (kind for kind in KINDS if path.stem in registry.names(kind))
    kind = next((kind for kind in known if registry.facts(kind, path.stem).path.resolve() == path), "methods")
    try:
        return [registry.load(kind, registry.add_file(path, kind))]
    except UsageError:
        modules = {name: m for name, m in sys.modules.items() if getattr(m, "__file__", None) == str(path)}
        values = [value for module in modules.values() for value in vars(module).values()]
        found = [value for value in values if isinstance(value, type) and value.__module__ in modules]
        others = [cls for cls in found if getattr(cls, "plugin_kind", "method") != "method"]
        if not others:
            raise
        return others


def report(cls: type[Any], outcomes: Iterable[Outcome]) -> int:
    """Prints every outcome as it comes, then what they amount to; 1 where something fails."""
    held = failed = skipped = 0
    for holds, failures, reason in outcomes:
        for failure in failures:
            print(f"FAIL  {holds}: {failure}", flush=True)
        if not failures:
            print(f"skip  {holds}: {reason}" if reason else f"ok    {holds}", flush=True)
        failed, skipped = failed + bool(failures), skipped + bool(reason)
        held += not failures and not reason
    if not held + failed + skipped:
        return 0
    verdict = f"fails {failed} of {held + failed} checks" if failed else f"keeps the contract: {held} checks hold"
    print(f"{cls.__name__} {verdict}" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


def examine_method(cls: type[Any], name: str, options: argparse.Namespace) -> Iterable[Outcome]:
    """The conformance kit over a method, with the settings asked for."""
    from promptbench.checks.plugin.kit import examine, specimen
    from promptbench.clip.load import load_backbone
    from promptbench.method import fit_to_backbone
    from promptbench.recipe import Preset, find_preset

    preset = find_preset(cls, name, options.preset) if options.preset else Preset()
    given = assigned(options.set or [], name)
    settings = build(cls.Config, {**preset.config, **given}, f"method '{name}'")
    backbone = load_backbone(options.backbone)
    backbone.known_tokens = None  # the kit's class names are chosen for no backbone: no warnings about them
    config = fit_to_backbone(settings, backbone, explicit=given)
    print(f"The method {cls.__name__} on the backbone {backbone.name}", flush=True)
    return examine(replace(specimen(cls, backbone, config), condition=preset.condition))


def examine_dataset(cls: type[Any], name: str, options: argparse.Namespace) -> Iterable[Outcome]:
    """What can be said of a dataset."""
    from promptbench.checks.plugin.kit import observe
    from promptbench.checks.plugin.source import OF_DATASETS
    from promptbench.data.dataset import data_roots

    dataset = cls(build(cls.Config, assigned(options.set or [], name), f"dataset '{name}'"), roots=data_roots())
    print(f"The dataset {cls.__name__}, data roots from PROMPTBENCH_DATA", flush=True)
    return (observe(check, dataset, cls) for check in OF_DATASETS)


def examine_nothing(cls: type[Any], name: str, options: argparse.Namespace) -> Iterable[Outcome]:
    """Of a protocol or a score, only that it was found."""
    print(f"The {cls.plugin_kind} {cls.__name__}, of which nothing is checked")
    return ()


def assigned(texts: Iterable[str], name: str) -> dict[str, Any]:
    """What `--set` says, by field; the plugin's name may stand before it, as `run` wants it."""
    values = {}
    for text in texts:
        (*owner, field), value = parse_assignment(text)
        if owner not in ([], [name]):
            raise UsageError(f"--set {text}: write FIELD=VALUE with a setting of {name}.")
        values[field] = value
    return values
