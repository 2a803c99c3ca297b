"""The `promptbench` command.

Parsing costs nothing: torch is imported by the command that needs it. A user's mistake is one line on stderr and exit
code 2; a failed run is recorded and gives exit code 1; Ctrl-C gives 130 and loses nothing that was finished. What
stderr does not take is lost and nothing else happens; what stdout does not take ends the command once its runs are
done, with a line and exit code 2, or, where the reader of a pipe has left, with neither.
"""

from __future__ import annotations

import _thread
import argparse
import errno
import gc
import io
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, TextIO

from promptbench.cli.commands import COMMANDS, GROUPS
from promptbench.cli.completion import SHELLS, PrintCompletion
from promptbench.cli.flags import Parser, known_command
from promptbench.config import Terminated, UsageError, path_of
from promptbench.registry import add_file
from promptbench.runs.listener import Quiet
from promptbench.storage.versions import own_version

PACKAGE = "promptbench"
LONGEST = 2000  # characters of an error
MOMENT = 0.05  # seconds
INTERRUPTED = "promptbench: interrupted; finished runs are kept, and the same command goes on from here"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to other runs
    collects, code = gc.isenabled(), 0
    gc.disable()  # what is imported and read stays, and looking for garbage in it takes a fifth of a short call
    with standard_streams(), interrupts_heard():
        logging.basicConfig(level=logging.WARNING, format="promptbench: %(message)s", stream=sys.stderr)
        try:
            try:
                code = obey(words)
            finally:
                sys.stdout.flush()
        except Unwritten as error:
            if error.errno != errno.EPIPE:  # as in `promptbench table | head`
                complain(f"standard output cannot be written ({error.strerror}); what was stored is kept.")
                code = 2
        finally:
            if collects and arguments is not None:  # a process that ends with its command need not look for any either
                gc.enable()
                gc.unfreeze()  # see `run_all`
    return code


def obey(words: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code."""
    try:
        if not words:
            parser().print_help()
            return 0
        known_command(words, [name.replace("_", "-") for name in COMMANDS])
        options = parser().parse_args(words)
        with as_loud_as(options):
            try:
                add_plugins(getattr(options, "plugin", None) or [])
                with no_exit():
                    return int(options.execute(options))
            except UsageError as error:  # here, so that the log file has it too
                complain(str(error))
                return 2
    except UsageError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt as stopped:
        print(INTERRUPTED, file=sys.stderr)
        return 143 if isinstance(stopped, Terminated) else 130


@contextmanager
def as_loud_as(options: argparse.Namespace) -> Iterator[None]:
    """Within it, standard error and the log of the package say what `--quiet`, `--verbose` and `--log-file` ask for.

    Raises:
        UsageError: The file cannot be written.
    """
    quiet, verbose = getattr(options, "quiet", False), getattr(options, "verbose", False)
    if quiet and verbose:
        raise UsageError("--quiet and --verbose ask for opposite things; give one of them.")
    named = getattr(options, "log_file", None)
    log, stderr = logging.getLogger(PACKAGE), sys.stderr
    level, file = log.level, log_file(named) if named else None
    said = Said(stderr, quiet, file) if quiet or file else stderr
    handlers = [handler for handler in logging.root.handlers if type(handler) is logging.StreamHandler]
    before = [handler.setStream(said) for handler in handlers]
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else level)
    sys.stderr = said
    try:
        yield
    finally:
        sys.stderr = stderr
        log.setLevel(level)
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream or stderr)
        if file is not None:
            file.close()


def log_file(name: str) -> TextIO:
    """The file that `--log-file` names, to be appended to.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        return path_of(name).open("a", encoding="utf-8", errors="replace", buffering=1)
    except OSError as error:
        raise UsageError(f"--log-file {name} cannot be written ({error.strerror}); name another one.") from error


class Said:
    """Standard error line by line: of a quiet command what is wrong alone, and all of it, with times, in a file."""

    def __init__(self, stream: Any, quiet: bool, file: TextIO | None) -> None:
        self.stream, self.quiet, self.file = stream, quiet, file
        self.begun = ""  # a line whose end is still to come

    def write(self, text: str) -> int:
        """Write, once a line is whole."""
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            if self.file is not None:
                with suppress(OSError, ValueError):
                    self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            if not self.quiet or line.startswith(f"{PACKAGE}: "):  # as errors and failures begin
                self.stream.write(f"{line}\n")
        return len(text)

    def isatty(self) -> bool:
        """Nothing can be drawn over in a file."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def no_exit() -> Iterator[None]:
    """Within it, a plugin's code ends the command no more than an error does; within a run, that is recorded there."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        from promptbench.sweep.loop import asked_by_signal, reason_of

        if asked_by_signal(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(f"{reason_of(error)} was raised in {frame.filename}:{frame.lineno}, not by a run.") from error


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """Within it, Ctrl-C is heard a moment later where Python drops it, such as while an object is thrown away."""
    before = sys.unraisablehook

    def again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            threading.Timer(MOMENT, _thread.interrupt_main).start()
        else:
            before(dropped)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


class Unwritten(OSError):
    """Standard output cannot be written."""


class Output:
    """Standard output, whose errors are told from others, and not forgotten where somebody takes no note of one."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: Unwritten | None = None

    def write(self, text: str) -> int:
        """Write.

        Raises:
            Unwritten: That is not possible.
        """
        with self.told():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush.

        Raises:
            Unwritten: That is not possible, or an earlier text could not be written.
        """
        with self.told():
            self.stream.flush()
        if self.error is not None:
            raise self.error

    @contextmanager
    def told(self) -> Iterator[None]:
        """Within it, an error is one of this stream."""
        try:
            yield
        except OSError as error:
            self.error = Unwritten(error.errno, error.strerror)
            raise self.error from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Within it, the standard streams are there and do as said at the top; afterwards nothing waits to be written."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # one that is closed, and would be the next file's
        continue
    os.close(descriptor)
    streams = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign still shows the rest
    sys.stdout = Output(sys.stdout) if sys.stdout is not None else Quiet(None)
    sys.stderr = Quiet(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            let_go(stream)


def let_go(stream: Any) -> None:
    """Give up what a stream cannot write, which Python would try again, and complain of, when the process ends."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def complain(sentence: str) -> None:
    """Print an error as one line."""
    print(f"promptbench: error: {in_one_line(sentence)}", file=sys.stderr)


def in_one_line(text: str) -> str:
    """A sentence as a terminal shows it: without what the terminal would act on, and not longer than can be read."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.splitlines()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"


def add_plugins(paths: Sequence[str]) -> None:
    """Make the files given with `--plugin` known."""
    for path in paths:
        add_file(path)


class Top(Parser):
    """The parser of the command itself, whose help shows the commands in groups."""

    def format_help(self) -> str:
        """What the package is, the commands in groups, and where to start."""
        lines = [f"usage: {self.prog} [-h] [--version] COMMAND ...", "", str(self.description), ""]
        for title, names in GROUPS.items():
            lines.append(f"{title}:")
            for name in names:
                module = import_module(f"promptbench.cli.commands.{name}")
                lines.append(f"  {name.replace('_', '-'):<14}{module.HELP}")
            lines.append("")
        return "\n".join([*lines, str(self.epilog), ""])


def parser() -> argparse.ArgumentParser:
    """The command line, with an example for every command."""
    top = Top(
        prog="promptbench",
        description="Every prompt-learning method for CLIP under the same data, backbone, trainer and evaluator.",
        epilog="Start here: promptbench run --method maple --protocol base2new\n"
        "Flags of a command and an example: promptbench COMMAND --help\n"
        "Completion in a shell: promptbench --print-completion bash, or zsh, tcsh (benchmarks/README.md)",
    )
    top.add_argument("--version", action="version", version=f"promptbench {own_version()}")
    shells = f"print a script that completes commands, flags and names: {', '.join(SHELLS)}"
    top.add_argument("--print-completion", action=PrintCompletion, choices=SHELLS, metavar="SHELL", help=shells)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        module = import_module(f"promptbench.cli.commands.{name}")
        description = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        sub = commands.add_parser(
            name.replace("_", "-"), help=module.HELP, description=description, epilog=f"Example: {module.EXAMPLE}"
        )
        module.add_arguments(sub)
        sub.set_defaults(execute=module.execute)
    return top
