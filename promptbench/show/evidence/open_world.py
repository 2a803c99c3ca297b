"""Does the order of methods by H hold where nobody says whether an image is of a base or a new class?

From stored base-to-new results: H beside OpenworldAUC and accuracy among all names.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptbench.show.evidence.averages import Averaged, averaged, conditions, number, paired, said, section
from promptbench.show.tables.show import Question

METRIC = "open_world_auc"
HEAD = ("method", "H", "OpenworldAUC", "joint accuracy", "place by H", "by OpenworldAUC", "OpenworldAUC − {}")
FIGURES = """\
- H: harmonic mean of base and new accuracy, each among the names of its half; in percent, 0 to 100, higher is better.
- OpenworldAUC: the share of pairs of a base and a new image in which both are recognised among the names of their half
  and the base image has the larger probability of a base name among all names; in percent, 0 to 100, higher is better.
- joint accuracy: the share of all images recognised among all names; in percent, 0 to 100, higher is better.
- places: 1 is the best; a reconstruction has none.
- OpenworldAUC − {}: in points, seeds paired; positive is better.
"""


def page(question: Question) -> str:
    """The page in Markdown.

    Raises:
        UsageError: No results have OpenworldAUC.
    """
    source, shown, left_out = averaged(question, METRIC)
    reference = next((one for one in shown if not one.trained), shown[0])
    by_h, by_pairs = places(shown, "h"), places(shown, METRIC)
    body = [
        [
            one.label,
            number(one.mean("h")),
            number(one.mean(METRIC)),
            number(one.mean("joint/accuracy")),
            str(by_h.get(one.label, "–")),
            str(by_pairs.get(one.label, "–")),
            "" if one is reference else said(paired(one.by_seed(METRIC), reference.by_seed(METRIC))),
        ]
        for one in shown
    ]
    head = [title.format(reference.label) for title in HEAD]
    parts = [
        "# The open world: detecting new classes and telling all apart",
        finding(shown, by_h, by_pairs),
        section("H and OpenworldAUC", head, body),
        FIGURES.format(reference.label).rstrip(),
        conditions(source, shown, left_out),
    ]
    return "\n\n".join(parts) + "\n"


def places(shown: Sequence[Averaged], metric: str) -> dict[str, int]:
    """The places of the rows that may be ranked, by label."""
    means = {one.label: mean for one in shown if (mean := one.mean(metric)) is not None and not one.row.reconstructed}
    ordered = sorted(means.values(), reverse=True)
    return {label: 1 + ordered.index(mean) for label, mean in means.items()}


def finding(shown: Sequence[Averaged], by_h: dict[str, int], by_pairs: dict[str, int]) -> str:
    """One sentence: who moves from H to OpenworldAUC, and how far the first is ahead."""
    ranked = [one for one in shown if one.label in by_h and one.label in by_pairs]
    if len(ranked) < 2:
        return "There are too few rows to compare orders."
    moved = [abs(by_h[one.label] - by_pairs[one.label]) for one in ranked]
    several = sum(place > 0 for place in moved)
    who = f"{several or 'None'} of {len(ranked)} rows {'stands' if several < 2 else 'stand'} elsewhere"
    how_far = f", by {max(moved)} place{'s' * (max(moved) > 1)} at most" if several else ""
    orders = f"{who} by OpenworldAUC than by H{how_far}"
    first = min(ranked, key=lambda one: by_pairs[one.label])
    of_h = min(ranked, key=lambda one: by_h[one.label])
    if first is of_h:
        rest = [one for one in ranked if one is not first]
        second = min(rest, key=lambda one: by_pairs[one.label])
        gap = said(paired(first.by_seed(METRIC), second.by_seed(METRIC)))
        return f"{orders}; {first.label} is first by both, ahead of {second.label} by {gap} points of OpenworldAUC."
    gap = said(paired(first.by_seed(METRIC), of_h.by_seed(METRIC)))
    return f"{orders}; {first.label} is first and not {of_h.label}, by {gap} points of OpenworldAUC."
