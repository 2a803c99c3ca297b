"""The flags that say what to run, and what follows from them: a suite as the command line changes it, and a request."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from promptbench import registry
from promptbench.config import UsageError, nearest, parse_assignment
from promptbench.suite import Suite, load_suite

if TYPE_CHECKING:
    from promptbench.planning import Request

OUTPUT = "promptbench-runs"
OF_RUNS = ("protocol", "dataset", "seeds", "shots", "backbone", "threads")
DEFAULTS = {**dict.fromkeys(OF_RUNS), "suite": "mini", "device": "auto"}
OF_SUITE = ("shots", "backbone", "threads")  # flags that replace a field of the suite


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
    add_list(parser, "--plugin", metavar="FILE", help="Python files with methods of your own")


def add_what(parser: argparse.ArgumentParser) -> None:
    """The flags that say what to run."""
    add_list(parser, "--method", required=True, metavar="M", help="methods, method@preset, or all")
    add_list(parser, "--protocol", metavar="P", help="protocols, or all; default: base2new")
    parser.add_argument("--suite", default=DEFAULTS["suite"], metavar="S", help="a name or a YAML file; default: mini")
    add_list(parser, "--dataset", metavar="D", help="instead of the suite's: names, or folder:PATH for your own images")
    add_list(parser, "--seeds", type=integer(0), metavar="N", help="default: the suite's")
    parser.add_argument("--data-seed", type=integer(0), metavar="N", help="draws the few-shot sample, whatever --seeds")
    parser.add_argument(
        "--train-seed", type=integer(0), metavar="N", help="draws initial values and order, whatever --seeds"
    )
    parser.add_argument("--shots", type=integer(1), metavar="N", help="training images per class; default: the suite's")
    add_list(parser, "--set", metavar="M.FIELD=VALUE", help="a setting of a method, its recipe, or a dataset")
    parser.add_argument("--backbone", metavar="B", help="mini, or ARCHITECTURE:TAG_OR_FILE; default: the suite's")
    add_list(parser, "--data-root", metavar="DIR", help="folders that hold the datasets; default: PROMPTBENCH_DATA")
    parser.add_argument("--output", default=OUTPUT, metavar="DIR", help=f"default: ./{OUTPUT}")
    parser.add_argument("--threads", type=integer(1), metavar="N", help="CPU threads of a run; default: the suite's")
    parser.add_argument("--device", default=DEFAULTS["device"], choices=("auto", "cpu", "cuda"), help="default: auto")
    add_plugin(parser)


def request_of(options: argparse.Namespace, companions: bool = True) -> Request:
    """What the command line asks for, of a suite as it changes it.

    Args:
        options: What `add_what` parsed.
        companions: Whether the suite's companions run too.

    Raises:
        UsageError: On an unknown name, or a value out of its range.
    """
    from promptbench.planning import Request, labels

    suite = load_suite(options.suite)
    protocols = every("protocols", options.protocol or ["base2new"])
    changes = {name: getattr(options, name) for name in OF_SUITE if getattr(options, name) is not None}
    suite = replace(suite, **changes)
    for protocol in protocols if options.dataset else ():
        suite = suite.with_datasets(registry.load("protocols", protocol).role, options.dataset)
    suite, assignments = assign(suite, options.set or [])
    return Request(
        suite=suite,
        methods=labels(suite if companions else replace(suite, companions=()), options.method),
        protocols=tuple(protocols),
        seeds=seed_pairs(options.seeds, suite.seeds, options.data_seed, options.train_seed),
        assignments=assignments,
        device=resolve_device(options.device),
        flags=frozenset(name for name, default in DEFAULTS.items() if getattr(options, name) != default),
    )


def every(kind: str, words: Iterable[str]) -> list[str]:
    """The names given, each once; `all` stands for every name of the kind."""
    return list(dict.fromkeys(name for word in words for name in (registry.names(kind) if word == "all" else [word])))


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


def seed_pairs(
    given: Sequence[int] | None, default: Sequence[int], data: int | None, train: int | None
) -> tuple[tuple[int, int], ...]:
    """(data seed, training seed) of each run; a seed given on its own stays fixed."""
    seeds = given or default
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds takes different integers, not {' '.join(map(str, seeds))}.")
    return tuple(dict.fromkeys((seed if data is None else data, seed if train is None else train) for seed in seeds))


def resolve_device(wanted: str) -> str:
    """`cpu` or `cuda`."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def known_command(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Raises UsageError where the first word is neither a command nor a flag; argparse would offer no nearest one."""
    if not arguments:
        raise UsageError(f"Name a command: {', '.join(commands)}; see `promptbench --help`.")
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UsageError(
            f"Unknown command '{arguments[0]}'.{nearest(arguments[0], commands) or ' See `promptbench --help`.'}"
        )
