"""Lines and aligned columns for a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from promptbench.storage.claims import Holder
from promptbench.sweep.status import Standing, duration


def columns(rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Rows of cells as aligned text."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(indent + line.rstrip() for line in lines)


def summary(standing: Standing) -> str:
    """`21 done, 1 failed, 2 running, 16 to do, about 12 min left`."""
    parts = [f"{len(standing.done)} done", f"{len(standing.failed)} failed", f"{len(standing.running)} running"]
    if standing.waiting or standing.running:
        parts.append(f"{len(standing.waiting)} to do")
    if standing.seconds_left:
        parts.append(f"about {duration(standing.seconds_left)} left")
    return ", ".join(parts)


def running_lines(standing: Standing) -> list[tuple[str, str, str, str]]:
    """Run, how far its training is, who is at it, and for how long, a row for each."""
    return [
        (short(holder.about["run"], holder.about.get("seeds", ())), position(holder), owner(holder), lasted(holder))
        for holder in standing.running
    ]


def short(name: str, seeds: Collection[int] = ()) -> str:
    """A run as a line names it: protocol, dataset and method, and its seeds in the place of the hash."""
    head, _, digest = name.rpartition("-")
    return f"{head} seed {'/'.join(map(str, dict.fromkeys(seeds)))}" if seeds else f"{head} {digest}"


def position(holder: Holder) -> str:
    """`epoch 3 of 50`, or `step 120 of 8000` where steps are counted, as far as the owner has said."""
    done, total, epochs = (holder.progress.get("done"), holder.progress.get("total"), holder.about.get("epochs"))
    if not done or not total or epochs is None:
        return ""
    if done >= total:
        return "evaluating"
    return f"epoch {done * epochs // total + 1} of {epochs}" if epochs else f"step {done} of {total}"


def owner(holder: Holder) -> str:
    """Machine and process."""
    return f"{holder.host}, process {holder.pid}" if holder.host else "somebody"


def lasted(holder: Holder) -> str:
    """Since when."""
    return f"for {duration(time.time() - holder.since)}" if holder.since else ""


def reason(path: Path) -> str:
    """Why a run failed, as its record says."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{path.name} cannot be read"
