"""The flags that several commands have, and what they say as plain Python values."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from promptbench.config import LARGEST, UsageError, nearest, parse_assignment, path_of, text_of, unknown
from promptbench.runs.listener import LOGGERS, check_installed
from promptbench.training.numerics import PRECISIONS

if TYPE_CHECKING:
    from argparse import _ActionsContainer as Flags  # a parser, or a group of its flags

    from promptbench.results.named import Needs
    from promptbench.runs.request import Request
    from promptbench.runs.session import Place, Session
    from promptbench.show.tables.show import Question
    from promptbench.suite import Suite

OUTPUT = "promptbench-runs"
PROTOCOL = "base2new"  # where none is named
LOCAL = "local"  # the executor of this machine
FORMATS = ("md", "csv", "csv-long", "latex", "html", "json")
SHORT = "its file, the beginning of its name such as coop-22b7, or latest"
LAYOUTS = ("paper", "plain")
MANY_FLAGS = 10
SAID = "what is said"  # the group of flags that all commands have


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are errors like all others, whose help has room for long flags, and that guesses nothing.

    A beginning of a flag is none: what it would mean changes with every flag that is added.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"formatter_class": Help, "allow_abbrev": False, **arguments})
        add_said(self)

    def format_help(self) -> str:
        """As argparse's, with the flags that all commands have at the end."""
        self._action_groups.sort(key=lambda group: group.title == SAID)
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but what is left over is an error here, where the flags that it may have meant are known.

        Raises:
            UsageError: A word is neither a flag nor the value of one.
        """
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            flag = left[0].partition("=")[0]
            raise UsageError(
                f"There is no {flag} here; see `{self.prog} --help`.{nearest(flag, self._option_string_actions)}"
            )
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """Raises what `main` turns into one line."""
        text = message.removeprefix("argument ").rstrip(".")
        raise UsageError(f"{text[0].upper()}{text[1:]}; see `{self.prog} --help`.")


class Help(argparse.HelpFormatter):
    """argparse's own layout with a wider column of flags and commands, and a usage that is no list of many flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
        self._action_max_length = 15  # the length of a command's name, which argparse counts without its indent

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        """The usage; of a command with many flags their place alone, for they are listed below it."""
        actions = [action for action in actions if action.container.title != SAID]
        flags = [action for action in actions if action.option_strings]
        if usage is None and len(flags) > MANY_FLAGS:
            others = [str(action.metavar) for action in actions if not action.option_strings]
            usage = " ".join(["%(prog)s", *others, "[FLAG ...]"])
        super().add_usage(usage, actions, groups, prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """A text of several lines as it is, such as a list; others wrapped."""
        return text if "\n" in text else super()._fill_text(text, width, indent)


def add_said(parser: argparse.ArgumentParser) -> None:
    """What a command says of its work, on standard error: the same flags for all; `main` obeys them."""
    group = parser.add_argument_group(SAID)
    facts: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}  # kept where two parsers have them
    group.add_argument("--quiet", help="say results and what is wrong, no progress and no warnings", **facts)
    group.add_argument("--verbose", help="say what is read and written, and where a failed run stopped", **facts)
    log_file = "append all that is said, with times, to a file; draw no bars"
    group.add_argument("--log-file", default=argparse.SUPPRESS, metavar="FILE", help=log_file)


def integer(least: int) -> Any:
    """A type of argparse: an integer of at least `least`, in 64 bits."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"takes integers from {least} on, not '{text}'")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"takes integers up to {LARGEST}, not '{text}'")
        return value

    return convert


def from_zero(of: str) -> Any:
    """A type of argparse: a number from 0 on.

    Args:
        of: What it counts, in the plural.
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"takes a number of {of} from 0 on, not '{text}'")
        return value

    return convert


def add_jobs(parser: Flags, help: str) -> None:
    """The flag that says how many runs go at once."""
    several = integer(1)

    def convert(text: str) -> int | None:
        return None if text == "auto" else several(text)

    parser.add_argument("--jobs", type=convert, metavar="N", help=help)


def add_list(parser: Flags, flag: str, **arguments: Any) -> None:
    """A flag that takes several values, and may be given several times; methods and datasets also in the plural."""
    flags = (flag, f"{flag}s") if flag in ("--method", "--dataset") else (flag,)
    parser.add_argument(*flags, nargs="+", action="extend", **arguments)


def add_json(parser: Flags) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs; keys are stable")


def add_plugin(parser: Flags) -> None:
    """`--plugin`."""
    add_list(
        parser, "--plugin", metavar="FILE", help="Python files with methods, datasets, protocols or scores of your own"
    )


def add_what(parser: argparse.ArgumentParser) -> None:
    """The flags that say what to run, with which settings, where, in groups."""
    what = parser.add_argument_group("what to run")
    methods = "methods, method@preset, or all; default: the suite's line-up"
    add_list(what, "--method", metavar="M", help=methods)
    protocols = "protocols, or all; default: base2new; of images of your own (folder:PATH) all classes"
    add_list(what, "--protocol", metavar="P", help=protocols)
    what.add_argument("--suite", default="mini", metavar="S", help="a name or a YAML file; default: mini")
    add_list(what, "--dataset", metavar="D", help="instead of the suite's: names, or folder:PATH for your own images")
    what.add_argument("--backbone", metavar="B", help="mini, or ARCHITECTURE:TAG_OR_FILE; default: the suite's")
    add_plugin(what)
    _add_sample(parser.add_argument_group("which images and classes"))
    settings = parser.add_argument_group("settings")
    assigned = "of a method, its recipe, a dataset or a score; FIELD=VALUE: of all methods that have it"
    add_list(settings, "--set", metavar="M.FIELD=VALUE", help=assigned)
    views = "random views of a training image, drawn once and seen in turn; default: a new one every epoch"
    settings.add_argument("--train-views", type=integer(1), metavar="N", help=views)
    score = "scores of images besides those of protocols that have some, such as ood"
    add_list(settings, "--score", metavar="S", help=score)
    add_places(parser.add_argument_group("where"))
    machine = parser.add_argument_group("how it is computed")
    machine.add_argument("--threads", type=integer(1), metavar="N", help="CPU threads of a run; default: the suite's")
    add_numerics(machine)


def _add_sample(group: Flags) -> None:
    """Seeds, shots, and how images are drawn and classes halved."""
    add_list(group, "--seeds", type=integer(0), metavar="N", help="default: the suite's")
    group.add_argument("--data-seed", type=integer(0), metavar="N", help="draws the few-shot sample, whatever --seeds")
    train_seed = "draws initial values and order, whatever --seeds"
    group.add_argument("--train-seed", type=integer(0), metavar="N", help=train_seed)
    shots = "training images per class, several for few_shot alone; default: the suite's"
    group.add_argument("--shots", nargs="+", type=integer(1), metavar="N", help=shots)
    sampler = "coop, stratified, longtail:RHO, noise:RATE[:confusable], or file:PATH of a stored sample; default: coop"
    group.add_argument("--sampler", default="", metavar="S", help=sampler)
    split = "halves of the classes in base2new: alphabetical, random:N; several run one after another"
    add_list(group, "--split", metavar="S", help=f"{split}; default: the suite's")


def add_numerics(group: Flags) -> None:
    """Where a run computes, and in what precision it trains."""
    group.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, cuda:N; default: auto")
    precision = f"of trainings: {', '.join(PRECISIONS)}; authors is what the papers ran; default: 32"
    group.add_argument("--precision", default="32", choices=PRECISIONS, metavar="P", help=precision)
    deterministic = "hold torch to algorithms that always give the same bits, on a GPU too"
    group.add_argument("--deterministic", action="store_true", help=deterministic)


def add_places(group: Flags, output: str = f"./{OUTPUT}") -> None:
    """Where data are read and results written; `output` is said to be the default."""
    add_list(group, "--data-root", metavar="DIR", help="folders that hold the datasets; default: PROMPTBENCH_DATA")
    group.add_argument("--output", metavar="DIR", help=f"default: {output}")


def add_corrupt(group: Flags) -> None:
    """`--corrupt`."""
    said = "corrupt the images evaluated, such as fog:3, several for robustness alone; never those trained on"
    add_list(group, "--corrupt", metavar="KIND:SEVERITY", help=said)


def add_evaluation(group: Flags) -> None:
    """How images are read, what of them is kept, and who watches."""
    group.add_argument("--save-predictions", action="store_true", help="keep the scores of every image evaluated")
    temperature = "fit one on at most 4 validation images of each trained class; measure calibration after it, too"
    group.add_argument("--temperature", action="store_true", help=temperature)
    limit = "at most N images of each split evaluated, spread over its classes, for a quick look; no table mixes them"
    group.add_argument("--limit", type=integer(1), metavar="N", help=limit)
    add_list(group, "--logger", choices=tuple(LOGGERS), metavar="L", help=f"watch each run: {', '.join(LOGGERS)}")
    group.add_argument(
        "--on-bad-image", default="error", choices=("error", "skip"), help="images that cannot be read; default: error"
    )


def place_of(
    options: argparse.Namespace,
    output: str | Path,
    device: str,
    may_train: bool = True,
    learned: tuple[str, Path] | None = None,
) -> Place:
    """Where runs read and write, from the flags of `add_places` and, where there are, `add_evaluation`; for the others
    see `Place`."""
    from promptbench.data.dataset import data_roots
    from promptbench.runs.session import Place

    loggers = tuple(dict.fromkeys(getattr(options, "logger", None) or ()))
    check_installed(loggers)
    return Place(
        path_of(output),
        data_roots(options.data_root),
        device,
        save_predictions=getattr(options, "save_predictions", False),
        may_train=may_train,
        skip_unreadable=getattr(options, "on_bad_image", "error") == "skip",
        loggers=loggers,
        learned=learned,
    )


def session_of(options: argparse.Namespace, suite: Suite, output: str | Path, device: str) -> Session:
    """What the runs of a call share, from the flags that say where they read and write."""
    from promptbench.runs.session import Session

    return Session(place_of(options, output, device), suite)


def request_of(options: argparse.Namespace, companions: bool = True) -> Request:
    """What the command line asks for.

    Args:
        options: What `add_what` parsed.
        companions: Whether the suite's companions run too.

    Raises:
        UsageError: On an unknown name, or a value out of its range.
    """
    from promptbench.runs.request import Request

    return Request.of(
        methods=options.method or (),
        protocol=options.protocol or (),
        suite=options.suite,
        datasets=options.dataset or (),
        seeds=options.seeds or (),
        data_seed=options.data_seed,
        train_seed=options.train_seed,
        shots=options.shots or (),
        sampler=options.sampler,
        split=options.split or (),
        corrupt=getattr(options, "corrupt", None) or (),
        settings=settings_of(options.set or ()),
        grid=grid_of(getattr(options, "points", None) or (), options.method or ()),
        scores=options.score or (),
        train_views=options.train_views,
        backbone=options.backbone,
        threads=options.threads,
        device=options.device,
        precision=options.precision,
        deterministic=options.deterministic,
        temperature=getattr(options, "temperature", False),
        limit=getattr(options, "limit", None),
        companions=companions,
        elsewhere=getattr(options, "executor", LOCAL) != LOCAL,
    )


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """`["coop.n_ctx=4"]` as `{"coop.n_ctx": 4}`."""
    settings = {}
    for text in texts:
        path, value = parse_assignment(text)
        settings[".".join(path)] = value
    return settings


def grid_of(texts: Sequence[str], methods: Sequence[str] = ()) -> dict[str, list[Any]]:
    """`["maple.depth=1,3"]` as `{"maple.depth": [1, 3]}`.

    Args:
        texts: As they were typed; where one method is named, its fields need not say whose they are.
        methods: Those that are named.

    Raises:
        UsageError: On a text that lists no values, or does not say whose they are.
    """
    values = {}
    for text in texts:
        name, _, right = text.partition("=")
        path, _ = parse_assignment(text)
        _, listed = parse_assignment(f"{name}=[{right}]")
        if not isinstance(listed, list) or any(isinstance(value, dict) for value in listed):
            parts = [part.strip() for part in right.split(",")]  # such as templates, whose braces mean text
            if not all(parts):
                raise UsageError(f"--grid {text}: write method.field=value,value, for instance maple.depth=1,3,6.")
            listed = [parse_assignment(f"{name}={part}")[1] for part in parts]
        if len(path) == 1 and methods:
            if len(set(methods)) > 1 or "all" in methods:
                first = next((name for name in methods if name != "all"), "method")
                raise UsageError(f"--grid {text}: several methods run; say whose it is, as in {first}.{text}.")
            path = (methods[0], *path)
        values[".".join(path)] = listed
    return values


def add_tables(parser: argparse.ArgumentParser) -> None:
    """The flags that say which tables of stored results to print, and how."""
    add_list(parser, "--protocol", metavar="P", help="protocols, or all; default: base2new")
    add_list(parser, "--method", metavar="M", help="only these, in this order, and the suite's companions")
    add_list(parser, "--dataset", metavar="D", help="only these, in this order")
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    parser.add_argument("--metric", default="", metavar="X", help="what to show, such as ece; default: the protocol's")
    parser.add_argument(
        "--group-by", default="", metavar="SETTING", help="a row for each of its values: maple.depth, epochs"
    )
    parser.add_argument("--sort", default="", metavar="COLUMN", help="methods by a column, best first")
    parser.add_argument("--delta", default="", metavar="ROW", help="add the differences to this method or row")
    parser.add_argument(
        "--test", default="", metavar="ROW", help="test every other row against this one, exactly, over datasets"
    )
    parser.add_argument("--column", default="", metavar="C", help="what --test compares, such as new; default: H")
    parser.add_argument("--per-seed", action="store_true", help="a line per seed instead of the mean")
    parser.add_argument("--with-published", action="store_true", help="papers' figures beside ours, and verdicts")
    selection = "only rows whose settings were chosen so: none, pseudo-new classes, few-shot validation, ..."
    parser.add_argument("--selection", default="", metavar="KIND", help=selection)
    parser.add_argument("--cost", action="store_true", help="parameters, seconds, milliseconds an image and memory too")
    companions = "leave out the suite's companions, such as its zero-shot rows, but those named"
    parser.add_argument("--no-companions", action="store_true", help=companions)
    means = "leave out the mean of the datasets' H, which stands beside the H of averages"
    parser.add_argument("--no-means", action="store_true", help=means)
    parser.add_argument("--averages", action="store_true", help="only the lines that sum a table up")
    appendix = "add the recipe of every row: epochs, lr, batch, origin, how it was chosen and in how many trials"
    parser.add_argument("--appendix", action="store_true", help=appendix)
    add_anonymous(parser)
    parser.add_argument("--format", default="md", metavar="F", help=f"{', '.join(FORMATS)}; default: md")
    parser.add_argument(
        "--layout",
        default=LAYOUTS[0],
        metavar="L",
        help="of LaTeX: paper (as wide as the page) or plain; default: paper",
    )
    columns = "of the page that LaTeX is for: one or two; default: one"
    parser.add_argument("--columns", default="one", metavar="N", help=columns)
    parser.add_argument("--cite", action="store_true", help="LaTeX: cite the methods' papers")
    parser.add_argument("--bib", metavar="FILE", help="write the BibTeX entries of the methods shown")


def add_anonymous(parser: Flags) -> None:
    """`--anonymous`."""
    said = "for a blind review: no hosts, users, commits and paths"
    parser.add_argument("--anonymous", action="store_true", help=said)


def question_of(options: argparse.Namespace) -> Question:
    """What tables are asked for, from the flags of `add_tables`.

    Raises:
        UsageError: A name is not known, or flags do not go together.
    """
    from promptbench.show.tables.show import Question, View

    if options.layout not in LAYOUTS:
        raise unknown("layout", options.layout, LAYOUTS)
    view = View(
        format=options.format,
        metric=options.metric,
        group_by=options.group_by,
        per_seed=options.per_seed,
        sort=options.sort,
        delta=options.delta,
        test=options.test,
        column=options.column,
        published=options.with_published,
        selection=options.selection,
        cost=options.cost,
        plain=options.layout == "plain",
        cite=options.cite,
        columns=options.columns,
        companions=not options.no_companions,
        means=not options.no_means,
        averages=options.averages,
        appendix=options.appendix,
        anonymous=options.anonymous,
    )
    return Question(
        places=options.results or [OUTPUT],
        protocols=options.protocol or (PROTOCOL,),
        methods=options.method or (),
        datasets=options.dataset or (),
        view=view,
    )


def add_asked(parser: argparse.ArgumentParser) -> None:
    """The flags that say which stored results a page of evidence is about."""
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    add_list(parser, "--method", metavar="M", help="only these, in this order")
    add_list(parser, "--dataset", metavar="D", help="only these, in this order")


def asked_of(options: argparse.Namespace) -> Question:
    """Which stored results a page is about, from the flags of `add_asked`."""
    from promptbench.show.tables.show import Question

    places = options.results or [OUTPUT]
    return Question(places=places, protocols=(), methods=options.method or (), datasets=options.dataset or ())


def add_picture(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is drawn."""
    parser.add_argument("--protocol", default="", metavar="P", help="default: the kind's")
    add_list(parser, "--method", metavar="M", help="only these, in this order, and the suite's companions")
    add_list(parser, "--dataset", metavar="D", help="only these, in this order")
    add_list(parser, "--results", metavar="DIR", help=f"folders that `run` wrote to, or files; default: ./{OUTPUT}")
    parser.add_argument("--column", default="", metavar="C", help="of the protocol's table, such as new; default: H")
    parser.add_argument(
        "--baseline", default="", metavar="M", help="gain, heatmap: default: the suite's first companion"
    )
    add_list(parser, "--field", metavar="M.FIELD", help="ablation: the setting along the curve; several run together")
    parser.add_argument("--score", default="", metavar="S", help="ood: mcm, gl_mcm, ...; default: mcm")
    parser.add_argument("--run", metavar="RESULT", help=f"heatmap: a trained method's result: {SHORT}")
    parser.add_argument(
        "--image", default="", metavar="FILE", help="heatmap: default: a test image of the run's dataset"
    )
    parser.add_argument("--class", default="", dest="class_name", metavar="NAME", help="heatmap: default: the one seen")
    by_dataset = "shots: a panel for each dataset, beside that of the average"
    parser.add_argument("--by-dataset", action="store_true", help=by_dataset)
    parser.add_argument("--from", dest="stored", metavar="FILE", help="draw the .json that --data wrote, not results")
    how = parser.add_argument_group("how it looks")
    width = "column (3.3 inches), page (6.9), or inches; default: column"
    how.add_argument("--width", type=_width, default=None, metavar="W", help=width)
    add_list(how, "--highlight", metavar="M", help="these in their colours, the others in grey")
    how.add_argument("--caption", action="store_true", help="write the caption below the picture, not only here")


def _width(text: str) -> float:
    """A width in inches, as a type of argparse."""
    from promptbench.show.plots.picture import NARROWEST, WIDEST, WIDTHS

    try:
        inches = WIDTHS[text] if text in WIDTHS else float(text)
    except ValueError:
        inches = 0.0
    if not NARROWEST <= inches <= WIDEST:
        raise argparse.ArgumentTypeError(
            f"takes {', '.join(WIDTHS)}, or {NARROWEST:g} to {WIDEST:g} inches, not '{text}'"
        )
    return inches


def picture_of(options: argparse.Namespace) -> dict[str, Any]:
    """The data of a picture, from the flags of `add_picture` and its kind."""
    from promptbench.show.plots.picture import read_data, with_look

    data = read_data(path_of(options.stored), options.kind) if options.stored else _data_of(options)
    return with_look(data, options.width, options.highlight or (), options.caption)


def _data_of(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a picture, from stored results."""
    from promptbench.registry import names
    from promptbench.show.plots.picture import module_of
    from promptbench.show.plots.source import Source, read_source

    module = module_of(options.kind)
    asked = ("column", "baseline", "score", "image", "class_name", "by_dataset")
    details = {name: getattr(options, name) for name in asked}
    if module.PROTOCOL:
        protocol = options.protocol or module.PROTOCOL
        if protocol not in names("protocols"):
            raise unknown("protocol", protocol, names("protocols"))
        details["fields"] = tuple(options.field or ())
        places = options.results or [OUTPUT]
        source = read_source(places, protocol, options.method or (), options.dataset or (), **details)
    elif options.run:
        source = Source(places=(path_of(run_of(options)),), **details)
    else:
        raise UsageError(f"A {options.kind} shows one trained method; name its result with --run.")
    data: dict[str, Any] = module.data(source)
    return data


def add_run(parser: argparse.ArgumentParser, said: str) -> None:
    """`--run`, and the folders that short names of results are looked up in."""
    parser.add_argument("--run", required=True, metavar="RESULT", help=f"{said}: {SHORT}")
    folders = f"where short names of --run are looked up; default: ./{OUTPUT}"
    # one a flag: a list would swallow the images behind it
    parser.add_argument("--results", action="append", metavar="DIR", help=folders)


def run_of(options: argparse.Namespace, needs: Needs = "training") -> str:
    """The path that `--run` names; what a short name stands for is said.

    Raises:
        UsageError: No result is called so, or several are.
    """
    from promptbench.results.named import find_run

    found = find_run(options.run, options.results or [OUTPUT], needs)
    if found != options.run:
        print(f"promptbench: --run {options.run} is {found}", file=sys.stderr)
    return found


def add_trained(parser: argparse.ArgumentParser) -> None:
    """What to load, and the classes to score."""
    add_run(parser, "a training (.safetensors), an exported folder, hf://user/name, or a result")
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument(
        "--classes", metavar="A,B,C", help="class names; default: those of its dataset, as far as known"
    )
    classes.add_argument("--classes-file", metavar="FILE", help="class names, one a line")
    parser.add_argument("--backbone", default="", metavar="B", help="what the run's weights are called here")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    # one a flag: a list would swallow the images behind it
    parser.add_argument("--plugin", action="append", metavar="FILE", help="a Python file with a method of your own")


def classes_of(options: argparse.Namespace) -> list[str] | None:
    """The class names asked for; None for those of the training.

    Raises:
        UsageError: There are none, or their file cannot be read.
    """
    if options.classes_file is not None:
        try:
            names = text_of(path_of(options.classes_file)).splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"--classes-file {options.classes_file} cannot be read as text ({error}).") from error
    elif options.classes is not None:
        names = options.classes.split(",")
    else:
        return None
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UsageError("--classes and --classes-file need at least one class name.")
    return names


def known_command(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Raises UsageError where the first word is neither a command nor a flag; argparse would offer no nearest one."""
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UsageError(
            f"Unknown command '{arguments[0]}'.{nearest(arguments[0], commands) or ' See `promptbench --help`.'}"
        )
