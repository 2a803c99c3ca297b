"""What `list`, `describe`, `show-config` and `run --dry-run` print, as text. Listing imports no plugin and no torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench import registry
from promptbench.cli.text import columns
from promptbench.config import describe_fields, overrides, shown, unknown
from promptbench.data.splits import SPLITS
from promptbench.recipe import Recipe, find_preset, parse_label
from promptbench.registry import paper_of
from promptbench.results.knowledge import Choice
from promptbench.results.result import failure_path, find, stored_results
from promptbench.suite import Suite, load_suite, suite_names
from promptbench.sweep.status import duration

if TYPE_CHECKING:
    from promptbench.protocol import Column, Protocol
    from promptbench.runs.plan import Run
    from promptbench.runs.request import Request
    from promptbench.runs.session import Session

WORDS = {
    "suite": "What is compared on what: a backbone, datasets by role, shots, seeds and settings of methods, in a YAML "
    "file. `promptbench list suites` names those of the package.",
    "shots": "Training images of each class. A method that is trained on 16 of each is trained with 16 shots.",
    "seed": "The number that draws the training images and the initial values. Figures of several seeds are averaged, "
    "and ± says how far they spread.",
    "n": "In tables, over how many seeds a figure is averaged.",
    "selection": "In tables, on which images a method's settings were chosen, and in how many trials. Rows that were "
    "chosen on more than others have an advantage over them.",
    "text prior": "In tables, what a row was told of the words around class names. Rows are ranked and judged within "
    "one.",
}
"""Words of tables that are no figures, in sentences."""


def list_kind(kind: str, kinds: Sequence[str]) -> str:
    """The names of a kind with what is worth knowing of each."""
    if kind not in kinds:
        raise unknown("kind", kind, kinds)
    return {
        "methods": list_methods,
        "datasets": list_datasets,
        "protocols": list_protocols,
        "scores": list_scores,
        "suites": list_suites,
        "backbones": list_backbones,
    }[kind]()


def list_methods() -> str:
    """A line per method: its name, category, how many numbers it learns on ViT-B/16, and its paper."""
    header = ("method", "category", "learned (ViT-B/16)", "paper")
    rows = []
    for name in registry.names("methods"):
        facts = registry.facts("methods", name)
        learned = facts.attributes.get("parameters_vit_b16", 0)
        title = facts.attributes.get("title", "")
        shown_name = f"{name} ({title})" if title else name
        rows.append(
            (shown_name, facts.attributes.get("category", ""), f"{learned:,}" if learned else "-", paper_of(facts))
        )
    return columns([header, *rows])


def list_datasets() -> str:
    """A line per dataset: its name, title, number of classes and license."""
    header = ("dataset", "title", "classes", "license")
    rows = []
    for name in registry.names("datasets"):
        info = registry.facts("datasets", name).attributes.get("info", {})
        rows.append((name, info.get("title", ""), info.get("classes", 0) or "yours", info.get("license", "")))
    return columns([header, *rows])


def list_protocols() -> str:
    """A line per protocol: its name and what it does."""
    rows = [(name, registry.facts("protocols", name).summary) for name in registry.names("protocols")]
    return columns([("protocol", "what it does"), *rows])


def list_scores() -> str:
    """A line per OOD score: its name, title, what of an image it is made of, and its paper."""
    rows = []
    for name in registry.names("scores"):
        facts = registry.facts("scores", name)
        needs = facts.attributes.get("needs", ())
        rows.append((name, facts.attributes.get("title", ""), " ".join(needs), paper_of(facts)))
    return columns([("score", "title", "made of", "paper"), *rows])


def list_suites() -> str:
    """A line per suite: its name, title, backbone and seeds."""
    suites = [load_suite(name) for name in suite_names()]
    rows = [(suite.name, suite.title, suite.backbone, numbers(suite.seeds)) for suite in suites]
    return columns([("suite", "title", "backbone", "seeds"), *rows])


def list_backbones() -> str:
    """A line per backbone that has a name here, and how others are asked for."""
    from promptbench.clip.load import BACKBONES

    others = (
        "Others: ARCHITECTURE:TAG with any pretrained tag of open_clip, or ARCHITECTURE:FILE with your own weights; "
        "--capabilities says what works with which."
    )
    return columns([("backbone", "what it is"), *BACKBONES.items()]) + "\n\n" + others


def list_capabilities() -> str:
    """What works with each architecture of open_clip, with numbered reasons for what does not."""
    from promptbench.clip import capabilities
    from promptbench.clip.load import configs, lacking

    found = configs()
    lacks_of = {name: lacking(config) for name, config in found.items()}
    reasons = capabilities.numbered(lacks_of.values())
    rows: list[tuple[str, ...]] = [("architecture", *capabilities.NEEDS, "tokenizer")]
    for name, lacks in lacks_of.items():
        cells = (f"no ({reasons[why]})" if why else "yes" for why in lacks.values())
        rows.append((name, *cells, capabilities.tokenizer_of(found[name])))
    notes = [f"({number}) It has {why}." for why, number in reasons.items()]
    notes.append("Tokenizers of transformers need that package and, once, a network.")
    return columns(rows) + "\n\n" + "\n".join(notes)


def describe(name: str) -> str:
    """A method, dataset, protocol, score or suite in full."""
    plain, preset = parse_label(name)
    details = {
        "methods": describe_method,
        "datasets": describe_dataset,
        "protocols": describe_protocol,
        "scores": describe_score,
    }
    for kind in details:
        if plain in registry.names(kind):
            facts = registry.facts(kind, plain)
            if preset:
                find_preset(registry.load(kind, plain), plain, preset)
            return f"{plain}\n\n{facts.docstring.rstrip()}\n{details[kind](plain)}".rstrip()
    if plain in suite_names():
        return describe_suite(load_suite(plain))
    terms = terms_of_tables()
    for term, said in terms.items():
        if term.lower() == name.lower():
            return f"{term}\n\n{said}"
    known = [*suite_names(), *terms]
    for kind in details:
        known += registry.names(kind)
    raise unknown("method, dataset, protocol, score, suite, metric or column", name, known)


def terms_of_tables() -> dict[str, str]:
    """What metrics, columns and other words of tables are, by their names as tables and results have them."""
    columns_of: dict[str, list[tuple[str, Column]]] = {}
    for name in registry.names("protocols"):
        protocol: Protocol = registry.load("protocols", name)()
        found = []
        for metric in protocol.metrics:
            found += protocol.columns(metric, [], [])
        for column in found:
            for term in dict.fromkeys((column.title, column.key.rpartition("/")[2])):
                columns_of.setdefault(term, []).append((name, column))
    return {**WORDS, **signs_of_tables(), **{term: describe_columns(shown) for term, shown in columns_of.items()}}


def signs_of_tables() -> dict[str, str]:
    """What the signs behind names and figures say."""
    from promptbench.show.tables.formats.texts import DENSE, MARKS, OUTLIER, RECONSTRUCTED, SAMPLER

    signs = dict([*MARKS.values(), RECONSTRUCTED, SAMPLER, DENSE, OUTLIER])
    return {sign: f"In tables: {said.format('that the note below names')}." for sign, said in signs.items()}


def describe_columns(shown: Sequence[tuple[str, Column]]) -> str:
    """What a figure is, from the protocols whose tables show it."""
    said = [column.help for _, column in shown if column.help]
    first = shown[0][1]
    facts = [
        ("in the tables of", ", ".join(dict.fromkeys(name for name, _ in shown))),
        ("figures", ", ".join(filter(None, (first.unit, first.range, first.direction)))),
    ]
    return "\n\n".join([*said[:1], f"Facts\n{columns(facts, indent='  ')}"])


def overrides_of(recipe: Any) -> str:
    """What a recipe sets in the method's Config, at some numbers of shots alone where it says so."""
    at = [f"{overrides(values)} with shots={shots}" for shots, values in recipe.overrides_at.items()]
    return ", ".join(filter(None, [overrides(recipe.overrides), *at]))


def describe_method(name: str) -> str:
    """What a method is, its settings with their sources, and its recipes."""
    cls = registry.load("methods", name)
    parts = [settings_of(cls, name)] if describe_fields(cls.Config) else []
    recipes = [
        (
            protocol,
            dataset,
            length(r),
            rate(r),
            f"batch {r.batch}",
            overrides_of(r),
            r.origin,
            r.source,
            "" if r.selection == "unknown" else f"chosen on: {Choice(r.selection, r.trials)}",
        )
        for (protocol, dataset), r in cls.recipes.items()
    ]
    if recipes:
        parts.append("Recipes (protocol, dataset)\n" + columns(recipes, indent="  "))
    presets = [(f"{name}@{preset}", overrides({**p.config, **p.recipe}), p.source) for preset, p in cls.presets.items()]
    if presets:
        parts.append("Presets\n" + columns(presets, indent="  "))
    learned = registry.facts("methods", name).attributes.get("parameters_vit_b16", 0)
    parts.append(f"Learned parameters on ViT-B/16: {learned:,}" if learned or not cls.trains else "")
    return "\n" + "\n\n".join(filter(None, parts))


def settings_of(cls: type[Any], name: str) -> str:
    """The fields of a plugin's Config with types, defaults and sources."""
    fields = [
        (f.name, f.type, "required" if f.default is MISSING else f"= {shown(f.default)}", f.source)
        for f in describe_fields(cls.Config)
    ]
    return f"Settings (--set {name}.FIELD=VALUE)\n" + columns(fields, indent="  ")


def describe_dataset(name: str) -> str:
    """The facts of a dataset, its classes and its settings."""
    cls = registry.load("datasets", name)
    settings = "\n\n" + settings_of(cls, name) if describe_fields(cls.Config) else ""
    facts = [(key, shown(value)) for key, value in vars(cls.info).items() if value and key != "images"]
    if any(cls.info.images):
        counts = [f"{count:,} {split}" for count, split in zip(cls.info.images, SPLITS, strict=True) if count]
        facts.insert(2, ("images", ", ".join(counts)))
    return "\nFacts\n" + columns([(key.replace("_", " "), value) for key, value in facts], indent="  ") + settings


def describe_protocol(name: str) -> str:
    """The role that a protocol runs over, the suites that have it, and its metrics and scores."""
    cls = registry.load("protocols", name)
    purpose = inspect.cleandoc(cls.__doc__ or "")
    suites = [suite.name for suite in map(load_suite, suite_names()) if cls.role in suite.roles]
    rows = [
        ("role of a suite it runs over", cls.role),
        ("suites that have it", ", ".join(suites)),
        ("metrics its table can show", ", ".join(cls.metrics)),
        ("scores of images", ", ".join(cls.scores) or "none"),
    ]
    return f"\n{purpose}\n\nFacts\n{columns(rows, indent='  ')}"


def describe_score(name: str) -> str:
    """What an OOD score is made of, and its settings."""
    cls = registry.load("scores", name)
    settings = "\n\n" + settings_of(cls, name) if describe_fields(cls.Config) else ""
    rows = [
        ("title", cls.title),
        ("made of", ", ".join(cls.needs)),
        ("direction", "larger for in-distribution images"),
    ]
    return "\nFacts\n" + columns(rows, indent="  ") + settings


def describe_suite(suite: Suite) -> str:
    """The conditions of a suite, its datasets by role, and what it sets of methods."""
    facts = [
        ("backbone", suite.backbone),
        ("shots", suite.shots),
        ("seeds", numbers(suite.seeds)),
        ("threads", "all cores" if suite.threads is None else suite.threads),
        ("always run", ", ".join(suite.companions) or "nothing"),
        ("note", suite.note or "none"),
    ]
    roles = [(role, " ".join(entry.name for entry in entries)) for role, entries in suite.roles.items()]
    tuned = [("every method", overrides(suite.recipe))] if suite.recipe else []
    tuned += [(label, overrides({**m.config, **m.recipe})) for label, m in suite.methods.items()]
    parts: dict[str, Sequence[Sequence[object]]] = {"Facts": facts, "Datasets by role": roles, "Settings": tuned}
    texts = [f"{title}\n{columns(rows, indent='  ')}" for title, rows in parts.items() if rows]
    return "\n\n".join([suite.name, suite.title, *texts])


def numbers(values: Sequence[int]) -> str:
    """`1, 2, 3`."""
    return ", ".join(map(str, values))


def state_of(output: Path, run: Run) -> str:
    """`done`, `failed` (and to be tried again) or `to do`."""
    if find(output, run.spec) is not None:
        return "done"
    return "failed" if failure_path(output, run.spec).exists() else "to do"


def describe_runs(runs: Sequence[Run], states: Sequence[str], more: Mapping[str, Sequence[str]] | None = None) -> str:
    """The runs of a call, which are finished, and the recipe of each.

    Args:
        more: Further columns, a cell for each run.
    """
    header = ("state", "protocol", "dataset", "method", "seeds", "recipe", *(more or {}))
    rows = []
    for run, state, *cells in zip(runs, states, *(more or {}).values(), strict=True):
        spec = run.spec
        rows.append((state, spec.protocol, spec.halved_dataset, spec.label, seeds_of(run), recipe_line(run), *cells))
    done, failed = states.count("done"), states.count("failed")
    again = f" ({failed} failed before)" if failed else ""
    return columns([header, *rows]) + f"\n\n{len(runs)} runs, {done} finished, {len(runs) - done} to do{again}"


def grid_points(runs: Sequence[Run], request: Request) -> list[str]:
    """What each run has of the values of `--grid`: `depth=1, n_ctx=2`; "" for a method without."""
    varied = {chosen.label: chosen.varied for chosen in request.methods}
    points = []
    for run in runs:
        fields = varied[run.spec.label]
        points.append(overrides({name: {**run.spec.recipe, **run.spec.config}.get(name) for name in fields}))
    return points


def seeds_of(run: Run) -> str:
    """`1`, or `1/2` where data seed and training seed differ."""
    data, train = run.spec.seeds
    return str(data) if data == train else f"{data}/{train}"


def recipe_line(run: Run) -> str:
    """`16 shots, 50 epochs, lr 0.1, batch 32 (ours)`."""
    recipe = run.settings.recipe
    if recipe is None:
        return "nothing to train"
    shots = "all images" if run.spec.shots is None else f"{run.spec.shots} shot{'s' * (run.spec.shots != 1)}"
    views = f", {recipe.train_views} views an image" if recipe.train_views else ""
    return f"{shots}, {length(recipe)}{views}, {rate(recipe)}, batch {recipe.batch} ({recipe.origin})"


def length(recipe: Recipe) -> str:
    """`1 epoch`, `5 epochs`, `8000 steps` or `500 steps a shot`."""
    if recipe.steps_per_shot:
        return f"{count(recipe.steps_per_shot, 'step')} a shot"
    return count(recipe.steps, "step") if recipe.steps else count(recipe.epochs, "epoch")


def count(number: int, what: str) -> str:
    """`1 step` or `2 steps`."""
    return f"{number} {what}{'s' if number > 1 else ''}"


def rate(recipe: Recipe) -> str:
    """`lr 0.002`, or `adamw, eps 0.0001, lr 0.001 to 1e-06 by step`: what is as in Dassl goes without saying."""
    parts: list[str] = [] if recipe.optimizer == "sgd" else [recipe.optimizer]
    usual = {fact.name: fact.default for fact in describe_fields(Recipe)}
    parts += [
        f"{name} {shown(getattr(recipe, name))}" for name in ("betas", "eps") if getattr(recipe, name) != usual[name]
    ]
    end = f" to {recipe.lr_end:g}" if recipe.lr_end else ""
    return ", ".join([*parts, f"lr {recipe.lr:g}{end}{' by step' if recipe.schedule == 'step' else ''}"])


def show_settings(run: Run, request: Request) -> str:
    """Everything that is resolved for a run but the seed, and where each value came from."""
    spec, suite = run.spec, f"suite {run.spec.suite}"
    asked = "command line"

    def origin(name: str, argument: str = "") -> str:
        return f"--{name}" if (argument or name) in request.flags else suite

    threads = origin("threads") if request.suite.threads else "all cores of this machine"
    seeds = " ".join(f"{data}" if data == train else f"{data}/{train}" for data, train in request.seeds)
    rows = [
        ("method", spec.label, asked),
        ("protocol", spec.protocol, "--protocol" if "protocol" in request.flags else "default"),
        ("suite", spec.suite, "--suite" if "suite" in request.flags else "default"),
        ("dataset", spec.dataset, origin("dataset", "datasets")),
        ("backbone", spec.backbone, origin("backbone")),
        ("shots", "all" if spec.shots is None else spec.shots, origin("shots")),
        ("seeds", seeds, origin("seeds")),
        ("sampler", spec.sampler, "--sampler" if "sampler" in request.flags else "default"),
        *([("split", spec.split, origin("split"))] if request.protocols[spec.protocol].halves else []),
        ("precision", spec.precision, "--precision" if "precision" in request.flags else "default"),
        ("threads", spec.threads, threads),
        ("device", spec.device, "--device" if "device" in request.flags else "what this machine has"),
    ]
    values = {f"config.{k}": v for k, v in spec.config.items()} | {f"recipe.{k}": v for k, v in spec.recipe.items()}
    rows += [(name, shown(value), run.settings.provenance.get(name, "")) for name, value in values.items()]
    chosen = request.suite.entry(spec.dataset).options
    rows += [
        (f"dataset.{name}", shown(value), "suite or command line" if name in chosen else "default")
        for name, value in spec.dataset_options.items()
    ]
    return columns([(name, "=", value, origin) for name, value, origin in rows])


def foreseen(session: Session, request: Request, estimate: bool, jobs: int | None = None) -> str:
    """The runs of a call, which are finished, and, where that is to be estimated, how long the others take.

    Args:
        jobs: Runs at once; None for as many as have room.
    """
    from promptbench.runs.plan import plan_runs
    from promptbench.sweep.preflight import outdated

    runs = plan_runs(request)
    old = outdated(session, runs, stored_results(session.output, [run.spec for run in runs]), may_load=False)
    states = ["outdated" if run.spec.name in old else state_of(session.output, run) for run in runs]
    varied = any(chosen.varied for chosen in request.methods)
    points = {"grid": grid_points(runs, request)} if varied else {}
    if not estimate or set(states) <= {"done"}:
        return describe_runs(runs, states, points)
    from promptbench.sweep.estimate import forecast
    from promptbench.sweep.loop import room_here

    found, said = forecast(session, runs, again=old, jobs=jobs or room_here(runs, session.device))
    times = ["?" if one is None else duration_or_none(one.seconds) for one in found]
    return describe_runs(runs, states, {**points, "time": times}) + "\n" + said


def duration_or_none(seconds: float) -> str:
    """How long something takes, `-` for no time."""
    return duration(seconds) if seconds else "-"
