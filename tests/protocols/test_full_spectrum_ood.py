"""Full-spectrum OOD detection: by hand, and through the command on fakes of ImageNet, its variants and OOD sets."""

from __future__ import annotations

from pathlib import Path

import make_fake
import pytest
import torch
from shared_paths import TINY

from promptbench import registry
from promptbench.cli.main import main
from promptbench.data.selection import Selection
from promptbench.metrics.classification import accuracy
from promptbench.metrics.ood import detection
from promptbench.protocol import Outcome, Protocol
from promptbench.results.predictions import load_predictions
from promptbench.results.result import Result, read_results
from promptbench.runs.request import protocols_of
from promptbench.suite import DatasetEntry, Suite, load_suite

NEW = ("imagenet", *make_fake.VARIANTS, *make_fake.OOD)


@pytest.fixture
def protocol() -> Protocol:
    return registry.load("protocols", "full_spectrum_ood")()


def small_suite(**roles: tuple[str, ...]) -> Suite:
    entries = {role: tuple(DatasetEntry(name=one, dataset=one) for one in names) for role, names in roles.items()}
    return Suite(name="small", title="small", backbone="mini", shots=4, roles=entries)


def scored(*scores: float, label: int = -1, logits: tuple[float, float] = (1.0, 0.0)) -> Outcome:
    count = len(scores)
    return Outcome(
        torch.tensor([logits] * count), torch.full((count,), label), {"mcm": torch.tensor(scores)}, {"l_mcm": "why"}
    )


def test_shifted_images_are_pooled_with_those_of_the_source(protocol: Protocol) -> None:
    suite = small_suite(source=("s",), shifted=("v", "w"), near_ood=("n",), far_ood=("f", "g"))
    (plan,) = protocol.plan(suite, 1)
    names = {evaluation.name: evaluation for evaluation in plan.evaluations}
    assert list(names) == ["id", "v", "w", "n", "f", "g"]
    assert all(evaluation.shown == Selection(dataset="s", split="test") for evaluation in plan.evaluations)
    assert [name for name, evaluation in names.items() if evaluation.same_classes] == ["v", "w"]
    outcomes = {
        "id": scored(5, 3, label=0),
        "v": scored(1, label=1),  # which is wrong, for the first logit is larger
        "w": scored(6, 6, 6, label=0),
        "n": scored(2),
        "f": scored(0),
        "g": scored(4),
    }
    metrics, notes = protocol.measure(outcomes, plan)
    by_hand = {
        "id/accuracy": 100,
        "v/accuracy": 0,
        "w/accuracy": 100,
        "shifted/accuracy": 50,  # over versions, not over images
        "n/mcm/auroc": 100,
        "n/mcm/full_auroc": 100 * 5 / 6,  # 5, 3, 6, 6 and 6 of the six in-distribution images lie above 2, 1 does not
        "f/mcm/full_auroc": 100,
        "g/mcm/auroc": 50,
        "g/mcm/full_auroc": 100 * 4 / 6,
        "near/mcm/full_auroc": 100 * 5 / 6,
        "far/mcm/full_auroc": (100 + 100 * 4 / 6) / 2,
        "far/mcm/auroc": 75,
        "n/mcm/fpr95": 0,  # at the threshold 3, which accepts all images of the source
        "n/mcm/full_fpr95": 100,  # of six images five (83 %) are further from 95 % than six: the threshold is 1
        "f/mcm/full_fpr95": 0,
        "far/mcm/full_fpr95": 50,
    }
    assert {name: metrics[name] for name in by_hand} == pytest.approx(by_hand)
    assert notes["n/l_mcm/"] == notes["far/l_mcm/"] == "why" and "average/mcm/auroc" not in metrics
    assert not [name for name in metrics if name.startswith(("v/mcm", "id/mcm"))]


def test_tables_show_the_full_spectrum_first(protocol: Protocol) -> None:
    columns = protocol.columns("full_auroc", ["id", "v", "n"], [])
    titles = ["ID accuracy", "shifted accuracy", "v", "n", "near FS-AUROC", "far FS-AUROC", "near FS-FPR95"]
    assert [column.title for column in columns] == [*titles, "far FS-FPR95"]
    assert columns[-1].lower and not columns[-3].lower and columns[-1].key == "far/full_fpr95"
    assert "in-distribution images are positive" in columns[-1].help and "shifted versions together" in columns[1].help
    metrics = {"shifted/accuracy": 50.0, "n/mcm/full_auroc": 60.0, "n/mine/full_auroc": 61.0}
    blocks = protocol.blocks("full_auroc", "s", None, metrics)
    assert blocks["MCM"] == {"shifted/accuracy": 50.0, "n/full_auroc": 60.0}
    assert blocks["mine"]["n/full_auroc"] == 61.0  # a score that is not known here


def test_all_leaves_it_out_and_its_recipes_are_those_of_ood(protocol: Protocol) -> None:
    for suite in ("mini", "clip11"):
        assert "full_spectrum_ood" not in protocols_of(load_suite(suite), ["all"])
    assert protocol.recipes_of == "ood"
    with pytest.raises(ValueError, match="Suite 'small': Unknown role 'shifted'"):
        protocol.plan(small_suite(source=("s",), near_ood=("n",)), 1)
    (plan,) = protocol.plan(small_suite(source=("s",), shifted=("v",), far_ood=("f",)), 1)
    assert [evaluation.name for evaluation in plan.evaluations] == ["id", "v", "f"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `ood` and of this protocol with CoOp."""
    data, output = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    for name in NEW:
        make_fake.make(name, data)
    words = ["--suite", "clip11", "--backbone", TINY, "--data-root", str(data), "--output", str(output)]
    words += ["--shots", "2", "--seeds", "1", "--threads", "1", "--device", "cpu", "--save-predictions"]
    words += ["--set", "coop.epochs=1", "coop.batch=4"]
    assert main(["run", "--method", "coop", "--protocol", "ood", "full_spectrum_ood", *words]) == 0
    return output


def of(output: Path, protocol: str) -> Result:
    (result,) = [result for result in read_results(output) if result.spec.protocol == protocol]
    return result


@pytest.mark.slow
def test_one_training_serves_both_and_clean_figures_are_those_of_ood(ran: Path) -> None:
    plain, full = of(ran, "ood"), of(ran, "full_spectrum_ood")
    assert plain.conditions["training_key"] == full.conditions["training_key"]
    assert len(list((ran / "trainings").iterdir())) == 1
    shared = [name for name in plain.metrics if name in full.metrics]
    assert {"id/accuracy", "inaturalist/mcm/auroc", "textures/gl_mcm/fpr95_ood"} <= set(shared)
    assert all(plain.metrics[name] == full.metrics[name] for name in shared)
    assert "average/mcm/auroc" in plain.metrics and not any("ssb_hard" in name for name in plain.metrics)


@pytest.mark.slow
def test_stored_predictions_give_the_figures_again(ran: Path) -> None:
    result = of(ran, "full_spectrum_ood")
    suite = load_suite("clip11")
    kept = load_predictions(ran / "predictions" / f"{result.name}.safetensors")
    assert len(set(result.spec.class_names.values())) == 1
    known = torch.cat([kept[name].scores["msp"] for name in ("id", *suite.datasets("shifted"))])
    for name in (*suite.datasets("near_ood"), *suite.datasets("far_ood")):
        found = detection(known, kept[name].scores["msp"])
        assert {metric: result.metrics[f"{name}/msp/full_{metric}"] for metric in found} == found
    for name in suite.datasets("shifted"):
        of_set = kept[name]
        assert accuracy(of_set.logits, of_set.labels) == result.metrics[f"{name}/accuracy"]
        assert of_set.logits.shape[1] == len(make_fake.IMAGENET)
