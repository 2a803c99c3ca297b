"""Runs a small sweep in odd surroundings, and compares what it leaves with what it leaves at home.

    python benchmarks/stress/surroundings.py -o results/measured/surroundings.json

*memory*: a method that takes more than its process may have, and one whose worker is killed for it, beside others.
*mounts*: the output, the images or the cache on a read-only mount, from the start or from the middle of the sweep on.
*threads*: one and two threads, which are different runs. *text*: hash seeds, locales and encodings. *clock*: a clock
that is set hours back and forward under a sweep, in its processes and on its claims.

The exit code is 1 where something did not hold; what is not possible on this machine is said in the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import locale
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kill
from kill import descendants, numbers

from promptbench.storage.versions import git_commit, library_versions

LONGEST = 300.0  # seconds that a sweep may take
ROOM = 256  # MiB that the greedy method may take under a limit
LIMITS = ("limit", "killed")  # how it is stopped: by its own error, or as the kernel stops one
MOST = 1500  # MiB of a process, at which it is killed
HOURS = 5  # that the clock is set back or forward
JUMP, LOOK = 1500, 250  # milliseconds between two times that it is set, and between two looks at who holds what
TEXTS: Sequence[Mapping[str, str]] = (
    {"PYTHONHASHSEED": "0"},
    {"PYTHONHASHSEED": "1"},
    {"PYTHONHASHSEED": "random"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
    {"LC_ALL": "de_DE.UTF-8"},
    {"LC_ALL": "tr_TR.UTF-8"},
    {"LANG": "C", "LC_ALL": "", "PYTHONUTF8": "0"},
)
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0"}  # where the name of a class folder is no text
GREEDY = f'''"""Greedy: it takes all memory there is.

A. Author, "Greedy", 2026, arXiv:2601.00001.
"""

import os
import resource
import time

import torch

from promptbench.method import Method


class Greedy(Method):
    trains = False

    def forward(self, images):
        if os.environ["GREEDY"] == "limit":
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + ({ROOM} << 20), resource.RLIM_INFINITY))
        taken = []
        while True:
            taken.append(torch.ones(16 << 18))
            time.sleep(0.01)
'''
JUMPS = f'''"""Sets the clock of each process forward and back, again and again."""

import os
import time

real, real_ns, began = time.time, time.time_ns, time.monotonic()


def offset():
    return {HOURS} * 3600 * (int(time.monotonic() - began) % 3 - 1)


time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + offset() * 10**9
'''


class Home:
    """A folder with images, a cache and an undisturbed sweep.

    Args:
        folder: Empty.
        options: Of the sweep, as `kill.command` takes them.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        kill.draw_images(folder / "images")
        (folder / "images" / "owl").rename(folder / "images" / "büho ığİ")
        self.whole = self.carry_out("whole")
        self.expected = numbers(self.whole)

    def words(self, output: Path, **changes: Any) -> list[str]:
        """The command of the sweep.

        Args:
            changes: Of the options.
        """
        return kill.command(output, self.folder, argparse.Namespace(**{**vars(self.options), **changes}))

    def call(self, words: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """Carry out a command in an environment with other variables."""
        environment = {**kill.environment(self.folder), **variables}
        said: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
        return subprocess.run(words, env=environment, timeout=LONGEST, **said)

    def carry_out(self, name: str, **changes: Any) -> Path:
        """The sweep at home; returns its output folder."""
        done = self.call(self.words(self.folder / name, **changes))
        if done.returncode:
            raise RuntimeError(f"the sweep failed: {done.stderr}")
        return self.folder / name

    def differs(self, output: Path) -> Iterator[str]:
        """What of an output folder is not as at home, but for failures."""
        found = {name: content for name, content in numbers(output).items() if not name.endswith(".failed.json")}
        for name in sorted(self.expected | found):
            if self.expected.get(name) != found.get(name):
                yield f"{output.name}: {name} is different"
        if (output / "claims").exists():
            yield f"{output.name}: claims are left over"

    def ended_well(self, what: str, done: subprocess.CompletedProcess[str], code: int = 0) -> Iterator[str]:
        """What is wrong with how a command ended.

        Args:
            code: The exit code that it should have; with 2 it says one line.
        """
        if done.returncode != code:
            yield f"{what}: exit code {done.returncode} instead of {code}: {done.stderr[-1500:]}"
        if "Traceback" in done.stderr:
            yield f"{what}: a traceback: {done.stderr[-1500:]}"
        if code == 2 and not done.stderr.rstrip().rpartition("\n")[2].startswith("promptbench: error: "):
            yield f"{what}: no sentence: {done.stderr[-1500:]}"


Found = tuple[dict[str, Any], list[str]]  # figures, and what is wrong


def main() -> None:
    """Try, compare, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Run a small sweep in odd surroundings.")
    parser.add_argument("--part", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--method", nargs="+", default=("zeroshot", "coop"))
    parser.add_argument("-o", "--report", help="JSON file to write")
    options = parser.parse_args()
    options.jobs = 1
    with tempfile.TemporaryDirectory() as folder:
        found = explore(Path(folder), options)
    text = json.dumps(found | {"commit": git_commit(), "versions": library_versions()}, indent=1) + "\n"
    print(text, end="")
    if options.report:
        Path(options.report).write_text(text, encoding="utf-8")
    sys.exit(1 if found["violations"] else 0)


def explore(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What each part found, and what is wrong, each sentence with its part."""
    home = Home(folder, options)
    found: dict[str, Any] = {}
    violations: list[str] = []
    for part in options.part:
        began = time.monotonic()
        figures, wrong = PARTS[part](home)
        found[part] = figures | {"seconds": round(time.monotonic() - began, 1)}
        violations += [f"{part}: {sentence}" for sentence in wrong]
    return {**found, "files compared each time": len(home.expected), "violations": violations}


def memory(home: Home) -> Found:
    """A run that takes too much memory fails alone, under a limit and under the kernel's."""
    plugin = home.folder / "greedy.py"
    plugin.write_text(GREEDY, encoding="utf-8")
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    for how in LIMITS:
        output = home.folder / f"memory-{how}"
        words = home.words(output, jobs=2, method=["greedy", *home.options.method])
        code, said, kills = watched([*words, "--plugin", str(plugin)], home, how)
        failures = sorted((output / "results").rglob("*.failed.json"))
        reasons = [json.loads(path.read_text(encoding="utf-8"))["reason"] for path in failures]
        figures[how] = {"exit code": code, "kills": kills, "failed": len(reasons), "reasons": sorted(set(reasons))}
        if code != 1 or not reasons or "Traceback" in said:
            wrong.append(f"{how}: exit code {code}, {len(reasons)} failures: {said[-1500:]}")
        wrong += [f"{how}: {path.name} failed" for path in failures if not path.name.startswith("greedy")]
        wrong += [
            f"{how}: the reason names no memory: {reason}" for reason in reasons if "memory" not in reason.lower()
        ]
        wrong += home.differs(output)
    return figures, wrong


def watched(words: Sequence[str], home: Home, how: str) -> tuple[int | None, str, int]:
    """Carry out a sweep and kill each of its workers that takes too much; its exit code, what it said, and kills."""
    kills, deadline = 0, time.monotonic() + LONGEST
    with tempfile.TemporaryFile() as said:
        environment = {**kill.environment(home.folder), "GREEDY": how}
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None and time.monotonic() < deadline:
            for pid in descendants(process.pid):
                if resident(pid) > MOST:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        kills += 1
            time.sleep(0.02)
        process.kill()
        process.wait()
        said.seek(0)
        return process.returncode, said.read().decode(errors="replace"), kills


def resident(pid: int) -> float:
    """MiB in memory of a process; 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def mounts(home: Home) -> Found:
    """What is read-only is read; where a result cannot be written, one line says so, and nothing finished is lost."""
    way = namespace(home.folder)
    if way is None:
        return {"possible here": False}, []
    wrong: list[str] = []
    figures: dict[str, Any] = {"possible here": True, "namespace": " ".join(way)}

    def tried(what: str, words: Sequence[str], place: Path, code: int = 0, **variables: str) -> str:
        place.mkdir(exist_ok=True)
        done = home.call([*way, "sh", "-c", READ_ONLY, "sh", str(place), *words], **variables)
        figures[what] = {"exit code": done.returncode, "last words": last_words(done.stderr, home.folder)}
        wrong.extend(home.ended_well(what, done, code))
        return done.stdout

    images, output = home.folder / "images", home.folder / "on read-only images"
    tried("images", home.words(output), images)
    wrong += home.differs(output)
    for what, cache in (("filled cache", home.folder / "cache"), ("empty cache", home.folder / "empty")):
        output = home.folder / f"with read-only {what}"
        tried(what, home.words(output), cache, PROMPTBENCH_CACHE=str(cache))
        wrong += home.differs(output)
    tried("output", home.words(home.folder / "nothing"), home.folder / "nothing", code=2)
    finished = home.call(home.words(home.whole)).stdout
    if tried("finished output", home.words(home.whole), home.whole) != finished:
        wrong.append("finished output: the table is another one")
    table = [sys.executable, "-m", "promptbench", "table", "--results", str(home.whole)]
    if tried("table", table, home.whole) != home.call(table).stdout:
        wrong.append("table: it is another one")
    for jobs in (1, 2):
        output = home.folder / f"turned read-only, {jobs} at once"
        output.mkdir()
        done = home.call([*way, "sh", "-c", TURNED, "sh", str(output), *home.words(output, jobs=jobs)])
        figures[output.name] = {"exit code": done.returncode, "last words": last_words(done.stderr, home.folder)}
        wrong += home.ended_well(output.name, done, code=2)
        figures[output.name]["finished before"] = len(list((output / "results").rglob("*.json")))
        wrong += home.ended_well(f"{output.name}, again", home.call(home.words(output)))
        wrong += home.differs(output)
    return figures, wrong


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
TURNED = """output=$1; aside=$1-aside; shift
mkdir "$aside" && mount --bind "$output" "$aside" && mount -o remount,ro,bind "$aside" || exit 70
"$@" & sweep=$!
while kill -0 $sweep && ! find "$output/results" -name '[!.]*.json' | grep -q .; do sleep 0.02; done 2>/dev/null
mount --bind "$aside" "$output" || exit 71
wait $sweep
"""


def namespace(folder: Path) -> list[str] | None:
    """The command that runs another where mounts are its own; None where that is not possible."""
    for way in (["unshare", "-m"], ["unshare", "-Urm"]):
        place = folder / "mount"
        place.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            words = [*way, "sh", "-c", READ_ONLY, "sh", str(place), "sh", "-c", 'test ! -w "$0"', str(place)]
            if subprocess.run(words, capture_output=True).returncode == 0:
                return way
    return None


def last_words(said: str, folder: Path) -> str:
    """The last line of what a command said, without where the script's folder happens to be."""
    return said.rstrip().rpartition("\n")[2].replace(str(folder), "")


def threads(home: Home) -> Found:
    """Runs with one and with two threads are different ones, also in a table."""
    output = home.folder / "threads"
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    for count in (1, 2):
        words = home.words(output)
        words[words.index("--threads") + 1] = str(count)
        wrong += home.ended_well(f"{count} threads", home.call(words))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.rglob("results/**/*.json"))]
    metrics: dict[tuple[Any, ...], dict[int, Any]] = {}
    for record in records:
        spec = record["spec"]
        place = (spec["protocol"], spec["method"], spec["preset"], json.dumps(spec["config"], sort_keys=True))
        metrics.setdefault(place, {})[spec["threads"]] = (record["metrics"], record["losses"])
    figures["runs of each"] = len(metrics)
    figures["files"] = len(records)
    figures["runs with other figures"] = sum(found.get(1) != found.get(2) for found in metrics.values())
    wrong += [f"not both are recorded: {place}" for place, found in metrics.items() if sorted(found) != [1, 2]]
    table = home.call(
        [sys.executable, "-m", "promptbench", "table", "--protocol", "few_shot", "--results", str(output)]
    )
    wrong += home.ended_well("table", table)
    figures["rows of the table"] = re.findall(r"\| *([^|\n]*threads=\d[^|\n]*?) *\|", table.stdout)
    for count in (1, 2):
        if f"threads={count}" not in table.stdout:
            wrong.append(f"no row of the table says threads={count}")
    return figures, wrong


def text(home: Home) -> Found:
    """Neither the order of sets nor a locale changes a byte of a result; a name that is no text is one line."""
    installed = {
        normal(name) for name in subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
    }
    figures: dict[str, Any] = {"tried": [], "not installed": []}
    wrong: list[str] = []
    for number, variables in enumerate(TEXTS):
        what = " ".join(f"{name}={value}" for name, value in variables.items())
        if (language := variables.get("LC_ALL")) and normal(language) not in installed:
            figures["not installed"].append(language)
            continue
        output = home.folder / f"text-{number}"
        wrong += home.ended_well(what, home.call(home.words(output), **variables))
        wrong += [f"{what}: {sentence}" for sentence in home.differs(output)]
        figures["tried"].append(what)
    done = home.call(home.words(home.folder / "ascii"), **ASCII)
    figures["where files have names in ASCII"] = last_words(done.stderr, home.folder)
    wrong += home.ended_well("ASCII", done, code=2)
    return figures, wrong


def normal(name: str) -> str:
    """A locale's name as the C library compares them: `C.UTF-8` and `C.utf8` are one."""
    return locale.normalize(name).lower().replace("-", "")


def clock(home: Home) -> Found:
    """A clock that is set hours back and forward costs no run and gives no living process's claim away."""
    figures: dict[str, Any] = {"hours": HOURS}
    wrong: list[str] = []
    place = home.folder / "jumps"
    place.mkdir()
    (place / "sitecustomize.py").write_text(JUMPS, encoding="utf-8")
    for jobs in (1, 2):
        output = home.folder / f"jumps-{jobs}"
        wrong += home.ended_well(output.name, home.call(home.words(output, jobs=jobs), PYTHONPATH=str(place)))
        wrong += home.differs(output)
    for name, hours in (("forward", -HOURS), ("back", HOURS)):
        for what, tried in (("claims of the living", beside), ("files of the dead", after)):
            output = home.folder / f"clock {name}, {what}"
            found, sentences = tried(home, output, hours)
            figures[f"{name}, {what}"] = found
            wrong += [f"{output.name}: {sentence}" for sentence in sentences]
            wrong += home.differs(output)
    return figures, wrong


def beside(home: Home, output: Path, hours: int) -> Found:
    """Two calls at once, whose claims get dates of a clock that stands elsewhere again and again."""
    words, environment = home.words(output), kill.environment(home.folder)
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    calls = [subprocess.Popen(words, env=environment, **silent) for _ in range(2)]
    dated, before, taken = 0, set[tuple[int, str]](), set[tuple[int, str]]()
    deadline = time.monotonic() + LONGEST
    while any(call.poll() is None for call in calls) and time.monotonic() < deadline:
        for path in (output / "claims").glob("*.claim"):
            dated += set_clock(path, hours)
        for _ in range(JUMP // LOOK):
            now = set(lost([call.pid for call in calls]))
            taken |= before & now
            before = now
            time.sleep(LOOK / 1000)
    wrong = [f"process {pid} lives, and its claim {name} was taken" for pid, name in sorted(taken)]
    for call in calls:
        call.kill()
        said = call.communicate()[1]
        wrong += home.ended_well("a call", subprocess.CompletedProcess(words, call.returncode, "", said))
    return {"claims dated": dated, "taken from the living": len(taken)}, wrong


def after(home: Home, output: Path, hours: int) -> Found:
    """A call that is killed in its training, all of whose files then get other dates."""
    process = subprocess.Popen(
        home.words(output),
        env=kill.environment(home.folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(output.glob("trainings/*.partial")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    files = [path for path in output.rglob("*") if path.is_file()]
    dated = sum(set_clock(path, hours) for path in files)
    began = time.monotonic()
    wrong = list(home.ended_well("again", home.call(home.words(output))))
    partials = sum(path.suffix == ".partial" for path in files)
    return {"files dated": dated, "trainings under way": partials, "seconds": round(time.monotonic() - began, 1)}, wrong


def set_clock(path: Path, hours: int) -> bool:
    """Date a file as if the clock had stood so many hours away, and say whether it was there."""
    when = time.time() + 3600 * hours
    with contextlib.suppress(OSError):
        os.utime(path, (when, when))
        return True
    return False


def lost(pids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Processes that hold a claim whose file is gone: one who releases a claim closes it with that."""
    for pid in pids:
        for place in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                name = os.readlink(place)
                if "/claims/" in name and name.endswith(" (deleted)"):
                    yield pid, Path(name).name.removesuffix(" (deleted)")


PARTS: Mapping[str, Callable[[Home], Found]] = {
    "memory": memory,
    "mounts": mounts,
    "threads": threads,
    "text": text,
    "clock": clock,
}

if __name__ == "__main__":
    main()
