"""`promptbench diff`: which runs belong together, what is said to differ, and intervals against other computations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptbench.cli.main import main
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.diff import repeated
from promptbench.results.predictions import save_predictions
from promptbench.results.result import Result, Spec, write_result

SPEC: dict[str, Any] = {
    "suite": "mini",
    "protocol": "base2new",
    "dataset": "birds",
    "method": "coop",
    "config": {"n_ctx": 4},
    "recipe": {"epochs": 5, "origin": "ours"},
    "shots": 16,
    "backbone": "mini",
    "threads": 2,
}


def store(
    folder: Path, base: float, new: float | None = 50.0, *, seed: int = 1, commit: str = "", **spec: Any
) -> Result:
    metrics = {"base/accuracy": base}
    if new is not None:
        metrics |= {"new/accuracy": new, "h": harmonic_mean(base, new)}
    return keep(folder, metrics, commit, **{"data_seed": seed, "train_seed": seed, **spec})


def keep(folder: Path, metrics: Mapping[str, float], commit: str = "", **spec: Any) -> Result:
    result = Result(
        spec=Spec(**{**SPEC, "data_seed": 1, "train_seed": 1, **spec}),
        conditions={"images": dict.fromkeys(name.partition("/")[0] for name in metrics if "/" in name)},
        metrics=metrics,
        versions={"torch": "2.4.0"},
        commit=commit,
        created="2026-01-02T03:04:05+00:00",
    )
    write_result(folder, result)
    return result


class Stored:
    """What `save_predictions` reads of an evaluation."""

    def __init__(self, right: Mapping[str, Sequence[bool]], images: Mapping[str, Sequence[str]]) -> None:
        class Of:
            pass

        self.outcomes, self.images, self.names = {}, {}, {}
        for name, values in right.items():
            outcome, chosen = Of(), Of()
            outcome.logits = torch.tensor([[1.0, 0.0] if value else [0.0, 1.0] for value in values])
            outcome.labels, outcome.scores = torch.zeros(len(values), dtype=torch.long), {}
            chosen.items = [Of() for _ in values]
            for item, image in zip(chosen.items, images[name], strict=True):
                item.image = image
            self.outcomes[name], self.images[name], self.names[name] = outcome, chosen, ["x", "y"]


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "a", tmp_path / "b"


def changes(sides: tuple[Path, Path], *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["diff", *map(str, sides), "--format", "json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_equal_runs_have_no_difference(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for side in sides:
        store(side, 80.0)
    assert main(["diff", *map(str, sides), "--exit-code"]) == 0
    assert "no difference" in capsys.readouterr().out


def test_what_changed_is_shown_with_what_else_differs(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        store(sides[0], 80.0, seed=seed, commit="old")
        store(sides[1], 82.5, seed=seed, commit="new", config={"n_ctx": 16})
        store(sides[0], 70.0, seed=seed, commit="old", method="maple")
        store(sides[1], 70.0, seed=seed, commit="new", method="maple")
    assert main(["diff", *map(str, sides), "--exit-code"]) == 1
    out = capsys.readouterr().out
    assert "Differs in all runs compared: commit: old → new." in out
    (row,) = [line for line in out.splitlines() if "| base " in line]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("birds", "coop [1]", "base", "80.00", "82.50", "+2.50", "– [2]", "–", "2")
    ]
    assert "[1] config.n_ctx: 4 → 16." in out
    assert "A and B lack stored predictions, and 2 seeds in common where 3 are needed" in out
    assert "maple" not in out and "2 of 6 figures changed, of 4 runs compared." in out


def test_equal_configurations_go_together_first(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for n_ctx, base in ((4, 60.0), (8, 70.0)):
        store(sides[0], base, config={"n_ctx": n_ctx})
    for n_ctx, base in ((8, 71.0), (16, 60.0)):
        store(sides[1], base, config={"n_ctx": n_ctx})
    found = changes(sides, capsys=capsys)
    assert {(cell["method"], cell["a"], cell["b"]) for cell in found["changed"] if cell["title"] == "base"} == {
        ("coop (n_ctx=8)", 70.0, 71.0)
    }
    assert [pair["differs"] for pair in found["compared"]] == [{}, {"config.n_ctx": "4 → 16"}]


def test_runs_of_one_side_are_listed(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        store(sides[0], 80.0, seed=seed)
    store(sides[1], 80.0, seed=1)
    store(sides[1], 80.0, seed=1, shots=8)
    assert main(["diff", *map(str, sides)]) == 0
    out = capsys.readouterr().out
    assert "Only in A:\n\n- base2new, birds, coop, 16 shots: seeds 2, 3" in out
    assert "Only in B:\n\n- base2new, birds, coop, 8 shots: seed 1" in out
    assert main(["diff", *map(str, sides), "--exit-code", "--protocol", "few_shot"]) == 0


def test_the_interval_over_three_seeds_is_that_of_all_27_draws(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # By hand: differences 1, 2, 6; of 27 equally likely draws 1 has the mean 1 (3.7 %) and 1 the mean 6, so both ends
    # of a 95 % interval, at 2.5 % and 97.5 %, are the extremes.
    for seed, (a, b) in enumerate([(70.0, 71.0), (60.0, 62.0), (50.0, 56.0)], start=1):
        store(sides[0], a, None, seed=seed)
        store(sides[1], b, None, seed=seed)
    (cell,) = changes(sides, capsys=capsys)["changed"]
    assert (cell["difference"], cell["over"], cell["interval"]) == (3.0, "seeds", [1.0, 6.0])


def test_h_is_that_of_the_seed_means(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for seed, base in ((1, 80.0), (2, 90.0), (3, 70.0)):
        store(sides[0], base, 40.0 + seed, seed=seed)
        store(sides[1], base, 50.0 + seed, seed=seed)
    cells = {cell["key"]: cell for cell in changes(sides, capsys=capsys)["changed"]}
    assert set(cells) == {"new/accuracy", "h"}
    assert cells["h"]["a"] == pytest.approx(harmonic_mean(80.0, 42.0))
    assert cells["new/accuracy"]["interval"] == pytest.approx([10.0, 10.0])
    # The least and the greatest of the 27 draws are three times the third seed, and three times the second.
    least = harmonic_mean(70.0, 53.0) - harmonic_mean(70.0, 43.0)
    greatest = harmonic_mean(90.0, 52.0) - harmonic_mean(90.0, 42.0)
    assert cells["h"]["interval"] == pytest.approx([least, greatest])


def test_intervals_over_images_pair_them_by_path(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(7)
    count = 400
    a, b = draw.random(count) < 0.6, draw.random(count) < 0.7
    b[: count // 2] = a[: count // 2]
    images = [f"{place:03}.png" for place in range(count)]
    for side, right, order in ((sides[0], a, np.arange(count)), (sides[1], b, draw.permutation(count))):
        result = store(side, 100 * float(right.mean()), 50.0)
        named = {"base": [images[place] for place in order], "new": ["x.png", "y.png"]}
        found: Any = Stored({"base": right[order].tolist(), "new": [True, False]}, named)
        save_predictions(side, result.spec, found.outcomes, found.images, found.names)
    cells = {cell["key"]: cell for cell in changes(sides, capsys=capsys)["changed"]}
    gaps = 100 * (b.astype(float) - a.astype(float))
    plain = gaps[np.random.default_rng(1).integers(count, size=(10_000, count))].mean(axis=1)
    assert cells["base/accuracy"]["over"] == cells["h"]["over"] == "images"
    assert cells["base/accuracy"]["interval"] == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.3)
    low, high = cells["h"]["interval"]
    assert low < cells["h"]["difference"] < high
    again = {cell["key"]: cell for cell in changes(sides, capsys=capsys)["changed"]}
    assert again == cells


def test_other_images_are_not_paired(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for side, base, images in ((sides[0], 50.0, ["1", "2"]), (sides[1], 100.0, ["1", "3"])):
        found: Any = Stored({"base": [True, base > 50]}, {"base": images})
        save_predictions(side, store(side, base, None).spec, found.outcomes, found.images, found.names)
    (cell,) = changes(sides, capsys=capsys)["changed"]
    assert cell["interval"] is None and cell["why"].startswith("the predictions stored are not of the same images")


def test_figures_of_scores_and_shots_are_named(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for side, more in zip(sides, (0.0, 1.0), strict=True):
        keep(side, {"test/accuracy": 60.0 + more}, protocol="few_shot", shots=4)
        scores = {"noise/mcm/auroc": 90.0 + more, "average/mcm/auroc": 90.0, "noise/msp/auroc": 80.0}
        keep(side, {"id/accuracy": 70.0 + more, **scores}, protocol="ood")
    cells = changes(sides, capsys=capsys)["changed"]
    assert {(cell["dataset"], cell["title"], cell["difference"]) for cell in cells} == {
        ("birds", "4 shots", 1.0),
        ("birds", "ID accuracy", 1.0),
        ("birds, MCM", "noise", 1.0),
    }
    found = changes(sides, "--protocol", "ood", capsys=capsys)
    assert {cell["protocol"] for cell in found["changed"]} == {"ood"}


def test_a_figure_of_one_side_is_shown_beside_a_dash(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store(sides[0], 80.0, None)
    store(sides[1], 80.0, 60.0)
    cells = changes(sides, capsys=capsys)["changed"]
    assert {(cell["title"], cell["a"], cell["difference"]) for cell in cells} == {
        ("new", None, None),
        ("H", None, None),
    }


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere", "nowhere"], "/nowhere; name a folder that `promptbench run` wrote to"),
        ([".", ".", "--protocol", "base2old"], "Unknown protocol 'base2old'. Did you mean 'base2new'?"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "again", "says"),
    [
        ([1.0, 0.5], [1.0, 0.4], "differ from epoch 2 on"),
        ([1.0, 0.5], [1.000001, 0.4], "differ from epoch 2 on"),
        ([1.0, 0.5], [0.9], "2 stored, 1 here"),
        ([1.0, 0.5], [1.0, 0.5], "are the same, so that they come from the evaluation"),
        ([], [], "nothing is trained"),
    ],
)
def test_where_trainings_begin_to_differ_is_said(
    losses: Sequence[float], again: Sequence[float], says: str, tmp_path: Path
) -> None:
    stored = keep(tmp_path, {"base/accuracy": 50.0})
    before, after = (replace(stored, losses=[{"loss": value} for value in values]) for values in (losses, again))
    assert says in repeated(before, after).losses
