"""How the runs of an output folder stand, from its files alone: the same for the call that does them and for others.

Results and failures are what is finished; claims say who is at what, and each `run` that is under way holds one that
names all it has to do.
"""

from __future__ import annotations

import json
import math
import os
import time
from itertools import chain
from pathlib import Path

from promptbench.runs.listener import Standing
from promptbench.storage.claims import CLAIMS, Holder, holders

SHOWN = 20  # failures in full
PLANNED = ".planned"  # what notes beside the claims end in of what a call that was interrupted had to do


def standing_of(output: Path) -> Standing:
    """How the runs in an output folder stand now; nothing of the results is read."""
    done, failed = finished(output / "results")
    alive = [holder for holder in holders(output / CLAIMS) if holder.alive]
    running = tuple(holder for holder in alive if holder.about.get("kind") == "run" and named(holder))
    calls = [holder for holder in alive if holder.about.get("kind") == "call" and named(holder)]
    planned = frozenset(chain.from_iterable(call.about["runs"] for call in calls))
    began = min((call.since for call in calls), default=0.0)
    ended = done | {name for name, path in failed.items() if since(path, began)}
    waiting = planned - ended - {holder.about["run"] for holder in running}
    through = len(planned & ended)
    left = (time.time() - began) / through * (len(planned) - through) if through else None  # as the mean so far has it
    return Standing(done, failed, running, waiting, left)


def left_undone(output: Path, standing: Standing) -> frozenset[str]:
    """The runs that calls had to do which were interrupted or killed, and that have neither ended nor begun again."""
    calls = [holder for holder in holders(output / CLAIMS) if holder.dead and holder.about.get("kind") == "call"]
    planned = set(chain.from_iterable(call.about["runs"] for call in calls if named(call)))
    planned.update(*map(planned_in, notes_of(output)))
    under_way = {holder.about["run"] for holder in standing.running}
    return frozenset(planned - standing.done - set(standing.failed) - standing.waiting - under_way)


def notes_of(output: Path) -> list[Path]:
    """The notes of calls that were interrupted."""
    return sorted((output / CLAIMS).glob(f"*{PLANNED}"))


def planned_in(note: Path) -> set[str]:
    """The runs that a note names; none where it cannot be read."""
    try:
        return set(map(str, json.loads(note.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        return set()


def named(holder: Holder) -> bool:
    """Whether a claim says what a claim of its kind does; one that was damaged may not."""
    about = holder.about
    runs = about.get("runs") if about["kind"] == "call" else [about.get("run")]
    seeds = about.get("seeds", [])
    said = [about.get("epochs", 0), *map(holder.progress.get, ("done", "total"))]
    return (
        isinstance(runs, list)
        and isinstance(seeds, list)
        and all(isinstance(name, str) for name in runs)
        and all(value is None or isinstance(value, int) for value in (*seeds, *said))
        and math.isfinite(holder.since)
    )


def finished(results: Path) -> tuple[frozenset[str], dict[str, Path]]:
    """Names of the runs with a result, and those with a failure and its file."""
    done, failed = set(), {}
    for folder, _, files in os.walk(results):
        place = os.path.relpath(folder, results).replace(os.sep, "/")
        for file in files:
            if file.endswith(".failed.json"):
                failed[f"{place}/{file.removesuffix('.failed.json')}"] = Path(folder, file)
            elif file.endswith(".json") and not file.startswith("."):
                done.add(f"{place}/{file.removesuffix('.json')}")
    return frozenset(done), {name: path for name, path in sorted(failed.items()) if name not in done}


def duration(seconds: float) -> str:
    """A time span in words: `0.4 s`, `40 s`, `12 min` or `3.5 h`."""
    seconds = max(0.0, seconds)
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 0.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def since(path: Path, when: float) -> bool:
    """Whether a failure was recorded at that time or later, seconds since 1970; not if it is gone."""
    try:
        return path.stat().st_mtime >= when
    except OSError:
        return False
