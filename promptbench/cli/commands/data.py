"""`promptbench data`: see, check, download and sample the datasets."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from promptbench.cli.flags import add_json, add_list, integer
from promptbench.config import UsageError, path_of

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset
    from promptbench.data.get.status import Status
    from promptbench.suite import DatasetEntry

HELP = "see, check, download and sample the datasets"
EXAMPLE = "promptbench data status --suite clip11 --data-root /data"
SUITE = "clip11"
DIGITS = 12  # of a digest that is shown
NOTHING = "-"

Action = Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `status`, `check`, `prepare` and `sample` with their flags to the parser of `promptbench data`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    status = _action(actions, _status, "show what is there of each dataset", EXAMPLE, "*")
    status.add_argument("--suite", default=SUITE, metavar="S", help=f"without names: a suite's; default: {SUITE}")
    add_json(status)
    example = "promptbench data check dtd --deep --data-root /data"
    check = _action(actions, _check, "tell whether every image is there", example, "+")
    check.add_argument("--deep", action="store_true", help="open every image, too")
    example = "promptbench data prepare caltech101 eurosat --data-root /data"
    prepare = _action(actions, _prepare, "download datasets, or tell how to get them", example, "+")
    prepare.add_argument("--yes", action="store_true", help="do not ask before downloading and writing")
    example = "promptbench data sample eurosat --shots 16 --seed 1 --data-root /data"
    sample = _action(actions, _sample, "write a few-shot sample to a file", example, 1)
    sample.add_argument("--shots", type=integer(1), default=16, metavar="N", help="images per class; default: 16")
    sample.add_argument("--seed", type=integer(0), default=1, metavar="N", help="default: 1")
    sampler = "coop, stratified, longtail:RHO or noise:RATE; default: coop"
    sample.add_argument("--sampler", default="coop", metavar="S", help=sampler)
    classes = "whose images: all, or base for those that base-to-new trains on; default: all"
    sample.add_argument("--classes", default="all", choices=("all", "base"), metavar="C", help=classes)
    sample.add_argument("-o", "--output", metavar="FILE", help="ends in .jsonl; default: ./NAME-SHOTS-SEED.jsonl")


def execute(options: argparse.Namespace) -> int:
    """Does the action that was asked for and returns its exit code."""
    code: int = options.action(options)
    return code


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], act: Action, text: str, example: str, names: str | int
) -> argparse.ArgumentParser:
    """The parser of one action, named after its function."""
    name = act.__name__.strip("_")
    description = f"{text[0].upper()}{text[1:]}."
    action = actions.add_parser(name, help=text, description=description, epilog=f"Example: {example}")
    action.add_argument("names", nargs=names, metavar="NAME", help="a dataset, or folder:PATH for your own images")
    add_list(action, "--data-root", metavar="DIR", help="folders that hold the datasets; default: PROMPTBENCH_DATA")
    action.set_defaults(action=act)
    return action


def _status(options: argparse.Namespace) -> int:
    """Prints what is there of each dataset; the exit code is 0 whatever that is."""
    from promptbench.data.get.status import inspect
    from promptbench.suite import load_suite, parse_entry

    entries = [parse_entry(name) for name in options.names] or load_suite(options.suite).entries()
    with _quiet():
        states = [inspect(dataset) for dataset in _opened(entries, options.data_root)]
    if options.json:
        from promptbench.cli.as_json import data_stood, printed

        print(printed([data_stood(state) for state in states]))
        return 0
    print(_table(states))
    return 0


def _table(states: Sequence[Status]) -> str:
    """One line per dataset, and how many are complete."""
    from promptbench.cli.text import columns
    from promptbench.data.splits import SPLITS

    header = ("dataset", *SPLITS, "split", "split digest", "names digest", "found in", "missing")
    rows = []
    for state in states:
        counts = [_count(state, split) for split in SPLITS]
        missing = "; ".join(sentence.rstrip(".") for sentence in state.lacks) or "nothing"
        digests = (state.split_digest[:DIGITS] or NOTHING, state.names_digest[:DIGITS] or NOTHING)
        place = state.place or NOTHING
        rows.append((state.name, *counts, state.source or NOTHING, *digests, place, missing))
    complete = sum(state.complete for state in states)
    return f"{columns([header, *rows])}\n\n{complete} of {len(states)} datasets are complete"


def _count(state: Status, split: str) -> str:
    """`3,669/3,669`: images present and those there should be."""
    expected = state.expected[split] or state.sizes.get(split, 0)
    present = state.present.get(split)
    if present is None:
        return f"{NOTHING}/{expected:,}" if expected else NOTHING
    return f"{present:,}/{expected:,}" if expected or present else "none"


def _check(options: argparse.Namespace) -> int:
    """Prints what is wrong with each dataset; the exit code is 1 where there is anything."""
    from promptbench.data.get.status import check

    wrong = 0
    for dataset in _named(options.names, options.data_root):
        before = wrong
        with _quiet():
            for sentence in check(dataset, options.deep, _progress_of(dataset.name)):
                wrong += 1
                print(f"{dataset.name}: {sentence}")
        if wrong == before:
            print(f"{dataset.name}: complete{', every image can be opened' if options.deep else ''}")
    return 1 if wrong else 0


def _prepare(options: argparse.Namespace) -> int:
    """Downloads what the datasets lack; the exit code is 1 where one is still not complete."""
    from promptbench.data.dataset import data_roots
    from promptbench.data.get.prepare import check_writable, preparation, run
    from promptbench.data.get.status import inspect

    roots = data_roots(options.data_root)
    if len(roots) != 1:
        raise UsageError("`data prepare` writes below one data root; name it with --data-root.")
    with _quiet():
        datasets = _named(options.names, options.data_root)
        incomplete = [dataset for dataset in datasets if not inspect(dataset).complete]
    todo = [preparation(dataset.name, dataset.info, dataset.sources, roots[0]) for dataset in incomplete]
    fetches = []
    for one in todo:
        fetches += [f"{one.name}: {line}" for line in one.fetches()]
    if fetches:
        check_writable(roots[0])
        if not (options.yes or _agreed(fetches)):
            print("nothing was written")
            return 1
        for one in todo:
            for sentence in run(one):
                print(f"promptbench: {one.name}: {sentence}", file=sys.stderr)
    return _conclude(options.names, roots[0])


def _agreed(fetches: Sequence[str]) -> bool:
    """Shows what is to be fetched; True if the user says yes to it."""
    print("\n".join(fetches))
    if not sys.stdin.isatty():
        raise UsageError(f"To download and unpack these {len(fetches)} files, add --yes.")
    try:
        return input("Download and unpack these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _conclude(names: Sequence[str], root: Path) -> int:
    """Prints what there is now, and how to get the rest by hand; returns 1 where something is missing."""
    from promptbench.data.get.prepare import guide, preparation
    from promptbench.data.get.status import inspect

    code = 0
    for dataset in _named(names, [str(root)]):
        with _quiet():
            state = inspect(dataset)
        print(f"{dataset.name}: {'complete' if state.complete else '; '.join(state.lacks)}")
        if not state.complete:
            code = 1
            print("\n".join(guide(preparation(dataset.name, dataset.info, dataset.sources, root), root)))
    return code


def _sample(options: argparse.Namespace) -> int:
    """Writes a few-shot sample to a file."""
    from promptbench.data.selection import Trained, class_labels, digest, sampler_of, write_sample

    draw = sampler_of(options.sampler)
    (dataset,) = _named(options.names, options.data_root)
    what = {"dataset": dataset.name, "shots": options.shots, "seed": options.seed, "sampler": options.sampler}
    try:
        trained = class_labels(dataset, options.classes)
        items = draw(dataset.items("train"), options.shots, options.seed, Trained(trained))
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{dataset.name}: {error}") from error
    items = [item for item in items if item.label in trained]
    if not items:
        raise UsageError(f"The dataset {dataset.name!r} has no training images to sample.")
    what |= {} if options.classes == "all" else {"classes": options.classes}
    marked = "" if options.sampler == "coop" else f"-{options.sampler.replace(':', '-')}"
    path = path_of(options.output or f"{dataset.name}-{options.shots}-{options.seed}{marked}.jsonl")
    write_sample(path, {**what, "digest": digest(items), "split_digest": dataset.split_digest()}, items)
    classes = len({item.label for item in items})
    print(f"wrote {path}: {len(items):,} images of {classes:,} classes, digest {digest(items)}")
    return 0


def _named(names: Sequence[str], roots: Sequence[str] | None) -> list[Dataset]:
    """The datasets that the user named, each once."""
    from promptbench.suite import parse_entry

    return _opened([parse_entry(name) for name in names], roots)


def _opened(entries: Sequence[DatasetEntry], roots: Sequence[str] | None) -> list[Dataset]:
    """The datasets, each once; nothing of them is read yet."""
    from promptbench.data.dataset import open_dataset

    by_name = {entry.name: entry for entry in entries}
    return [open_dataset(entry.dataset, entry.options, roots, alias=name) for name, entry in by_name.items()]


def _progress_of(name: str) -> Callable[[int, int], None]:
    """A printer of how many images of a dataset were opened."""

    def tell(done: int, total: int) -> None:
        end = "\n" if done == total or not sys.stderr.isatty() else "\r"
        print(f"{name}: {done:,} of {total:,} images opened", end=end, file=sys.stderr, flush=True)

    return tell


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of reading a dataset: what they say stands in the output."""
    logger = logging.getLogger("promptbench.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
