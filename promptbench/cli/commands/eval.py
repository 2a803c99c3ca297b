"""`promptbench eval`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.cli.flags import (
    OUTPUT,
    add_corrupt,
    add_evaluation,
    add_list,
    add_places,
    add_plugin,
    add_run,
    place_of,
    run_of,
)
from promptbench.config import UsageError, path_of
from promptbench.training.numerics import resolve_device

if TYPE_CHECKING:
    from promptbench.results.result import Result

TRAININGS = "trainings"  # in a folder that `run` wrote to
PUBLISHED = ("learned", "regenerate.yaml")  # in one that others are to read

HELP = "evaluate the stored training of a run under other protocols"
EXAMPLE = "promptbench eval --run coop-0123 --protocol ood"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench eval` to its parser."""
    add_run(parser, "a result")
    add_list(parser, "--protocol", required=True, metavar="P", help="protocols, or all")
    parser.add_argument("--suite", metavar="S", help="a name or a YAML file; default: the run's")
    add_corrupt(parser)
    add_places(parser, f"where the run is; of a published folder ./{OUTPUT}")
    add_evaluation(parser)
    add_plugin(parser)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench eval`; returns the exit code, 1 where an evaluation failed."""
    from promptbench.cli.progress import Display, print_results
    from promptbench.experiment import do
    from promptbench.results.result import read_result
    from promptbench.runs.reevaluate import evaluations_of, suite_of
    from promptbench.runs.request import corruptions_for, protocols_of
    from promptbench.runs.session import Session
    from promptbench.suite import load_suite

    path = run_of(options)
    result = read_result(path)
    try:
        device = resolve_device(result.spec.device)
    except UsageError as error:
        raise UsageError(
            f"{path} was trained on {result.spec.device}, which is not here, and is evaluated where it was "
            "trained; `promptbench predict` scores images with it on a CPU."
        ) from error
    suite = suite_of(load_suite(options.suite or result.spec.suite), result.spec)
    protocols = protocols_of(suite, options.protocol)
    corruptions = corruptions_for(options.corrupt or (), protocols)
    suite = replace(suite, corruptions=tuple(map(str, corruptions)) or suite.corruptions)
    corruption = corruptions[0] if corruptions else None
    how = {"corruption": corruption, "temperature": options.temperature, "limit": options.limit}
    runs = evaluations_of(result, protocols, suite, **how)
    output, learned = places_of(path, options.output, result)
    session = Session(place_of(options, output, device, may_train=False, learned=learned), suite)
    return print_results(partial(do, runs, session, Display()), session.suite, session.place.named)


def places_of(path: str, wanted: str | None, result: Result) -> tuple[str | Path, tuple[str, Path] | None]:
    """The folder that evaluations are written to, and what was learned where `run` has not kept it there itself.

    Nothing is written unasked into a folder that was published: one without trainings, which keeps what was learned
    beside results, or says how tables are made of them.

    Args:
        path: Of the result.
        wanted: The folder that was asked for, if any.
        result: The same, read.

    Raises:
        UsageError: What the run learned is nowhere.
    """
    from promptbench.checkpoints.load import training_of
    from promptbench.results.result import folder_of, learned_path

    folder = folder_of(path)
    published = not (folder / TRAININGS).is_dir() and any((folder / name).exists() for name in PUBLISHED)
    if published and not wanted:
        print(f"promptbench: {path} is in a published folder; results go to {OUTPUT}", file=sys.stderr)
    output = wanted or (OUTPUT if published else folder)
    key = str(result.conditions.get("training_key") or "")
    if not key or (path_of(output) / TRAININGS / f"{key[:32]}.safetensors").is_file():
        return output, None
    training = training_of(path, result)
    return output, (key, training) if training == learned_path(folder, result.spec) else None
