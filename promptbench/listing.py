"""What `list`, `describe`, `show-config` and `run --dry-run` print, as text. Listing imports no plugin and no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from promptbench import registry
from promptbench.config import describe_fields, unknown
from promptbench.recipe import parse_label
from promptbench.suite import Suite, load_suite, suite_names

if TYPE_CHECKING:
    from promptbench.averages import TableLayout
    from promptbench.planning import Run


def columns(rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Rows of cells as aligned text."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(indent + line.rstrip() for line in lines)


def list_kind(kind: str, kinds: Sequence[str]) -> str:
    """The names of a kind with what is worth knowing of each."""
    if kind not in kinds:
        raise unknown("kind", kind, kinds)
    return {
        "methods": list_methods,
        "datasets": list_datasets,
        "protocols": list_protocols,
        "suites": list_suites,
        "backbones": list_backbones,
    }[kind]()


def list_methods() -> str:
    header = ("method", "category", "learned (ViT-B/16)", "paper")
    rows = []
    for name in registry.names("methods"):
        facts = registry.facts("methods", name)
        learned = facts.attributes.get("parameters_vit_b16", 0)
        rows.append((name, facts.attributes.get("category", ""), f"{learned:,}" if learned else "-", paper_of(facts)))
    return columns([header, *rows])


def list_datasets() -> str:
    header = ("dataset", "title", "classes", "license")
    rows = []
    for name in registry.names("datasets"):
        info = registry.facts("datasets", name).attributes.get("info", {})
        rows.append((name, info.get("title", ""), info.get("classes", 0) or "yours", info.get("license", "")))
    return columns([header, *rows])


def list_protocols() -> str:
    return columns([(name, registry.facts("protocols", name).summary) for name in registry.names("protocols")])


def list_suites() -> str:
    suites = [load_suite(name) for name in suite_names()]
    return columns([(suite.name, suite.title, suite.backbone) for suite in suites])


def list_backbones() -> str:
    from promptbench.known import BACKBONES

    return columns(BACKBONES.items()) + "\n\nor ARCHITECTURE:TAG for any tag of open_clip, or ARCHITECTURE:FILE"


def paper_of(facts: registry.PluginFacts) -> str:
    """Authors, title and venue, from the docstring's first paragraph that names a paper."""
    for paragraph in facts.docstring.split("\n\n")[1:]:
        if "arXiv" in paragraph or '"' in paragraph:
            return " ".join(paragraph.partition("Code by")[0].split())
    return facts.summary


def describe(name: str) -> str:
    """A method, dataset or protocol in full."""
    plain, _ = parse_label(name)
    for kind in ("methods", "datasets", "protocols"):
        if plain in registry.names(kind):
            facts = registry.facts(kind, plain)
            details = {"methods": describe_method, "datasets": describe_dataset}.get(kind, lambda _: "")(plain)
            return f"{plain}\n\n{facts.docstring.rstrip()}\n{details}".rstrip()
    known = [name for kind in ("methods", "datasets", "protocols") for name in registry.names(kind)]
    raise unknown("method, dataset or protocol", name, known)


def describe_method(name: str) -> str:
    cls = registry.load("methods", name)
    parts = []
    fields = [(f.name, f.type, "=", shown(f.default), f.source) for f in describe_fields(cls.Config)]
    if fields:
        parts.append("Settings (--set " + name + ".FIELD=VALUE)\n" + columns(fields, indent="  "))
    recipes = [
        (
            protocol,
            dataset,
            f"{r.epochs} epochs",
            f"lr {r.lr:g}",
            f"batch {r.batch}",
            overrides(r.overrides),
            r.origin,
            r.source,
        )
        for (protocol, dataset), r in cls.recipes.items()
    ]
    if recipes:
        parts.append("Recipes (protocol, dataset)\n" + columns(recipes, indent="  "))
    presets = [(f"{name}@{preset}", overrides({**p.config, **p.recipe}), p.source) for preset, p in cls.presets.items()]
    if presets:
        parts.append("Presets\n" + columns(presets, indent="  "))
    learned = registry.facts("methods", name).attributes.get("parameters_vit_b16", 0)
    parts.append(f"Learned parameters on ViT-B/16: {learned:,}")
    return "\n" + "\n\n".join(parts)


def describe_dataset(name: str) -> str:
    info = registry.facts("datasets", name).attributes.get("info", {})
    cls = registry.load("datasets", name)
    fields = [(f.name, f.type, "=", shown(f.default), f.source) for f in describe_fields(cls.Config)]
    settings = "\n\nSettings\n" + columns(fields, indent="  ") if fields else ""
    facts = [(key, shown(value)) for key, value in info.items() if value not in ("", None)]
    return "\n" + columns(facts, indent="  ") + settings


def overrides(values: Mapping[str, Any]) -> str:
    """`depth=3, epochs=2`."""
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: object) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(shown(item) for item in value)
    return repr(value) if value == "" else str(value)


def describe_runs(runs: Sequence[Run], finished: Sequence[bool]) -> str:
    """The runs of a call, which are finished, and the recipe of each."""
    header = ("", "protocol", "dataset", "method", "seeds", "recipe")
    rows = []
    for run, done in zip(runs, finished, strict=True):
        data, train = run.spec.seeds
        seeds = str(data) if data == train else f"data {data}, train {train}"
        state = "done" if done else "to do"
        rows.append((state, run.spec.protocol, run.spec.dataset, run.spec.label, seeds, recipe_line(run)))
    left = len(runs) - sum(finished)
    return columns([header, *rows]) + f"\n\n{len(runs)} runs, {sum(finished)} finished, {left} to do"


def recipe_line(run: Run) -> str:
    """`16 shots, 50 epochs, lr 0.1, batch 32 (ours)`."""
    recipe = run.settings.recipe
    if recipe is None:
        return "nothing to train"
    shots = "all images" if run.spec.shots is None else f"{run.spec.shots} shots"
    return f"{shots}, {recipe.epochs} epochs, lr {recipe.lr:g}, batch {recipe.batch} ({recipe.origin})"


def show_settings(run: Run) -> str:
    """Everything that is resolved for a run, and where each value came from."""
    spec = run.spec
    facts = [
        (name, shown(getattr(spec, name)))
        for name in (
            "suite",
            "protocol",
            "dataset",
            "method",
            "preset",
            "backbone",
            "shots",
            "sampler",
            "precision",
            "threads",
            "device",
        )
    ]
    values = {f"config.{k}": v for k, v in spec.config.items()} | {f"recipe.{k}": v for k, v in spec.recipe.items()}
    settings = [(name, "=", shown(value), run.settings.provenance.get(name, "")) for name, value in values.items()]
    return columns(facts) + ("\n" + columns(settings) if settings else "")


def layout_of(protocol: str) -> TableLayout:
    """The columns of a protocol's table."""
    from promptbench.averages import Column, TableLayout

    cls = registry.load("protocols", protocol)
    return TableLayout(tuple(Column(*column) for column in cls.columns), cls().summarize)


def order_of(suites: Sequence[Suite]) -> list[str]:
    """Datasets in the order of the suites."""
    return list(dict.fromkeys(entry.name for suite in suites for entry in suite.entries()))
