"""A stored result in words, about a screen of them: what it is of, its figures, its conditions, what lies beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from promptbench.cli.text import columns
from promptbench.config import UsageError, shown
from promptbench.protocol import digits_of
from promptbench.results.command import command_text, evaluation_of
from promptbench.results.result import Result, find_predictions, find_training, folder_of, read_result

WIDTH = 110  # characters of a line
MOST = 12  # evaluations shown
PROSE = ("origin",)  # of a recipe: said in its heading


def describe_result(path: Path) -> str:
    """A result file in full.

    Raises:
        UsageError: It is none.
    """
    result = read_result(path)
    recipe = dict(result.spec.recipe)
    parts = {
        "Figures": figures(result),
        "Settings": settings(result, "config", result.spec.config),
        f"Recipe ({recipe.pop('origin', 'nothing is trained')})": settings(result, "recipe", recipe),
        "Sample and images": columns(sample(result)),
        "Made with": columns(made_with(result)),
        "Beside it": columns(beside(path, result)),
    }
    blocks = [f"{name}\n{textwrap.indent(text, '  ')}" for name, text in parts.items() if text]
    return "\n\n".join([heading(result), *blocks, f"Made by\n{textwrap.indent(commands(result), '  ')}"])


def heading(result: Result) -> str:
    """Method, place and seeds in a line, with the paper's name of a method that has another one; then the file."""
    spec = result.spec
    data, train = spec.seeds
    seeds = f"seed {data}" if data == train else f"data seed {data}, training seed {train}"
    title = f" ({result.conditions['title']})" if result.conditions.get("title") else ""
    rebuilt = ", rebuilt without its authors' code" if result.conditions.get("reconstructed") else ""
    trained = f", trained under {spec.trained_by}" if spec.trained_by else ""
    place = f"{spec.protocol} on {spec.halved_dataset}, suite {spec.suite}, {seeds}{trained}"
    return f"{spec.label}{title}{rebuilt}: {place}\n{result.path}"


def commands(result: Result) -> str:
    """What makes it again: one command, or the training's and the evaluation's."""
    return "\n".join([command_text(result), *filter(None, [" ".join(evaluation_of(result))])])


def figures(result: Result) -> str:
    """A line for each evaluation, a column for each metric, then the figures that are of no evaluation."""
    known = [name.rpartition("/") for name in result.metrics]
    evaluations = list(dict.fromkeys(evaluation for evaluation, slash, _ in known if slash))
    names = sorted({metric for _, slash, metric in known if slash}, key=lambda name: (name != "accuracy", name))
    rows = [("", *names, "images")] if evaluations else []
    for evaluation in evaluations[:MOST]:
        values = [_rounded(result.metrics, f"{evaluation}/{name}") for name in names]
        rows.append((evaluation, *values, str(result.conditions.get("images", {}).get(evaluation, ""))))
    alone = {name: _rounded(result.metrics, name) for name in result.metrics if "/" not in name}
    lines = [columns(rows)] if rows else []
    if len(evaluations) > MOST:
        lines.append(f"... and {len(evaluations) - MOST} more evaluations, see the file")
    if alone:
        lines.append("  ".join(f"{name} {value}" for name, value in sorted(alone.items())))
    lines += [f"no {name.rstrip('/')}: {reason}" for name, reason in result.notes.items()]
    return "\n".join([*lines, "percent; nll in nats, brier from 0 to 2"])


def _rounded(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.{digits_of(name)}f}" if name in metrics else ""


def settings(result: Result, kind: str, values: Mapping[str, Any]) -> str:
    """Fields with where each value came from."""
    provenance = result.conditions.get("provenance") or {}
    rows = [
        (name, "=", textwrap.shorten(shown(value), 40), provenance.get(f"{kind}.{name}", ""))
        for name, value in values.items()
        if name not in PROSE
    ]
    return "\n".join(cut(line) for line in columns(rows).splitlines()) if rows else ""


def cut(line: str) -> str:
    """A line that is not wider than a screen."""
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def sample(result: Result) -> Iterator[tuple[str, str]]:
    """What was trained on, and where the splits come from."""
    spec, conditions = result.spec, result.conditions
    shots = "all images" if spec.shots is None else f"{spec.shots} a class"
    size = conditions.get("sample_size")
    if spec.shots == 0:
        yield "trained on", "no image"
    else:
        yield "trained on", f"{shots}, drawn by {spec.sampler}" + (f", {size} images" if size else "")
    yield "splits", str(conditions.get("split_source", "unknown"))
    if spec.dataset_options:
        yield "dataset", ", ".join(f"{name}={shown(value)}" for name, value in spec.dataset_options.items())
    templates = list(dict.fromkeys(map(str, (spec.templates or {}).values())))
    if templates:
        yield "template", textwrap.shorten(", ".join(templates), WIDTH - 20)
    if spec.corruption:
        yield "corrupted by", spec.corruption
    if conditions.get("skipped"):
        yield "left out", f"unreadable images of {', '.join(conditions['skipped'])}"


def made_with(result: Result) -> Iterator[tuple[str, str]]:
    """Backbone, machine, versions, code, when and at what cost."""
    spec, cost = result.spec, result.cost
    yield "backbone", f"{spec.backbone}, weights {spec.weights_hash[:12] or 'unknown'}"
    threads = f"{spec.threads} thread{'s' * (spec.threads != 1)}"
    yield "computed", f"{spec.device}, {threads}, precision {spec.precision}"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items() if version)
    for number, line in enumerate(textwrap.wrap(versions, WIDTH - 20)):
        yield "versions" if number == 0 else "", line
    code = {name: getattr(spec, f"{name}_code").partition(":")[2][:8] for name in ("method", "training", "evaluation")}
    known = ", ".join(f"{name} {digest}" for name, digest in code.items() if digest)
    yield "code", f"commit {result.commit[:12] or 'unknown'}{'; ' if known else ''}{known}"
    yield "made", result.created
    took = [f"{cost[name]:g} s {what}" for name, what in _TOOK.items() if cost.get(name) is not None]
    learned = cost.get("learned_parameters")
    yield "cost", ", ".join([f"{learned:,.0f} learned parameters" if learned else "nothing learned", *took])


_TOOK = {"train_seconds": "of training", "eval_seconds": "of evaluation"}


def beside(path: Path, result: Result) -> Iterator[tuple[str, str]]:
    """The files of the run, or what makes those that are not there."""
    try:
        folder = folder_of(path)
    except UsageError:
        yield "files", "unknown: it does not lie where `run` put it"
        return
    predictions = find_predictions(folder, result.spec)
    yield "predictions", str(predictions or "none; --save-predictions keeps them")
    if result.conditions.get("training_key"):
        yield "learned", str(find_training(folder, result) or "not here; the command below trains it again")
