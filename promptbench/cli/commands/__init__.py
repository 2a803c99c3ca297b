"""The commands of `promptbench`, one module each.

A module has `HELP` (one line, lower case), `EXAMPLE`, `add_arguments(parser)` and `execute(options) -> exit code`; the
command is named by its file, "_" as "-". What a command needs is imported by `execute`: parsing costs nothing.
"""

from __future__ import annotations

COMMANDS = (
    "run",
    "status",
    "eval",
    "predict",
    "export",
    "inspect",
    "show_config",
    "list",
    "describe",
    "check_plugin",
    "table",
    "diff",
    "results",
    "plot",
    "report",
    "evidence",
    "literature",
    "regenerate",
    "tune",
    "verify",
    "data",
    "cache",
    "mini",
)
"""Modules in the order that `--help` shows them."""
