"""Stored results as pandas frames: what tables are grouped by, and what a notebook starts from.

    import promptbench as pb

    frame = pb.to_frame(pb.read_results("runs"))
    frame[frame.metric == "accuracy"].groupby(["method", "config", "recipe", "dataset", "evaluation"]).value.mean()

Only runs that agree in every condition but their seeds may be averaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

import pandas as pd

from promptbench import registry
from promptbench.results.result import Result

ENCODE = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


def to_frame(results: Iterable[Result]) -> pd.DataFrame:
    """One line per run, evaluation and metric, with every condition of the run as a column.

    The columns are those of `runs_frame`, mappings and lists as JSON text so that all can be grouped by, besides
    `dataset_title` and `method_title`, what papers call them; then `evaluation`, `metric` and `value`: the metric
    `base/accuracy` is `accuracy` of the evaluation `base`, and what a protocol derives, such as `h`, is of "".
    """
    results = list(results)
    lines = []
    for place, result in enumerate(results):
        for name, value in result.metrics.items():
            evaluation, slash, metric = name.partition("/")
            lines.append((place, evaluation if slash else "", metric if slash else name, float(value)))
    figures = pd.DataFrame(lines, columns=["place", "evaluation", "metric", "value"])
    runs = runs_frame(results).apply(lambda column: column.map(_hashable)).infer_objects()
    if results:
        for kind, column in (("datasets", "dataset"), ("methods", "method")):
            titles = registry.titles(kind, runs[column].unique())
            runs.insert(int(runs.columns.get_loc(column)) + 1, f"{column}_title", runs[column].map(titles))
    return runs.loc[figures.pop("place")].reset_index(drop=True).join(figures)


def runs_frame(results: Iterable[Result]) -> pd.DataFrame:
    """One line per run: `run`, `label`, every field of the spec, `conditions.<name>`, `commit` and `created`.

    A field that is a mapping also has a column for each of its keys, such as `config.depth`; NaN where there is none.
    """
    return pd.DataFrame([_facts(result) for result in results], dtype=object)


def json_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The JSON text of every value, which tells 1 from 1.0, from true and from "1"; NaN where there is none."""
    return frame.apply(lambda column: column.map(json_text))


def json_text(value: Any) -> Any:
    """The JSON of a value; NaN stays what it is."""
    if isinstance(value, float) and value != value:
        return value
    try:
        return _json_of_scalar(value)
    except TypeError:  # a list or a mapping
        return ENCODE(value)


@lru_cache(maxsize=1 << 16, typed=True)
def _json_of_scalar(value: Any) -> str:
    """Thousands of results share a few values."""
    return ENCODE(value)


def _facts(result: Result) -> dict[str, Any]:
    facts: dict[str, Any] = {"run": result.name, "label": result.spec.label}
    for field in fields(result.spec):
        facts[field.name] = value = getattr(result.spec, field.name)
        if isinstance(value, Mapping):
            facts.update({f"{field.name}.{key}": item for key, item in value.items()})
    facts.update({f"conditions.{name}": value for name, value in result.conditions.items()})
    return {**facts, "commit": result.commit, "created": result.created}


def _hashable(value: Any) -> Any:
    return ENCODE(value) if isinstance(value, (Mapping, list, tuple)) else value
