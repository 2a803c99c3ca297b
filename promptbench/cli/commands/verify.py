"""`promptbench verify`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from promptbench.cli.flags import OUTPUT, add_places, integer, session_of
from promptbench.config import path_of
from promptbench.training.numerics import resolve_device

if TYPE_CHECKING:
    from promptbench.checks.installation.report import Check
    from promptbench.runs.session import Session

HELP = "check this installation, your data and zero-shot figures against reference numbers"
EXAMPLE = "promptbench verify --data-root /data"
SUITE, REPORT = "clip11", "promptbench-verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench verify` to its parser."""
    parser.add_argument("--suite", default=SUITE, metavar="S", help=f"a name or a YAML file; default: {SUITE}")
    parser.add_argument("--backbone", metavar="B", help="ARCHITECTURE:TAG_OR_FILE; default: the suite's")
    parser.add_argument("--train", action="store_true", help="train CoOp and MaPLe on EuroSAT and DTD, three seeds")
    add_places(parser)
    parser.add_argument("--threads", type=integer(1), metavar="N", help="CPU threads of a run; default: the suite's")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    parser.add_argument(
        "-o",
        "--report",
        default=REPORT,
        metavar="FILE",
        help=f"ends in .json or .md, both are written; default: {REPORT}",
    )


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench verify`; returns 1 where a check failed, not where one could not be made."""
    from dataclasses import replace

    from promptbench.checks.installation.evidence import evidence_of
    from promptbench.checks.installation.report import FAIL, SUFFIXES, check_place, environment, summary, write_report
    from promptbench.results.result import check_writable
    from promptbench.suite import load_suite

    changes = {name: value for name in ("backbone", "threads") if (value := getattr(options, name)) is not None}
    suite = replace(load_suite(options.suite), **changes)
    session = session_of(options, suite, options.output or OUTPUT, resolve_device(options.device))
    given = path_of(options.report)
    base = given.with_suffix("") if given.suffix in SUFFIXES else given
    check_place(base)
    check_writable(session.place.named)
    checks = []
    for check in all_checks(session, options.train):
        print(check.line(), flush=True)
        checks.append(check)
    write_report(base, environment(session, options.train), checks, session, evidence_of(session.output))
    print(f"\n{summary(checks)}; report: {base}.json, {base}.md")
    return 1 if any(check.outcome == FAIL for check in checks) else 0


def all_checks(session: Session, train: bool) -> Iterator[Check]:
    """Every check, cheap ones first."""
    from promptbench.checks.installation.figures import check_figures
    from promptbench.checks.installation.parity import check_parity
    from promptbench.checks.installation.splits import check_absent, check_splits
    from promptbench.cli.progress import Display
    from promptbench.data.get.status import inspect

    yield from check_parity()
    entries = {entry.name: entry for entry in session.suite.entries()}
    states = {}
    for name, entry in entries.items():
        states[name] = inspect(session.dataset(name))
        yield from check_splits(session.dataset(name), entry.dataset, states[name])
    yield from check_absent(list(states.values()), session.roots)
    yield from check_figures(session, states, train, Display())
