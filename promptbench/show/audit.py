"""What can be checked of a folder of results from its files alone: whether rows of its tables compare like with like.

Each check is `same`, `differs` or `not known`. It reads results, claims and what `tune` left; no image and no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from promptbench.config import UsageError
from promptbench.results.knowledge import selection_of, text_prior
from promptbench.results.result import OUTDATED, SPLITS_READ, TUNING, Result, read_results
from promptbench.results.spec import DATA, Spec, fields_of
from promptbench.storage.claims import CLAIMS, Holder, holders
from promptbench.sweep.status import named, standing_of

SAME, DIFFERS, UNKNOWN = "same", "differs", "not known"
SHOWN = 3  # of what differs
TEST = "test"
HALVES = "split"  # the field of the spec that says how classes are halved, where there is one


class Check(NamedTuple):
    """One line of the page.

    Attributes:
        what: What was looked at.
        state: `same`, `differs` or `not known`.
        said: How much was compared, or what differs.
    """

    what: str
    state: str
    said: str


class Part(NamedTuple):
    """What one run says, where others are to say the same.

    Attributes:
        where: What they have in common, in words.
        who: The method.
        value: What is to be the same; None where the run does not say.
    """

    where: str
    who: str
    value: Hashable


def audit(folder: Path) -> list[Check]:
    """The checks of an output folder, in the order of the page.

    Raises:
        UsageError: There is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}; name one that `promptbench run` writes to.")
    results = read_results(folder)
    runs = made(folder)
    if not results and runs.state == SAME:
        raise UsageError(f"There are no results in {folder}; name a folder that `promptbench run` writes to.")
    return [
        compared("splits", [Part(_where(r.spec), r.spec.label, r.spec.split_digest or None) for r in results]),
        compared("training images", [_sample(r.spec) for r in results if r.spec.shots != 0]),
        compared("test images", _by_evaluation(results, lambda spec: spec.contents)),
        compared("class names", _by_evaluation(results, lambda spec: spec.class_names)),
        compared("backbone", list(chain.from_iterable(_backbone(r.spec) for r in results))),
        compared("text prior", [Part(_table(r.spec), r.spec.label, _known(text_prior(r))) for r in results]),
        compared("trials", _trials(folder, results)),
        runs,
        lacking(results),
        untouched(folder, results),
    ]


def compared(what: str, parts: Sequence[Part]) -> Check:
    """Whether all that say something say the same wherever they have the same in common."""
    groups: dict[str, dict[Hashable, list[str]]] = {}
    for part in parts:
        groups.setdefault(part.where, {}).setdefault(part.value, []).append(part.who)
    apart = {where: by_value for where, by_value in groups.items() if len(set(by_value) - {None}) > 1}
    silent = sum(part.value is None for part in parts)
    if apart:
        return Check(what, DIFFERS, _listed([f"{where}: {_sides(by_value)}" for where, by_value in apart.items()]))
    if silent or not parts:
        said = f"{silent} of {len(parts)} times nothing is said of it" if parts else "no run has any"
        return Check(what, UNKNOWN, said)
    methods = {part.who for part in parts}
    return Check(what, SAME, f"looked at {len(parts)} times, {len(methods)} method{'s' * (len(methods) != 1)}")


def _sides(by_value: Mapping[Hashable, Sequence[str]]) -> str:
    """Who says what; digests say nothing to a reader, words do."""
    sides = []
    for value, who in by_value.items():
        methods = ", ".join(dict.fromkeys(who))
        is_word = isinstance(value, (int, str)) and len(str(value)) < 32
        sides.append(f"{'not known' if value is None else value} ({methods})" if is_word or value is None else methods)
    return " / ".join(sides)


def _listed(items: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(items) - SHOWN
    return "; ".join([*items[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _where(spec: Spec) -> str:
    """The data that a run was asked for: suite, dataset, and what else decides of its images and names."""
    said = [spec.suite, spec.dataset]
    for item in fields_of(spec):
        of_data = item.metadata["role"] == DATA and not item.metadata["renews"]
        value = getattr(spec, item.name)
        if (of_data or item.name == HALVES) and value and value != item.default:
            said.append(value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    return " ".join(said)


def _table(spec: Spec) -> str:
    return f"{spec.protocol} on {spec.suite}"


def _sample(spec: Spec) -> Part:
    """The images that a run was trained on."""
    drawn = f"{spec.trained_by or spec.protocol}, {spec.shots or 'all'} shots, {spec.sampler}, seed {spec.data_seed}"
    return Part(f"{_where(spec)}, {drawn}", spec.label, spec.sample_digest or None)


def _by_evaluation(results: Iterable[Result], of: Callable[[Spec], Mapping[str, Any]]) -> list[Part]:
    """What each run says of each of its evaluations."""
    parts = []
    for spec in (result.spec for result in results):
        where = f"{_where(spec)}, {spec.protocol}, seed {spec.data_seed}"
        said = of(spec)
        parts += [Part(f"{where}, {name}", spec.label, value) for name, value in said.items()]
        parts += [Part(where, spec.label, None)] if not said else []
    return parts


def _backbone(spec: Spec) -> list[Part]:
    """The weights of a run's backbone, and what it computes with them."""
    made_of = {"weights": spec.weights_hash, "architecture": spec.architecture}
    return [Part(f"{name} of {spec.backbone}", spec.label, digest or None) for name, digest in made_of.items()]


def _known(said: str) -> str | None:
    """What a result says, or None where it does not."""
    return None if said == "unknown" else said


def _trials(folder: Path, results: Iterable[Result]) -> list[Part]:
    """How many settings were tried of each method that was trained: as reports and trials in the folder say, or else as
    results do."""
    counts = trials_of(folder)
    trained: dict[tuple[str, str], int] = {}
    for result in results:
        if result.spec.shots != 0 and result.spec.recipe:
            key = (_table(result.spec), result.spec.label)
            trained[key] = max(trained.get(key, 0), counts.get(result.spec.label, selection_of(result).trials))
    return [Part(where, label, trained[where, label] or None) for where, label in sorted(trained)]


def trials_of(folder: Path) -> dict[str, int]:
    """How many settings were tried of each method: in reports that `tune --report` wrote there, and of its runs."""
    counts: Counter[str] = Counter()
    for search in reports(folder):
        counts[search["label"]] += len(search["trials"])
    tried: dict[str, set[str]] = {}
    for result in trials(folder):
        settings = json.dumps([result.spec.config, result.spec.recipe], sort_keys=True)
        tried.setdefault(result.spec.label, set()).add(settings)
    return {**{label: len(settings) for label, settings in tried.items()}, **counts}


def reports(folder: Path) -> list[dict[str, Any]]:
    """The searches in reports of `tune` in the folder or its `tuning`."""
    found = []
    for path in sorted([*folder.glob("*.json"), *(folder / TUNING).glob("*.json")]):
        try:
            listed = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        searches = listed if isinstance(listed, list) else []
        found += [one for one in searches if isinstance(one, dict) and isinstance(one.get("trials"), list)]
    return [search for search in found if isinstance(search.get("label"), str)]


def trials(folder: Path) -> list[Result]:
    """The runs of `tune` that are kept in the folder."""
    place = folder / TUNING
    return read_results(place) if (place / "results").is_dir() else []


def made(folder: Path) -> Check:
    """Whether every run that was begun or planned has a result."""
    standing = standing_of(folder)
    left = [
        holder
        for holder in holders(folder / CLAIMS)
        if not holder.alive and holder.about.get("kind") and _named(holder)
    ]
    planned = set(chain.from_iterable(map(_runs, left)))
    abandoned = sorted(planned - standing.done - set(standing.failed))
    outdated = sum(1 for _ in (folder / OUTDATED).rglob("*.json"))
    under_way = len(standing.running) + len(standing.waiting)
    counts = {"failed": len(standing.failed), "abandoned": len(abandoned), "under way": under_way}
    said = [f"{len(standing.done)} made", *(f"{count} {name}" for name, count in counts.items())]
    said += [f"{outdated} outdated ones set aside"] if outdated else []
    wrong = [*standing.failed, *abandoned]
    state = DIFFERS if wrong else SAME
    if under_way and not wrong:
        state = UNKNOWN
    return Check("runs", state, ", ".join(said) + (f" ({_listed(wrong)})" if wrong else ""))


def _named(holder: Holder) -> bool:
    return holder.about["kind"] in ("run", "call") and named(holder)


def _runs(holder: Holder) -> list[str]:
    """The runs that a claim is about."""
    return list(holder.about["runs"]) if holder.about["kind"] == "call" else [holder.about["run"]]


def lacking(results: Iterable[Result]) -> Check:
    """Whether every method has the datasets, shots and seeds of the others of its table."""
    tables: dict[str, dict[str, set[tuple[str, ...]]]] = {}
    for spec in (result.spec for result in results):
        shots = "" if spec.shots == 0 else str(spec.shots)
        place = (spec.dataset, shots, str(spec.seeds))
        tables.setdefault(_table(spec), {}).setdefault(spec.label, set()).add(place)
    said = []
    for table, by_method in tables.items():
        everything = set().union(*by_method.values())
        without_shots = {(dataset, "", seeds) for dataset, _, seeds in everything}
        trained = {place for place in everything if place[1]}
        for label, has in by_method.items():
            wanted = trained if any(place[1] for place in has) else without_shots
            missing = len(wanted - has)
            said += [f"{label} lacks {missing} of {len(wanted)} runs of {table}"] if missing else []
    return Check("coverage", DIFFERS if said else SAME, _listed(said) or "every method has the runs of the others")


def _contents(results: Iterable[Result]) -> set[str]:
    """The digests of all images that were scored."""
    return set(chain.from_iterable(result.spec.contents.values() for result in results))


def untouched(folder: Path, results: Iterable[Result]) -> Check:
    """Whether what `tune` tried was judged without a test image.

    Its datasets refuse test images, and its results say which splits were asked for. That the images judged by are not
    those of a test is seen from their digests.
    """
    what, tried = "tuning", trials(folder)
    searches = reports(folder)
    said_of = [*(result.conditions for result in tried), *searches]
    read = list(chain.from_iterable(map(_splits, said_of)))
    judged, tests = _contents(tried), _contents(results)
    if any(TEST in splits for splits in read) or judged & tests:
        return Check(what, DIFFERS, "test images were read")
    silent = sum(not _splits(said) for said in said_of)
    if silent:
        return Check(
            what, UNKNOWN, f"{silent} of {len(tried) + len(searches)} trials and reports do not say what was read"
        )
    if not tried and not searches:
        return Check(what, UNKNOWN, "nothing of `promptbench tune` is in the folder")
    asked = ", ".join(sorted(set().union(*read)))
    return Check(what, SAME, f"no test image was read in {len(tried)} trials and {len(searches)} reports, only {asked}")


def _splits(said: Mapping[str, Any]) -> list[list[str]]:
    """The splits that were asked for, by dataset; none where nothing is said."""
    stored = said.get(SPLITS_READ)
    return [list(splits) for splits in stored.values()] if isinstance(stored, Mapping) else []
