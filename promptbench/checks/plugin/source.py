"""What the conformance kit reads without running the method: its docstring, its source, its declarations."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from itertools import product

import yaml

from promptbench import registry
from promptbench.checks.plugin.subject import NotConcerned, Specimen, some
from promptbench.config import UsageError, build, to_mapping
from promptbench.data.dataset import Dataset, DatasetInfo
from promptbench.method import MethodConfig
from promptbench.recipe import parse_label, resolve

FRAMEWORK = ("checkpoints", "checks", "cli", "experiment", "results", "runs", "show", "sweep", "training")
PLACING = ("bfloat16", "cpu", "cuda", "half", "to")
PRECISIONS = ("bfloat16", "float16", "half")
WIDTHS = (512, 768, 1024)
SHOTS = 16  # that recipes are resolved with: some count steps by them
DEVICE = re.compile(r"(cpu|cuda|mps)(:\d+)?")
PAPER = re.compile(  # of arXiv, with a DOI, or at a venue such as NeurIPS 2023
    r"arXiv|\bDOI\b|doi\.org|\b10\.\d{4,}/|[Uu]npublished|\b(?=\w*[A-Z]\w*[A-Z])\w+,?( Workshops?)? (19|20)\d\d\b"
)
CODE = re.compile(
    r"\bcode\b.{0,160}?(https?://|\bnone\b|\bnot (yet )?(available|public|published|released)\b)"
    r"|\b(no|without)\b[^.]{0,40}\bcode\b",
    re.IGNORECASE | re.DOTALL,
)


def check_docstring_names_paper_and_code(specimen: Specimen) -> Iterator[str]:
    """The docstring names a paper and its code."""
    docstring = sys.modules[specimen.cls.__module__].__doc__ or ""
    if not docstring.strip():
        yield (
            "the file has no docstring; begin it with what the method does, the paper (authors, title, venue, arXiv "
            "id) and the URL of the authors' code"
        )
        return
    if not PAPER.search(docstring):
        yield "the file's docstring names no paper; give the arXiv id, the DOI or venue and year, or say 'unpublished'"
    if not CODE.search(docstring):
        yield "the file's docstring has no URL of the authors' code; write 'Code: https://...', or 'Code: none'"


def check_source_leaves_the_framework_its_work(specimen: Specimen) -> Iterator[str]:
    """The source has no device, no precision, no width, no print and no import of the runner."""
    tree = ast.parse(inspect.getsource(sys.modules[specimen.cls.__module__]))
    no_widths = counts(tree)
    for node in ast.walk(tree):
        complaint = "" if id(node) in no_widths else complaint_of(node)
        if complaint:
            yield f"line {getattr(node, 'lineno', '?')} {complaint}"


def counts(tree: ast.Module) -> set[int]:
    """The nodes in which a number is no width: the declared number of parameters, recipes and presets."""
    found: set[int] = set()
    for node in ast.walk(tree):
        declares = isinstance(node, (ast.Assign, ast.AnnAssign)) and ast.unparse(node).startswith("parameters_vit_b16")
        trains = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("Preset", "Recipe")
        if declares or trains:
            found |= {id(inner) for inner in ast.walk(node)}
    return found


def complaint_of(node: ast.AST) -> str:
    """What is wrong with one node of the source, and what to write instead; "" for nothing."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PLACING:
        return f"calls .{node.func.attr}(): devices and precision belong to the framework; leave it out"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
        return "prints; return figures worth keeping from `diagnostics`"
    if isinstance(node, ast.Attribute) and ast.unparse(node) in {f"torch.{name}" for name in PRECISIONS}:
        return f"names {ast.unparse(node)}: precision belongs to the framework; leave it out"
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value in WIDTHS:
        return f"has the literal {node.value}: ask the backbone for widths (text_width, vision_width, embed_dim)"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and DEVICE.fullmatch(node.value):
        return f"names the device '{node.value}': take that of a tensor at hand, or of the backbone"
    names = [name.removeprefix("promptbench.") for name in imported(node)]
    modules = {name for name in names if name.partition(".")[0] in FRAMEWORK}
    return f"imports promptbench.{modules.pop()}: a method imports no training, runner or results" if modules else ""


def imported(node: ast.AST) -> list[str]:
    """The modules that an import statement names, and what it takes out of promptbench."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module == "promptbench":
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def check_category_and_recipes_are_declared(specimen: Specimen) -> Iterator[str]:
    """It says its category and how it is trained."""
    if not specimen.cls.category:
        yield 'it has no category; write `category = "text"` or whatever it adapts, for `promptbench list methods`'
    if specimen.cls.trains and not specimen.cls.recipes:
        yield (
            'it trains and has no recipe; write `recipes = {("*", "*"): Recipe(epochs=..., lr=..., batch=..., '
            'origin="ours")}`, or `trains = False`'
        )


def check_config_survives_yaml(specimen: Specimen) -> Iterator[str]:
    """The settings are the same after a trip through YAML."""
    yield from lost_in_yaml(specimen.config, "its settings")


def lost_in_yaml(config: MethodConfig, what: str) -> Iterator[str]:
    """What a trip through YAML does to settings that it should not."""
    try:
        text = yaml.safe_dump(to_mapping(config))
    except yaml.YAMLError as error:
        yield f"YAML cannot hold {what} ({' '.join(map(str, error.args))}); use numbers, text, lists and None"
        return
    if build(type(config), yaml.safe_load(text), "YAML") != config:
        yield f"YAML makes other values of {what}; annotate every field of Config with the type that its values have"


def check_recipes_and_presets_resolve(specimen: Specimen) -> Iterator[str]:
    """Every recipe and every preset can be resolved."""
    cls = specimen.cls
    failures: list[str] = []
    if cls.trains and not cls.recipes:
        raise NotConcerned("it has no recipe")
    for protocol, dataset in cls.recipes or [("*", "*")]:
        recipe = cls.recipes.get((protocol, dataset))
        for preset, shots in product(("", *cls.presets), (SHOTS, *(recipe.overrides_at if recipe else ()))):
            label = f"{cls.__name__}@{preset}" if preset else cls.__name__
            try:
                config = resolve(cls, label, protocol=protocol, dataset=dataset, shots=shots).config
            except UsageError as error:
                failures.append(str(error))
            else:
                failures += lost_in_yaml(config, f"the settings of {label} for {protocol}, {dataset}")
    yield from dict.fromkeys(failures)


def check_controls_are_there(specimen: Specimen) -> Iterator[str]:
    """Its controls are presets or methods, and say what they take away."""
    cls = specimen.cls
    said = []
    for name, of in cls.controls.items():
        said += [(name, control, takes) for control, takes in of.items()]
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    read = registry.literals(registry.plugin_class(tree, "Method", "methods"))
    for name in {"controls", "baseline"} & vars(cls).keys():
        if read.get(name, {}) != getattr(cls, name):
            yield f"`{name}` cannot be read without importing the file; write it as literals alone"
    own = {name for name, _, _ in said} | {control for _, control, _ in said if control.startswith("@")}
    if not said and not cls.baseline:
        raise NotConcerned("it declares none of its own")
    for name in sorted({*own, *cls.baseline} - {"", *(f"@{preset}" for preset in cls.presets)}):
        yield f"its controls name {name!r}, and it has no such preset; write '@preset', or '' for the method itself"
    for control in sorted({control for _, control, _ in said} - own):
        plugin, preset = parse_label(control)
        if plugin not in registry.names("methods"):
            yield f"the control '{control}' is no method; write a method's label, or '@preset' for one of its own"
        elif preset and preset not in registry.load("methods", plugin).presets:
            yield f"the control '{control}' names no preset of {plugin}; write one that it has"
    empty = [control for control, takes in (*cls.baseline.items(), *(pair[1:] for pair in said)) if not takes.strip()]
    if empty:
        yield f"{some(empty)} does not say what it takes away; write half a sentence"


def check_facts_are_filled_in(dataset: Dataset) -> Iterator[str]:
    """Its facts are filled in."""
    info = getattr(dataset, "info", None)
    if not isinstance(info, DatasetInfo):
        yield "it has no facts; write `info = DatasetInfo(title=..., classes=..., ...)`"
        return
    if not info.title:
        yield "its `info` has no title; give the name that tables print"
    templates = [info.template] if isinstance(info.template, str) else info.template
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        yield f"the template {wrong[0]!r} has no place, or several, for the class name; write one {{}} in it"


def check_splits_can_be_read(dataset: Dataset) -> Iterator[str]:
    """Its splits can be read: labels count from 0, class names differ, the first image opens."""
    try:
        items = dataset.items("train") or dataset.items("test")
    except UsageError as error:
        raise NotConcerned(str(error)) from error
    if not items:
        yield "it has neither training nor test images; see `read`"
        return
    labels = sorted({item.label for item in items})
    if labels != list(range(len(labels))):
        yield f"its labels are {some(map(str, labels))}; count them from 0, without a gap"
    if dataset.info.classes not in (0, len(labels)):
        yield f"`info` says {dataset.info.classes} classes, and its items have {len(labels)}; correct one of them"
    try:
        assert len(dataset.class_names) == len(labels)
        dataset.open(items[0])
    except UsageError as error:
        yield str(error)


OF_DATASETS = (check_facts_are_filled_in, check_splits_can_be_read)
