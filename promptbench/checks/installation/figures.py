"""Accuracies through the normal runner, against those that papers print.

Zero-shot on every dataset that is there, shifted and out-of-distribution sets included, and, if asked for, two methods
trained on two small datasets. Results are kept in the output folder like those of `promptbench run`.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from promptbench.checks.installation.report import COULD_NOT, FAIL, PASS, Check, could_not
from promptbench.checks.installation.splits import NO_SPLIT_FILE, SEEDS
from promptbench.config import UsageError
from promptbench.data.get.status import Status
from promptbench.metrics.classification import harmonic_mean
from promptbench.results import papers
from promptbench.results.papers import DIFFERS, REPRODUCED
from promptbench.results.result import Result, failure_path, find, read_result, stored_results
from promptbench.runs.listener import Listener, listening
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.request import Request
from promptbench.runs.session import Session
from promptbench.suite import Suite
from promptbench.sweep.loop import run_all
from promptbench.sweep.preflight import check_finished, preflight

TRAINED_METHODS = ("coop", "maple")
TRAINED_DATASETS = ("eurosat", "dtd")
ZERO_SHOT = "zero-shot"
SCORE = "mcm"  # that papers print of zero-shot CLIP
ZERO_SHOT_SEED = 1  # draws a sample that is never looked at
AVERAGE = "average11"
AVERAGE_OF_DOMAINS = "average4"
NOTHING = "no dataset of the suite is here with its split file and all test images"
OUTCOMES = {REPRODUCED: PASS, DIFFERS: FAIL}
KEYS = {  # protocol: metric as papers name it, to its key in a result
    "base2new": {"base/accuracy": "base/accuracy", "new/accuracy": "new/accuracy", "h": "h"},
    "few_shot": {"accuracy": "test/accuracy"},
}

States = Mapping[str, Status]


class Figure(NamedTuple):
    """A figure of a paper, by what `papers.find` asks for."""

    part: str
    label: str
    protocol: str
    dataset: str
    metric: str = "accuracy"
    score: str = ""


def check_figures(session: Session, states: States, train: bool, listener: Listener) -> Iterator[Check]:
    """Everything that needs images and the backbone.

    Args:
        session: Of the suite; its output folder keeps the results.
        states: What is there of each of its datasets, by name.
        train: Whether methods are trained, too.
        listener: Told of the runs.
    """
    parts = [ZERO_SHOT, "training"] if train else [ZERO_SHOT]
    obstacle = "" if any(not _obstacle(state, ("test",)) for state in states.values()) else NOTHING
    if not obstacle:
        try:
            session.backbone  # noqa: B018 - loaded once, or not at all
        except UsageError as error:
            obstacle = str(error)
    if obstacle:
        yield from (could_not(part, "all figures", obstacle) for part in parts)
        return
    yield from check_zero_shot(session, states, listener)
    if train:
        yield from check_training(session, states, listener)


def check_zero_shot(session: Session, states: States, listener: Listener) -> Iterator[Check]:
    """Zero-shot accuracies of every dataset that is there, and their averages where all are."""
    part = ZERO_SHOT
    names = _of(session.suite, "base2new")
    done: list[Result] = []
    for name in names:
        obstacle = _obstacle(states[name], ("test",))
        if not obstacle:
            for protocol in KEYS:
                results, checks = measure(session, Figure(part, "zeroshot", protocol, name), [ZERO_SHOT_SEED], listener)
                yield from checks
                if protocol == "base2new":
                    done += results
        elif states[name].sizes:  # else its absence was said already
            yield could_not(part, name, obstacle)
    if done and len(done) == len(names):
        yield from _averages(done)
    elif done:
        yield could_not(part, AVERAGE, f"{len(done)} of {len(names)} datasets were run")
    yield from _check_domains(session, states, listener)
    yield from _check_ood(session, states, listener)


def check_training(session: Session, states: States, listener: Listener) -> Iterator[Check]:
    """Two methods from base to new classes, three seeds each."""
    for name in TRAINED_DATASETS:
        obstacle = _obstacle(states[name], ("train", "test")) if name in states else f"the suite lacks {name}"
        if obstacle:
            yield could_not("training", name, obstacle)
            continue
        for label in TRAINED_METHODS:
            yield from measure(session, Figure("training", label, "base2new", name), SEEDS, listener)[1]


def measure(
    session: Session, figure: Figure, seeds: Sequence[int], listener: Listener
) -> tuple[list[Result], list[Check]]:
    """The results of a method on one dataset, and all figures of the protocol judged."""
    part, label, protocol, dataset = figure[:4]
    suite = session.suite.with_datasets(protocol, [dataset])  # the protocols in KEYS are named like their roles
    results, checks = run(session, _request(session, suite, label, protocol, seeds), part, dataset, listener)
    if results:
        for metric, key in KEYS[protocol].items():
            values = [result.metrics[key] for result in results]
            checks.append(judge(figure._replace(metric=metric), results, values))
    return results, checks


def run(
    session: Session, request: Request, part: str, what: str, listener: Listener
) -> tuple[list[Result], list[Check]]:
    """The results of all runs asked for, those that are finished read from their files.

    Where something is missing or a run fails, there are no results but checks that say why.
    """
    runs = plan_runs(request)
    todo = [one for one in runs if not session.is_finished(one.spec)]
    try:
        check_finished(session, stored_results(session.output, [one.spec for one in runs]))
        preflight(session, todo)
    except UsageError as error:
        return [], [could_not(part, what, str(error))]
    if todo:
        with listening(listener, todo, len(runs), session.output):
            run_all(session, todo, listener)
    return _read(session, runs, part, what)


def judge(figure: Figure, results: Sequence[Result], values: Sequence[float]) -> Check:
    """Our figure beside the published one; it fails where they differ by more than the margin.

    Args:
        figure: Which one.
        results: The records behind it.
        values: Of every seed, in percent.
    """
    part, label, protocol, dataset, metric, score = figure
    rows = papers.find(papers.load(), label=label, protocol=protocol, dataset=dataset, metric=metric, score=score)
    row, comparable, why = papers.choose(rows, results)
    zero_shot = part == ZERO_SHOT
    average = row is not None and row.average
    verdict = papers.compare(row, values, comparable=comparable, average=average, zero_shot=zero_shot, why=why)
    outcome = OUTCOMES.get(verdict.text, COULD_NOT)
    said = "" if outcome == PASS else verdict.text
    measured = f"{score}/{metric}" if score else metric
    names = (protocol, dataset, measured) if zero_shot else (label, protocol, dataset, measured)
    return Check(
        part=part,
        what=", ".join(names),
        outcome=outcome,
        measured=fmean(values),
        expected=row.value if row else None,
        tolerance=verdict.margin,
        why=": ".join(filter(None, [said, verdict.why])),
    )


def _check_domains(session: Session, states: States, listener: Listener) -> Iterator[Check]:
    """The shifted versions of the source that are there."""
    found = yield from _beside_source(session, states, "domain_generalization", "domains", listener)
    for result, domains in found:
        for name in domains:
            yield judge(
                Figure(ZERO_SHOT, "zeroshot", "domain_generalization", name),
                [result],
                [result.metrics[f"{name}/accuracy"]],
            )
        if len(domains) == len(_of(session.suite, "domains")):
            figure = Figure(ZERO_SHOT, "zeroshot", "domain_generalization", AVERAGE_OF_DOMAINS)
            yield judge(figure, [result], [result.metrics["average/accuracy"]])


def _check_ood(session: Session, states: States, listener: Listener) -> Iterator[Check]:
    """The sets of images of no class of the source that are there, told from its test images by MCM."""
    found = yield from _beside_source(session, states, "ood", "ood", listener)
    for result, sets in found:
        for name in sets:
            for metric in ("auroc", "fpr95"):
                figure = Figure(ZERO_SHOT, "zeroshot", "ood", name, metric, SCORE)
                yield judge(figure, [result], [result.metrics[f"{name}/{SCORE}/{metric}"]])


def _beside_source(
    session: Session, states: States, protocol: str, role: str, listener: Listener
) -> Generator[Check, None, list[tuple[Result, list[str]]]]:
    """Zero-shot results of a protocol that evaluates others beside the source, and which of these are there."""
    suite = session.suite
    others = [name for name in _of(suite, role) if not _obstacle(states[name], ("test",))]
    sources = _of(suite, "source")
    if not others:
        return []
    obstacles = [f"{name}: {said}" for name in sources if (said := _obstacle(states[name], ("test",)))]
    if obstacles:
        yield could_not(ZERO_SHOT, protocol, "; ".join(obstacles))
        return []
    request = _request(session, suite.with_datasets(role, others), "zeroshot", protocol, [ZERO_SHOT_SEED])
    results, failed = run(session, request, ZERO_SHOT, protocol, listener)
    yield from failed
    return [(result, others) for result in results]


def _averages(results: Sequence[Result]) -> Iterator[Check]:
    """The means over all datasets, and H of the two, as papers print them."""
    base = fmean(result.metrics["base/accuracy"] for result in results)
    new = fmean(result.metrics["new/accuracy"] for result in results)
    for metric, value in zip(KEYS["base2new"], (base, new, harmonic_mean(base, new)), strict=True):
        yield judge(Figure("zero-shot", "zeroshot", "base2new", AVERAGE, metric), results, [value])


def _read(session: Session, runs: Iterable[Run], part: str, what: str) -> tuple[list[Result], list[Check]]:
    """The results of runs that were done; none where one failed, and then a check per failure."""
    results: list[Result] = []
    failed: list[Check] = []
    for one in runs:
        path = find(session.output, one.spec)
        if path is not None:
            results.append(read_result(path))
        else:
            reason = json.loads(failure_path(session.output, one.spec).read_text(encoding="utf-8"))["reason"]
            of = ", ".join([one.spec.label, one.spec.protocol, what, f"seed {one.spec.train_seed}"])
            failed.append(Check(part=part, what=of, outcome=FAIL, why=f"the run failed: {reason}"))
    return ([], failed) if failed else (results, [])


def _request(session: Session, suite: Suite, label: str, protocol: str, seeds: Sequence[int]) -> Request:
    return Request.of(
        suite=suite, methods=label, protocol=protocol, seeds=seeds, device=session.device, companions=False
    )


def _of(suite: Suite, role: str) -> tuple[str, ...]:
    """The datasets of a role; none where the suite has no such role."""
    return suite.datasets(role) if role in suite.roles else ()


def _obstacle(state: Status, splits: Sequence[str]) -> str:
    """What keeps a dataset from being run on; "" where nothing does."""
    if not state.sizes:
        return state.lacks[0]
    if state.source.startswith("generated"):
        return NO_SPLIT_FILE
    missing = sum(state.sizes[split] - state.present[split] for split in splits)
    return f"{missing:,} of its {' and '.join(splits)} images are not there" if missing else ""
