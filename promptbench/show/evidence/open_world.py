"""Does the order of methods by H hold where nobody says whether an image is of a base or a new class?

From stored base-to-new results: H beside OpenworldAUC and accuracy among all names.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptbench.show.evidence.averages import Averaged, averaged, conditions, number, paired, said, section
from promptbench.show.tables.show import Question

METRIC = "open_world_auc"
HEAD = (
    *("method", "text prior", "H", "OpenworldAUC", "joint accuracy", "place by H", "by OpenworldAUC"),
    "OpenworldAUC − zero-shot",
)
FIGURES = """\
- H: harmonic mean of base and new accuracy, each among the names of its half; in percent, 0 to 100, higher is better.
- OpenworldAUC: the share of pairs of a base and a new image in which both are recognised among the names of their half
  and the base image has the larger probability of a base name among all names; in percent, 0 to 100, higher is better.
- joint accuracy: the share of all images recognised among all names; in percent, 0 to 100, higher is better.
- places: among the rows of a text prior; 1 is the best, and a reconstruction has none.
- OpenworldAUC − zero-shot: to the row of the same text prior that learns nothing; in points, seeds paired; positive is
  better.
"""


def page(question: Question) -> str:
    """The page in Markdown.

    Raises:
        UsageError: No results have OpenworldAUC.
    """
    source, shown, left_out = averaged(question, METRIC)
    by_h, by_pairs = places(shown, "h"), places(shown, METRIC)
    body = []
    for one in shown:
        reference = one.alike(shown)
        gap = paired(one.by_seed(METRIC), reference.by_seed(METRIC)) if reference is not None else None
        means = [number(one.mean(metric)) for metric in ("h", METRIC, "joint/accuracy")]
        ranks = [str(order.get(one.label, "–")) for order in (by_h, by_pairs)]
        body.append([one.label, one.text_prior, *means, *ranks, "" if one is reference else said(gap)])
    parts = [
        "# The open world: detecting new classes and telling all apart",
        finding(shown, by_h, by_pairs),
        section("H and OpenworldAUC", HEAD, body),
        FIGURES.rstrip(),
        conditions(source, shown, left_out),
    ]
    return "\n\n".join(parts) + "\n"


def places(shown: Sequence[Averaged], metric: str) -> dict[str, int]:
    """The places within their text prior of the rows that may be ranked, by label."""
    found = {}
    for one in shown:
        rivals = [other for other in shown if other.text_prior == one.text_prior and not other.row.reconstructed]
        means = [mean for other in rivals if (mean := other.mean(metric)) is not None]
        own = one.mean(metric)
        if own is not None and one in rivals:
            found[one.label] = 1 + sum(mean > own for mean in means)
    return found


def finding(shown: Sequence[Averaged], by_h: dict[str, int], by_pairs: dict[str, int]) -> str:
    """One sentence: who moves from H to OpenworldAUC, and how far the first is ahead, in the largest text prior."""
    ranked = [one for one in shown if one.label in by_h and one.label in by_pairs]
    priors = [one.text_prior for one in ranked]
    ranked = [one for one in ranked if one.text_prior == max(priors, key=priors.count)]
    if len(ranked) < 2:
        return "There are too few rows to compare orders."
    moved = [abs(by_h[one.label] - by_pairs[one.label]) for one in ranked]
    several = sum(place > 0 for place in moved)
    rows = f"{len(ranked)} rows of the text prior {ranked[0].text_prior}"
    who = f"{several or 'None'} of {rows} {'stands' if several < 2 else 'stand'} elsewhere"
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
