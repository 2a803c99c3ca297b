"""What was trained before, used again: what is stored of it and where, and other evaluations of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from promptbench import registry
from promptbench.checkpoints import hub
from promptbench.config import UsageError, build
from promptbench.data.class_names import GENERIC_TEMPLATE, ClassNames
from promptbench.data.selection import FILE
from promptbench.planning import Run, load_protocol, other_data
from promptbench.protocol import Plan
from promptbench.recipe import Recipe, Settings
from promptbench.results.result import Result, folder_of, read_result
from promptbench.results.spec import Spec, expect
from promptbench.suite import DatasetEntry, Suite
from promptbench.training.files import FORMAT, check_metadata

# What a folder of `export` holds.
CARD, CLASSES, PROMPTS, RESULT, TEXT = FILES = (
    "README.md",
    "classes.json",
    "prompts.safetensors",
    "result.json",
    "text_features.safetensors",
)


@dataclass(frozen=True)
class Source:
    """What is stored of a run.

    Attributes:
        place: What the user named.
        spec: Of the run.
        result: None where a training file alone was named.
        training: The file with the learned tensors; None where nothing was learned.
        trained_on: The classes of the training; none, but with a template, where nothing was learned.
        shown: The classes to score where no others are asked for; none where they are not known.
        weights_hash: Of the backbone; "" where an older training file does not say.
    """

    place: str
    spec: Spec
    result: Result | None
    training: Path | None
    trained_on: ClassNames
    shown: ClassNames
    weights_hash: str


def source_of(run: str | os.PathLike[str]) -> Source:
    """What is stored where the user says."""
    place = os.fspath(run)
    if place.startswith(hub.PREFIX):
        return replace(of_export(hub.download(place, FILES)), place=place)
    path = Path(place).expanduser()
    if path.is_dir():
        return of_export(path)
    return of_training(path) if path.suffix == ".safetensors" else of_result(path)


def of_result(path: Path) -> Source:
    """A result file, with the training in the folder that `run` wrote to."""
    result = read_result(path)
    if result.conditions.get("training_key"):
        return with_result(of_training(training_of(path, result)), str(path), result)
    templates = result.conditions.get("templates", {})
    template = templates.get(result.spec.dataset) or next(iter(templates.values()), GENERIC_TEMPLATE)
    none = ClassNames((), template=template)
    return Source(str(path), result.spec, result, None, none, none, result.conditions.get("weights_hash", ""))


def of_training(path: Path) -> Source:
    """A training file alone: its metadata say all that is needed."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        if about.get("format", FORMAT) != FORMAT:
            raise UsageError(f"{path} was written by a newer promptbench ({about['format']}); update promptbench.")
        check_metadata(about)
        spec, classes = Spec.stored(json.loads(about["spec"])), json.loads(about["classes"])
        names = _class_names(classes)
        return Source(str(path), spec, None, path, names, names, json.loads(about.get("weights_hash", '""')))
    except OSError as error:
        raise UsageError(f"The training {path} cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is no training of promptbench, or is damaged ({error}).") from error


def _class_names(stored: Mapping[str, Any]) -> ClassNames:
    """Class names and their template, from JSON."""
    names, template = stored["names"], stored["template"]
    expect(names, list, "the class names")
    for text in (*names, *(template if isinstance(template, list) else [template])):
        expect(text, str, "a class name or template")
    return ClassNames(names, template=template)


def of_export(folder: Path) -> Source:
    """A folder that `export` wrote."""
    if not (folder / RESULT).is_file():
        raise UsageError(
            f"{folder} is no folder of `promptbench export`: it has no {RESULT}; name such a folder, a result file, or "
            "a training file."
        )
    result = read_result(folder / RESULT)
    try:
        classes = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
        shown = _class_names(classes)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder / CLASSES} is missing or damaged; export the run again.") from error
    if not result.conditions.get("training_key"):
        none = ClassNames((), template=shown.template)
        return Source(str(folder), result.spec, result, None, none, shown, result.conditions.get("weights_hash", ""))
    return replace(with_result(of_training(folder / PROMPTS), str(folder), result), shown=shown)


def with_result(training: Source, place: str, result: Result) -> Source:
    """A training as the result of a run of it names it."""
    weights = result.conditions.get("weights_hash", training.weights_hash)
    return replace(training, place=place, spec=result.spec, result=result, weights_hash=weights)


def training_of(path: Path | str, result: Result) -> Path:
    """The file with what the run of a result file learned, in the folder that `run` wrote to.

    Raises:
        UsageError: It is not there.
    """
    try:
        folder = folder_of(path)
    except UsageError as error:
        raise UsageError(
            f"{path} does not lie where `run` put it, so that its training is not found; name the training's "
            ".safetensors file instead."
        ) from error
    key = result.conditions["training_key"]
    if not key.isalnum():  # a digest, or else no name of a file there
        raise UsageError(f"{path} is not a valid promptbench result: its training_key is {key[:40]!r}.")
    training = folder / "trainings" / f"{key[:32]}.safetensors"
    if not training.exists():
        raise UsageError(
            f"What {result.spec.label} learned on '{result.spec.dataset}' is not at {training}; train it again with "
            "`promptbench run`."
        )
    return training


def evaluations_of(result: Result, protocols: Sequence[str], suite: Suite) -> list[Run]:
    """The evaluations of other protocols for what a run trained: its images, its settings, its seeds.

    `suite` comes from `suite_of`. An author's recipe of the run's own protocol is only transferred to another.

    Raises:
        UsageError: The suite lacks the dataset, or the protocol never trains with that number of shots.
    """
    spec = result.spec
    if spec.sampler.startswith(FILE):
        raise UsageError(f"{result.name} was trained on a stored sample; name it again with `run --sampler`.")
    origin = spec.trained_by or spec.protocol
    method = registry.load("methods", spec.method)
    recipe = build(Recipe, spec.recipe, result.name) if spec.recipe else None
    provenance = dict(result.conditions.get("provenance", {}))
    settings = Settings(build(method.Config, spec.config, result.name), recipe, provenance, frozenset())
    train = replace(plan_for(suite, origin, spec).train, sampler=spec.sampler)
    runs = []
    for protocol in protocols:
        plan = plan_for(suite, protocol, spec)
        other = replace(
            spec,
            suite=suite.name,
            protocol=protocol,
            recipe=transferred(spec.recipe) if protocol != spec.protocol else spec.recipe,
            evaluated=other_data(suite, plan),
            trained_by=origin if method.sees_images() and train != replace(plan.train, sampler=spec.sampler) else "",
        )
        runs.append(Run(other, replace(plan, train=train), method, settings))
    return runs


def suite_of(suite: Suite, spec: Spec) -> Suite:
    """The suite with the backbone, the dataset and the number of shots of a run."""
    entry = DatasetEntry(
        name=spec.dataset, dataset=spec.dataset_plugin or spec.dataset, options=dict(spec.dataset_options)
    )
    shots = spec.shots or suite.shots
    return replace(suite.with_entry(entry), backbone=spec.backbone, shots=shots, few_shots=(shots,))


def plan_for(suite: Suite, protocol: str, spec: Spec) -> Plan:
    """What a protocol trains on and evaluates with the dataset of a run."""
    one = load_protocol(protocol)
    (plan,) = one.plan(suite.with_datasets(one.role, [spec.dataset]), spec.data_seed)
    return plan


def transferred(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as another protocol sees it."""
    return {**recipe, "origin": "transferred"} if recipe.get("origin") in ("paper", "authors") else recipe
