"""Operations that are counted instead of done, and what hours and costs are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from promptbench.benchmarks.speed import costs, hours
from promptbench.benchmarks.speed.counted import Uncomputed, Work, count_ours, count_plain, fitted, operations
from shared_paths import REPOSITORY
from torch.utils.flop_counter import FlopCounterMode

from promptbench.clip.load import load_backbone


def test_operations_are_counted_as_if_they_were_done() -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    with FlopCounterMode(display=False) as counter:
        (a @ b).sum().backward()
    assert counter.get_total_flops() == operations(lambda: (a @ b).sum().backward()) == 2 * (2 * 3 * 4 * 5)
    with Uncomputed():
        assert (a @ b).shape == (3, 5)
        assert not (a @ b).any()


def test_work_at_other_sizes_follows_from_four_counts() -> None:
    work = fitted(lambda classes, images: 7 + 5 * classes + 3 * images + 2 * classes * images)
    assert work == Work(7, 5, 3, 2)
    assert work.at(100, 32) == 7 + 500 + 96 + 6400


def test_both_sides_are_counted_on_the_embedded_clip() -> None:
    backbone = load_backbone("mini")
    ours, plain = count_ours("coop", backbone, cached=False), count_plain("coop", backbone)
    assert plain is not None and ours.step is not None and plain.step is not None
    assert ours.step.of_class < plain.step.of_class  # which has 77 tokens for each class
    assert ours.image.of_image > 0
    assert ours.image.of_class == pytest.approx(0, abs=1)
    assert count_plain("tip_adapter", backbone) is None


@pytest.mark.parametrize("label", ["dpl", "mutual", "clip_lora"])
def test_plain_sides_that_run_the_blocks_themselves_are_counted(label: str) -> None:
    plain = count_plain(label, load_backbone("mini"))
    assert plain is not None and plain.step is not None
    assert plain.step.of_class + plain.step.of_pair > 0 and plain.image.of_image > 0


def test_hours_count_every_run_of_the_suite() -> None:
    report = hours.estimate(["zeroshot"], load_backbone("mini"))
    own, shared = report["rows"]
    _, runs = hours.planned("zeroshot")
    assert (own["runs"], own["trainings"], own["steps"]) == (len(runs), 0, 0)
    assert shared["images read, thousands"] > 100  # ImageNet's 50,000 test images among them
    text = hours.page(report)
    assert "**Nothing of this was run.**" in text
    assert "| images encoded once for all |" in text


def test_a_machine_does_no_step_in_less_than_its_least_time() -> None:
    bill = hours.Bill(small=[(1e9, 3600), (2e12, 3600)])
    assert bill.hours(hours.Machine(1e12, 0.5, 1, ""))["training"] == pytest.approx(0.5 + 2.0)


@pytest.mark.slow
def test_costs_of_a_method_are_those_of_its_parts() -> None:
    report = costs.costs(["coop"], backbone="mini")
    (row,) = report["rows"]
    parts = sum(row[name] for name in ("preparing", "training", "encoding", "scoring"))
    assert row["seconds"] == pytest.approx(parts)
    assert row["steps"] > 0 and row["GiB"] > 0 and row["plain, PFLOP"] > 0
    assert f"| coop | {row['steps']:,} |" in costs.page(report)


def test_a_method_that_takes_too_long_has_a_line() -> None:
    assert costs.costs(["coop"], limit=0.01)["rows"] == [{"method": "coop", "not measured": "took more than 0 s"}]


@pytest.mark.parametrize(("name", "page"), [("hours", hours.page), ("speed-costs", costs.page)])
def test_committed_figures_have_their_page(name: str, page: Callable[[dict[str, Any]], str]) -> None:
    path = REPOSITORY / "results" / "measured" / f"{name}.json"
    assert path.with_suffix(".md").read_text() == page(json.loads(path.read_text()))


def test_the_committed_costs_are_those_of_all_methods(no_plugins: None) -> None:
    found = json.loads((REPOSITORY / "results" / "measured" / "speed-costs.json").read_text())
    assert [row["method"] for row in found["rows"] if row["seconds"] > 0] == list(costs.all_methods())
