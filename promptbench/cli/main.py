"""The `promptbench` command.

Parsing costs nothing: torch is imported by the command that needs it. A user's mistake is one line on stderr and exit
code 2; a failed run is recorded and gives exit code 1; Ctrl-C gives 130 and loses nothing that was finished.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from promptbench import __version__
from promptbench.cli.commands import COMMANDS
from promptbench.cli.flags import Parser, known_command
from promptbench.config import UsageError
from promptbench.registry import add_file

LONGEST = 2000  # characters of an error
INTERRUPTED = "promptbench: interrupted; finished runs are kept, and the same command goes on from here"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to other runs
    logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign still shows the rest
    collects = gc.isenabled()
    gc.disable()  # what is imported and read stays, and looking for garbage in it takes a fifth of a short call
    try:
        if not words:
            parser().print_help()
            return 0
        known_command(words, [name.replace("_", "-") for name in COMMANDS])
        options = parser().parse_args(words)
        add_plugins(getattr(options, "plugin", None) or [])
        code: int = options.execute(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"promptbench: error: {in_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    except BrokenPipeError:  # `promptbench table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if collects and arguments is not None:  # a process that ends with its command need not look for any either
            gc.enable()


def in_one_line(text: str) -> str:
    """A sentence as a terminal shows it: without what the terminal would act on, and not longer than can be read."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.splitlines()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"


def add_plugins(paths: Sequence[str]) -> None:
    """Make the files given with `--plugin` known."""
    for path in paths:
        add_file(path)


def parser() -> argparse.ArgumentParser:
    """The command line, with an example for every command."""
    top = Parser(
        prog="promptbench",
        description="Every prompt-learning method for CLIP under the same data, backbone, trainer and evaluator.",
        epilog="Start here: promptbench run --method maple --protocol base2new",
    )
    top.add_argument("--version", action="version", version=f"promptbench {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"promptbench.cli.commands.{name}")
        description = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        sub = commands.add_parser(
            name.replace("_", "-"), help=module.HELP, description=description, epilog=f"Example: {module.EXAMPLE}"
        )
        module.add_arguments(sub)
        sub.set_defaults(execute=module.execute)
    return top
