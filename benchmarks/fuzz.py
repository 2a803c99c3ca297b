"""Spoils every kind of file that comes from outside, and checks that nothing worse than a sentence comes of it.

    python -m promptbench.benchmarks.fuzz --cases 500 -o results/measured/fuzz.json

Each case goes through the command, or a function that a command calls. It ends well in three ways: success, one line
and exit code 2, or a run that is recorded as failed. A violation is anything else: another exception or a traceback, a
failure that is recorded but not understood, code out of a file that runs, a process or a connection, a file written
outside of the output folder, figures of a run that change, a case that does not end. Decompression bombs are opened in
a process of their own, whose memory is measured. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from promptbench.benchmarks.fuzz_images import bomb
from promptbench.benchmarks.fuzz_kinds import KINDS, Act
from promptbench.benchmarks.fuzz_site import Site, known_backbone, make_site
from promptbench.benchmarks.fuzz_watch import WATCH, Endless, heard, limited

from promptbench.cli import in_one_line
from promptbench.cli import main as promptbench
from promptbench.config import UsageError
from promptbench.provenance import git_commit, library_versions

SECONDS = 60  # after which a case counts as endless
LONGEST = 3000  # characters of a line that is still clear
BOMBS = ("png 1 bit 20000", "png 8 bit 11000", "png 8 bit 13000", "png 8 bit 60000", "gif 65535", "tiff 12000")
ROOM = 150.0  # MiB that a refused bomb may take


class Violation(Exception):
    """What must not happen; the message says what did."""


@dataclass
class Tally:
    """What became of the cases of a kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values())


def main() -> None:
    """Spoil, try, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Spoil what comes from outside, and see that nothing bad happens.")
    parser.add_argument("--cases", type=int, default=100, help="of all kinds together")
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--keep", type=Path, help="folder for the files of violations")
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        site = prepared(Path(folder), options.backbone)
        tallies = explore(site, options.kind, options.cases, options.seed, options.keep)
    found = summary(tallies, options.seed, open_bombs() if "images" in options.kind else {})
    found["seconds"] = round(time.monotonic() - began)
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    print(text, end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")
    sys.exit(1 if found["violations"] else 0)


def prepared(folder: Path, backbone: str) -> Site:
    """The valid inputs, in a process that hides nothing: what is loaded once stays loaded, what is logged is heard."""
    import promptbench.bench
    import promptbench.trained

    os.environ.update(PROMPTBENCH_CACHE=str(folder / "cache"), PROMPTBENCH_PARTIAL_SECONDS="0")
    sys.dont_write_bytecode = True
    logging.captureWarnings(True)
    for module in (promptbench.bench, promptbench.trained):
        module.load_backbone = lambda name: known_backbone(name) if name == backbone else _load(name)  # type: ignore[attr-defined]
    site = make_site(folder.resolve(), backbone)
    git_commit()  # asks git, once in a process
    WATCH.begin()
    return site


def _load(name: str) -> Any:
    from promptbench.weights import load_backbone

    return load_backbone(name)


def explore(site: Site, kinds: Sequence[str], cases: int, seed: int, keep: Path | None = None) -> dict[str, Tally]:
    """So many cases, spread evenly over the kinds; the same seed makes the same cases."""
    tallies = {kind: Tally() for kind in kinds}
    for index, kind in enumerate(kinds):
        wanted = cases // len(kinds) + (index < cases % len(kinds))
        again = 0
        while tallies[kind].cases < wanted:
            _explore(site, kind, wanted, tallies[kind], seed + 1000 * again, keep)
            again += 1
    return tallies


def _explore(site: Site, kind: str, wanted: int, tally: Tally, seed: int, keep: Path | None) -> None:
    left = wanted - tally.cases

    @hypothesis.seed(seed)
    @settings(
        max_examples=left,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.data())
    def one(data: st.DataObject) -> None:
        if tally.cases < wanted:
            try_case(site, kind, data.draw, tally, seed, keep)

    one()


def try_case(site: Site, kind: str, draw: Any, tally: Tally, seed: int, keep: Path | None) -> None:
    """One case; its outcome goes to the tally."""
    work = site.folder / "case"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    act = KINDS[kind](draw, site, work)
    try:
        outcome = attempt(act, site, work)
    except Violation as violation:
        outcome = "violation"
        number = tally.cases + 1
        tally.violations.append({"kind": kind, "seed": seed, "case": number, "what": str(violation), "act": named(act)})
        if keep:
            shutil.copytree(work, keep / f"{kind.replace(' ', '-')}-{seed}-{number}", symlinks=True, dirs_exist_ok=True)
    tally.outcomes[outcome] += 1


def attempt(act: Act, site: Site, work: Path) -> str:
    """How an act ends: `done`, `refused` or `failed`.

    Raises:
        Violation: It ends in another way.
    """
    own = work / "cache"
    os.environ["PROMPTBENCH_CACHE"] = str(own if own.exists() else site.folder / "cache")
    WATCH.allowed = (f"{work / 'out'}", os.environ["PROMPTBENCH_CACHE"])
    WATCH.seen = []
    before = os.getcwd()
    os.chdir(work)
    try:
        with limited(SECONDS), heard() as (out, err):
            outcome = judged(act, work, err)
    except Endless:
        raise Violation(f"it had not ended after {SECONDS} seconds") from None
    finally:
        os.chdir(before)
    if WATCH.seen:
        raise Violation("; ".join(dict.fromkeys(WATCH.seen)))
    if (work / "executed").exists():
        raise Violation("code out of the file was run")
    if outcome == "done":
        check_figures(act, site, work)
    return outcome


def judged(act: Act, work: Path, err: io.TextIOWrapper) -> str:
    """Act, and say how it ended."""
    WATCH.on = True
    try:
        code = promptbench(act) if isinstance(act, tuple) else (act(), 0)[1]
    except UsageError as error:
        if isinstance(act, tuple):
            raise Violation(f"UsageError through main: {error}") from error
        code = refused([f"promptbench: error: {in_one_line(str(error))}"])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        raise Violation(f"{type(error).__name__}: {str(error)[:200]} ({where})") from error
    finally:
        WATCH.on = False
    err.seek(0)
    said = err.read()
    if "Traceback" in said:
        raise Violation(f"a traceback on stderr: {said[-300:]}")
    if code == 2 and isinstance(act, tuple):
        refused([line for line in said.splitlines() if line.startswith("promptbench: error")] or said.splitlines())
    if code == 1:
        failed(work, said)
    return {0: "done", 1: "failed", 2: "refused"}.get(code, f"exit code {code}")


def refused(lines: Sequence[str]) -> int:
    """2; a Violation unless one clear line was said."""
    if len(lines) != 1 or not lines[0].startswith("promptbench: error: ") or len(lines[0]) > LONGEST:
        raise Violation(f"not one clear line but {len(lines)}: {' / '.join(lines)[:300]}")
    return 2


def failed(work: Path, said: str) -> None:
    """A Violation unless what failed is on record, or was said, and understood."""
    if not said.strip():
        raise Violation("exit code 1, and nothing said")
    for path in work.glob("out/results/**/*.failed.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "UsageError" not in record["traceback"] and "TrainingDiverged" not in record["traceback"]:
            raise Violation(f"recorded, but not understood: {record['reason'][:300]}")


def check_figures(act: Act, site: Site, work: Path) -> None:
    """A Violation where a run on the site's own images has other figures than the site's."""
    if (
        not isinstance(act, tuple)
        or act[0] != "run"
        or (work / "forged").exists()
        or "--set" in act
        and any("birds." in word for word in act)
    ):
        return
    for path in site.results(work / "out"):
        record = json.loads(path.read_text(encoding="utf-8"))
        same_data = record["spec"]["sampler"] == "coop" and str(site.folder / "suite.yaml") in act
        if same_data and record["metrics"] != site.metrics[record["spec"]["method"]]:
            raise Violation(f"other figures: {record['metrics']}")


def named(act: Act) -> str:
    """An act in a word."""
    return " ".join(act)[:200] if isinstance(act, tuple) else "function"


def summary(tallies: Mapping[str, Tally], seed: int, bombs: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, for a JSON file."""
    violations: list[Any] = [found for tally in tallies.values() for found in tally.violations]
    violations += [
        {"kind": "decompression bombs", "what": name, **found} for name, found in bombs.items() if not found["clean"]
    ]
    return {
        "cases": sum(tally.cases for tally in tallies.values()),
        "by kind": {kind: dict(sorted(tally.outcomes.items())) for kind, tally in tallies.items()},
        "seed": seed,
        "violations": violations,
        "decompression bombs": dict(bombs),
        "commit": git_commit(),
        "versions": {**library_versions(), "hypothesis": hypothesis.__version__},
    }


def open_bombs(names: Iterable[str] = BOMBS) -> dict[str, dict[str, Any]]:
    """What opening each bomb says, and the MiB it takes, in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bomb.jpg"
        for name in names:
            path.write_bytes(bomb(name))
            command = [sys.executable, "-m", "promptbench.benchmarks.fuzz_bombs", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            told = json.loads(done.stdout) if not done.returncode else {"said": done.stderr[-300:], "mib": None}
            clean = told["mib"] is not None and str(path) in told["said"] and told["mib"] < ROOM
            said = told["said"].replace(folder, "...")
            found[name] = {"bytes": path.stat().st_size, "mib": told["mib"], "said": said, "clean": clean}
    return found


if __name__ == "__main__":
    main()
