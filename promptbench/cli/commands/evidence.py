"""`promptbench evidence`: a page of what stored results say of one question, such as what controls say of a method."""

from __future__ import annotations

import argparse

from promptbench.cli.flags import add_asked, add_plugin, asked_of
from promptbench.config import UsageError, path_of

HELP = "print a page of evidence from stored results"
EXAMPLE = "promptbench evidence controls --results promptbench-runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `promptbench evidence` to its parser."""
    parser.add_argument("page", metavar="PAGE", help="calibration, controls, open_world, robustness, sensitivity")
    add_asked(parser)
    add_plugin(parser)
    parser.add_argument("-o", dest="file", metavar="FILE", help="write the page there instead of printing it")


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench evidence`, from stored results alone."""
    from promptbench.show.evidence.pages import page_of

    text = page_of(options.page, asked_of(options))
    if not options.file:
        print(text, end="")
        return 0
    path = path_of(options.file)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The page {path} cannot be written ({error.strerror}); name another file.") from error
    return 0
