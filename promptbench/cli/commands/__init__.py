"""The commands of `promptbench`, one module each.

A module has `HELP` (one line, lower case), `EXAMPLE`, `add_arguments(parser)` and `execute(options) -> exit code`; the
command is named by its file, "_" as "-". What a command needs is imported by `execute`: parsing costs nothing.
"""

from __future__ import annotations

from itertools import chain

GROUPS: dict[str, tuple[str, ...]] = {
    "run": ("run", "status", "eval", "tune", "reproduce"),
    "show what is stored": ("table", "plot", "report", "evidence", "inspect", "diff", "results", "regenerate", "audit"),
    "use what was trained": ("predict", "export"),
    "find out": ("list", "describe", "show_config", "literature"),
    "data and this installation": ("data", "mini", "cache", "verify", "check_plugin"),
}
"""Modules as `--help` groups and orders them."""

COMMANDS = tuple(chain.from_iterable(GROUPS.values()))
