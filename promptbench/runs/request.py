"""What is asked for: names become classes and protocols here, once, and what does not fit is refused here."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptbench import registry
from promptbench.config import LARGEST, UsageError, shown, to_mapping, unknown
from promptbench.data.corruptions import Corruption, corruptions_of
from promptbench.data.dataset import config_of
from promptbench.data.selection import FILE, sampler_of, seed_of_halves
from promptbench.metrics.ood import Score, open_score, open_scores
from promptbench.protocol import Plan, Protocol
from promptbench.recipe import find_preset, parse_label, settable
from promptbench.suite import DatasetEntry, Suite, load_suite, parse_entry
from promptbench.training.numerics import check_device, resolve_device

if TYPE_CHECKING:
    from promptbench.method import Method

EVERY = "*"  # what stands for all methods in the name of a setting
PROTOCOL = "base2new"  # where none is named
SAMPLER = "coop"  # where neither the call nor a preset names one

USUAL = {
    **dict.fromkeys(("protocol", "datasets", "seeds", "shots", "split", "corrupt"), ()),
    **dict.fromkeys(("backbone", "threads"), None),
    **{"suite": "mini", "device": "auto", "sampler": "", "precision": "32", "deterministic": False},
}
"""The arguments of a request that say where a value came from, and what they are where nothing is asked."""

Values = Mapping[str, Any]  # field of a Config or a Recipe to its value


@dataclass(frozen=True, kw_only=True)
class ChosenMethod:
    """A method of a call.

    Attributes:
        label: As it was asked for: `coop`, or `coop@200` with a preset.
        name: The plugin's.
        preset: Its preset's; "" for none.
        method: Its class.
        sampler: Of its training images: that of the call, else the preset's, else CoOp's.
        variants: The settings of each of its variants; one without a grid.
        varied: The fields that the grid varies.
    """

    label: str
    name: str
    preset: str
    method: type[Method]
    sampler: str
    variants: tuple[Values, ...]
    varied: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, ready to be planned; `Request.of` makes one.

    Attributes:
        suite: With datasets, shots, backbone and threads replaced where others are asked for.
        methods: In the order that tables show them.
        protocols: By name.
        scores: Scores of images by name, for each protocol: its own and, where it has some, those asked for besides.
        seeds: (data seed, training seed) pairs.
        corruption: Of the images that protocols evaluate which do not corrupt them themselves.
        precision: One of `numerics.PRECISIONS`.
        device: `cpu`, `cuda` or `cuda:N`.
        deterministic: Whether torch is held to algorithms that always give the same bits.
        temperature: Whether a temperature is fitted on validation images, and calibration measured after it too.
        limit: The most images of each split that is evaluated; None for all.
        flags: The arguments that were given, such as `shots`, for whoever asks where a value came from.
        asked: The arguments that `Request.of` makes an equal request from, also in another process: plain values.
    """

    suite: Suite
    methods: tuple[ChosenMethod, ...]
    protocols: Mapping[str, Protocol]
    scores: Mapping[str, Mapping[str, Score]]
    seeds: tuple[tuple[int, int], ...]
    corruption: Corruption | None
    precision: str
    device: str
    deterministic: bool
    temperature: bool
    limit: int | None
    flags: frozenset[str]
    asked: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods as they were asked for."""
        return tuple(chosen.label for chosen in self.methods)

    @classmethod
    def of(
        cls,
        *,
        methods: str | Sequence[str] = (),
        protocol: str | Sequence[str] = (),
        suite: str | Path | Suite = "mini",
        datasets: str | Sequence[str] = (),
        seeds: int | Sequence[int] = (),
        data_seed: int | None = None,
        train_seed: int | None = None,
        shots: int | Sequence[int] = (),
        sampler: str = "",
        split: str | Sequence[str] = (),
        corrupt: str | Sequence[str] = (),
        settings: Values | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
        scores: str | Sequence[str] = (),
        train_views: int | None = None,
        backbone: str | None = None,
        threads: int | None = None,
        device: str = "auto",
        precision: str = "32",
        deterministic: bool = False,
        temperature: bool = False,
        limit: int | None = None,
        companions: bool = True,
        elsewhere: bool = False,
    ) -> Request:
        """The request that these words and numbers make.

        Args:
            methods: Names, `name@preset`, or `all`; without any the suite's line-up.
            protocol: One or several, or `all` of those whose role the suite has; without any `base2new`, or what all
                datasets named ask for, with the suite's usual number of shots: a folder's is `few_shot`.
            suite: A name, the path of a YAML file, or a suite.
            datasets: In the place of the suite's: names, or `folder:PATH`.
            seeds: Different integers; the suite's without any.
            data_seed: Draws the few-shot sample, whatever the seeds.
            train_seed: Draws initial values and order, whatever the seeds.
            shots: Training images per class; several for protocols that compare them.
            sampler: `coop`, `stratified`, `longtail:RHO`, `noise:RATE`, `noise:RATE:confusable`, or `file:PATH` of a
                stored sample, which may hold {dataset}, {shots} and {seed}; "" for a preset's own or CoOp's.
            split: How base-to-new halves the classes, one after the other: `alphabetical`, `random:N`; the suite's
                without any.
            corrupt: `kind:severity`, of the images evaluated; several for protocols that compare them, in the place of
                the suite's.
            settings: `method.field`, `dataset.field` or `score.field` to a value; `field` or `*.field` of all methods
                that have it.
            grid: `method.field` to values; a method runs with every combination.
            scores: Scores of images besides those of the protocols that have some.
            train_views: Random views of a training image, drawn once; None for a new one every epoch.
            backbone: `mini`, or `ARCHITECTURE:TAG_OR_FILE`; the suite's if none.
            threads: CPU threads of a run; the suite's if none.
            device: `cpu`, `cuda`, `cuda:N`, or `auto`.
            precision: One of `numerics.PRECISIONS`.
            deterministic: Whether torch is held to algorithms that always give the same bits.
            temperature: Whether a temperature is fitted on validation images, and calibration measured after it too.
            limit: The most images of each split that is evaluated, for a quick look; None for all.
            companions: Whether the suite's companions run too.
            elsewhere: Whether other machines do the runs, which may have a GPU where this one has none.

        Raises:
            UsageError: On an unknown name, or a value out of its range.
        """
        asked = {name: value for name, value in locals().items() if name != "cls"}
        given = frozenset(name for name, usual in USUAL.items() if asked[name] != usual and asked[name] != [])
        device = device_for(device, precision, elsewhere)
        suite = suite if isinstance(suite, Suite) else load_suite(suite)
        asked |= {"suite": suite, "device": device}
        if not listed(protocol):
            usual = asked_by_datasets(suite, listed(datasets))
            protocol, shots = usual or PROTOCOL, listed(shots) or ((suite.shots,) if usual else ())
        protocols = protocols_of(suite, listed(protocol))
        suite = suite if backbone is None else replace(suite, backbone=backbone)
        suite = suite if threads is None else replace(suite, threads=threads)
        suite = replace(suite, **shots_of(listed(shots), protocols), **split_of(listed(split), protocols))
        corruptions = corruptions_for(listed(corrupt), protocols)
        suite = replace(suite, corruptions=tuple(map(str, corruptions)) or suite.corruptions)
        for one in protocols.values() if datasets else ():
            suite = suite.with_datasets(one.role, listed(datasets))
        suite, assignments = assign(suite, settings or {})
        more = {name: open_score(name, assignments.pop(name, {})) for name in dict.fromkeys(listed(scores))}
        check_scores(protocols, more, assignments)
        wanted = labels(suite if companions else replace(suite, companions=()), listed(methods))
        loaded = {label: registry.load("methods", parse_label(label)[0]) for label in wanted}
        assignments = for_all_methods(assignments, loaded)
        assignments |= views_of(assignments, wanted, train_views)
        points = grid_of(grid or {})
        pairs = seed_pairs(listed(seeds) or suite.seeds, data_seed, train_seed)
        check_assignments(suite, loaded, {"--set": assignments, "--grid": points})
        check_sampler(sampler, pairs)
        return cls(
            suite=suite,
            methods=tuple(chosen(label, of, sampler, assignments, points) for label, of in loaded.items()),
            protocols=protocols,
            scores={name: scores_of(one, more) for name, one in protocols.items()},
            seeds=pairs,
            corruption=corruptions[0] if corruptions else None,
            precision=precision,
            device=device,
            deterministic=deterministic,
            temperature=temperature,
            limit=limit_of(limit),
            flags=given,
            asked=asked,
        )


def listed(given: Any) -> tuple[Any, ...]:
    """One value, or several, as several."""
    return (given,) if isinstance(given, (str, int)) else tuple(given)


def device_for(wanted: str, precision: str, elsewhere: bool) -> str:
    """`cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: There is no such device, it cannot train in that precision, or it names one of the GPUs of this
            machine for runs that others do.
    """
    if elsewhere and wanted.startswith("cuda"):
        if wanted != "cuda":
            raise UsageError(f"--device {wanted}: with --executor, the nodes choose the GPU; say --device cuda.")
        device = wanted
    else:
        device = resolve_device(wanted)
    check_device(precision, device)
    return device


def protocols_of(suite: Suite, words: Iterable[str]) -> dict[str, Protocol]:
    """The protocols named, each once; `all` stands for those whose role the suite has, but for such as are asked for by
    name alone."""
    names: list[str] = []
    for word in words:
        names += usual_protocols(suite) if word == "all" else [word]
    return {name: registry.load("protocols", name)() for name in dict.fromkeys(names)}


def asked_by_datasets(suite: Suite, datasets: Iterable[str]) -> str:
    """The protocol that all datasets named ask for where none is named; "" where they ask for none, or differ."""
    known = {entry.name: entry for entry in suite.entries()}
    entries = [known[word] if word in known else parse_entry(word) for word in datasets]
    wanted = {registry.load("datasets", entry.dataset).usual_protocol for entry in entries}
    return str(wanted.pop()) if len(wanted) == 1 else ""


def usual_protocols(suite: Suite) -> list[str]:
    """The protocols that `all` stands for."""
    known = {name: registry.load("protocols", name) for name in registry.names("protocols")}
    return [name for name, protocol in known.items() if protocol.in_all and protocol.role in suite.roles]


def scores_of(protocol: Protocol, more: Mapping[str, Score]) -> dict[str, Score]:
    """The scores of images of a protocol that has some, and those asked for besides."""
    return {**open_scores(protocol.scores), **more} if protocol.scores else {}


def check_scores(protocols: Mapping[str, Protocol], more: Iterable[str], assignments: Iterable[str]) -> None:
    """Raise a UsageError where scores are asked for that nothing computes, or one is set that nobody asked for."""
    names = list(more)
    if names and not any(protocol.scores for protocol in protocols.values()):
        raise UsageError(
            f"--score {names[0]}: {' and '.join(protocols)} has no scores of images; name another protocol."
        )
    for owner in assignments:
        if owner in registry.names("scores"):
            raise UsageError(f"--set {owner}.…: the score {owner} is not computed; ask for it with --score {owner}.")


def corruptions_for(texts: Sequence[str], protocols: Mapping[str, Protocol]) -> tuple[Corruption, ...]:
    """What `--corrupt` names.

    Raises:
        UsageError: There is no such corruption, or several are given and a protocol evaluates under one.
    """
    if not texts:
        return ()
    found = corruptions_of(texts, "--corrupt")
    single = [name for name, protocol in protocols.items() if not protocol.corrupts]
    if len(found) > 1 and single:
        said = " ".join(texts)
        raise UsageError(f"--corrupt takes one kind:severity for the protocol {single[0]}, such as fog:3, not {said}.")
    return found


def plans_of(
    protocol: Protocol, suite: Suite, seed: int, corruption: Corruption | None, limit: int | None = None
) -> list[Plan]:
    """What a protocol plans, with the images that it evaluates corrupted unless it does that itself, and limited."""
    plans = [plan.limited(limit) for plan in protocol.plan(suite, seed)]
    return plans if corruption is None or protocol.corrupts else [plan.under(corruption) for plan in plans]


def shots_of(shots: Sequence[int], protocols: Mapping[str, Protocol]) -> dict[str, Any]:
    """The fields of a suite that `--shots` replaces.

    Raises:
        UsageError: Several are given, and a protocol trains with one number of shots.
    """
    if not shots:
        return {}
    single = [name for name, protocol in protocols.items() if not protocol.several_shots]
    if len(shots) > 1 and single:
        raise UsageError(f"--shots takes one number for the protocol {single[0]}, not {' '.join(map(str, shots))}.")
    return {"few_shots": tuple(shots), "shots": shots[0]}


def split_of(split: Sequence[str], protocols: Mapping[str, Protocol]) -> dict[str, Any]:
    """The field of a suite that `--split` replaces.

    Raises:
        UsageError: There is no such split, or no protocol halves the classes.
    """
    for halves in split:
        seed_of_halves(halves)
    if split and not any(protocol.halves for protocol in protocols.values()):
        raise UsageError(f"--split halves the classes, which the protocol {', '.join(protocols)} does not.")
    return {"split": tuple(dict.fromkeys(split))} if split else {}


def assign(suite: Suite, settings: Values) -> tuple[Suite, dict[str, dict[str, Any]]]:
    """Settings by method, `*` for all of them; those that name a dataset of the suite change that dataset's options.

    Raises:
        UsageError: A name is neither `method.field` nor `field`.
    """
    by_method: dict[str, dict[str, Any]] = {}
    datasets = {entry.name for entry in suite.entries()}
    for path, value in settings.items():
        owner, name = (EVERY, path.strip()) if "." not in path else split_name(path) or ("", "")
        if not (owner and name):
            raise UsageError(f"--set {path}={shown(value)}: write method.field=value, for instance coop.n_ctx=4.")
        if owner in datasets:
            suite = with_option(suite, owner, name, value)
        else:
            by_method.setdefault(owner, {})[name] = value
    return suite, by_method


def for_all_methods(
    assignments: Mapping[str, Values], methods: Mapping[str, type[Method]]
) -> dict[str, dict[str, Any]]:
    """The settings with those of `*` at each method that has such a field; what is set of a method itself goes first.

    Args:
        assignments: By method, label, or `*`.
        methods: Those that run, by label.

    Raises:
        UsageError: No method has a field.
    """
    found = {owner: dict(values) for owner, values in assignments.items() if owner != EVERY}
    everywhere = assignments.get(EVERY, {})
    fields_of_all = {parse_label(label)[0]: set().union(*settable(method)) for label, method in methods.items()}
    known = set().union(*fields_of_all.values())
    for name in everywhere:
        if name not in known:
            raise UsageError(f"--set {name}=…: {unknown('setting of the methods of this call', name, known)}")
    for method, has in fields_of_all.items():
        own = {name: value for name, value in everywhere.items() if name in has}
        if own:
            found[method] = own | found.get(method, {})
    return found


def split_name(path: str) -> tuple[str, str] | None:
    """`maple.depth` as `("maple", "depth")`; None where it has another number of parts."""
    parts = tuple(part.strip() for part in path.split("."))
    return (parts[0], parts[1]) if len(parts) == 2 and all(parts) else None


def with_option(suite: Suite, dataset: str, name: str, value: Any) -> Suite:
    """The suite with another option of one of its datasets, in every role."""

    def changed(entry: DatasetEntry) -> DatasetEntry:
        return replace(entry, options={**entry.options, name: value}) if entry.name == dataset else entry

    return replace(suite, roles={role: tuple(map(changed, entries)) for role, entries in suite.roles.items()})


def labels(suite: Suite, asked: Sequence[str]) -> tuple[str, ...]:
    """The methods to run: the suite's companions first, then those asked for, or else the suite's line-up.

    `all` is every registered method.

    Raises:
        UsageError: None is asked for, and the suite has no line-up.
    """
    asked = asked or suite.lineup
    if not asked:
        raise UsageError(f"Name methods with --method; the suite {suite.name} has no line-up of its own.")
    found = list(suite.companions)
    for word in asked:
        found += registry.names("methods") if word == "all" else (word,)
    return tuple(dict.fromkeys(found))


def views_of(assignments: Mapping[str, Values], methods: Iterable[str], views: int | None) -> dict[str, dict[str, Any]]:
    """The assignments of every method that trains, with so many views; its own `--set` goes first."""
    names = dict.fromkeys(parse_label(label)[0] for label in methods) if views else {}
    trained = [name for name in names if registry.load("methods", name).trains]
    return {name: {"train_views": views, **assignments.get(name, {})} for name in trained}


def grid_of(grid: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """`{"maple.depth": [1, 3], "maple.n_ctx": [2, 4]}` as every combination, by method.

    Raises:
        UsageError: A name is not `method.field`, or has no values.
    """
    values: dict[str, dict[str, Sequence[Any]]] = {}
    for path, given in grid.items():
        owner, name = split_name(path) or ("", "")
        if not owner or not isinstance(given, (list, tuple)) or not given:
            text = f"{path}={shown(given)}"
            raise UsageError(f"--grid {text}: write method.field=value,value, for instance maple.depth=1,3,6.")
        values.setdefault(owner, {})[name] = given
    return {
        method: [dict(zip(fields, point, strict=True)) for point in itertools.product(*fields.values())]
        for method, fields in values.items()
    }


def limit_of(given: int | None) -> int | None:
    """A number of images to evaluate.

    Raises:
        UsageError: It is none.
    """
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise UsageError(f"--limit takes an integer from 1 on, not {shown(given)}.")
    return given


def seed_pairs(seeds: Sequence[int], data: int | None, train: int | None) -> tuple[tuple[int, int], ...]:
    """(data seed, training seed) of each run; a seed given on its own stays fixed.

    Raises:
        UsageError: A seed is none, or is given twice.
    """
    seeds = [seed_of(seed, "--seeds") for seed in seeds]
    data = None if data is None else seed_of(data, "--data-seed")
    train = None if train is None else seed_of(train, "--train-seed")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds takes different integers, not {' '.join(map(str, seeds))}.")
    return tuple(dict.fromkeys((seed if data is None else data, seed if train is None else train) for seed in seeds))


def seed_of(given: int, flag: str) -> int:
    """A seed as a plain integer.

    Raises:
        UsageError: It is none that every generator takes.
    """
    try:
        seed = operator.index(given)
    except TypeError:
        seed = -1
    if isinstance(given, bool) or not 0 <= seed <= LARGEST:
        raise UsageError(f"{flag} takes integers from 0 to {LARGEST}, not {shown(given)}.")
    return seed


def check_assignments(suite: Suite, wanted: Iterable[str], given: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a UsageError where a setting names a method that does not run.

    Args:
        wanted: The methods that run.
        given: Flag to what it sets, by method or label.
    """
    running: set[str] = set()
    for label in wanted:
        running |= {label, parse_label(label)[0]}
    known = running | {entry.name for entry in suite.entries()}
    for flag, named in given.items():
        for name in named:
            if name not in running:
                raise UsageError(f"{flag} {name}.…: {unknown('method or dataset of this call', name, known)}")


def check_sampler(sampler: str, seeds: Iterable[tuple[int, int]]) -> None:
    """Raise a UsageError where there is no such sampler, or one stored sample would stand for several seeds."""
    data_seeds = {data_seed for data_seed, _ in seeds}
    if sampler.startswith(FILE):
        if len(data_seeds) > 1 and "{seed}" not in sampler:
            raise UsageError(f"--sampler {sampler}: write {{seed}} in the path, or give one seed or --data-seed.")
    elif sampler:
        sampler_of(sampler)


def chosen(
    label: str,
    method: type[Method],
    sampler: str,
    assignments: Mapping[str, Values],
    grid: Mapping[str, Sequence[Values]],
) -> ChosenMethod:
    """A method with the settings of each of its variants; what is set of a preset goes before what is of its method.

    Raises:
        UsageError: The method has no such preset.
    """
    name, preset = parse_label(label)
    own = find_preset(method, name, preset).sampler if preset else ""
    settings = {**assignments.get(name, {}), **assignments.get(label, {})}
    points = grid.get(label) or grid.get(name) or [{}]
    return ChosenMethod(
        label=label,
        name=name,
        preset=preset,
        method=method,
        sampler=sampler or own or SAMPLER,
        variants=tuple({**settings, **point} for point in points),
        varied=tuple(points[0]),
    )


def other_data(suite: Suite, plan: Plan) -> dict[str, Any]:
    """The datasets that a plan evaluates besides its own: name to plugin and its fields, resolved."""
    names = dict.fromkeys(evaluation.selection.dataset for evaluation in plan.evaluations)
    entries = [suite.entry(name) for name in names if name != plan.dataset]
    return {entry.name: {"dataset": entry.dataset, **options_of(entry)} for entry in entries}


def options_of(entry: DatasetEntry) -> dict[str, Any]:
    """The fields of a dataset's Config, resolved; those that are marked as `later`, younger than the names of runs, are
    there where they say something."""
    cls = registry.load("datasets", entry.dataset)
    config = config_of(cls, entry.options, f"dataset '{entry.name}'")
    younger = {item.name: item.default for item in fields(config) if item.metadata.get("later")}
    return {name: value for name, value in to_mapping(config).items() if name not in younger or value != younger[name]}
