from __future__ import annotations

import pytest

from promptbench import registry
from promptbench.protocol import Evaluation, Protocol, Selection
from promptbench.suite import DatasetEntry, Suite, load_suite


def suite(*names: str) -> Suite:
    entries = tuple(DatasetEntry(name=name, dataset=name) for name in names)
    return Suite(name="tiny", title="tiny", backbone="mini", shots=4, roles={"base2new": entries})


@pytest.mark.parametrize("name", registry.names("protocols"))
@pytest.mark.parametrize("suite_name", ["mini", "clip11"])
def test_every_protocol_plans_on_the_shipped_suites(name: str, suite_name: str) -> None:
    shipped = load_suite(suite_name)
    protocol: Protocol = registry.load("protocols", name)()
    plans = protocol.plan(shipped, seed=1)
    assert plans and plans == protocol.plan(shipped, seed=1)
    for plan in plans:
        names = [evaluation.name for evaluation in plan.evaluations]
        assert names and len(set(names)) == len(names)
        for selection in (plan.train, *(e.selection for e in plan.evaluations), *(e.shown for e in plan.evaluations)):
            assert shipped.entry(selection.dataset)


@pytest.mark.parametrize("name", registry.names("protocols"))
def test_every_protocol_keeps_the_metrics_it_is_given(name: str) -> None:
    protocol: Protocol = registry.load("protocols", name)()
    given = {"x/accuracy": 50.0}
    assert protocol.summarize(given) == given and protocol.summarize({}) == {}


def test_base2new_trains_on_base_and_evaluates_both_halves() -> None:
    protocol = registry.load("protocols", "base2new")()
    first, second = protocol.plan(suite("dtd", "eurosat"), seed=1)
    assert (first.dataset, second.dataset) == ("dtd", "eurosat")
    assert first.train == Selection(dataset="dtd", split="train", classes="base", shots=4)
    assert first.evaluations == (
        Evaluation(name="base", selection=Selection(dataset="dtd", split="test", classes="base")),
        Evaluation(name="new", selection=Selection(dataset="dtd", split="test", classes="new")),
        Evaluation(name="joint", selection=Selection(dataset="dtd", split="test")),
    )


def test_base2new_adds_the_harmonic_mean_of_both_accuracies() -> None:
    """CoOp and CoCoOp, average over eleven datasets: Table 1 of the CoCoOp paper."""
    protocol = registry.load("protocols", "base2new")()
    coop = {"base/accuracy": 82.69, "new/accuracy": 63.22}
    assert protocol.summarize(coop) == {**coop, "h": pytest.approx(71.66, abs=0.005)}
    assert "h" not in coop
    cocoop = {"base/accuracy": 80.47, "new/accuracy": 71.69}
    assert protocol.summarize(cocoop)["h"] == pytest.approx(75.83, abs=0.005)
    assert protocol.summarize({"base/accuracy": 80.0}) == {"base/accuracy": 80.0}


def test_an_evaluation_shows_its_own_class_names_unless_told_otherwise() -> None:
    images = Selection(dataset="textures", split="test")
    source = Selection(dataset="imagenet", split="test")
    assert Evaluation(name="textures", selection=images).shown is images
    assert Evaluation(name="textures", selection=images, names=source).shown is source
