"""What can be said of a dataset's class: its facts, and its splits where its data are at hand."""

from __future__ import annotations

from collections.abc import Iterator

from promptbench.config import UsageError
from promptbench.data.dataset import Dataset, DatasetInfo
from promptbench.specimen import NotConcerned, some


def check_facts_are_filled_in(dataset: Dataset) -> Iterator[str]:
    """Its facts are filled in."""
    info = getattr(dataset, "info", None)
    if not isinstance(info, DatasetInfo):
        yield "it has no facts; write `info = DatasetInfo(title=..., classes=..., ...)`"
        return
    if not info.title:
        yield "its `info` has no title; give the name that tables print"
    templates = [info.template] if isinstance(info.template, str) else info.template
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        yield f"the template {wrong[0]!r} has no place, or several, for the class name; write one {{}} in it"


def check_splits_can_be_read(dataset: Dataset) -> Iterator[str]:
    """Its splits can be read: labels count from 0, class names differ, the first image opens."""
    try:
        items = dataset.items("train") or dataset.items("test")
    except UsageError as error:
        raise NotConcerned(str(error)) from error
    if not items:
        yield "it has neither training nor test images; see `read`"
        return
    labels = sorted({item.label for item in items})
    if labels != list(range(len(labels))):
        yield f"its labels are {some(map(str, labels))}; count them from 0, without a gap"
    if dataset.info.classes not in (0, len(labels)):
        yield f"`info` says {dataset.info.classes} classes, and its items have {len(labels)}; correct one of them"
    try:
        assert len(dataset.class_names) == len(labels)
        dataset.open(items[0])
    except UsageError as error:
        yield str(error)


CHECKS = (check_facts_are_filled_in, check_splits_can_be_read)
