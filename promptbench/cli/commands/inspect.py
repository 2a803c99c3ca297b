"""`promptbench inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from promptbench.cli.flags import add_run, integer, run_of
from promptbench.config import UsageError

if TYPE_CHECKING:
    from promptbench.results.predictions import Predictions

HELP = "show accuracy per class and the classes most confused, of a run with stored predictions"
EXAMPLE = "promptbench inspect --run coop-0123 --top 5"

Row = Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench inspect` to its parser."""
    add_run(parser, "a result made with --save-predictions")
    parser.add_argument("--top", type=integer(1), default=10, metavar="N", help="lines of each list; default: 10")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench inspect`: a block per evaluation whose images have classes."""
    from promptbench.cli.text import columns
    from promptbench.results.command import command_text
    from promptbench.results.predictions import load_predictions
    from promptbench.results.result import find_predictions, folder_of, read_result

    found = run_of(options, needs="predictions")
    result = read_result(found)
    path = find_predictions(folder_of(found), result.spec)
    if path is None:
        again = command_text(result, "", "--save-predictions")
        raise UsageError(f"The predictions of {found} were not kept; make it again and name the new result: {again}")
    kept = load_predictions(path)
    for name, predictions in kept.items():
        if bool((predictions.labels >= 0).all()):
            print(f"{name}, {len(predictions.images)} images, {len(predictions.class_names)} classes\n")
            print(columns([("class", "images", "accuracy"), *worst_classes(predictions, options.top)], indent="  "))
            confused = list(most_confused(predictions, options.top))
            if confused:
                print("\n" + columns([("class", "taken for", "images"), *confused], indent="  "))
            print()
    return 0


def worst_classes(predictions: Predictions, top: int) -> Iterator[Row]:
    """The classes with the lowest accuracy, in percent, with how many images they have."""
    from promptbench.metrics.classification import per_class_accuracy

    found = per_class_accuracy(predictions.logits, predictions.labels, len(predictions.class_names))
    known = sorted((value, label) for label, value in enumerate(found) if value is not None)
    for value, label in known[:top]:
        yield predictions.class_names[label], str(int((predictions.labels == label).sum())), f"{value:.1f}"


def most_confused(predictions: Predictions, top: int) -> Iterator[Row]:
    """The pairs of classes with the most images of the first taken for the second."""
    from promptbench.metrics.classification import confusion

    names = predictions.class_names
    counts = confusion(predictions.logits, predictions.labels, len(names)).fill_diagonal_(0)
    values, places = counts.flatten().topk(min(top, counts.numel()))
    for count, place in zip(values.tolist(), places.tolist(), strict=True):
        if count:
            yield names[place // len(names)], names[place % len(names)], str(count)
