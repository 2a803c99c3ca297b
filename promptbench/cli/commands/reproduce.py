"""`promptbench reproduce`."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench.cli.flags import add_list, add_plugin, from_zero
from promptbench.config import UsageError, path_of

if TYPE_CHECKING:
    from promptbench.results.diff import Repeated
    from promptbench.results.result import Result
    from promptbench.runs.plan import Run

HELP = "make a stored result again and say whether it is equal"
EXAMPLE = "promptbench reproduce results/mini/results/base2new/mini_colours/coop-1d14072f63b8.json"
FEW = 20  # figures that differ, shown
TOLERANCE = 0.001  # points; rounding of sums in float32 is far below, one image among 100000 is not


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench reproduce` to its parser."""
    parser.add_argument("result", metavar="RESULT", help="a result file, of a run or of `promptbench eval`")
    new = "a folder that is new or empty; default: one for temporary files, which is kept"
    parser.add_argument("--output", metavar="DIR", help=new)
    parser.add_argument(
        "--tolerance",
        type=from_zero("points"),
        metavar="X",
        default=TOLERANCE,
        help=f"most by which an equal figure differs; default: {TOLERANCE}",
    )
    parser.add_argument("--suite", metavar="FILE", help="the YAML file of its suite, where it is none of the package")
    parser.add_argument("--backbone", metavar="B", help="what its weights are called here")
    parser.add_argument("--sampler", metavar="file:PATH", help="of a result that was trained on a stored sample")
    add_list(parser, "--data-root", metavar="DIR", help="folders that hold the datasets; default: PROMPTBENCH_DATA")
    add_plugin(parser)


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench reproduce`; 1 where a figure is another one."""
    from promptbench.results.diff import repeated
    from promptbench.results.result import read_result

    stored = read_result(options.result)
    run, words = planned(stored, options)
    folder = new_folder(options.output)
    print(f"made by:  {shlex.join([*words, '--output', str(folder)])}", flush=True)
    made = made_again(stored, run, words, folder)
    found = repeated(stored, made, options.tolerance)
    print(said(found, stored))
    print(f"\n{verdict(found)}\nthe new result: {made.path}")
    return 0 if found.equal else 1


def planned(stored: Result, options: argparse.Namespace) -> tuple[Run, list[str]]:
    """The run of today that a result is of, and the command for it, which sets what would be another value today.

    Raises:
        UsageError: No run of today is of the same method, dataset, seeds and so on.
    """
    from promptbench.results.command import STORED_SAMPLE, command_of, pinned

    spec = stored.spec
    if spec.sampler.startswith(STORED_SAMPLE) and not options.sampler:
        raise UsageError(f"{options.result} was trained on a stored sample; name it with --sampler file:PATH.")
    if spec.plugin and not options.plugin:
        raise UsageError(f"{options.result}: the method '{spec.method}' is a plugin; give its file with --plugin.")
    words = command_of(stored, options.suite or "")
    for flag in ("backbone", "sampler", "data_root", "plugin"):
        words = with_flag(words, f"--{flag.replace('_', '-')}", getattr(options, flag))
    run = run_of(stored, words)
    missing = pinned(stored, run.spec.config, run.spec.recipe)
    if not missing:
        return run, words
    words = [*words, "--set", *missing]
    return run_of(stored, words), words


def with_flag(words: Sequence[str], flag: str, given: str | Sequence[str] | None) -> list[str]:
    """A command with the values given in the place of those that it has for a flag."""
    if not given:
        return list(words)
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word == flag
        if not dropping:
            kept.append(word)
    return [*kept, flag, *([given] if isinstance(given, str) else given)]


def run_of(stored: Result, words: Sequence[str]) -> Run:
    """The run that a command plans for the place, shots and seeds of a result.

    Raises:
        UsageError: There is none.
    """
    from promptbench.cli.flags import request_of
    from promptbench.runs.plan import plan_runs

    spec = stored.spec
    request = request_of(parsed(words), companions=False)
    same = ("label", "dataset", "shots", "seeds", "split", "corruption")
    for run in plan_runs(request):
        if all(getattr(run.spec, name) == getattr(spec, name) for name in same):
            return run
    raise UsageError(f"{stored.path}: `{shlex.join(words)}` plans no run of this kind today.")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The flags of a `promptbench run`, as its parser reads them."""
    from promptbench.cli.main import parser

    return parser().parse_args(words[1:])


def new_folder(given: str | None) -> Path:
    """Where the run writes: a folder without anything in it.

    Raises:
        UsageError: Something is there already.
    """
    if given is None:
        return Path(tempfile.mkdtemp(prefix="promptbench-reproduce-"))
    folder = path_of(given)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--output {folder} is there already; name a new folder, for nothing of an old one is read.")
    return folder


def made_again(stored: Result, run: Run, words: Sequence[str], folder: Path) -> Result:
    """The result of a run in an empty folder, or of the evaluation of what it trained.

    Raises:
        UsageError: The run fails.
    """
    from promptbench.cli.flags import request_of, session_of
    from promptbench.cli.progress import Display
    from promptbench.experiment import RunsFailed, do

    options = parsed(words)
    session: Any = session_of(options, request_of(options, companions=False).suite, folder, run.spec.device)
    try:
        (made,) = do([run], session, Display())
        if stored.spec.trained_by:
            made = evaluated(stored, made, session)
    except RunsFailed as error:
        raise UsageError(str(error)) from error
    return made


def evaluated(stored: Result, trained: Result, session: Any) -> Result:
    """What `promptbench eval` makes of a training, under the protocol of a result."""
    from promptbench.cli.progress import Display
    from promptbench.data.corruptions import corruptions_of
    from promptbench.experiment import do
    from promptbench.runs.reevaluate import evaluations_of, suite_of
    from promptbench.runs.request import protocols_of
    from promptbench.runs.session import Session

    suite = suite_of(session.suite, trained.spec)
    corrupted = corruptions_of(stored.spec.corruption.split(), "--corrupt") if stored.spec.corruption else ()
    runs = evaluations_of(
        trained,
        protocols_of(suite, [stored.spec.protocol]),
        suite,
        corruption=corrupted[0] if corrupted else None,
        temperature=stored.spec.temperature,
    )
    (made,) = do(runs, Session(session.place, suite), Display())
    return made


def said(found: Repeated, stored: Result) -> str:
    """What differs besides figures, then the figures that differ."""
    from promptbench.cli.text import columns

    rows = list(found.made_of.items())
    parts = ["made otherwise (stored → here)\n" + columns(rows, indent="  ")] if rows else []
    if not stored.spec.method_code:
        parts.append("Its code is not compared: the result is older than digests of code, and names its commit alone.")
    elif not rows:
        parts.append("made with the same settings, code, versions, weights and images")
    if found.apart:
        shown = list(found.apart.items())[:FEW]
        figures = [("figure", "stored", "here", "difference")]
        figures += [(name, _number(a), _number(b), _gap(a, b)) for name, (a, b) in shown]
        more = f"\n  ... and {len(found.apart) - FEW} more" if len(found.apart) > FEW else ""
        parts.append("figures that differ\n" + columns(figures, indent="  ") + more)
    return "\n\n".join(parts)


def verdict(found: Repeated) -> str:
    """One line: equal, or by how much not, and what the losses say of where the difference begins."""
    new = f"; {len(found.new)} more are there only now" if found.new else ""
    if found.equal:
        exactly = f"the largest difference is {found.largest:.2g}" if found.largest else "all to the last digit"
        return f"equal within {found.tolerance:g}: {found.compared} figures, {exactly}{new}"
    most = f" by up to {found.largest:.4g}" if found.largest else ""
    of = f"{len(found.apart)} of {found.compared} figures"
    return f"not equal within {found.tolerance:g}: {of} differ{most}{new}; {found.losses}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _gap(a: float, b: float | None) -> str:
    return "–" if b is None else f"{b - a:+.4g}"
