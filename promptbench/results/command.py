"""The command that makes a stored result again, from what the result says of itself.

It is told from the file, the suite and the sources of plugins alone: nothing heavy is imported, so that a page may show
it for hundreds of results.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from promptbench import registry
from promptbench.config import UsageError, shown, to_mapping
from promptbench.recipe import LENGTHS, PROSE
from promptbench.results.knowledge import BY_HAND
from promptbench.results.result import Result
from promptbench.results.spec import Spec, fields_of
from promptbench.suite import ALPHABETICAL, DatasetEntry, Suite, load_suite

PROGRAM = "promptbench"
STORED_SAMPLE = "file:"  # how the sampler of a stored sample begins
USUAL = {item.name: item.default for item in fields_of(Spec)}  # what a flag is where nobody gives it


def command_of(result: Result, suite: str = "") -> list[str]:
    """The words of the `promptbench run` that makes a result; of one that `promptbench eval` made, of its training.

    A file that the result does not name has a word in capitals in its place: of a plugin, or of a stored sample.

    Args:
        result: Of any age.
        suite: Path of the suite's file, where it is none of the package.
    """
    spec = result.spec
    suite = suite or spec.suite
    known = _suite(suite)
    protocol = spec.trained_by or spec.protocol
    words = ["--method", spec.label, "--protocol", protocol, "--suite", suite]
    words += ["--dataset", _dataset_word(spec, known)]
    if spec.backbone != (known.backbone if known else ""):
        words += ["--backbone", spec.backbone]
    words += [*_seed_words(spec), *_sample_words(spec, protocol, known)]
    words += [*_evaluation_words(spec), *_machine_words(spec, known)]
    if settings := settings_of(result, suite):
        words += ["--set", *settings]
    if spec.plugin:
        words += ["--plugin", "PLUGIN.py"]
    return [PROGRAM, "run", *words]


def command_text(result: Result, suite: str = "", *more: str) -> str:
    """The command of a result as a shell takes it, with more words behind."""
    return shlex.join([*command_of(result, suite), *more])


def evaluation_of(result: Result, trained: str = "RESULT") -> list[str]:
    """The words of the `promptbench eval` that made a result; none where `run` did.

    Args:
        result: Of any age.
        trained: The result file of the training.
    """
    spec = result.spec
    if not spec.trained_by:
        return []
    return [PROGRAM, "eval", "--run", trained, "--protocol", spec.protocol, *_evaluation_words(spec)]


def settings_of(result: Result, suite: str) -> list[str]:
    """What was set by hand, as `--set` takes it: `coop.epochs=5`."""
    spec, provenance = result.spec, result.conditions.get("provenance") or {}
    found = [
        f"{spec.label}.{name}={shown(value)}"
        for name, value in spec.config.items()
        if provenance.get(f"config.{name}") == BY_HAND
    ]
    for name, value in spec.recipe.items():
        of_another_length = name in LENGTHS and not value
        if provenance.get(f"recipe.{name}") == BY_HAND and name not in PROSE and not of_another_length:
            found.append(f"{spec.label}.{name}={shown(value)}")
    for score, asked in spec.scores.items():
        found += [f"{score}.{name}={shown(value)}" for name, value in asked.items()]
    return found + list(_dataset_settings(spec, suite))


def pinned(result: Result, config: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """What `--set` takes besides, so that a run gets the result's settings where it would have these today.

    Args:
        result: Of any age.
        config: Fields of the method that a run has today.
        recipe: Fields of its training.
    """
    spec = result.spec
    found = []
    for today, stored in ((config, spec.config), (recipe, spec.recipe)):
        for name, value in stored.items():
            if name in today and name not in PROSE and today[name] != value:
                found.append(f"{spec.label}.{name}={shown(value)}")
    return found


def _seed_words(spec: Spec) -> list[str]:
    data, train = spec.seeds
    if data == train:
        return ["--seeds", str(data)]
    return ["--data-seed", str(data), "--train-seed", str(train)]


def _sample_words(spec: Spec, protocol: str, suite: Suite | None) -> Iterator[str]:
    """Shots, rule of sampling and halves of the classes, where the suite has others."""
    facts = _facts(protocol)
    usual = suite.shots if suite and not facts.get("several_shots") else None
    if spec.shots and spec.shots != usual:
        yield from ("--shots", str(spec.shots))
    if spec.sampler.startswith(STORED_SAMPLE):
        yield from ("--sampler", f"{STORED_SAMPLE}SAMPLE")
    elif spec.sampler != USUAL["sampler"]:
        yield from ("--sampler", spec.sampler)
    if facts.get("halves") and (spec.split,) != (suite.split if suite else (ALPHABETICAL,)):
        yield from ("--split", spec.split)
    if limit := getattr(spec, "limit", None):
        yield from ("--limit", str(limit))


def _evaluation_words(spec: Spec) -> Iterator[str]:
    if spec.scores:
        yield from ("--score", *spec.scores)
    if spec.corruption:
        yield from ("--corrupt", *spec.corruption.split())
    if spec.temperature:
        yield "--temperature"


def _machine_words(spec: Spec, suite: Suite | None) -> Iterator[str]:
    yield from ("--device", spec.device)
    if spec.threads != (suite.threads if suite else None):
        yield from ("--threads", str(spec.threads))
    if spec.precision != USUAL["precision"]:
        yield from ("--precision", spec.precision)
    if spec.deterministic:
        yield "--deterministic"


def _dataset_word(spec: Spec, suite: Suite | None) -> str:
    """The dataset as `--dataset` takes it: its name, or a plugin and the folder that it reads."""
    root = spec.dataset_options.get("root")
    listed = suite is not None and any(entry.name == spec.dataset for entry in suite.entries())
    if listed or not (spec.dataset_plugin and root):
        return spec.dataset
    return f"{spec.dataset_plugin}:{root}"


def _dataset_settings(spec: Spec, suite: str) -> Iterator[str]:
    """The options of the dataset that neither its suite nor its plugin has by itself."""
    entry = _entry(suite, spec.dataset)
    usual = _usual_options(suite, spec.dataset, spec.dataset_plugin or spec.dataset)
    for name, value in spec.dataset_options.items():
        given_with_its_name = name == "root" and entry is None
        if value != usual.get(name) and not given_with_its_name:
            yield f"{spec.dataset}.{name}={shown(value)}"


@lru_cache(maxsize=256)
def _usual_options(suite: str, dataset: str, plugin: str) -> Mapping[str, Any]:
    """The options of a dataset with those of its suite; the latter alone where the plugin is not known here."""
    from promptbench.data.dataset import config_of

    entry = _entry(suite, dataset)
    options = dict(entry.options) if entry else {}
    try:
        return to_mapping(config_of(registry.load("datasets", plugin), options, plugin))
    except UsageError:
        return options


@lru_cache(maxsize=64)
def _facts(protocol: str) -> Mapping[str, Any]:
    """What the source of a protocol says of it; nothing where it is not known here."""
    known = protocol in registry.names("protocols")
    return registry.facts("protocols", protocol).attributes if known else {}


def _entry(suite: str, dataset: str) -> DatasetEntry | None:
    known = _suite(suite)
    return next((entry for entry in known.entries() if entry.name == dataset), None) if known else None


@lru_cache(maxsize=16)
def _suite(name: str) -> Suite | None:
    """A suite, read once; None where it is not there."""
    try:
        return load_suite(name)
    except UsageError:
        return None
