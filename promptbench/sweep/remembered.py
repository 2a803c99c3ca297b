"""What a call came to whose runs were all finished, remembered so that the next such call need not import torch.

What is remembered are the runs of the call as today's code would make them, with all digests, under a key of whatever
decides that: the words, the suite, the files of the package, versions, environment, cores. What datasets and weights
are is compared again, from sizes and times of change, and the results are read as always. Where anything differs or is
not known, such as with a GPU, a plugin of somebody else or a large dataset, nothing is recalled, and the call goes the
long way.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from promptbench import registry
from promptbench.clip.load import files_of, state_of
from promptbench.config import UsageError
from promptbench.data.selection import CONFUSABLE, FILE
from promptbench.data.splits import SPLITS, Item
from promptbench.results.result import Result, find_predictions, stored_results
from promptbench.results.spec import Spec, cause_of, to_plain
from promptbench.storage.atomic import superseded, write_atomically
from promptbench.storage.cache import cache_dir
from promptbench.storage.claims import CLAIMS
from promptbench.storage.versions import library_versions

if TYPE_CHECKING:
    from promptbench.data.dataset import Dataset
    from promptbench.runs.plan import Run
    from promptbench.runs.request import Request
    from promptbench.runs.session import Session
    from promptbench.suite import Suite

PACKAGES = ("promptbench", "promptbench.methods", "promptbench.datasets")  # a checkout has them in three places
KINDS = ("methods", "datasets", "protocols", "scores")
VARIABLES = ("PROMPTBENCH_", "CUDA_", "HOME", "HF_", "XDG_")  # that a call may depend on begin so
GPUS = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "kfd", "dxg", "dri/renderD*")  # devices of one, as Linux calls them
FOLDER = "calls"  # in the cache folder
MOST_KEPT = 100  # calls
MOST_IMAGES = 20_000  # of datasets on disk; more take as long to look at as torch to import


class Known(NamedTuple):
    """A call whose runs are finished.

    Attributes:
        results: In the order of the plan.
        labels: The methods as they were asked for.
        datasets: Of the suite, in its order.
    """

    results: list[Result]
    labels: tuple[str, ...]
    datasets: tuple[str, ...]


def key_of(words: Mapping[str, Any], suite: Suite) -> str | None:
    """A digest of all that decides what a call comes to, but for what datasets and weights are; None where that cannot
    be told without torch.

    Args:
        words: Of the call, by the name of their flag.
        suite: That it names.
    """
    if words.get("plugin") or words.get("logger") or words["device"] not in ("auto", "cpu") or may_have_gpu():
        return None
    facts = {
        "words": sorted((name, repr(value)) for name, value in words.items() if not callable(value)),
        "called from": os.getcwd(),
        "suite": repr(suite),
        "plugins": [registry.names(kind) for kind in KINDS],
        "package": sorted(files_of_package()),
        "versions": [sys.version, *library_versions().items()],
        "environment": sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES)),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    return hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:32]


def may_have_gpu() -> bool:
    """Whether torch might find a GPU here: by the devices of Linux; elsewhere only a Mac is known to have no CUDA."""
    if sys.platform == "linux":
        return any(any(Path("/dev").glob(pattern)) for pattern in GPUS)
    return sys.platform != "darwin"


def files_of_package() -> Iterator[tuple[str, int, int, int]]:
    """Path, size, time of change and inode of every file of the package, data among them."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for top in (spec and spec.submodule_search_locations) or ():
            for folder, below, names in os.walk(top):
                below[:] = [name for name in below if name != "__pycache__"]
                for name in names:
                    status = os.stat(os.path.join(folder, name))
                    yield os.path.join(folder, name), status.st_size, status.st_mtime_ns, status.st_ino


def recall(
    key: str, output: Path, roots: Sequence[Path], *, save_predictions: bool, skip_unreadable: bool
) -> Known | None:
    """The results of a call, where it is remembered and nothing has changed that would make one of its runs again; None
    where the call has to find out itself.

    Args:
        key: As `key_of` gives it.
        output: The folder with the results.
        roots: Data roots.
        save_predictions: Whether predictions have to be there too.
        skip_unreadable: Whether results stand that were made without some images.
    """
    if (output / CLAIMS).is_dir() or superseded(output / "trainings"):  # something is to be cleared away
        return None
    try:
        memo = read(key)
        results = stored_results(output, memo["specs"])
        for spec in memo["specs"]:
            result = results[spec.name]
            unlike = cause_of(result.spec, spec) or (result.conditions.get("skipped") and not skip_unreadable)
            if unlike or (save_predictions and find_predictions(output, spec) is None):
                return None
        if memo["weights"] != weights_of(memo["backbone"]) or memo["data"] != data_of(memo["entries"], roots):
            return None
    except (OSError, UsageError, LookupError, TypeError, ValueError):  # whatever it is, the long way says it
        return None
    return Known([results[spec.name] for spec in memo["specs"]], tuple(memo["labels"]), tuple(memo["datasets"]))


def remember(key: str, request: Request, session: Session) -> None:
    """Remember what a call came to, where `recall` can tell later that nothing has changed.

    Args:
        key: As `key_of` gave it before the call began.
        request: What was asked for.
        session: Of the call; another one looks at everything again.
    """
    from promptbench.runs.plan import plan_runs
    from promptbench.runs.session import recognised

    runs = plan_runs(request)
    samplers = sorted({run.plan.train.sampler for run in runs})
    if session.device != "cpu" or any(FILE in rule or CONFUSABLE in rule for rule in samplers):
        return
    try:
        entries = [request.suite.entry(name) for name in datasets_of(runs)]
        if not all(registry.is_built_in("datasets", entry.dataset) for entry in entries):
            return
        opened = {entry.name: session.dataset(entry.name) for entry in entries}
        told = [entry for entry in entries if entry.options or opened[entry.name].by_files]
        if any(len(items_of(opened[entry.name], ())) > MOST_IMAGES for entry in told):
            return
        memo: dict[str, Any] = {
            "labels": request.labels,
            "datasets": [entry.name for entry in request.suite.entries()],
            "backbone": request.suite.backbone,
            "entries": [[entry.name, entry.dataset, entry.options, samplers] for entry in told],
        }
        memo |= {"weights": weights_of(memo["backbone"]), "data": data_of(memo["entries"], session.roots)}
        if memo["data"] is None or not all(map(built_in, runs)):
            return
        fresh = session.at()  # which looks after the states above were taken, so that a later change shows
        memo["specs"] = [recognised(fresh, run, may_load=False).spec for run in runs]
        if all(spec.weights_hash for spec in memo["specs"]) or not memo["weights"]:
            write(key, memo)
    except (OSError, UsageError, LookupError, TypeError, ValueError):  # it is only there to save time
        return


def datasets_of(runs: Iterable[Run]) -> list[str]:
    """The datasets that runs train on and evaluate."""
    found: dict[str, None] = {}
    for run in runs:
        found[run.plan.train.dataset] = None
        found.update(dict.fromkeys(evaluation.selection.dataset for evaluation in run.plan.evaluations))
    return list(found)


def built_in(run: Run) -> bool:
    """Whether nothing but the package's own files decides what a run does, its data aside."""
    parts = [run.method, type(run.protocol), *map(type, run.scores.values())]
    return all(part.__module__.startswith("promptbench.") for part in parts) and not run.spec.scores


def weights_of(backbone: str) -> list[list[Any]]:
    """Path, size and time of change of the files behind a backbone's name; none behind a tag, which never changes."""
    return [list(state_of(path)) for path in files_of(backbone)]


def data_of(entries: Iterable[Sequence[Any]], roots: Sequence[Path]) -> list[str] | None:
    """A digest of what each dataset is now; None where something is to be said of one.

    Args:
        entries: Name, plugin and options of each, and the samplers that draw from it; rendered datasets without
            options, which follow from the package's files, need not be there.
    """
    with unsaid() as said:
        found = [digest_of(*entry, roots=roots) for entry in entries]
    return None if said else found


def digest_of(
    name: str, plugin: str, options: Mapping[str, Any], samplers: Iterable[str], *, roots: Sequence[Path]
) -> str:
    """SHA-256 of all that a dataset says of itself, its images by size and time of change."""
    from promptbench.data.dataset import open_dataset

    dataset: Dataset = open_dataset(plugin, options, roots, alias=name)
    names = [*dataset.class_names, *dataset.names_shown, repr(dataset.template), repr(dataset.config)]
    facts = [dataset.split_digest(), dataset.split_source, *names]
    found = hashlib.sha256(repr(facts).encode(errors="surrogateescape"))
    for item in items_of(dataset, samplers):
        found.update(f"{item} {dataset.class_id(item)} {dataset.identity(item)}".encode(errors="surrogateescape"))
    return found.hexdigest()


def items_of(dataset: Dataset, samplers: Iterable[str]) -> list[Item]:
    """The items of all splits, and those that few-shot samples are drawn from."""
    items: list[Item] = []
    for split in SPLITS:
        items += dataset.items(split)
    for sampler in samplers:
        items += dataset.few_shot_pool("train", sampler)
    return items


@contextmanager
def unsaid() -> Iterator[list[logging.LogRecord]]:
    """Within it, what the package logs is collected instead of being said."""
    log, said = logging.getLogger("promptbench"), Collected()
    before, log.propagate = log.propagate, False
    log.addHandler(said)
    try:
        yield said.records
    finally:
        log.removeHandler(said)
        log.propagate = before


class Collected(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)


def read(key: str) -> dict[str, Any]:
    """What is remembered under a key.

    Raises:
        OSError, ValueError, LookupError, TypeError: Nothing, or the file is damaged.
    """
    text, _, checksum = (cache_dir() / FOLDER / key).read_bytes().rpartition(b"\n")
    if hashlib.sha256(key.encode() + text).hexdigest().encode() != checksum:
        raise ValueError("The memo is damaged.")
    memo: dict[str, Any] = json.loads(text)
    return {**memo, "specs": [Spec.stored(spec) for spec in memo["specs"]]}


def write(key: str, memo: Mapping[str, Any]) -> None:
    """Remember something under a key, and forget what was remembered longest ago where there is too much."""
    text = json.dumps(to_plain(memo)).encode()
    checksum = hashlib.sha256(key.encode() + text).hexdigest().encode()
    folder = cache_dir() / FOLDER
    write_atomically(folder / key, lambda file: file.write(text + b"\n" + checksum))
    calls = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in calls[:-MOST_KEPT]:
        with suppress(OSError):
            path.unlink()
