"""What a method's mechanism adds: its figures minus those of a control, from stored results.

A control leaves a method as it is but for one thing, which it takes away. Which methods have which controls is declared
by the methods' files, as `Method.controls` and `Method.baseline` say, and read there without importing them; that a
preset tells a method noise in the place of images, or replaces its prompts by random ones, is in the results.

A difference is taken seed by seed on the same samples. For a seed, accuracies are means over the sets that both have,
and H is that of the two means, as in the papers' averages. The interval is Student's t over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from statistics import fmean

from promptbench import registry
from promptbench.config import UsageError
from promptbench.metrics.classification import harmonic_mean
from promptbench.metrics.statistics import Interval, paired_interval
from promptbench.recipe import NOISE, RANDOM
from promptbench.results.result import Result, read_results
from promptbench.results.spec import CONTEXT
from promptbench.show.evidence.averages import tables
from promptbench.show.tables.formats.texts import Texts, laid_out
from promptbench.show.tables.rows import rows
from promptbench.show.tables.show import Question, uncollected
from promptbench.show.tables.table import Row, Seed

FIGURES = {"base/accuracy": "base", "new/accuracy": "new"}
H = "H"
TAKES = {NOISE: "what the image says", RANDOM: "the direction of what is learned"}
HEAD = ("method", "control", "takes away", "trained", *FIGURES.values(), H, "sets", "n")
NAMES = 4  # columns on the left that hold words
BARE = (0, 4, 5, 6, 7, 8)  # columns of a table of one baseline
REMARKS = (
    "Figures are differences of accuracies in percent, method minus control, in points from -100 to +100: above 0 what "
    "the control takes away is worth so much. In brackets the 95 % interval of Student's t over n seeds that both ran, "
    "not corrected for the number of intervals.",
    "`trained`: whether the control's training has the method's recipe (`alike`), another one (`apart`: more differs "
    "than what it takes away), is the method's own (`same`), or is none.",
    "`@noise` is trained and evaluated on noise of the mean and standard deviation of each image's features, so that "
    "the network stays and what it is told goes; `@random` evaluates what the method learned, every prompt token "
    "replaced by a random one of its norm.",
)


@dataclass(frozen=True)
class Control:
    """Which label is examined by which other, what that one lacks, and whether every method is examined by it."""

    method: str
    control: str
    takes: str
    baseline: bool = False


@dataclass(frozen=True)
class Difference:
    """A row of the table.

    Attributes:
        method: Label of the row that is examined.
        control: Label of its control's.
        takes: What the control takes away.
        baseline: Whether the control is one of all methods.
        figures: Method minus control, by `base`, `new` and `H`; without those that one of the two has not.
        trained: `same`, `alike`, `apart` or `none`; see `REMARKS`.
        datasets: How many sets are averaged over.
        n: Seeds.
    """

    method: str
    control: str
    takes: str
    baseline: bool
    figures: dict[str, Interval]
    trained: str
    datasets: int
    n: int


def page(question: Question) -> str:
    """The page as Markdown.

    Raises:
        UsageError: There is no method beside a control of its.
    """
    with uncollected():
        stored = read_results(*question.places)
    results = [result for result in stored if set(FIGURES) & set(result.metrics)]
    if question.datasets:
        results = [result for result in results if result.spec.dataset in question.datasets]
    parts = {title: found for title, of in tables(results) if (found := differences(of, question.methods))}
    if not parts:
        places = ", ".join(map(str, question.places))
        raise UsageError(
            f"There is no method beside one of its controls in {places}; run some, such as a method that is told the "
            f"image together with its preset '@{NOISE}', or one that learns prompts with '@{RANDOM}'."
        )
    lines = ["# Controls", "", finding(list(chain.from_iterable(parts.values())))]
    for title, found in parts.items():
        lines += sections(title, found)
    return "\n".join([*lines, *chain.from_iterable(("", remark) for remark in REMARKS)]) + "\n"


def sections(title: str, found: Sequence[Difference]) -> Iterator[str]:
    """The lines of a table's section: mechanisms together, and the methods beside each baseline apart."""
    mechanisms = [texts_of(one) for one in found if not one.baseline]
    if mechanisms:
        yield from ("", *laid_out(title, Texts(list(HEAD), [mechanisms], []), NAMES))
    for control, takes in dict.fromkeys((one.control, one.takes) for one in found if one.baseline):
        beside = [texts_of(one) for one in found if one.baseline and one.control == control]
        head, rows = [HEAD[place] for place in BARE], [[row[place] for place in BARE] for row in beside]
        yield from ("", *laid_out(f"{title}: minus {control}, without {takes}", Texts(head, [rows], []), 1))


def differences(results: Sequence[Result], methods: Sequence[str] = ()) -> list[Difference]:
    """Every method of one table minus its controls: what reads images, what is learned, own controls, baselines.

    Args:
        results: Of one protocol, suite and backbone.
        methods: Only these labels, or plugins; all without any.
    """
    by_label: dict[str, list[Row]] = {}
    for row in rows(results):
        by_label.setdefault(row.method, []).append(row)
    found = []
    for control in controls_of(results):
        if methods and control.method not in methods and control.method.partition("@")[0] not in methods:
            continue
        pairs = product(by_label.get(control.method, ()), by_label.get(control.control, ()))
        found += [difference(one, other, control) for one, other in pairs if belong(one, other)]
    return [one for one in found if one.n]


def controls_of(results: Sequence[Result]) -> list[Control]:
    """Which labels are examined by which others, as far as results and the methods' files say."""
    specs = {result.spec.label: result.spec for result in results}
    found: list[Control] = []
    for taken in ("condition", "prompts"):
        for label, spec in specs.items():
            if getattr(spec, taken):
                found.append(Control(spec.method, label, TAKES[getattr(spec, taken)]))
    declared = {name: registry.facts("methods", name).attributes for name in registry.names("methods")}
    for name, attributes in declared.items():
        for preset, of_preset in attributes.get("controls", {}).items():
            for control, takes in of_preset.items():
                found.append(Control(name + preset, label_of(control, name), takes))
    controls = {control.control for control in found if control.control.startswith(f"{control.method}@")}
    learning = [label for label, spec in specs.items() if spec.shots != 0 and label not in controls]
    for name, attributes in declared.items():
        for preset, takes in attributes.get("baseline", {}).items():
            others = [label for label in learning if label.partition("@")[0] != name]
            found += [Control(label, name + preset, takes, baseline=True) for label in others]
    return list(dict.fromkeys(found))


def label_of(control: str, name: str) -> str:
    """The label of a control that the method called `name` declares."""
    return name + control if control.startswith("@") else control


def belong(one: Row, other: Row) -> bool:
    """Whether a row goes with a control's: of the same halves of the classes; both from the words of their dataset or
    neither, or the control from none; and where both are told apart from others of their label, by the same."""
    if one.split != other.split:
        return False
    worded = any(CONTEXT in result.spec.config for result in other.results)
    if worded and one.from_dataset != other.from_dataset:
        return False
    return not (one.apart and other.apart) or one.apart == other.apart


def difference(one: Row, other: Row, control: Control) -> Difference:
    """A row minus its control's, over the sets that both have, at the seeds at which both have all of these."""
    of_one, of_other = by_seed(one), by_seed(other)
    shared = {result.spec.dataset for result in one.results} & {result.spec.dataset for result in other.results}
    seeds = [seed for seed in of_one if seed in of_other and shared <= of_one[seed].keys() & of_other[seed].keys()]
    figures: dict[str, list[float]] = {}
    for seed in seeds if shared else ():
        here, there = averages([of_one[seed][name] for name in shared]), averages([of_other[seed][n] for n in shared])
        for name in here.keys() & there.keys():
            figures.setdefault(name, []).append(here[name] - there[name])
    whole = {name: paired_interval(values) for name, values in figures.items() if len(values) == len(seeds)}
    counts = len(shared), len(seeds) if whole else 0
    return Difference(one.label, other.label, control.takes, control.baseline, whole, trained_as(one, other), *counts)


def by_seed(row: Row) -> dict[Seed, dict[str, Result]]:
    """The results of a row by seeds and dataset."""
    found: dict[Seed, dict[str, Result]] = {}
    for result in row.results:
        found.setdefault(result.spec.seeds, {})[result.spec.dataset] = result
    return found


def averages(results: Sequence[Result]) -> dict[str, float]:
    """Accuracies averaged over sets, each where all sets have it, and the harmonic mean of the averages."""
    found = {}
    for key, name in FIGURES.items():
        if all(key in result.metrics for result in results):
            found[name] = fmean(result.metrics[key] for result in results)
    if len(found) == len(FIGURES):
        found[H] = harmonic_mean(*found.values())
    return found


def trained_as(one: Row, other: Row) -> str:
    """Whether a control was trained as the method was: not at all, in the same training, by the same recipe or not."""
    ours = {(result.spec.dataset, result.spec.seeds): result for result in one.results}
    theirs = {(result.spec.dataset, result.spec.seeds): result for result in other.results}
    pairs = [(ours[place], theirs[place]) for place in sorted(ours.keys() & theirs.keys())]
    if not any(control.spec.recipe for _, control in pairs):
        return "none"
    if all(key_of(method) and key_of(method) == key_of(control) for method, control in pairs):
        return "same"
    return "alike" if all(recipe_of(method) == recipe_of(control) for method, control in pairs) else "apart"


def key_of(result: Result) -> str:
    """Of the training that a result is of; "" where it does not say."""
    return str(result.conditions.get("training_key", ""))


def recipe_of(result: Result) -> dict[str, object]:
    """What a recipe does, without where it comes from."""
    return {name: value for name, value in result.spec.recipe.items() if name != "origin"}


def texts_of(one: Difference) -> list[str]:
    """A line of the table."""
    figures = [str(one.figures[name]) if name in one.figures else "–" for name in (*FIGURES.values(), H)]
    return [one.method, one.control, one.takes, one.trained, *figures, str(one.datasets), str(one.n)]


def finding(found: Sequence[Difference]) -> str:
    """One sentence: what one mechanism adds, the image if that is one, and how many of all intervals lie above 0."""
    first = min(found, key=lambda one: (H not in one.figures, importance(one)))
    name, interval = (H, first.figures[H]) if H in first.figures else next(iter(first.figures.items()))
    main = [one.figures[H] for one in found if H in one.figures]
    known = [one for one in main if not math.isnan(one.low)]
    above, below = sum(one.low > 0 for one in known), sum(one.high < 0 for one in known)
    said = f"{first.takes[0].upper()}{first.takes[1:]} adds {interval} {name} to {first.method} (over {first.control})"
    if not known:
        return f"{said}; no difference here has seeds enough for an interval."
    rest = f"{above} lie above 0 and {below} below"
    return f"{said}; of the {len(known)} intervals of H on this page, {rest}."


def importance(one: Difference) -> int:
    """Where a difference stands among those that the finding may be about, the first one best."""
    takes = list(TAKES.values())
    if one.takes in takes:
        return takes.index(one.takes)
    return len(takes) + one.baseline + (one.trained == "apart")
