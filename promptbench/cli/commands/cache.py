"""`promptbench cache`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from promptbench.cli.flags import from_zero

if TYPE_CHECKING:
    from promptbench.storage.cache import Entry

HELP = "see what is kept to be computed once, and remove it"
EXAMPLE = "promptbench cache list"

HEADER = ("name", "kind", "of", "backbone", "images", "size", "last used")
SHOWN = 12  # characters of a name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its actions and their flags."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = _action(actions, "list", _list, "show what the cache holds", EXAMPLE)
    show.add_argument("--format", default="text", choices=("text", "json"), help="default: text")
    clear = _action(actions, "clear", _clear, "remove entries", "promptbench cache clear --older-than 30")
    clear.add_argument("names", nargs="*", metavar="NAME", help="names, kinds or datasets; default: everything")
    clear.add_argument(
        "--older-than", type=from_zero("days"), metavar="DAYS", help="only what was not used for so long"
    )


def execute(options: argparse.Namespace) -> int:
    """Carry out `promptbench cache`; returns the exit code of the action."""
    code: int = options.action(options)
    return code


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    act: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    description = f"{text[0].upper()}{text[1:]}."
    action = actions.add_parser(name, help=text, description=description, epilog=f"Example: {example}")
    action.set_defaults(action=act)
    return action


def _list(options: argparse.Namespace) -> int:
    """`cache list`."""
    from promptbench.storage.cache import busy, cache_dir, entries, limit

    known, held = entries(), busy()
    if options.format == "json":
        print(_as_json(known, held))
        return 0
    if known:
        print(_as_text(known, held) + "\n")
    total = size(sum(entry.size for entry in known))
    print(f"{cache_dir()}: {len(known)} entries, {total} of at most {size(limit())} (PROMPTBENCH_CACHE_GB)")
    return 0


def _as_json(known: Sequence[Entry], held: frozenset[str]) -> str:
    import json

    from promptbench.storage.cache import cache_dir, limit

    rows = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "of": entry.what,
            "backbone": entry.backbone,
            "images": entry.images,
            "bytes": entry.size,
            "last_used": when(entry.used),
            "busy": entry.name in held,
        }
        for entry in known
    ]
    total = sum(entry.size for entry in known)
    return json.dumps({"folder": str(cache_dir()), "bytes": total, "limit": limit(), "entries": rows}, indent=2)


def _as_text(known: Sequence[Entry], held: frozenset[str]) -> str:
    from promptbench.cli.text import columns

    rows = [
        (
            entry.name if entry.kind in ("rendered", "readable") else entry.name[:SHOWN],
            entry.kind,
            entry.what or "?",
            entry.backbone or "-",
            entry.images or "-",
            size(entry.size),
            "now" if entry.name in held else when(entry.used),
        )
        for entry in known
    ]
    return columns([HEADER, *rows])


def _clear(options: argparse.Namespace) -> int:
    """`cache clear`: 1 where an entry could not be removed."""
    from promptbench.storage.cache import chosen, make_room, remove

    meant = chosen(options.names, options.older_than)
    gone = [entry for entry in meant if remove(entry)]
    make_room()  # which removes what is half written, too
    kept = len(meant) - len(gone)
    left = f"; left {kept} that another process uses or that cannot be removed" if kept else ""
    print(f"removed {len(gone)} entries, {size(sum(entry.size for entry in gone))}{left}")
    return 1 if kept else 0


def size(count: int) -> str:
    """`1.2 GB`; of bytes."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def when(seconds: float) -> str:
    """`2026-01-31 12:00:00`, in UTC."""
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
