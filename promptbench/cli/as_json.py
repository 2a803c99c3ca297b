"""What `list`, `describe`, `status` and `data status` print for programs; `results/README.md` has the keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench import registry
from promptbench.config import describe_fields, to_mapping, unknown
from promptbench.results.command import command_text
from promptbench.results.result import Result, find_predictions, find_training, folder_of
from promptbench.results.spec import to_plain
from promptbench.suite import load_suite, suite_names

if TYPE_CHECKING:
    from promptbench.data.get.status import Status
    from promptbench.runs.listener import Standing

PLUGINS = ("methods", "datasets", "protocols", "scores")


def printed(value: Any) -> str:
    """Plain values as JSON, indented; other values as their text."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)


def listed(kind: str) -> list[dict[str, Any]]:
    """What there is of a kind, an object for each, in the order of the names; no plugin is imported."""
    if kind == "suites":
        return [{"name": name, "title": load_suite(name).title} for name in suite_names()]
    if kind == "backbones":
        from promptbench.clip.load import BACKBONES

        return [{"name": name, "title": title} for name, title in BACKBONES.items()]
    if kind not in PLUGINS:
        raise unknown("kind", kind, (*PLUGINS, "suites", "backbones"))
    return [plugin_facts(kind, name) for name in registry.names(kind)]


def plugin_facts(kind: str, name: str) -> dict[str, Any]:
    """What the source of a plugin says of it: name, summary, paper, and the literal attributes of its class."""
    facts = registry.facts(kind, name)
    info = facts.attributes.get("info", {}) if kind == "datasets" else facts.attributes
    keys = {
        "methods": ("title", "category", "parameters_vit_b16"),
        "datasets": ("title", "classes", "license"),
        "protocols": ("role",),
        "scores": ("title", "needs"),
    }[kind]
    return {
        "name": name,
        "summary": facts.summary,
        "paper": registry.paper_of(facts),
        **{key: info.get(key) for key in keys},
    }


def described(name: str) -> dict[str, Any]:
    """A plugin or suite in full.

    Raises:
        UsageError: There is none of that name.
    """
    plain, _, preset = name.partition("@")
    for kind in PLUGINS:
        if plain in registry.names(kind):
            return {
                "kind": kind.removesuffix("s"),
                "preset": preset,
                **plugin_facts(kind, plain),
                **details(kind, plain),
            }
    if plain in suite_names():
        return {"kind": "suite", **to_plain(load_suite(plain))}
    known = [*suite_names()]
    for kind in PLUGINS:
        known += registry.names(kind)
    raise unknown("method, dataset, protocol, score or suite", name, known)


def details(kind: str, name: str) -> dict[str, Any]:
    """What the class of a plugin says: its settings and, of a method, recipes and presets."""
    cls = registry.load(kind, name)
    found: dict[str, Any] = {"description": registry.facts(kind, name).docstring}
    if hasattr(cls, "Config"):
        found["settings"] = [fact._asdict() for fact in describe_fields(cls.Config)]
        for fact in found["settings"]:
            fact["default"] = fact["default"] if _is_plain(fact["default"]) else None
    if kind == "methods":
        recipes = cls.recipes.items()
        found["recipes"] = [{"protocol": p, "dataset": d, **to_mapping(recipe)} for (p, d), recipe in recipes]
        found["presets"] = {preset: asdict(one) for preset, one in cls.presets.items()}
    return found


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


def described_result(path: Path, result: Result) -> dict[str, Any]:
    """A result as its file has it, with the command that makes it and the files of its run."""
    files: Mapping[str, Path | None] = {}
    if len(path.absolute().parents) > 3 and path.absolute().parents[2].name == "results":
        folder = folder_of(path)
        files = {"predictions": find_predictions(folder, result.spec), "learned": find_training(folder, result)}
    beside = {name: str(file) if file else None for name, file in files.items()}
    return {"kind": "result", "file": str(path), "command": command_text(result), **beside, **to_plain(result)}


def stood(folder: Path, standing: Standing) -> dict[str, Any]:
    """How the runs of an output folder stand: names of runs, of failed ones with the reason."""
    from promptbench.cli.text import reason

    return {
        "output": str(folder),
        "done": sorted(standing.done),
        "failed": {name: reason(path) for name, path in standing.failed.items()},
        "running": [
            {"run": holder.about["run"], "host": holder.host, "process": holder.pid, **holder.progress}
            for holder in standing.running
        ],
        "to_do": sorted(standing.waiting),
        "seconds_left": standing.seconds_left,
    }


def data_stood(state: Status) -> dict[str, Any]:
    """What is there of a dataset: images by split, digests, and what is missing in words."""
    return {**asdict(state), "complete": state.complete}
