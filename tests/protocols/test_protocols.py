from __future__ import annotations

import pytest
import torch

from promptbench import registry
from promptbench.data.selection import Selection
from promptbench.metrics.ood import detection, open_scores
from promptbench.protocol import Column, Evaluation, Outcome, Protocol
from promptbench.runs.request import protocols_of
from promptbench.suite import DatasetEntry, Suite, load_suite, suite_names


def suite(*names: str) -> Suite:
    entries = tuple(DatasetEntry(name=name, dataset=name) for name in names)
    return Suite(name="tiny", title="tiny", backbone="mini", shots=4, roles={"base2new": entries})


@pytest.mark.parametrize("name", registry.names("protocols"))
@pytest.mark.parametrize("suite_name", suite_names())
def test_every_protocol_plans_on_the_shipped_suites_that_have_its_role(name: str, suite_name: str) -> None:
    shipped = load_suite(suite_name)
    protocol: Protocol = registry.load("protocols", name)()
    if protocol.role not in shipped.roles:
        pytest.skip(f"{suite_name} has no {protocol.role}")
    plans = protocol.plan(shipped, seed=1)
    assert plans and plans == protocol.plan(shipped, seed=1)
    for plan in plans:
        names = [evaluation.name for evaluation in plan.evaluations]
        assert names and len(set(names)) == len(names)
        for selection in (plan.train, *(e.selection for e in plan.evaluations), *(e.shown for e in plan.evaluations)):
            assert shipped.entry(selection.dataset)


@pytest.mark.parametrize("suite_name", ["mini", "clip11"])
def test_the_shipped_suites_have_the_five_protocols_of_the_field(suite_name: str) -> None:
    five = ["base2new", "cross_dataset", "domain_generalization", "few_shot", "ood"]
    assert list(protocols_of(load_suite(suite_name), ["all"])) == five


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


def outcome(generator: torch.Generator, images: int, shift: float, labels: int | None = None) -> Outcome:
    logits = torch.randn(images, 5, generator=generator)
    known = torch.randint(0, 5, (images,), generator=generator) if labels is None else torch.full((images,), labels)
    scores = {name: torch.randn(images, generator=generator) + shift for name in ("mcm", "msp")}
    return Outcome(logits, known, scores, {"gl_mcm": "there are no patches"})


def test_transfer_averages_over_targets_only_where_all_are_there() -> None:
    protocol = registry.load("protocols", "cross_dataset")()
    shipped = load_suite("clip11")
    (plan,) = protocol.plan(shipped, 1)
    assert (plan.dataset, plan.train.classes, plan.train.shots) == ("imagenet", "all", 16)
    generator = torch.Generator().manual_seed(1)
    outcomes = {evaluation.name: outcome(generator, 40, 0) for evaluation in plan.evaluations}
    metrics, _ = protocol.measure(outcomes, plan)
    targets = [metrics[f"{name}/accuracy"] for name in shipped.datasets("targets")]
    assert metrics["average/accuracy"] == pytest.approx(sum(targets) / 10, abs=1e-12)
    del outcomes["dtd"]
    assert "average/accuracy" not in protocol.measure(outcomes, plan)[0]
    titles = [column.title for column in protocol.columns("accuracy", ["dtd", "source"], [])]
    assert titles == ["source", "dtd", "average"]


def test_ood_measures_every_set_under_every_score_and_says_what_is_missing() -> None:
    protocol = registry.load("protocols", "ood")()
    shipped = load_suite("clip11")
    (plan,) = protocol.plan(shipped, 1)
    inside, *strangers = plan.evaluations
    assert all(evaluation.shown == inside.selection for evaluation in strangers)
    generator = torch.Generator().manual_seed(2)
    outcomes = {"id": outcome(generator, 60, 1.0)} | {
        evaluation.name: outcome(generator, 30, 0.0, labels=-1) for evaluation in strangers
    }
    metrics, notes = protocol.measure(outcomes, plan)
    assert "sun/accuracy" not in metrics and "id/accuracy" in metrics and "id/ece" in metrics
    expected = detection(outcomes["id"].scores["mcm"], outcomes["sun"].scores["mcm"])
    assert {key: metrics[f"sun/mcm/{key}"] for key in expected} == expected
    areas = [metrics[f"{name}/msp/auroc"] for name in shipped.datasets("ood")]
    assert metrics["average/msp/auroc"] == pytest.approx(sum(areas) / 4)
    assert notes["sun/gl_mcm/"] == notes["average/gl_mcm/"] == "there are no patches"
    blocks = protocol.blocks("auroc", "imagenet", None, metrics)
    assert list(blocks) == [score.title for score in open_scores(protocol.scores).values()]
    assert blocks["MCM"]["sun/auroc"] == metrics["sun/mcm/auroc"] and "id/accuracy" in blocks["MSP"]
    columns = protocol.columns("auroc", ["id", "sun"], [])
    assert columns[-1] == Column("average/fpr95", "average FPR95", lower=True, help=columns[-1].help)
    assert columns[-1].help.startswith("FPR95: in-distribution images are positive;")


def test_few_shot_lays_shots_along_the_columns() -> None:
    protocol = registry.load("protocols", "few_shot")()
    plans = protocol.plan(load_suite("mini"), 1)
    assert [plan.train.shots for plan in plans[:5]] == [1, 2, 4, 8, 16] and len(plans) == 15
    assert protocol.blocks("accuracy", "x", 4, {"test/accuracy": 50.0}) == {"x": {"4/accuracy": 50.0}}
    assert [column.key for column in protocol.columns("ece", ["test"], [0, 1])] == ["0/ece", "1/ece"]


def test_candidates_are_the_same_images_against_more_names() -> None:
    protocol = registry.load("protocols", "candidates")()
    plan, *_ = protocol.plan(load_suite("ablation_mutual"), 1)
    assert len({evaluation.selection for evaluation in plan.evaluations}) == 1
    assert [e.shown.classes for e in plan.evaluations] == ["new.base.base", "new.base", "new", "all"]
    assert protocol.recipes_of == "base2new"


@pytest.mark.parametrize("name", registry.names("protocols"))
def test_what_needs_no_logits_measures_the_same_without_them(name: str) -> None:
    protocol: Protocol = registry.load("protocols", name)()
    if protocol.needs_logits:
        pytest.skip("it looks at logits of several evaluations together")
    (plan, *_) = protocol.plan(load_suite("mini"), seed=1)
    generator = torch.Generator().manual_seed(1)
    outcomes = {}
    for evaluation in plan.evaluations:
        logits = torch.randn(9, 3, generator=generator)
        scores = {score: torch.randn(9, generator=generator) for score in protocol.scores}
        outside = evaluation.names is not None and not evaluation.same_classes
        labels = torch.full((9,), -1) if outside else torch.arange(9) % 3
        outcomes[evaluation.name] = Outcome(logits, labels, scores, temperature=2.0)
    metrics, notes = protocol.measure(outcomes, plan)
    bare = {name: outcome.without_logits() for name, outcome in outcomes.items()}
    assert all(outcome.logits.numel() == 0 for outcome in bare.values())
    assert protocol.measure(bare, plan) == (metrics, notes) and len(metrics) > 5
