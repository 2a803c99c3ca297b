"""Spoils every kind of file that comes from outside, and checks that nothing worse than a sentence comes of it.

    python benchmarks/stress/hostile_inputs.py --cases 500 -o results/measured/hostile_inputs.json

Each case goes through the command, or a function that a command calls. It ends well in three ways: success, one line
and exit code 2, or a run that is recorded as failed. A violation is anything else: another exception or a traceback, a
failure that is recorded but not understood, code out of a file that runs, a process or a connection, a file written
outside of the output folder, figures of a run that change, a case that does not end, or that takes more than 256 MiB or
10 seconds of CPU time over a file below 5 MB. Hypothesis draws what is wrong with a file. Decompression bombs are
opened in a process of their own, whose memory is measured. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import ctypes
import functools
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from kill import draw_images
from PIL import Image
from safetensors.torch import load, save

from promptbench import registry
from promptbench.checkpoints import hub
from promptbench.checkpoints import load as trained
from promptbench.checkpoints.official import load_official_checkpoint
from promptbench.cli.main import main as promptbench
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError
from promptbench.data import selection
from promptbench.data.dataset import Dataset, Download, open_dataset
from promptbench.data.get.prepare import fetch
from promptbench.method import Method, create_method
from promptbench.results.predictions import load_predictions
from promptbench.storage.versions import git_commit, library_versions
from promptbench.training.files import PartialFile

SECONDS = 60  # after which a case counts as endless
LONGEST = 3000  # characters of a line that is still clear
SMALL = 5 * 10**6  # bytes of a file that may take no more than
MOST_MIB, MOST_SECONDS = 256.0, 10.0  # of memory and of CPU time
SIZES_IN_BULK = (10**4, 10**5, 10**6, SMALL - 10**5)  # bytes of what is much of the same
BOMBS = ("png 1 bit 20000", "png 8 bit 11000", "png 8 bit 13000", "png 8 bit 60000", "gif 65535", "tiff 12000")
ROOM = 150.0  # MiB that a refused bomb may take
BIRDS = ("finch", "hawk", "owl", "wren")

Draw = Callable[[Any], Any]
Act = tuple[str, ...] | Callable[[], object]  # words of a command, or a function that a command calls


class Violation(Exception):
    """What must not happen; the message says what did."""


def main() -> None:
    """Spoil, try, print, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Spoil what comes from outside, and see that nothing bad happens.")
    parser.add_argument("--cases", type=int, default=100, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("-o", "--report", type=Path, help="JSON file to write")
    options = parser.parse_args()
    found = explore(options)
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    print(text, end="")
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    sys.exit(1 if found["violations"] else 0)


def explore(options: argparse.Namespace) -> dict[str, Any]:
    """So many cases, spread evenly over the kinds, and the bombs; the same seed makes the same cases."""
    began = time.monotonic()
    outcomes: dict[str, Counter[str]] = {}
    taken: dict[str, dict[str, float]] = {}
    violations: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, prepared(Path(folder), options.backbone) as site:
        for index, kind in enumerate(KINDS):
            wanted = (options.cases + index) // len(KINDS)  # they add up to the cases
            TAKEN.clear()
            outcomes[kind] = explore_kind(site, kind, wanted, options.seed, violations)
            taken[kind] = dict(TAKEN)
    bombs = {name: try_bomb(name) for name in BOMBS}
    violations += [{"kind": "decompression bombs", "what": name} for name in bombs if not bombs[name]["clean"]]
    return {
        "cases": sum(sum(counter.values()) for counter in outcomes.values()),
        "by kind": {kind: dict(sorted(counter.items())) for kind, counter in outcomes.items()},
        "largest MiB": {kind: round(taken[kind].get("MiB", 0.0), 1) for kind in taken},
        "longest seconds": {kind: round(taken[kind].get("seconds", 0.0), 2) for kind in taken},
        "seed": options.seed,
        "violations": violations,
        "decompression bombs": bombs,
        "seconds": round(time.monotonic() - began),
        "commit": git_commit(),
        "versions": {**library_versions(), "hypothesis": hypothesis.__version__},
    }


def explore_kind(site: Site, kind: str, cases: int, seed: int, violations: list[dict[str, Any]]) -> Counter[str]:
    """How so many cases of a kind ended; what must not happen is added to `violations`."""
    outcomes: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(cases, 1),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.data())
    def one(data: st.DataObject) -> None:
        act, same_figures = hostile(data.draw, site, KINDS[kind])
        try:
            outcomes[attempt(act, site, same_figures)] += 1
        except Violation as violation:
            outcomes["violation"] += 1
            case = {"kind": kind, "seed": seed, "case": sum(outcomes.values()), "act": str(act)[:300]}
            violations.append({**case, "what": str(violation)})

    if cases:
        one()
    return outcomes


# --- a case, and the watch over what it does to the world around it


def attempt(act: Act, site: Site, same_figures: bool = False) -> str:
    """How an act on the site's `case` ends, `done`, `refused` or `failed`; a Violation where it is in another way.

    With `same_figures`, runs must measure what those of the site measured.
    """
    cache = site.case / "cache" if (site.case / "cache").exists() else site.folder / "cache"
    os.environ["PROMPTBENCH_CACHE"] = str(cache)
    tempfile.tempdir = str(cache)
    forget_plugins()
    site.marker.unlink(missing_ok=True)
    sizes = [path.stat().st_size for path in site.case.rglob("*") if path.is_file()]
    try:
        measuring = measured(small=max(sizes, default=0) < SMALL)
        with heard() as said, limited(SECONDS), measuring, WATCH.over(str(site.case / "out"), str(cache)):
            outcome = carried_out(act)
    except Endless:
        raise Violation(f"it had not ended after {SECONDS} seconds") from None
    if WATCH.seen or site.marker.exists():
        raise Violation("; ".join(dict.fromkeys(WATCH.seen)) or "code out of the file was run")
    said.seek(0)
    check_said(outcome, said.read(), isinstance(act, tuple), site)
    for path in results_in(site.case / "out") if same_figures else ():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["metrics"] != site.metrics[record["spec"]["method"]]:
            raise Violation(f"other figures: {record['metrics']}")
    return outcome


def forget_plugins() -> None:
    """Plugins of an earlier case, which had the same names."""
    for name in [name for name in sys.modules if name.startswith("promptbench_plugin")]:
        del sys.modules[name]
    for files in registry._files.values():
        files.clear()


def carried_out(act: Act) -> str:
    """Act, and say how it ended; a Violation where that was none of the three ways."""
    try:
        code = 0
        if isinstance(act, tuple):
            code = promptbench(act)
        else:
            act()
    except UsageError as error:
        if isinstance(act, tuple):
            raise Violation(f"UsageError through main: {error}") from error
        return "refused"
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except Exception as error:
        told = "".join(traceback.format_tb(error.__traceback__)[-3:])
        raise Violation(f"{type(error).__name__}: {str(error)[:200]}\n{told}") from error
    if code not in (0, 1, 2):
        raise Violation(f"exit code {code}")
    return ("done", "failed", "refused")[code]


def check_said(outcome: str, said: str, command: bool, site: Site) -> None:
    """A Violation unless a refused command said one clear line, and a failure is told or on record, and understood."""
    if "Traceback" in said:
        raise Violation(f"a traceback on stderr: {said[-300:]}")
    lines = [line for line in said.splitlines() if line.startswith("promptbench: error: ")]
    if command and outcome == "refused" and (len(lines) != 1 or len(lines[0]) > LONGEST):
        raise Violation(f"not one clear line but {len(lines)}: {said[:300]}")
    if outcome == "failed" and not said.strip():
        raise Violation("exit code 1, and nothing said")
    for path in site.case.glob("out/results/**/*.failed.json") if outcome == "failed" else ():
        record = json.loads(path.read_text(encoding="utf-8"))
        if "UsageError" not in record["traceback"] and "TrainingDiverged" not in record["traceback"]:
            raise Violation(f"recorded, but not understood: {record['reason'][:300]}")


TAKEN: dict[str, float] = {}
"""The most that cases with small files took: `MiB` of memory over what there was before, `seconds` of CPU time."""


@contextlib.contextmanager
def measured(small: bool) -> Iterator[None]:
    """Notes in TAKEN what happens within it, where its files are small; a Violation where that is too much.

    A run starts the high-water mark of the memory anew, so that a thread looks at the memory as well.
    """
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts when it is taken again
    Path("/proc/self/clear_refs").write_text("5")
    before, began, done = memory("VmRSS"), time.process_time(), threading.Event()
    highest = [before]

    def look() -> None:
        while not done.wait(0.02):
            highest[0] = max(highest[0], memory("VmRSS"))

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()
    mib, seconds = max(highest[0], memory("VmHWM")) - before, time.process_time() - began
    if small:
        TAKEN.update(MiB=max(mib, TAKEN.get("MiB", 0.0)), seconds=max(seconds, TAKEN.get("seconds", 0.0)))
        if mib > MOST_MIB or seconds > MOST_SECONDS:
            raise Violation(f"it took {mib:.0f} MiB and {seconds:.1f} seconds")


def memory(name: str) -> float:
    """A figure of this process's memory as Linux has it, in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


class Endless(BaseException):
    """A case takes too long; no `except Exception` of the code stops it."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises Endless within it after so many seconds."""

    def stop(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def heard() -> Iterator[io.TextIOWrapper]:
    """Within it, stdout and stderr, which it yields, are files in memory, with the errors of a terminal's."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield err


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_FOREIGN = {
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "socket.connect", "socket.getaddrinfo", "pickle.find_class",
}  # fmt: skip


@dataclass
class Watch:
    """Python's audit events while a case goes on: files that are written elsewhere, processes, connections, pickles."""

    allowed: tuple[str, ...] = ()
    on: bool = False
    seen: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def over(self, *allowed: str) -> Iterator[None]:
        """Notes what happens within it; writing is allowed below the given folders."""
        self.allowed, self.seen, self.on = allowed, [], True
        try:
            yield
        finally:
            self.on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Keeps an audit event that opens a way out or writes where it may not."""
        if not self.on:
            return
        paths = [path for path in arguments[:2] if isinstance(path, (str, bytes, os.PathLike))]
        if event in _FOREIGN:
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            if paths and not os.path.isdir(paths[0]):  # a temporary file without a name is opened so
                self.written(os.fsdecode(paths[0]))
        elif event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # of a folder that is open
            self.written(os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(arguments[0])))
        elif event in _CHANGES:
            for path in paths:
                self.written(os.fsdecode(path))

    def written(self, path: str) -> None:
        """Note a path outside of what is allowed."""
        folder, name = os.path.split(os.path.abspath(path))
        full = os.path.join(os.path.realpath(folder), name)
        harmless = (os.devnull, f"/proc/{os.getpid()}/clear_refs")  # each run measures its memory anew
        if full not in harmless and not full.startswith(self.allowed):
            self.seen.append(f"wrote {full!r}"[:200])


WATCH = Watch()


# --- the site: what is valid before it is spoilt


@dataclass(frozen=True)
class Site:
    """A folder with valid inputs; cases copy from it and write to its `case` alone.

    Attributes:
        folder: Holds a folder for each kind of input, and `runs`, `birds` and `cache`.
        suite: The suite with the birds.
        backbone: Its name.
        method: CoOp on the birds.
        dataset: The birds.
        metrics: What the runs measured, by method.
    """

    folder: Path
    suite: Path
    backbone: str
    method: Method
    dataset: Dataset
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def case(self) -> Path:
        """The only folder that cases write to."""
        return self.folder / "case"

    @property
    def architecture(self) -> Path:
        """That of the weight files."""
        return self.folder / "architecture.json"

    @property
    def marker(self) -> Path:
        """The file that code out of an input would make."""
        return self.folder / "executed"

    def words(self, door: str, **named: Path) -> tuple[str, ...]:
        """A command with its places filled in."""
        known = {"site": self.folder, "suite": self.suite, "photo": self.folder / "birds" / "owl" / "0.png"}
        known |= {path.name.partition("-")[0]: path for path in results_in(self.folder / "runs")}
        return tuple(word.format(**{**known, **named, "backbone": self.backbone}) for word in door.split())


def results_in(folder: Path) -> list[Path]:
    """The result files of runs on the birds."""
    return sorted(folder.glob("results/base2new/birds/*.json"))


@contextlib.contextmanager
def prepared(folder: Path, backbone: str) -> Iterator[Site]:
    """The valid inputs; within it, no Python file is compiled to disk, and paths are relative to the site."""
    git_commit()  # asks git, once in a process
    here, compiling, threads = os.getcwd(), sys.dont_write_bytecode, torch.get_num_threads()
    temporary = tempfile.tempdir
    settings = {"PROMPTBENCH_CACHE": str(folder / "cache"), "PROMPTBENCH_PARTIAL_SECONDS": "0"}
    briefly = mock.patch.multiple("promptbench.storage.claims", WATCH=0.1, LOOK=0.02)  # old claims are looked at
    with mock.patch.dict(os.environ, settings), briefly:
        try:
            sys.dont_write_bytecode = True
            os.chdir(folder)
            sys.addaudithook(WATCH)  # for good: Python has no way to stop
            yield make_site(folder.resolve(), backbone)
        finally:
            os.chdir(here)
            tempfile.tempdir = temporary
            sys.dont_write_bytecode = compiling
            torch.set_num_threads(threads)


def make_site(folder: Path, backbone: str) -> Site:
    """Make everything; runs the command a few times."""
    draw_images(folder / "birds")
    draw_images(folder / "data" / "dtd" / "images")
    for name in ("suites", "names", "samples", "checkpoints/prompt_learner", "weights", "archives", "plugins"):
        (folder / name).mkdir(parents=True)
    entry = {"name": "birds", "dataset": "folder", "root": str(folder / "birds")}
    suite = {"title": "Hostile", "backbone": backbone, "shots": 2, "seeds": [1], "threads": 1, "ranked": True}
    suite |= {"roles": {"base2new": [entry]}, "methods": {"coop": {"recipe": {"epochs": 2}, "config": {"n_ctx": 4}}}}
    (folder / "suites" / "mine.yaml").write_text(json.dumps(suite))
    (folder / "plugins" / "mine_birds.py").write_text(PLUGIN)
    suite["roles"] = {"base2new": [{"name": "birds", "dataset": "mine_birds"}]}
    (folder / "suites" / "plugin.yaml").write_text(json.dumps(suite))
    (folder / "names" / "names.txt").write_text("\n".join(f"{name} a {name}" for name in BIRDS))
    dataset = open_dataset("folder", {"root": str(folder / "birds")}, alias="birds")
    method = create_method("coop", load_backbone(backbone), dataset.class_names, n_ctx=4)
    site = Site(folder, folder / "suites" / "mine.yaml", backbone, method, dataset)
    write_split(folder / "data" / "dtd" / "split_zhou_DescribableTextures.json")
    write_samples(site, folder / "samples")
    write_checkpoints(site, folder / "checkpoints")
    write_weights(folder / "architecture.json", folder / "weights")
    write_archives(folder / "birds" / "owl", folder / "archives")
    carry_out_runs(site)
    return site


def write_split(path: Path) -> None:
    """A split as CoOp's files have it."""
    split: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(BIRDS):
        for number, part in enumerate(("train", "train", "train", "val", "test", "test")):
            split[part].append([f"{name}/{number}.png", label, name])
    path.write_text(json.dumps(split))


class Datum:
    """Stands for `dassl.data.datasets.base_dataset.Datum`, which CoOp pickles."""

    def __init__(self, item: Any) -> None:
        self._impath, self._label, self._domain = f"/data/birds/{item.image}", item.label, 0
        self._classname = item.class_name


def write_samples(site: Site, folder: Path) -> None:
    """Two training images of every class, as lines and as CoOp pickles them."""
    few: list[Any] = []
    for item in site.dataset.items("train"):
        if [other.label for other in few].count(item.label) < 2:
            few.append(item)
    selection.write_sample(folder / "mine.jsonl", {"dataset": "birds", "shots": 2, "seed": 1, "sampler": "coop"}, few)
    datums = [Datum(item) for item in few]
    (folder / "shot_2-seed_1.pkl").write_bytes(pickle.dumps({"train": datums, "val": datums[:2]}, protocol=2))


def write_checkpoints(site: Site, folder: Path) -> None:
    """What official code leaves of CoOp, and the file that says which is the last."""
    state = {name: parameter.detach().clone() for name, parameter in site.method.official_parameters().items()}
    state["prompt_learner.token_prefix"] = torch.zeros(4, 1, 8)
    content = {"state_dict": state, "epoch": 2, "optimizer": {"state": {}}, "scheduler": None, "val_result": 50.0}
    torch.save(content, folder / "prompt_learner" / "model.pth.tar-2")
    (folder / "prompt_learner" / "checkpoint").write_text("model.pth.tar-2\n")


def write_weights(architecture: Path, folder: Path) -> None:
    """A small CLIP, and its weights in both formats."""
    towers = {"vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8}}
    towers |= {"text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}}
    architecture.write_text(json.dumps({"embed_dim": 8, "quick_gelu": True, **towers}))
    state = load_backbone(f"{architecture}:random").clip.state_dict()
    (folder / "weights.safetensors").write_bytes(save(state))
    plain = {name: tensor.clone() for name, tensor in state.items()}
    content = {"state_dict": plain, "epoch": 2, "optimizer": {"state": {}}, "scheduler": None, "val_result": 50.0}
    torch.save(content, folder / "weights.pt")


def write_archives(images: Path, folder: Path) -> None:
    """Images as archives of each kind, some of them by links."""
    for suffix in ("gz", "bz2", "xz"):
        with tarfile.open(folder / f"data.tar.{suffix}", f"w:{suffix}") as archive:  # type: ignore[call-overload]
            archive.add(images, "data")
            for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
                entry = tarfile.TarInfo(f"data/{number}.jpg")
                entry.type, entry.linkname = kind, ("0.png", "data/0.png")[number]
                archive.addfile(entry)
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in images.iterdir():
            packed.write(path, f"data/{path.name}")


def carry_out_runs(site: Site) -> None:
    """The runs, and what is left of them where one was stopped, is claimed, was exported or is to be shown."""
    runs = site.folder / "runs"
    kept = mock.patch.object(PartialFile, "remove"), mock.patch("promptbench.sweep.loop.superseded", return_value=[])
    with kept[0], kept[1]:  # the note of where the training stands is an input as well
        must(site.words(f"{ZEROSHOT} --save-predictions", out=runs))
        must(site.words(f"{COOP} --save-predictions", out=runs))
    must(site.words("export --run {coop} -o {site}/export"))
    records = {path: json.loads(path.read_text()) for path in results_in(runs)}
    site.metrics.update({record["spec"]["method"]: record["metrics"] for record in records.values()})
    coop = next(path for path in records if path.name.startswith("coop"))
    (site.folder / "partial").mkdir()
    shutil.move(next(runs.glob("trainings/*.partial")), site.folder / "partial")
    for name in ("results", "listed", "trained", "claimed"):
        shutil.copytree(runs, site.folder / name)
    failure = {"schema": 1, "spec": records[coop]["spec"], "reason": "it broke", "where": {"epoch": 1}}
    failed = site.folder / "results" / coop.relative_to(runs).with_name("other-0123456789ab.failed.json")
    failed.write_text(json.dumps({**failure, "created": "2026-01-01"}))
    tables = [{"file": "t.md", "protocol": "base2new"}, {"file": "u.csv", "protocol": "base2new", "format": "csv"}]
    (site.folder / "listed" / "regenerate.yaml").write_text(json.dumps({"tables": tables}))
    for name in ("trained", "claimed"):
        (site.folder / name / coop.relative_to(runs)).unlink()
    shutil.rmtree(site.folder / "claimed" / "trainings")
    about = {"kind": "run", "run": "base2new/birds/coop-1", "seeds": [1, 1], "epochs": 2}
    owner = {"host": "elsewhere", "machine": "m", "pid": 1, "born": "1", "since": 1.0, "token": "t", "about": about}
    claim = site.folder / "claimed" / "claims" / f"{records[coop]['conditions']['training_key'][:32]}.claim"
    claim.parent.mkdir()
    claim.write_text(json.dumps(owner) + '\n{"done": 1, "total": 2}')


def must(words: tuple[str, ...]) -> None:
    """A command that has to succeed."""
    with heard() as said:
        code = promptbench(words)
    if code:
        said.seek(0)
        raise RuntimeError(f"{words} failed: {said.read()}")


# --- what can be wrong with a file

PATHS = (
    "../../escaped", "/tmp/promptbench-escaped", "..\\..\\escaped", "a/../../../escaped", "~/escaped", "C:\\x", ".",
)  # fmt: skip
TEXTS = (
    "", " ", "x" * 5000, "データ", "\ud800", "a\0b", "a\nb", "\x1b[31mred", "{}", "{0.__class__}", "%s", "-1", "nan",
)  # fmt: skip
NUMBERS = (0, -1, 2**31, 2**63, 10**30, 10**400, 1e308, 0.5, -0.0, float("nan"), float("inf"), True, None)
SIZES = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"9" * 4)  # where a file counts something
NO_JSON = (b"", b"null", b"[" * 50_000, b"\xff\xfe{", b"9" * 6000, b'{"a":' * 9000, b"\xef\xbb\xbf")
NO_IMAGES = (b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"P6 9999999 9999999 255\n")
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "PPM", "BMP", "ICO", "JPEG2000")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
DEEP = functools.reduce(lambda inner, _: [inner], range(900), list[Any]())
ODD = st.sampled_from((*PATHS, *TEXTS, *NUMBERS, DEEP)) | ANY_JSON
"""A value that most places do not expect."""


def damaged(draw: Draw, data: bytes, site: Site) -> bytes:
    """Bytes cut short, written over, or with others in between, up to three times."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)) | st.integers(0, 8))
        new = draw(st.binary(max_size=9) | st.sampled_from(SIZES))
        goes_on = draw(st.sampled_from((at, at + len(new), at + len(new), len(data))))
        data = data[:at] + new + data[goes_on:]
    return data


def changed(draw: Draw, document: Any) -> Any:
    """A document of lists and dictionaries with one place in it replaced, lost or renamed."""
    if not document or not isinstance(document, (dict, list)) or draw(st.integers(0, 4)) == 0:
        return draw(ODD)
    if isinstance(document, list):
        at = draw(st.integers(0, len(document) - 1))
        return [*document[:at], changed(draw, document[at]), *document[at + 1 :]]
    key = draw(st.sampled_from(list(document)))
    others = {other: value for other, value in document.items() if other != key}
    how = draw(st.sampled_from(("replace", "replace", "replace", "lose", "rename")))
    if how == "lose":
        return others
    if how == "rename":
        return {**others, draw(st.sampled_from((*PATHS, *TEXTS))): document[key]}
    return {**others, key: changed(draw, document[key])}


def other_json(draw: Draw, data: bytes, site: Site) -> bytes:
    """A document with other values, or something else altogether."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return draw(st.sampled_from(NO_JSON))
    return json.dumps(draw(ODD) if how == 1 else changed(draw, json.loads(data))).encode()


def other_lines(draw: Draw, data: bytes, site: Site) -> bytes:
    """Lines of JSON, one of them lost, repeated or with another value."""
    lines = data.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    other = json.dumps(changed(draw, json.loads(lines[at]))).encode()
    lines[at : at + 1] = draw(st.sampled_from(([other], [other], [], [lines[at], lines[at]])))
    return b"\n".join(lines) + draw(st.sampled_from((b"", b"\n", b"\n\n")))


def other_text(draw: Draw, data: bytes, site: Site) -> bytes:
    """Lines of text, one of which says something odd."""
    lines = data.decode().split("\n")
    odd = draw(st.sampled_from((*PATHS, *TEXTS)) | st.text(max_size=30))
    lines[draw(st.integers(0, len(lines) - 1))] = draw(st.sampled_from(("", "finch ", "hawk\t", "owl "))) + odd
    return "\n".join(lines).encode(errors="surrogatepass")


def other_tensors(draw: Draw, data: bytes, site: Site) -> bytes:
    """A safetensors file with another shape, type, name or metadata, whole in itself."""
    tensors = load(data)
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    name, how = draw(st.sampled_from(sorted(tensors))), draw(st.integers(0, 5))
    tensor = tensors.pop(name)
    others = (tensor.flatten(), tensor.double(), tensor.int(), tensor[:0].clone(), torch.zeros(*tensor.shape, 2))
    if how == 0:
        tensors[draw(st.sampled_from((*PATHS, "x", "")))] = tensor
    else:
        tensors[name] = tensor if how <= 2 else draw(st.sampled_from(others))
    if how <= 2 and about:
        key = draw(st.sampled_from(sorted(about)))
        try:
            about[key] = json.dumps(changed(draw, json.loads(about[key])))
        except ValueError:  # it is no JSON
            about[key] = draw(st.sampled_from((*PATHS, "", "promptbench/99", "{", "x" * 999)))
    spoilt = save(tensors, metadata=about)
    return sealed(spoilt) if is_sealed(data) else spoilt


def sealed(data: bytes) -> bytes:
    """As features and notes of trainings end: with a tensor that is the checksum of what stands before it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def is_sealed(data: bytes) -> bool:
    """Whether a file ends so."""
    return data == sealed(data)


def other_image(draw: Draw, data: bytes, site: Site) -> bytes:
    """An image of another format than its name says, cut or not; or that is none, or that no memory holds."""
    how = draw(st.integers(0, 4))
    if how == 0:
        return png_bomb(draw(st.sampled_from((20_000, 100_000, 2**31 - 1))), draw(st.sampled_from((1, 8))))
    if how == 1:
        return draw(st.sampled_from(NO_IMAGES))
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).save(stream, draw(st.sampled_from(FORMATS)))
    return stream.getvalue() if how == 2 else damaged(draw, stream.getvalue(), site)


class Evil:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, marker: Path, how: int) -> None:
        self.marker, self.how = str(marker), how

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        ways: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
            (open, (self.marker, "w")),
            (os.system, (f"touch {self.marker}",)),
            (eval, (f"open({self.marker!r}, 'w')",)),
            (Path.touch, (Path(self.marker),)),
            (torch.save, (0, self.marker)),
        )
        return ways[self.how % len(ways)]


def evil_pickle(marker: Path, how: int, protocol: int) -> bytes:
    """A pickle that would create a file; `how`, from 0 to 24, means one of five ways, within one of five things."""
    evil = Evil(marker, how)
    held: tuple[Any, ...] = (evil, {"train": [evil]}, {"train": [], "val": evil}, {"state_dict": {"a": evil}}, [evil])
    return pickle.dumps(held[how // 5], protocol=protocol)


def other_pickle(draw: Draw, data: bytes, site: Site) -> bytes:
    """CoOp's samples with another value, or a pickle with code in it."""
    how, protocol = draw(st.integers(0, 2)), draw(st.integers(2, 5))
    if how == 0:
        return evil_pickle(site.marker, draw(st.integers(0, 24)), draw(st.integers(0, 5)))
    held = pickle.loads(data)
    if how == 1:
        datum = draw(st.sampled_from(held["train"]))
        setattr(datum, draw(st.sampled_from(("_impath", "_label", "_classname", "other"))), draw(ODD))
    else:
        others: tuple[Any, ...] = (set(), b"x", 1.5, object, len, None, [], {}, [None], [Evil(site.marker, 0)])
        held[draw(st.sampled_from(("train", "test", "", 5)))] = draw(st.sampled_from(others))
    return pickle.dumps(held, protocol)


def other_checkpoint(draw: Draw, data: bytes, site: Site) -> bytes:
    """An official checkpoint with another value or with code in it, of either format of torch."""
    how, stream = draw(st.integers(0, 4)), io.BytesIO()
    evil, way = Evil(site.marker, draw(st.integers(0, 4))), draw(st.booleans())
    if how == 0:
        return evil_pickle(site.marker, draw(st.integers(0, 24)), draw(st.integers(0, 5)))
    if how == 1:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if way else zipfile.ZIP_STORED) as archive:
            archive.writestr(f"{draw(st.sampled_from(('archive', '../..', '/tmp')))}/data.pkl", pickle.dumps(evil, 2))
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/data/0", b"\0" * draw(st.sampled_from((0, 10**7))))
        return stream.getvalue()
    content = torch.load(io.BytesIO(data), weights_only=True)
    state = content["state_dict"]
    if how == 2:
        content[draw(st.sampled_from(("scheduler", "state_dict", "hyper_parameters")))] = evil
    elif how == 3:
        key = draw(st.sampled_from(("epoch", "optimizer", "scheduler", "val_result")))
        content[key] = changed(draw, content[key])
    else:
        others = (torch.zeros(()), torch.zeros(3, 0), torch.ones(2, 2).int(), torch.full((4, 8), float("nan")), "text")
        state[draw(st.sampled_from((*state, "prompt_learner.other", *TEXTS)))] = draw(st.sampled_from(others))
    torch.save(content, stream, _use_new_zipfile_serialization=way)
    return stream.getvalue()


def png_bomb(side: int, depth: int, whole: bool = False) -> bytes:
    """A small PNG that says it has `side` by `side` grey pixels of `depth` bits; all of them are there if `whole`."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    line = b"\0" * min(10**6, (side * depth + 7) // 8 + 1)
    packed = zlib.compressobj()
    body = b"".join(packed.compress(line) for _ in range(side if whole else 16)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb(name: str) -> bytes:
    """A decompression bomb: `png 8 bit 13000` has so many pixels on a side."""
    kind, *words = name.split()
    side = int(words[-1])
    if kind == "png":
        return png_bomb(side, int(words[0]), whole=side < 30_000)
    stream = io.BytesIO()
    if kind == "gif":  # a screen of that size, and a picture of one pixel
        Image.new("P", (1, 1)).save(stream, "GIF")
        held = stream.getvalue()
        return held[:6] + struct.pack("<HH", side, side) + held[10:]
    with mock.patch.object(Image, "MAX_IMAGE_PIXELS", None):
        Image.new("L", (side, side)).save(stream, "TIFF", compression="tiff_adobe_deflate")
    return stream.getvalue()


OPEN = """
import json, sys
from pathlib import Path
from promptbench.benchmarks.speed.memory import memory
from promptbench.config import UsageError
from promptbench.data.decode import open_image

Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
said, before = "", memory("VmRSS")
try:
    open_image(Path(sys.argv[1]))
except UsageError as error:
    said = str(error)
print(json.dumps({"mib": round(1024 * (memory("VmHWM") - before), 1), "said": said}))
"""


def opened(path: Path) -> dict[str, Any]:
    """What is said of an image, "" if it is opened, and the MiB that this takes at most, in a process of its own."""
    command = [sys.executable, "-c", OPEN, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        return {"mib": math.inf, "said": done.stderr[-300:]}
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def try_bomb(name: str) -> dict[str, Any]:
    """What opening a bomb says and takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bomb.jpg"
        path.write_bytes(bomb(name))
        told = opened(path)
        clean = str(path) in told["said"] and told["mib"] < ROOM
        return {"bytes": path.stat().st_size, **told, "said": told["said"].replace(folder, "..."), "clean": clean}


# --- much of the same in a small file


def in_bulk(draw: Draw, unit: bytes) -> bytes:
    """The same bytes again and again, up to a size."""
    return unit * (draw(st.sampled_from(SIZES_IN_BULK)) // len(unit))


def instruction(text: bytes) -> bytes:
    """Makes a pickle push a text."""
    return b"X" + struct.pack("<I", len(text)) + text


def noted(*values: bytes) -> bytes:
    """Makes a pickle note values down, for `h` to push again by their place."""
    return b"".join(value + b"q%c0" % place for place, value in enumerate(values))


STORAGE = (
    b"(" + instruction(b"storage") + b"ctorch\nFloatStorage\n" + instruction(b"0") + instruction(b"cpu") + b"K\x03tQ"
)
FACTS = map(instruction, (b"_impath", b"owl/0.png", b"_classname", b"owl", b"_label"))
OF_IMAGES = (
    b"N",
    b"(" + b"K\x01" * 64 + b"t",
    b")",
    b"ccollections\nOrderedDict\n",
    b")",
    b"cdassl\nDatum\n)\x81}(" + b"".join(FACTS) + b"K\x00ub",
    b"ccollections\nOrderedDict\n",
    b"](" + b"K\x01" * 64 + b"e\x85",
    b"cdassl\nDatum\n",
    b"(" + b"N" * 40_000 + b"t",
    b"](" + b"h\x05" * 40_000 + b"e",
    b")",
    *(b"h%ch%c\x86" % (place - 1, place - 1) for place in range(12, 60)),  # each is two of the last
)
OF_TENSORS = (
    STORAGE,
    OF_IMAGES[1],
    b"(h\x00K\x00h\x01h\x01\x89Nt",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"h\x03(h\x00K\x00K\x02\x85K\x01\x85\x89NtR",
    *OF_IMAGES[5:8],
    b"ctorch\nSize\n",
    *OF_IMAGES[9:],
)
UNITS = (
    b"]", b"}", b"N", b")R", b"N0", b"(1", b"(t0", b"h\x03h\x02R", b"h\x08h\x07R", b"h\x08h\x01\x85R", b"h\x06)R",
    b"h\x03h\x09R", b"h\x06h\x09R", b"h\x06h;R", b"}h;Ns", b"h\x00Q", b"\x8c\x02ab", b"h\x08)\x81", b"\x85", b"h;a",
    b"h\x05",
)  # fmt: skip


def bulky_pickle(draw: Draw, known: tuple[bytes, ...]) -> bytes:
    """A pickle that makes much of the same, or refers to much of it."""
    how = draw(st.integers(0, 3))
    if how == 0:  # values under many names
        size = draw(st.sampled_from(SIZES_IN_BULK))
        value = draw(st.sampled_from((b"h\x04", b"h\x05", b"h\x0a", b"N", b"]")))
        items = [b"\x8c\x06%06x" % number + value for number in range(size // 10)]
        held = b"}" + b"".join(b"(" + b"".join(items[at : at + 999]) + b"u" for at in range(0, len(items), 999))
    else:
        unit = draw(st.sampled_from(UNITS))
        held = in_bulk(draw, unit) if how == 1 else b"]" + in_bulk(draw, b"(" + unit * 999 + b"e")
    name = draw(st.sampled_from((b"state_dict", b"train", b"optimizer")))
    return b"\x80\x04" + noted(*known) + draw(st.sampled_from((held, b"}" + instruction(name) + held + b"s"))) + b"."


def bulky_images(draw: Draw, data: bytes, site: Site) -> bytes:
    """What should be CoOp's samples."""
    return bulky_pickle(draw, OF_IMAGES)


def bulky_checkpoint(draw: Draw, data: bytes, site: Site) -> bytes:
    """What should be a checkpoint; in a zip file whose directory may not be that of its records."""
    stream = io.BytesIO()
    with zipfile.ZipFile(
        stream, "w", draw(st.sampled_from((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,)))
    ) as file:
        file.writestr("archive/data.pkl", bulky_pickle(draw, OF_TENSORS))
        file.writestr("archive/data/0", bytes(draw(st.sampled_from((12, 12, 12, 10**6)))))
    held = stream.getvalue()
    return held + held[-draw(st.integers(1, 99)) :] if draw(st.integers(0, 4)) == 0 else held


def bulky_tensors(draw: Draw, data: bytes, site: Site) -> bytes:
    """A safetensors file with a long head; what it says of itself may be that of a valid one."""
    facts = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    how, size = draw(st.integers(0, 4)), draw(st.sampled_from(SIZES_IN_BULK))
    if how == 0:
        body = b",".join(b'"%x":%b' % (number, facts) for number in range(size // 55))
    elif how == 1:
        body = b'"__metadata__":{%b}' % b",".join(b'"%x":"{}"' % number for number in range(size // 12))
    elif how == 2:
        body = b'"a":{"dtype":"U8","shape":[%b0],"data_offsets":[0,0]}' % (b"1," * (size // 2))
    else:
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {"spec": ""}
        about[draw(st.sampled_from(sorted(about)))] = bulky_json(draw).decode()
        return save(load(data), metadata=about)
    head = b"{" + body + b"}"
    return len(head).to_bytes(8, "little") + head


def bulky_json(draw: Draw) -> bytes:
    """A long document of many small values."""
    unit = draw(st.sampled_from((b'{"":0}', b"[]", b"0", b'""', b'{"a":{}}', b"1e9", b'"\\ud83d\\ude00"')))
    around = draw(st.sampled_from((b"[%b]", b'{"a":[%b]}', b'{"train":[%b],"test":[]}', b'{"schema":1,"spec":[%b]}')))
    return around % in_bulk(draw, unit + b",")[:-1]


def bulky_text(draw: Draw, data: bytes, site: Site) -> bytes:
    """A long JSON document, in one line, or the valid one with such a value in it."""
    how = draw(st.integers(0, 3))
    if how == 0:
        return in_bulk(
            draw, draw(st.sampled_from((b"- \n", b"a: &a [*a]\n", b"1:", b"#\n", b"? ", b"[", b"{a: ", b'"')))
        )
    try:
        document = json.loads(data.partition(b"\n")[0] if how == 3 else data)
    except ValueError:
        return bulky_json(draw)
    if how == 1 or not isinstance(document, dict):
        return bulky_json(draw)
    document[draw(st.sampled_from(sorted(document)))] = json.loads(bulky_json(draw))
    return json.dumps(document).encode()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, linked: str = "") -> bytes:
    """A header of a tar file."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = size, kind, linked
    return entry.tobuf(tarfile.GNU_FORMAT)


def other_archive(draw: Draw, data: bytes, site: Site) -> bytes:
    """A tar file with odd headers and much of nothing, compressed or not; or such a zip file."""
    if draw(st.integers(0, 3)) == 0:
        return other_zip(draw)
    kind = draw(st.sampled_from((b"0", b"1", b"2", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"X", b"S", b"Z")))
    size = draw(st.sampled_from((0, 0, 5, 600, 4000, 10**5, 2**26, 2**33 - 1)))
    name = draw(st.sampled_from(("data/a", "data", "data/a/b", "../a", "data/" + "a/" * 40, "x")))
    head = bytearray(header(name, size, kind, draw(st.sampled_from(("a", "data/a", "..", "data/b")))))
    if draw(st.integers(0, 3)) == 0:
        head[124:136] = draw(st.sampled_from((b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"7" * 11 + b"\0")))
        head[148:156] = b"%06o\0 " % (256 + sum(head[:148]) + sum(head[156:512]))
    sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    body = draw(
        st.sampled_from(
            (b"", b"9\n" * 256, b"2 " * 2000 + b"=", b"12 size=-99\n", sparse, b"6 a=b\n" * 600, b"a" * 4000)
        )
    )
    body += bytes(-len(body) % 512)
    parts = bytes(head) + body + header("data/b", 3) + b"bbb" + bytes(509)
    many = parts * draw(st.sampled_from((1, 1, 30, 3000)))
    held = many + bytes(draw(st.sampled_from((0, 1024, 2**20, 2**27))))
    return draw(st.sampled_from((gzip.compress, bz2.compress, fast_xz, bytes)))(held)


def fast_xz(data: bytes) -> bytes:
    """Compressed as xz does, quickly."""
    return lzma.compress(data, preset=0)


def other_zip(draw: Draw) -> bytes:
    """A zip file of many entries, of much of nothing, of another method, or whose claims are not true."""
    stream = io.BytesIO()
    method = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    size = draw(st.sampled_from((0, 10, 10**6, 10**8)))
    with zipfile.ZipFile(stream, "w", method) as file:
        for number in range(draw(st.sampled_from((1, 5, 20_000))) if size < 100 else 1):
            file.writestr(f"data/{number}", bytes(size))
    held = bytearray(stream.getvalue())
    if draw(st.booleans()):  # what the directory says
        entry = held.index(b"PK\x01\x02")
        place, form = draw(st.sampled_from(((10, "<H"), (20, "<I"), (24, "<I"), (42, "<I"))))
        struct.pack_into(form, held, entry + place, draw(st.sampled_from((0, 8, 12, 14, 99, 60_000))))
    return bytes(held)


PLUGIN = '''"""Birds of one's own."""

from pathlib import Path

from promptbench.data.dataset import Dataset, DatasetInfo, Item

BIRDS = ("finch", "hawk", "owl", "wren")
NUMBERS = {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}


class Mine(Dataset):
    """Four birds."""

    info = DatasetInfo(title="Mine", classes=4)
    folder = image_root = Path("birds").absolute()

    def read(self, split):
        items = [Item(f"{bird}/{n}.png", label, bird) for label, bird in enumerate(BIRDS) for n in NUMBERS[split]]
        return items
'''
ITEMS = (
    "None", "5", "[]", "[None]", "[()]", "iter(items)", "{1: 2}", "'text'", "items * 3", "items[:1]",
    "[list(i) for i in items]", "items if split != 'test' else []",
    "[i._replace(label=i.label + 9) for i in items if i.label or split == 'test']",
)  # fmt: skip
PARTS = {
    "label": ("'a'", "None", "float('nan')", "-1", "2**70", "True", "i.label + 1", "i.label * 10**6", "0.0", "0", "[]"),
    "image": ("None", "5", "'../../x'", "'absent.png'", "'a\\0b'", "''", "'~'", "Path(i.image)", "'x' * 10**5"),
    "class_name": ("None", "''", "' '", "'x' * 10**5", "'\\ud800'", "b'x'", "'{}'", "'a\\nb'", "i.class_name * 99"),
}  # fmt: skip


def other_plugin(draw: Draw, data: bytes, site: Site) -> bytes:
    """A dataset that has other things than items, or odd ones."""
    part = draw(st.sampled_from(sorted(PARTS)))
    odd = f"[i._replace({part}={draw(st.sampled_from(PARTS[part]))}) for i in items]"
    return data.replace(
        b"return items", b"return " + draw(st.sampled_from((odd, odd, draw(st.sampled_from(ITEMS))))).encode()
    )


OTHERS: dict[str, Callable[[Draw, bytes, Site], bytes]] = {
    **dict.fromkeys((".json", ".yaml"), other_json),  # JSON is YAML
    **dict.fromkeys((".jsonl", ".claim"), other_lines),
    **dict.fromkeys((".txt", ""), other_text),
    **dict.fromkeys((".safetensors", ".partial"), other_tensors),
    **dict.fromkeys((".tar-2", ".pt"), other_checkpoint),
    ".png": other_image,
    ".pkl": other_pickle,
}


# --- the kinds of input: where a valid one lies, and through which doors it comes in

Door = str | Callable[[Site, Path], object]  # words of a command, or a function that a command calls

RUN = "run --suite {suite} --output {out} --method"
ZEROSHOT, COOP = f"{RUN} zeroshot", f"{RUN} coop --set coop.epochs=2 coop.batch=4"
CLIP11 = "run --suite clip11 --dataset dtd --data-root {copy} --backbone {backbone} --shots 1 --seeds 1 --threads 1"
SUITE_DOORS = (
    "show-config --suite {file} --method coop",
    "run --suite {file} --method zeroshot --output {out}",
    "run --suite {file} --method zeroshot --output {out} --dry-run",
    "run --suite {file} --method coop --output {out} --dry-run",
)
RESULT_DOORS = (
    *(f"table --results {{copy}} --format {name}" for name in ("md", "latex", "csv", "html", "json")),
    "table --results {copy} --per-seed --with-published",
    "table --results {copy} --group-by coop.n_ctx --metric ece",
    "report --results {copy} -o {out}/report.html",
    "status --output {copy}",
    "diff {site}/runs {copy}",
    "diff {copy} {site}/runs --format json",
    "results merge {copy} {site}/runs -o {out}",
    "inspect --run {file}",
    "predict --run {file} --classes cat,dog {photo}",
    "export --run {file} -o {out}/export",
    "eval --run {file} --protocol few_shot --suite {suite} --output {out}",
)
IMAGE_DOORS = (
    "predict --run {coop} --classes cat,dog {file} {photo}",
    "predict --run {zeroshot} --classes cat,dog {file} {photo}",
    f"{ZEROSHOT} --set birds.root={{copy}}",
    f"{ZEROSHOT} --set birds.root={{copy}} --on-bad-image skip",
)
CHECKPOINT_DOORS: tuple[Door, ...] = (
    lambda site, path: load_official_checkpoint(site.method, path),
    lambda site, path: load_official_checkpoint(site.method, path.parent),
    lambda site, path: load_official_checkpoint(site.method, path.parent.parent),
)
SAMPLE_DOORS: tuple[Door, ...] = (
    f"{COOP} --sampler file:{{file}}",
    lambda site, path: selection.read_sample(path, site.dataset.items("train")),
    lambda site, path: selection.read_header(path),
)
NAME_DOORS = (f"{ZEROSHOT} --set birds.class_names={{file}}", "predict --run {coop} --classes-file {file} {photo}")
PREDICTION_DOORS: tuple[Door, ...] = (
    "diff {site}/runs {copy}",
    "results merge {copy} {site}/runs -o {out}",
    lambda site, path: load_predictions(path),
)
BULKY_DOORS: tuple[Door, ...] = (
    "diff {site}/runs {copy}",
    lambda site, path: load_predictions(path),
    lambda site, path: trained.load(path),
)
PLUGIN_DOOR = "run --suite {site}/suites/plugin.yaml --plugin {file} --method zeroshot --output {out}"
EXPORT_DOORS = ("predict --run {copy} {photo}", "export --run {copy} -o {out}/export")


@dataclass(frozen=True)
class Kind:
    """A kind of input from outside.

    Attributes:
        valid: The folder of the site that a case copies.
        files: Pattern of what may be spoilt in it.
        doors: How it comes in, one of them in a case.
        place: Name of the copy: `out` is what a command writes to, `cache` is used instead of the site's.
        same_figures: Whether runs measure what they measured before.
        spoilt_by: What spoils it, if not what goes with the file's suffix.
    """

    valid: str
    files: str
    doors: tuple[Door, ...]
    place: str = "in"
    same_figures: bool = False
    spoilt_by: tuple[Callable[[Draw, bytes, Site], bytes], ...] = ()


def prepare(site: Site, path: Path) -> None:
    """What `data prepare` does with what it has fetched."""
    fetch(Download(url=path.as_uri(), folder="data", target="images"), site.case / "out")


def weights(site: Site, path: Path) -> None:
    """A weight file as a backbone."""
    load_backbone(f"{site.architecture}:{path}")


def from_hub(site: Site, path: Path) -> None:
    """A folder on the hub, as it has been fetched."""
    with mock.patch.object(hub, "download", lambda *_: path.parent):
        trained.load("hf://user/name").classify(site.folder / "birds" / "owl" / "0.png")


KINDS = {
    "suites": Kind("suites", "mine.yaml", SUITE_DOORS),
    "split files": Kind("data", "dtd/*.json", (f"{CLIP11} --method zeroshot --output {{out}}",)),
    "class-name files": Kind("names", "*.txt", NAME_DOORS),
    "result files": Kind("results", "results/*/birds/*.json", RESULT_DOORS),
    "lists of regenerate": Kind("listed", "*.yaml", ("regenerate {copy}",), "out"),
    "official checkpoints": Kind("checkpoints", "*/*", CHECKPOINT_DOORS),
    "few-shot pickles": Kind("samples", "*.pkl", SAMPLE_DOORS[:2]),
    "sample files": Kind("samples", "*.jsonl", SAMPLE_DOORS),
    "images": Kind("birds", "owl/*.png", IMAGE_DOORS),
    "cached features": Kind("cache", "features/*.safetensors", (ZEROSHOT,), "cache", same_figures=True),
    "partial files": Kind("partial", "*.partial", (COOP,), "out/trainings", same_figures=True),
    "claim files": Kind("claimed", "claims/*", ("status --output {copy}", COOP), "out", same_figures=True),
    "stored trainings": Kind(
        "trained", "trainings/*.safetensors", ("predict --run {file} {photo}", COOP), "out", same_figures=True
    ),
    "exported folders": Kind("export", "[cpr]*", EXPORT_DOORS),  # classes, prompts, result
    "folders on the hub": Kind("export", "[cpr]*", (from_hub,)),
    "archives": Kind("archives", "*", (prepare,), spoilt_by=(other_archive, other_archive, other_archive, damaged)),
    "weight files": Kind("weights", "*", (weights,)),
    "predictions": Kind("results", "predictions/*/birds/*", PREDICTION_DOORS),
    "memos": Kind("cache", "[cw]*/*", (ZEROSHOT,), "cache", same_figures=True),  # of code, contents, weights
    "dataset plugins": Kind("plugins", "*.py", (PLUGIN_DOOR,), spoilt_by=(other_plugin,)),
    "bulky few-shot pickles": Kind("samples", "*.pkl", SAMPLE_DOORS[1:2], spoilt_by=(bulky_images,)),
    "bulky checkpoints": Kind("checkpoints", "*/*-2", CHECKPOINT_DOORS[:1], spoilt_by=(bulky_checkpoint,)),
    "bulky weight files": Kind("weights", "*.pt", (weights,), spoilt_by=(bulky_checkpoint,)),
    "bulky tensors": Kind("results", "[pt]*/**/*.safetensors", BULKY_DOORS, spoilt_by=(bulky_tensors,)),
    "bulky suites": Kind("suites", "mine.yaml", SUITE_DOORS[2:3], spoilt_by=(bulky_text,)),
    "bulky result files": Kind("results", "results/*/birds/*.json", RESULT_DOORS[:1], spoilt_by=(bulky_text,)),
    "bulky sample files": Kind("samples", "*.jsonl", SAMPLE_DOORS[1:2], spoilt_by=(bulky_text,)),
}


def hostile(draw: Draw, site: Site, kind: Kind) -> tuple[Act, bool]:
    """What is done with a spoilt input of a kind, which lies in `case`; and whether runs measure what they did."""
    copied = copy_for_case(site, kind)
    path = draw(st.sampled_from(sorted(copied.glob(kind.files))))
    spoil = draw(st.sampled_from(kind.spoilt_by or (OTHERS[path.suffix], OTHERS[path.suffix], damaged)))
    data = spoil(draw, path.read_bytes(), site)
    path.write_bytes(data)
    forged = path.suffix == ".partial" and is_sealed(data)  # such a training may go on from anywhere
    return through(draw(st.sampled_from(kind.doors)), site, path, copied), kind.same_figures and not forged


def copy_for_case(site: Site, kind: Kind) -> Path:
    """A copy of what is valid, in an empty `case`."""
    shutil.rmtree(site.case, ignore_errors=True)
    return Path(shutil.copytree(site.folder / kind.valid, site.case / kind.place))


def through(door: Door, site: Site, path: Path, copied: Path) -> Act:
    """What is done with a file of a copy, through a door."""
    os.utime(path, (time.time() - 999,) * 2)  # as a dead process leaves its claim
    if isinstance(door, str):
        return site.words(door, file=path, copy=copied, out=site.case / "out")
    return functools.partial(door, site, path)


if __name__ == "__main__":
    main()
