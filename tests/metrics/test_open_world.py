"""OpenworldAUC against every pair, by hand, and as the area below its curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from promptbench import registry
from promptbench.metrics.classification import OpenWorld, open_world
from promptbench.protocol import Outcome
from promptbench.suite import load_suite


def of_every_pair(of: OpenWorld) -> float:
    """The definition, pair by pair."""
    total = 0.0
    for r, right in zip(of.base.tolist(), of.base_right.tolist(), strict=True):
        for other, its in zip(of.new.tolist(), of.new_right.tolist(), strict=True):
            total += right * its * ((r > other) + 0.5 * (r == other))
    return 100 * total / (len(of.base) * len(of.new))


def drawn(n: int, m: int, steps: int, seed: int) -> OpenWorld:
    """Scores on so many steps, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)

    def score(images: int, shift: int) -> Tensor:
        return (torch.randint(0, steps, (images,), generator=generator) + shift).double() / (2 * steps)

    def right(images: int) -> Tensor:
        return torch.rand(images, generator=generator) < 0.7

    return OpenWorld(score(n, steps // 3), right(n), score(m, 0), right(m))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 1), (60, 45)])
@pytest.mark.parametrize("steps", [2, 7, 100_000])
def test_open_world_auc_equals_every_pair_and_the_area_below_its_curve(n: int, m: int, steps: int) -> None:
    of = drawn(n, m, steps, seed=n + steps)
    assert of.auc() == pytest.approx(of_every_pair(of), abs=1e-9)
    new_side, base_side = of.curve()
    assert (new_side[-1], base_side[0]) == (0.0, 0.0)
    assert new_side[0] == pytest.approx(100 * float(of.new_right.double().mean()))
    assert base_side[-1] == pytest.approx(100 * float(of.base_right.double().mean()))
    heights = (np.array(base_side)[1:] + np.array(base_side)[:-1]) / 2
    area = -float(np.diff(new_side) @ heights) / 100
    assert area == pytest.approx(of.auc(), abs=1e-9)


def test_open_world_auc_by_hand() -> None:
    # Base r: 0.9 right, 0.5 right, 0.8 wrong. New r: 0.5 right, 0.7 right. Of six pairs 0.9 wins two, 0.5 ties one.
    of = OpenWorld(
        torch.tensor([0.9, 0.5, 0.8]).double(),
        torch.tensor([True, True, False]),
        torch.tensor([0.5, 0.7]).double(),
        torch.tensor([True, True]),
    )
    assert of.auc() == pytest.approx(100 * 2.5 / 6)


def test_where_all_are_recognised_it_is_the_auroc() -> None:
    of = drawn(80, 70, 9, seed=2)
    everything = of._replace(base_right=torch.ones(80).bool(), new_right=torch.ones(70).bool())
    truth = [1] * 80 + [0] * 70
    assert everything.auc() == pytest.approx(100 * roc_auc_score(truth, torch.cat([of.base, of.new]).numpy()))
    nothing = of._replace(new_right=torch.zeros(70).bool())
    assert nothing.auc() == 0.0 and nothing.curve() == ([0.0] * len(nothing.curve()[0]), nothing.curve()[1])


def test_many_images_take_no_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    of = OpenWorld(
        torch.rand(200_000, generator=generator).double(),
        torch.ones(200_000).bool(),
        torch.rand(200_000, generator=generator).double(),
        torch.ones(200_000).bool(),
    )
    assert of.auc() == pytest.approx(50.0, abs=0.5)


def outcomes(base_classes: list[int], classes: int = 5, images: int = 60) -> dict[str, Outcome]:
    """Base, new and joint images of classes in any halves, as a run evaluates them."""
    generator = torch.Generator().manual_seed(len(base_classes))
    labels = torch.randint(0, classes, (images,), generator=generator)
    new_classes = [label for label in range(classes) if label not in base_classes]
    found = {
        "joint": Outcome(2 * torch.randn(images, classes, generator=generator), labels, classes=(*range(classes),))
    }
    for name, own in (("base", base_classes), ("new", new_classes)):
        of_half = [own.index(label) for label in labels.tolist() if label in own]
        logits = torch.randn(len(of_half), len(own), generator=generator)
        logits[torch.arange(len(of_half)), of_half] += 1.0
        found[name] = Outcome(logits, torch.tensor(of_half), classes=tuple(own))
    return found


def in_plain_words(found: dict[str, Outcome], base_classes: list[int]) -> float:
    """The definition on probabilities, pair by pair."""
    joint, total = found["joint"], 0.0
    share = joint.logits.double().softmax(dim=1)[:, base_classes].max(dim=1).values.tolist()
    base = [r for r, label in zip(share, joint.labels.tolist(), strict=True) if label in base_classes]
    new = [r for r, label in zip(share, joint.labels.tolist(), strict=True) if label not in base_classes]
    right: Any = {name: (found[name].logits.argmax(1) == found[name].labels).tolist() for name in ("base", "new")}
    for i, r in enumerate(base):
        total += sum(right["base"][i] and right["new"][j] and r > other for j, other in enumerate(new))
    return 100 * total / (len(base) * len(new))


@pytest.mark.parametrize("base_classes", [[0, 1, 2], [1, 3, 4]])
def test_base2new_measures_it_whatever_the_halves(base_classes: list[int]) -> None:
    protocol = registry.load("protocols", "base2new")()
    plan, *_ = protocol.plan(load_suite("mini"), 1)
    found = outcomes(base_classes)
    metrics, notes = protocol.measure(found, plan)
    assert metrics["open_world_auc"] == pytest.approx(in_plain_words(found, base_classes)) and not notes
    assert 0 < metrics["open_world_auc"] < min(metrics["base/accuracy"], metrics["new/accuracy"])


def test_without_new_classes_there_is_none_and_a_note_says_why() -> None:
    protocol = registry.load("protocols", "base2new")()
    plan, *_ = protocol.plan(load_suite("mini"), 1)
    metrics, notes = protocol.measure({"base": outcomes([0, 1, 2])["base"]}, plan)
    assert "open_world_auc" not in metrics
    assert notes == {"open_world_auc": "OpenworldAUC needs new and joint images scored, which this method cannot do"}
    with pytest.raises(ValueError, match="joint images that are those of base and new"):
        protocol.measure(outcomes([0, 1, 2]) | {"new": outcomes([0, 1])["new"]}, plan)


def test_scores_are_probabilities_over_all_names_in_float64() -> None:
    # Base names are columns 0 and 2. r = max(e^1, e^2) / (e^1 + e^0 + e^2), and 1 / (1 + e^-40) without overflow.
    joint = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1000.0, 1040.0, 0.0]])
    one = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    of = open_world(one, one, joint, [0, 2])
    assert float(of.base[0]) == pytest.approx(math.exp(2) / (math.e + 1 + math.exp(2)), rel=1e-14)
    assert float(of.new[0]) == pytest.approx(math.exp(-40), rel=1e-12)
    assert of.auc() == 100.0
