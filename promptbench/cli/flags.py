"""The flags that say what to run, and what follows from them: a suite as the command line changes it, and a request."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from promptbench import registry
from promptbench.config import UsageError, nearest, parse_assignment
from promptbench.recipe import parse_label
from promptbench.runs.loggers import LOGGERS, check_installed
from promptbench.suite import Suite, load_suite
from promptbench.training.numerics import PRECISIONS, check_device, hold_to_bits, resolve_device

if TYPE_CHECKING:
    from promptbench.runs.request import Request
    from promptbench.runs.session import Session

OUTPUT = "promptbench-runs"
OF_RUNS = ("protocol", "dataset", "seeds", "shots", "backbone", "threads")
DEFAULTS = {**dict.fromkeys(OF_RUNS), "suite": "mini", "device": "auto", "sampler": ""}
DEFAULTS |= {"precision": "32", "deterministic": False}
OF_SUITE = ("backbone", "threads")  # flags that replace a field of the suite


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are errors like all others, and whose help has room for long flags."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"formatter_class": Help, **arguments})

    def error(self, message: str) -> NoReturn:
        """Raises what `main` turns into one line."""
        text = message.removeprefix("argument ").rstrip(".")
        raise UsageError(f"{text[0].upper()}{text[1:]}; see `{self.prog} --help`.")


class Help(argparse.HelpFormatter):
    """argparse's own layout with a wider column of flags and commands."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
        self._action_max_length = 15  # the length of a command's name, which argparse counts without its indent


def integer(least: int) -> Any:
    """A type of argparse: an integer of at least `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"takes integers from {least} on, not '{text}'")
        return value

    return convert


def add_list(parser: argparse.ArgumentParser, flag: str, **arguments: Any) -> None:
    """A flag that takes several values, and may be given several times."""
    parser.add_argument(flag, nargs="+", action="extend", **arguments)


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """`--plugin`."""
    add_list(parser, "--plugin", metavar="FILE", help="Python files with methods, datasets or protocols of your own")


def add_what(parser: argparse.ArgumentParser) -> None:
    """The flags that say what to run."""
    add_list(parser, "--method", metavar="M", help="methods, method@preset, or all; default: the suite's line-up")
    add_list(parser, "--protocol", metavar="P", help="protocols, or all; default: base2new")
    parser.add_argument("--suite", default=DEFAULTS["suite"], metavar="S", help="a name or a YAML file; default: mini")
    add_list(parser, "--dataset", metavar="D", help="instead of the suite's: names, or folder:PATH for your own images")
    add_list(parser, "--seeds", type=integer(0), metavar="N", help="default: the suite's")
    parser.add_argument("--data-seed", type=integer(0), metavar="N", help="draws the few-shot sample, whatever --seeds")
    parser.add_argument(
        "--train-seed", type=integer(0), metavar="N", help="draws initial values and order, whatever --seeds"
    )
    shots = "training images per class, several for few_shot alone; default: the suite's"
    parser.add_argument("--shots", nargs="+", type=integer(1), metavar="N", help=shots)
    parser.add_argument(
        "--sampler", default="", metavar="S", help="coop, stratified, or file:PATH of a stored sample; default: coop"
    )
    add_list(parser, "--set", metavar="M.FIELD=VALUE", help="a setting of a method, its recipe, or a dataset")
    parser.add_argument(
        "--train-views",
        type=integer(1),
        metavar="N",
        help="random views of a training image, drawn once and seen in turn; default: a new one every epoch",
    )
    parser.add_argument("--backbone", metavar="B", help="mini, or ARCHITECTURE:TAG_OR_FILE; default: the suite's")
    add_places(parser)
    parser.add_argument("--threads", type=integer(1), metavar="N", help="CPU threads of a run; default: the suite's")
    add_numerics(parser)
    add_plugin(parser)


def add_numerics(parser: argparse.ArgumentParser) -> None:
    """Where a run computes, and in what precision it trains."""
    parser.add_argument("--device", default=DEFAULTS["device"], metavar="D", help="cpu, cuda, cuda:N; default: auto")
    precision = f"of trainings: {', '.join(PRECISIONS)}; authors is what the papers ran; default: 32"
    parser.add_argument("--precision", default="32", choices=PRECISIONS, metavar="P", help=precision)
    deterministic = "hold torch to algorithms that always give the same bits, on a GPU too"
    parser.add_argument("--deterministic", action="store_true", help=deterministic)


def add_places(parser: argparse.ArgumentParser, output: str = f"./{OUTPUT}") -> None:
    """Where data are read and results written; `output` is said to be the default."""
    add_list(parser, "--data-root", metavar="DIR", help="folders that hold the datasets; default: PROMPTBENCH_DATA")
    parser.add_argument("--output", metavar="DIR", help=f"default: {output}")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """How images are read, what of them is kept, and who watches."""
    parser.add_argument("--save-predictions", action="store_true", help="keep the scores of every image evaluated")
    add_list(parser, "--logger", choices=tuple(LOGGERS), metavar="L", help=f"watch each run: {', '.join(LOGGERS)}")
    parser.add_argument(
        "--on-bad-image", default="error", choices=("error", "skip"), help="images that cannot be read; default: error"
    )


def session_of(options: argparse.Namespace, suite: Suite, output: str | Path, device: str) -> Session:
    """What the runs of a call share, from the flags of `add_places` and, where there are, `add_evaluation`."""
    from promptbench.data.dataset import data_roots
    from promptbench.runs.session import Session

    loggers = tuple(dict.fromkeys(getattr(options, "logger", None) or ()))
    check_installed(loggers)
    return Session(
        suite,
        Path(output),
        data_roots(options.data_root),
        device,
        save_predictions=getattr(options, "save_predictions", False),
        skip_unreadable=getattr(options, "on_bad_image", "error") == "skip",
        loggers=loggers,
    )


def request_of(options: argparse.Namespace, companions: bool = True) -> Request:
    """What the command line asks for, of a suite as it changes it.

    Args:
        options: What `add_what` parsed.
        companions: Whether the suite's companions run too.

    Raises:
        UsageError: On an unknown name, or a value out of its range.
    """
    from promptbench.runs.request import Request, labels

    device = resolve_device(options.device)
    check_device(options.precision, device)
    if options.deterministic:
        hold_to_bits(True)  # before anything is computed, and for the processes that follow
    suite = load_suite(options.suite)
    protocols = protocols_of(suite, options.protocol or ["base2new"])
    changes = {name: getattr(options, name) for name in OF_SUITE if getattr(options, name) is not None}
    suite = replace(suite, **changes, **shots_of(options.shots or [], protocols))
    for protocol in protocols if options.dataset else ():
        suite = suite.with_datasets(registry.load("protocols", protocol).role, options.dataset)
    suite, assignments = assign(suite, options.set or [])
    methods = labels(suite if companions else replace(suite, companions=()), options.method or ())
    assignments |= views_of(assignments, methods, getattr(options, "train_views", None))
    return Request(
        suite=suite,
        methods=methods,
        protocols=tuple(protocols),
        seeds=seed_pairs(options.seeds, suite.seeds, options.data_seed, options.train_seed),
        assignments=assignments,
        grid=grid_of(getattr(options, "points", None) or []),
        sampler=options.sampler,
        precision=options.precision,
        device=device,
        deterministic=options.deterministic,
        flags=frozenset(name for name, default in DEFAULTS.items() if getattr(options, name) != default),
    )


def shots_of(shots: Sequence[int], protocols: Iterable[str]) -> dict[str, Any]:
    """The fields of a suite that `--shots` replaces.

    Raises:
        UsageError: Several are given, and a protocol trains with one number of shots.
    """
    if not shots:
        return {}
    single = [name for name in protocols if not registry.load("protocols", name).several_shots]
    if len(shots) > 1 and single:
        raise UsageError(f"--shots takes one number for the protocol {single[0]}, not {' '.join(map(str, shots))}.")
    return {"few_shots": tuple(shots), "shots": shots[0]}


def protocols_of(suite: Suite, words: Iterable[str]) -> list[str]:
    """The protocols given, each once; `all` stands for those whose role the suite has."""
    had = [name for name in registry.names("protocols") if registry.load("protocols", name).role in suite.roles]
    return list(dict.fromkeys(name for word in words for name in (had if word == "all" else [word])))


def assign(suite: Suite, texts: Sequence[str]) -> tuple[Suite, dict[str, dict[str, Any]]]:
    """`--set` words by method; those that name a dataset of the suite change that dataset's options."""
    by_method: dict[str, dict[str, Any]] = {}
    datasets = {entry.name for entry in suite.entries()}
    for text in texts:
        path, value = parse_assignment(text)
        if len(path) != 2:
            raise UsageError(f"--set {text}: write method.field=value, for instance coop.n_ctx=4.")
        owner, name = path
        if owner not in datasets:
            by_method.setdefault(owner, {})[name] = value
            continue
        roles = {
            role: tuple(
                replace(entry, options={**entry.options, name: value}) if entry.name == owner else entry
                for entry in entries
            )
            for role, entries in suite.roles.items()
        }
        suite = replace(suite, roles=roles)
    return suite, by_method


def views_of(
    assignments: Mapping[str, Mapping[str, Any]], methods: Iterable[str], views: int | None
) -> dict[str, dict[str, Any]]:
    """The assignments of every method that trains, with so many views; its own `--set` goes first."""
    names = dict.fromkeys(parse_label(label)[0] for label in methods) if views else {}
    trained = [name for name in names if registry.load("methods", name).trains]
    return {name: {"train_views": views, **assignments.get(name, {})} for name in trained}


def grid_of(texts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """`["maple.depth=1,3", "maple.n_ctx=2,4"]` as every combination, by method.

    Raises:
        UsageError: On a text that is no `METHOD.FIELD=V,V`.
    """
    values: dict[str, dict[str, list[Any]]] = {}
    for text in texts:
        path, _ = parse_assignment(text)
        _, listed = parse_assignment(f"{text.partition('=')[0]}=[{text.partition('=')[2]}]")
        if len(path) != 2 or not isinstance(listed, list) or not listed:
            raise UsageError(f"--grid {text}: write method.field=value,value, for instance maple.depth=1,3,6.")
        values.setdefault(path[0], {})[path[1]] = listed
    return {
        method: [dict(zip(fields, point, strict=True)) for point in itertools.product(*fields.values())]
        for method, fields in values.items()
    }


def seed_pairs(
    given: Sequence[int] | None, default: Sequence[int], data: int | None, train: int | None
) -> tuple[tuple[int, int], ...]:
    """(data seed, training seed) of each run; a seed given on its own stays fixed."""
    seeds = given or default
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds takes different integers, not {' '.join(map(str, seeds))}.")
    return tuple(dict.fromkeys((seed if data is None else data, seed if train is None else train) for seed in seeds))


def known_command(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Raises UsageError where the first word is neither a command nor a flag; argparse would offer no nearest one."""
    if not arguments:
        raise UsageError(f"Name a command: {', '.join(commands)}; see `promptbench --help`.")
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UsageError(
            f"Unknown command '{arguments[0]}'.{nearest(arguments[0], commands) or ' See `promptbench --help`.'}"
        )
