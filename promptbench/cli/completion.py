"""A script that completes commands, flags, names and files in a shell: `promptbench --print-completion bash`.

The script is printed once and knows what was there then; completing with it starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from promptbench import registry
from promptbench.config import UsageError
from promptbench.suite import suite_names

SHELLS = ("bash", "zsh", "tcsh")
KINDS = {"--method": "methods", "--protocol": "protocols", "--dataset": "datasets", "--score": "scores"}
FILES, FOLDERS = ("FILE", "RESULT", "IMAGE", "A", "B"), ("DIR", "OUT")  # metavars


class PrintCompletion(argparse.Action):
    """Prints the script for a shell and ends the command, as `--help` does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Print the script and end the command."""
        print(script(parser, str(values)))
        parser.exit()


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell.

    Raises:
        UsageError: The package that writes it is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UsageError("--print-completion needs the package shtab: pip install shtab.") from error
    names = {flag: registry.names(kind) for flag, kind in KINDS.items()} | {"--suite": suite_names()}
    for action in actions_of(parser):
        known = next((names[flag] for flag in action.option_strings if flag in names), None)
        if known is not None:
            action.choices = known
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar == "NAME" and not action.option_strings and action.nargs is None:  # of `describe`
            action.choices = sorted(set().union(*names.values()))
    return str(shtab.complete(parser, shell=shell))


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All flags and arguments of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                yield from actions_of(command)
        else:
            yield action
