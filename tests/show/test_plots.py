"""Plots: their data against hand calculations, their pictures drawn, measured and told apart without colour."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shared_paths import REPOSITORY, SUPPORT, TINY

from promptbench.cli import main
from promptbench.config import UsageError
from promptbench.metrics.classification import harmonic_mean
from promptbench.results.result import Result, write_result
from promptbench.results.spec import Spec, to_plain
from promptbench.show.plots import (
    ablation,
    base_new,
    cost,
    critical_difference,
    gain,
    ood,
    open_world,
    reliability,
    seeds,
    shots,
)
from promptbench.show.plots.looks import looks_of, style
from promptbench.show.plots.picture import (
    BEYOND_RESULTS,
    COLOURS,
    KINDS,
    LATEX,
    MARKS,
    WIDTHS,
    caption_of,
    look,
    module_of,
    rounded,
    style_of,
    to_text,
    with_look,
    write_picture,
)
from promptbench.show.plots.source import NothingToShow, Source, read_source
from promptbench.suite import load_suite

MINI = REPOSITORY / "results" / "mini"


def make(
    metrics: Mapping[str, float], *, seed: int = 1, cost: Mapping[str, float] | None = None, **spec: Any
) -> Result:
    facts: dict[str, Any] = {
        "suite": "mini",
        "protocol": "base2new",
        "dataset": "mini_neon",
        "method": "maple",
        "config": {"n_ctx": 2},
        "recipe": {"epochs": 5, "origin": "ours"},
        "shots": 16,
        "data_seed": seed,
        "train_seed": seed,
        "backbone": "mini",
        "threads": 1,
    }
    return Result(
        spec=Spec(**{**facts, **spec}),
        conditions={"reconstructed": spec.get("method") == "dpl"},
        metrics=metrics,
        cost=cost or {},
        versions={},
        commit="",
        created="2026-01-02T03:04:05+00:00",
    )


def base2new(base: float, new: float | None, **facts: Any) -> Result:
    if new is None:
        return make({"base/accuracy": base}, **facts)
    return make({"base/accuracy": base, "new/accuracy": new, "h": harmonic_mean(base, new)}, **facts)


def zeroshot(base: float, new: float, **facts: Any) -> Result:
    return base2new(base, new, method="zeroshot", config={}, recipe={}, shots=0, **facts)


# Two datasets and two seeds, the averages by hand: base (80+70)/2 = 75 and (90+70)/2 = 80, new 50 and 60, so
# H = 2*75*50/125 = 60 and 2*80*60/140 = 68.571428...; zero-shot: base 62, new 58.
BY_HAND = [
    base2new(80, 60, seed=1, cost={"learned_parameters": 1000, "train_seconds": 10.0}),
    base2new(90, 60, seed=2, cost={"learned_parameters": 1000, "train_seconds": 20.0}),
    base2new(70, 40, seed=1, dataset="mini_fabrics", cost={"learned_parameters": 1000, "train_seconds": 30.0}),
    base2new(70, 60, seed=2, dataset="mini_fabrics", cost={"learned_parameters": 1000, "train_seconds": 40.0}),
    zeroshot(64, 56, cost={"learned_parameters": 0, "train_seconds": 0.0}),
    zeroshot(60, 60, dataset="mini_fabrics", cost={"learned_parameters": 0, "train_seconds": 0.0}),
]


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    """Writes results, and reads them as a plot does."""

    def write(results: Sequence[Result], protocol: str = "base2new", **more: Any) -> Source:
        for result in results:
            write_result(tmp_path, result)
        return read_source([tmp_path], protocol, **more)

    return write


def test_base_new_is_the_tables_average(stored: Any) -> None:
    data = base_new.data(stored(BY_HAND))
    assert data["points"] == [
        {"method": "Zero-shot CLIP", "mean": [62, 58], "std": [None, None]},
        {"method": "MaPLe", "mean": [77.5, 55], "std": [2.5, 5]},
    ]
    assert (data["x"], data["y"]) == tuple(f"{what} accuracy, mean of 2 datasets (%)" for what in ("base", "new"))
    assert data["n"] == {"Zero-shot CLIP": "1", "MaPLe": "2"} and data["shots"] == [16]


def test_a_method_from_its_dataset_s_words_is_a_point_of_its_own(stored: Any) -> None:
    started = [replace(one, spec=replace(one.spec, config={"n_ctx": 2, "ctx_init": "dataset"})) for one in BY_HAND[:4]]
    points = base_new.data(stored([*BY_HAND, *started]))["points"]
    assert [point["method"] for point in points] == ["Zero-shot CLIP", "MaPLe", "MaPLe (ctx_init=dataset)"]
    assert points[1]["mean"] == points[2]["mean"] == [77.5, 55]


def test_seeds_are_averaged_one_by_one(stored: Any) -> None:
    rows = {row["method"]: row for row in seeds.data(stored(BY_HAND))["rows"]}
    assert rows["MaPLe"]["by_seed"] == pytest.approx({"1": 60, "2": 68.57142857142857})
    assert rows["MaPLe"]["mean"] == pytest.approx(2 * 77.5 * 55 / 132.5)
    assert rows["MaPLe"]["std"] == pytest.approx(4.285714285714286)


@pytest.mark.parametrize("module", [seeds, base_new, cost])
def test_a_plot_of_methods_without_its_figure_is_refused(module: Any, stored: Any) -> None:
    with pytest.raises(NothingToShow, match="None of MaPLe has the figure that the plot (seeds|base-new|cost) shows"):
        module.data(stored([base2new(80, 60), base2new(70, None, dataset="mini_fabrics")]))  # no average


def test_a_seed_without_every_dataset_is_no_ring(stored: Any) -> None:
    rows = seeds.data(stored([*BY_HAND, base2new(10, 10, seed=3)]))["rows"]
    assert sorted(rows[1]["by_seed"]) == ["1", "2"]


def test_gain_is_the_difference_to_zero_shot_dataset_by_dataset(stored: Any) -> None:
    data = gain.data(stored(BY_HAND, column="new"))
    assert data["datasets"] == ["Neon", "Fabrics", "average"]
    assert data["series"] == [{"method": "MaPLe", "gain": [60 - 56, 50 - 60, 55 - 58]}]
    assert data["x"] == "new minus that of Zero-shot CLIP (points)"
    other = gain.data(stored([], baseline="maple", column="base"))
    assert other["series"] == [{"method": "Zero-shot CLIP", "gain": [64 - 85, 60 - 70, 62 - 77.5]}]


def test_gain_on_the_targets_of_one_source_runs_along_the_columns(stored: Any) -> None:
    names = ("source", "mini_neon", "average")
    spec = {"protocol": "cross_dataset", "dataset": "mini_shapes"}

    def run(*figures: float, **more: Any) -> Result:
        metrics = {f"{name}/accuracy": figure for name, figure in zip(names, figures, strict=True)}
        return Result(
            **{
                **vars(make(metrics, **spec, **more)),
                "conditions": {"images": {"source": 1, "mini_neon": 1}},
            }
        )

    data = gain.data(stored([run(90, 50, 50), run(70, 60, 60, method="zeroshot", shots=0)], "cross_dataset"))
    assert dict(zip(data["datasets"], data["series"][0]["gain"], strict=True)) == {
        "source": 20,
        "mini_neon": -10,
        "average": -10,
    }


def test_cost_is_the_mean_over_runs_against_h(stored: Any) -> None:
    data = cost.data(stored(BY_HAND))
    free, paid = data["points"]
    unmeasured = {"eval_ms_per_image": None, "peak_memory_mb": None}
    assert paid["cost"] == {"learned_parameters": 1000, "train_seconds": 25, **unmeasured}
    assert paid["mean"] == pytest.approx(64.33962264150944)
    assert free["cost"] == {"learned_parameters": 0, "train_seconds": 0, **unmeasured}
    assert data["devices"] == ["cpu, 1 thread"]


def test_what_has_no_new_accuracy_is_named_as_left_out(stored: Any) -> None:
    probe = [base2new(90, None, method="linear_probe", dataset=name) for name in ("mini_neon", "mini_fabrics")]
    source = stored([*BY_HAND, *probe])
    for kind in (base_new, cost, seeds, gain):
        assert kind.data(source)["left_out"] == ["Linear probe"]
    assert "without such a figure: Linear probe." in caption_of(base_new.data(source))


def few_shot(shots: int | None, accuracy: float, **facts: Any) -> Result:
    return make({"test/accuracy": accuracy}, protocol="few_shot", shots=shots, **facts)


def test_shots_are_in_order_and_all_images_last(stored: Any) -> None:
    results = [few_shot(number, 10.0 * place) for place, number in enumerate((1, 2, 16, None))]
    data = shots.data(stored([*results[::-1], few_shot(0, 5.0, method="zeroshot")], "few_shot"))
    assert data["series"] == [
        {"method": "Zero-shot CLIP", "shots": ["0"], "mean": [5.0], "std": [None]},
        {"method": "MaPLe", "shots": ["1", "2", "16", "all"], "mean": [0, 10, 20, 30], "std": [None] * 4},
    ]
    assert data["y"] == "accuracy, dataset Neon (%)"


def curve(value: float, base: float, *, other: int = 0, **facts: Any) -> Result:
    config = {"strength_text": value, "strength_vision": value, "carry": other}
    return base2new(base, base, method="dpl", config=config, **facts)


def test_ablation_takes_the_runs_that_differ_in_the_field_alone(stored: Any) -> None:
    runs = [curve(value, 100 * value, preset="" if value == 0.1 else f"s{value:g}") for value in (0.5, 0.02, 0.1)]
    runs += [curve(0.9, 1, other=3), curve(0.1, 2, other=4)]
    data = ablation.data(stored(runs, fields=("dpl.strength_text", "dpl.strength_vision")))
    assert data["values"] == ["0.02", "0.1", "0.5"]
    assert data["series"][0] == {
        "column": "base",
        "by_value": {"0.02": [2, None], "0.1": [10, None], "0.5": [50, None]},
    }
    assert data["method"] == "DPL-R§" and data["reconstructed"]
    with pytest.raises(NothingToShow, match="All results of maple have epochs=5, .* needs runs with several values"):
        ablation.data(stored(BY_HAND, fields=("maple.epochs",)))
    with pytest.raises(NothingToShow, match="no result of dpl.depth to draw a curve over; it has carry, epochs,"):
        ablation.data(stored([], fields=("dpl.depth",)))
    with pytest.raises(UsageError, match="write --field method.field"):
        ablation.data(stored([], fields=("dpl.carry", "maple.depth")))


def test_ablation_over_the_recipe(stored: Any) -> None:
    runs = [base2new(n, n, seed=seed, recipe={"epochs": n, "origin": "ours"}) for n in (5, 10, 50) for seed in (1, 2)]
    data = ablation.data(stored(runs, fields=("maple.epochs",)))
    assert data["values"] == ["5", "10", "50"] and data["series"][0]["by_value"]["10"] == [10, 0]
    assert set(data["n"].values()) == {"2"}


def save(folder: Path, result: Result, scores: Mapping[str, Sequence[float]]) -> None:
    """Predictions with an MCM score per image."""
    from promptbench.protocol import Outcome
    from promptbench.results.predictions import save_predictions
    from promptbench.runs.evaluate import Evaluated

    outcomes = {
        name: Outcome(torch.zeros(len(values), 2), torch.zeros(len(values)), {"mcm": torch.tensor(values)})
        for name, values in scores.items()
    }
    images = SimpleNamespace(items=[])
    found = Evaluated(outcomes, names=dict.fromkeys(scores, ("a", "b")), images=dict.fromkeys(scores, images))
    save_predictions(folder, result.spec, found.outcomes, found.images, found.names)


def ood_run(seed: int = 1, method: str = "maple") -> Result:
    metrics = {"id/accuracy": 90.0, "far/mcm/auroc": 75.0}
    return make(metrics, protocol="ood", dataset="mini_shapes", seed=seed, method=method)


def test_histograms_are_shares_of_images_over_common_bins(stored: Any, tmp_path: Path) -> None:
    runs = [ood_run(1), ood_run(2)]
    source = stored(runs, "ood")
    with pytest.raises(NothingToShow, match="no predictions with the score mcm beside the ood results; make some with"):
        ood.data(source)
    save(tmp_path, runs[1], {"id": [0.5, 1.0, 1.0, 1.0], "far": [0.0, 0.5]})
    data = ood.data(source)
    (panel,) = data["panels"]
    assert panel["edges"] == pytest.approx([place / 24 for place in range(25)])
    assert {place: share for place, share in enumerate(panel["shares"]["id"]) if share} == {12: 25, 23: 75}
    assert {place: share for place, share in enumerate(panel["shares"]["far"]) if share} == {0: 50, 12: 50}
    assert panel["auroc"] == {"far": 75.0}
    assert (data["seeds"], data["n"], data["sets"], data["score"]) == (["2"], {"MaPLe": "1"}, ["far"], "MCM")
    with pytest.raises(UsageError, match="Unknown score 'mcn'.* Did you mean 'mcm'"):
        ood.data(stored([], "ood", score="mcn"))


def test_histograms_of_many_methods_are_refused(stored: Any, tmp_path: Path) -> None:
    runs = [ood_run(method=method) for method in ("maple", "coop", "vpt", "ivlp")]
    source = stored(runs, "ood")
    for run in runs:
        save(tmp_path, run, {"id": [0.5, 1.0], "far": [0.0]})
    with pytest.raises(UsageError, match="at most 3 with --method"):
        ood.data(source)


def over_datasets(figures: Mapping[str, Sequence[float]]) -> Source:
    """H of methods, dataset by dataset."""
    results = []
    for label, of_row in figures.items():
        method, _, preset = label.partition("@")
        facts = {"method": method, "preset": preset}
        results += [base2new(figure, figure, dataset=f"set{place}", **facts) for place, figure in enumerate(of_row)]
    return Source(places=(), protocol="base2new", results=tuple(results), methods=tuple(figures))


def test_ranks_and_groups_after_friedman() -> None:
    # Ranks on ten datasets: a 1, b 2 but 3 on two, c 3 but 2 on two, d 4; means 1, 2.2, 2.8, 4.
    # Friedman: 12 * 10 / (4 * 5) * (1.5^2 + 0.3^2 + 0.3^2 + 1.5^2) = 28.08; CD: 2.569 * sqrt(4 * 5 / 60) = 1.483
    figures = {"a": [90] * 10, "b": [80] * 8 + [70] * 2, "c": [75] * 10, "d": [10] * 10, "e": [99] * 9}
    data = critical_difference.data(over_datasets(figures))
    assert data["rows"] == [
        {"method": method, "rank": pytest.approx(rank)} for method, rank in (("a", 1), ("b", 2.2), ("c", 2.8), ("d", 4))
    ]
    assert data["friedman"]["statistic"] == pytest.approx(28.08)
    assert data["critical_difference"] == pytest.approx(1.483, abs=5e-4)
    assert data["groups"] == [[0, 1], [1, 2], [2, 3]]  # a to c and b to d are 1.8 apart
    assert data["left_out"] == ["e"] and len(data["datasets"]) == 10


def test_nothing_differs_where_friedman_says_so() -> None:
    figures = {"a": [1, 2] * 5, "b": [2, 1] * 5, "c": [1.5] * 10}
    data = critical_difference.data(over_datasets(figures))
    assert data["groups"] == [[0, 2]] and data["friedman"]["p"] == 1


@pytest.mark.parametrize(
    ("rows", "datasets", "sentence"),
    [
        (4, 9, "A critical-difference plot needs 10 datasets, and there are 9; `promptbench table --test` compares"),
        (11, 10, "shows 3 to 10 rows, and 11 have a figure on every dataset; choose some with --method."),
        (2, 10, "shows 3 to 10 rows, and 2 have"),
    ],
)
def test_few_datasets_and_many_rows_make_no_critical_difference(
    rows: int, datasets: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = over_datasets({f"m{row}": [50.0 + row] * datasets for row in range(rows)})
    for result in source.results:
        path = tmp_path / f"{result.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(to_plain(result)), encoding="utf-8")
    call = ["plot", "critical-difference", "--results", str(tmp_path), "-o", str(tmp_path / "x.png")]
    assert main.main(call) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "x.png").exists()


def save_halves(folder: Path, result: Result, halves: Mapping[str, Mapping[str, Any]]) -> None:
    """Predictions by evaluation: logits, labels, and the paths and class names that they belong to."""
    from promptbench.protocol import Outcome
    from promptbench.results.predictions import save_predictions

    outcomes = {name: Outcome(of["logits"], torch.tensor(of["labels"])) for name, of in halves.items()}
    images: Any = {
        name: SimpleNamespace(items=[SimpleNamespace(image=path) for path in of["images"]])
        for name, of in halves.items()
    }
    save_predictions(folder, result.spec, outcomes, images, {name: of["names"] for name, of in halves.items()})


def in_halves(seed: int, images: int = 40) -> dict[str, dict[str, Any]]:
    """What a method may say of images of two base and two new classes, of which one name is there twice."""
    generator = torch.Generator().manual_seed(seed)
    names = ["crane", "robin", "crane", "wren"]
    labels = torch.randint(0, 4, (images,), generator=generator)
    logits = 3 * torch.eye(4)[labels] + 2 * torch.randn(images, 4, generator=generator)
    order = torch.randperm(images, generator=generator)  # found again by their paths
    paths = [f"{place}.jpg" for place in range(images)]
    joint = {"logits": logits[order], "labels": labels[order].tolist(), "images": [paths[i] for i in order.tolist()]}
    found: dict[str, dict[str, Any]] = {"joint": {**joint, "names": names}}
    for half, own in (("base", [0, 1]), ("new", [2, 3])):
        inside = [place for place, label in enumerate(labels.tolist()) if label in own]
        found[half] = {
            "logits": logits[inside][:, own],
            "labels": [label % 2 for label in labels[inside].tolist()],
            "images": [paths[place] for place in inside],
            "names": [names[label] for label in own],
        }
    return found


def by_definition(halves: Mapping[str, Mapping[str, Any]]) -> float:
    """OpenworldAUC pair by pair, each image looked up among the joint ones."""
    shares = halves["joint"]["logits"].double().softmax(dim=1)[:, :2].amax(dim=1).tolist()
    r = dict(zip(halves["joint"]["images"], shares, strict=True))
    right = {name: (of["logits"].argmax(1) == torch.tensor(of["labels"])).tolist() for name, of in halves.items()}
    total = 0
    for image, known in zip(halves["base"]["images"], right["base"], strict=True):
        others = zip(halves["new"]["images"], right["new"], strict=True)
        total += sum(known and its and r[image] > r[other] for other, its in others)
    return 100 * total / (len(right["base"]) * len(right["new"]))


def test_the_trade_off_is_averaged_over_datasets_and_its_area_is_the_metric(stored: Any, tmp_path: Path) -> None:
    source = stored(BY_HAND)
    with pytest.raises(NothingToShow, match="no predictions of base, new and joint images beside the base2new results"):
        open_world.data(source)
    expected: dict[str, list[float]] = {}
    for place, result in enumerate(BY_HAND[:4]):
        halves = in_halves(place)
        save_halves(tmp_path, result, halves)
        expected.setdefault(result.spec.dataset, []).append(by_definition(halves))
    data = open_world.data(source)
    (series,) = data["series"]
    means = [sum(values) / 2 for values in expected.values()]
    assert series["method"] == "MaPLe" and data["left_out"] == ["Zero-shot CLIP"]
    assert series["auc"] == pytest.approx(sum(means) / 2)
    below = torch.trapezoid(torch.tensor(series["base"]), torch.tensor(data["new"])).item() / 100
    assert below == pytest.approx(series["auc"], abs=0.5)  # 201 steps
    assert (data["new"][0], data["new"][-1], series["base"][-1]) == (0, 100, 0)
    assert sorted(series["base"], reverse=True) == series["base"]


def test_a_dataset_without_predictions_leaves_a_method_out(stored: Any, tmp_path: Path) -> None:
    source = stored(BY_HAND)
    for result in (*BY_HAND[:2], *BY_HAND[4:]):
        save_halves(tmp_path, result, in_halves(1))
    data = open_world.data(source)
    assert [series["method"] for series in data["series"]] == ["Zero-shot CLIP"] and data["left_out"] == ["MaPLe"]


def test_reliability_by_hand(stored: Any, tmp_path: Path) -> None:
    # Confidences 0.7 right, 0.7 wrong, 0.99 right, of one run; 0.99 right of another: bins 10 and 14, counted from 0.
    def halves(*shares: float, labels: Sequence[int]) -> dict[str, dict[str, Any]]:
        first = torch.tensor(shares)
        of = {"logits": torch.stack([first, 1 - first], dim=1).log(), "labels": labels, "names": ["a", "b"]}
        return {"base": {**of, "images": [str(place) for place in range(len(shares))]}}

    runs = [base2new(80, 60, seed=1), base2new(80, 60, seed=2)]
    source = stored(runs)
    with pytest.raises(NothingToShow, match="no predictions of base and new images beside the base2new results"):
        reliability.data(source)
    save_halves(tmp_path, runs[0], halves(0.7, 0.7, 0.99, labels=[0, 1, 0]))
    with pytest.raises(NothingToShow):
        reliability.data(source)  # one run of two
    save_halves(tmp_path, runs[1], halves(0.99, labels=[0]))
    (panel,) = reliability.data(source)["panels"]
    assert panel["method"] == "MaPLe" and list(panel["halves"]) == ["base"]
    found = panel["halves"]["base"]
    assert {place: count for place, count in enumerate(found["images"]) if count} == {10: 2, 14: 2}
    assert (found["accuracy"][10], found["accuracy"][14]) == (50, 100)
    assert (found["confidence"][10], found["confidence"][14]) == pytest.approx((70, 99), abs=0.1)
    assert found["ece"] == pytest.approx(100 * (0.4 + 0.02) / 4, abs=0.1) and "ece_scaled" not in found


def test_reliability_after_the_temperature_is_that_of_every_run(stored: Any, tmp_path: Path) -> None:
    from promptbench.metrics.classification import expected_calibration_error

    halves = in_halves(3)
    run = make({"base/accuracy": 80.0, "new/accuracy": 60.0, "temperature": 2.5}, temperature=True)
    save_halves(tmp_path, run, halves)
    (panel,) = reliability.data(stored([run]))["panels"]
    for half, found in panel["halves"].items():
        logits, labels = halves[half]["logits"], torch.tensor(halves[half]["labels"])
        assert found["ece"] == pytest.approx(expected_calibration_error(logits, labels), abs=0.1)
        scaled = expected_calibration_error(logits, labels, temperature=2.5)
        assert found["ece_scaled"] == pytest.approx(scaled, abs=0.1)


def test_reliability_of_many_methods_is_refused(stored: Any, tmp_path: Path) -> None:
    runs = [base2new(80, 60, method=method) for method in ("maple", "coop", "vpt", "ivlp")]
    for run in runs:
        save_halves(tmp_path, run, in_halves(1))
    with pytest.raises(UsageError, match="of 4 methods are too many for a column; name at most 3 with --method"):
        reliability.data(stored(runs))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result file of GalLoP, trained for a moment on coloured squares."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("heatmap")
    for split, name, number in itertools.product(("train", "test"), ("red", "blue"), range(2)):
        path = folder / "squares" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), name).save(path)
    words = ["--backbone", TINY, "--dataset", f"folder:{folder / 'squares'}"]
    words += ["--protocol", "few_shot", "--shots", "1", "--seeds", "1", "--threads", "1"]
    words += ["--set", "gallop.epochs=1", "gallop.batch=2", "--output", str(folder / "out")]
    assert main.main(["run", "--method", "gallop", *words]) == 0
    (path,) = (folder / "out" / "results").rglob("gallop-*.json")
    return path


@pytest.mark.slow
def test_the_heat_map_is_the_cosines_of_the_trained_method(trained: Path, tmp_path: Path) -> None:
    import base64

    import promptbench as pb

    image = trained.parents[4] / "squares" / "test" / "red" / "0.png"
    picture = tmp_path / "map.png"
    words = ["plot", "heatmap", "--run", str(trained), "--image", str(image), "-o", str(picture), "--data"]
    assert main.main([*words, "--class", "blue"]) == 0
    data = json.loads(picture.with_suffix(".json").read_text())
    run = pb.load(trained)
    (pixels,) = run.batches(str(image))
    with torch.no_grad():
        said = {
            "GalLoP": run.method,
            "Zero-shot CLIP": pb.create_method("zeroshot", run.method.backbone, run.class_names),
        }
        local = {name: one(pb.Images(pixels, dense=True)).local[0, :, 0] for name, one in said.items()}
    assert list(run.class_names) == ["blue", "red"] and data["class"] == "blue"
    assert [one["method"] for one in data["maps"]] == ["Zero-shot CLIP", "GalLoP"]
    for one in data["maps"]:
        assert torch.tensor(one["cosines"]).flatten().tolist() == pytest.approx(local[one["method"]].tolist(), abs=2e-6)
    side = data["image"]["side"]
    assert base64.b64decode(data["image"]["rgb"]) == bytes([255, 0, 0]) * side**2
    assert picture.stat().st_size > 5000


def test_a_heat_map_says_what_it_lacks(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert main.main(["plot", "heatmap", *words, "-o", str(tmp_path / "x.png")]) == 2
        return capsys.readouterr().err

    assert "name its result with --run" in said()
    assert "Unknown class of the run 'reed'. Did you mean 'red'?" in said(
        "--run", str(trained), "--class", "reed", "--image", "x.png"
    )
    assert "Cannot read the image" in said("--run", str(trained), "--image", str(tmp_path / "none.png"))


@pytest.mark.slow
def test_the_data_do_not_depend_on_the_order_of_files(stored: Any) -> None:
    source = stored(BY_HAND)
    shuffled = Source(**{**vars(source), "results": tuple(random.Random(1).sample(source.results, 6))})
    for kind in (base_new, gain, seeds, cost):
        assert to_text(kind.data(source)) == to_text(kind.data(shuffled))


def test_the_text_of_the_data_is_sorted_and_rounded() -> None:
    data = {"b": [1 / 3, -1e-9, 2], "a": {"§": None, "n": True}}
    assert to_text(data) == '{\n "a": {\n  "n": true,\n  "§": null\n },\n "b": [\n  0.333333,\n  0.0,\n  2\n ]\n}\n'
    assert str(rounded(-0.0)) == "0.0"


def corrupted_run(method: str) -> Result:
    """A run of the protocol robustness, of two kinds at two severities."""
    corruptions = ("jpeg_compression:1", "jpeg_compression:5", "elastic_transform:1", "elastic_transform:5")
    accuracies = dict.fromkeys(("clean", "average", "jpeg_compression", "elastic_transform", *corruptions), 50.0)
    metrics = {**{f"{name}/accuracy": value for name, value in accuracies.items()}, "drop": 0.0}
    facts = {
        "protocol": "robustness",
        "dataset": "mini_shapes",
        "method": method,
        "shots": 0 if method == "zeroshot" else 16,
    }
    return make(metrics, corruption=" ".join(corruptions), **facts)


def pictures(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Data of every kind, with as many methods as there are and long names."""
    methods = ("zeroshot", "zeroshot@generic", "coop", "cocoop", "vpt", "ivlp", "maple", "promptsrc", "gallop", "dpl")
    results: list[Result] = []
    for place, label in enumerate(methods):
        method, _, preset = label.partition("@")
        untrained = {"shots": 0} if method == "zeroshot" else {}
        price = {} if untrained else {"learned_parameters": 10.0**place, "train_seconds": 5.0 + place}
        facts = {"method": method, "preset": preset, "cost": price, **untrained}
        for seed, dataset in itertools.product((1, 2), ("mini_neon", "mini_fabrics")):
            results.append(base2new(70 + place + seed, 60 + 2 * place, seed=seed, dataset=dataset, **facts))
            for number in (0,) if untrained else (1, 2, 4):
                one = {**facts, "shots": number, "seed": seed, "dataset": dataset}
                results.append(
                    few_shot(number, 50.0 + place + number, **{k: v for k, v in one.items() if k != "shots"})
                )
    results += [curve(value, 50 + value, seed=3) for value in (0.1, 0.2)]
    results += [corrupted_run(method) for method in ("zeroshot", "maple", "gallop")]
    scores = [ood_run(method=method) for method in ("zeroshot", "maple", "gallop")]
    for run in scores:
        save(tmp_path, run, {"id": [0.5, 1.0], "far": [0.0, 0.6]})
    for result in [*results, *scores]:
        write_result(tmp_path, result)
        if result.spec.protocol == "base2new" and result.spec.label in ("zeroshot@generic", "promptsrc", "gallop"):
            save_halves(tmp_path, result, in_halves(result.spec.data_seed))
    fields = ("dpl.strength_text", "dpl.strength_vision")
    data = {
        kind: module_of(kind).data(read_source([tmp_path], module_of(kind).PROTOCOL, fields=fields))
        for kind in KINDS
        if module_of(kind).PROTOCOL and kind != "critical-difference"  # which wants ten datasets and no more rows
    }
    ranked = {label: [50.0 + 2 * place + (place * one) % 3 for one in range(10)] for place, label in enumerate(methods)}
    ranked["dpl@long_preset_with_an_odd_name"] = ranked.pop("dpl")
    data["critical-difference"] = critical_difference.data(replace(over_datasets(ranked), suite=load_suite("mini")))
    grid = [[0.1, 0.2], [0.3, 0.4]]
    facts = {name: data["gain"][name] for name in ("protocol", "suite", "backbone", "shots", "seeds", "note")}
    maps = [{"method": name, "cosines": grid} for name in ("zeroshot", "gallop")]
    image = {"side": 2, "rgb": "AAAAAAAA" * 2}
    more = {"kind": "heatmap", "dataset": "mini_neon", "n": {"gallop": "1"}, "reconstructed": False, "class": "a cat"}
    return {**data, "heatmap": {**facts, **more, "maps": maps, "image": image}}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_every_picture_is_as_wide_as_asked_with_nothing_clipped_or_covered(width: str, tmp_path: Path) -> None:
    from matplotlib.text import Text

    for kind, data in pictures(tmp_path).items():
        asked = with_look(json.loads(to_text(data)), WIDTHS[width], caption=True)
        with look():
            figure = module_of(kind).draw(asked)
            figure.draw_without_rendering()
        assert figure.get_figwidth() == WIDTHS[width]
        canvas = figure.bbox.padded(1)
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        drawn = [text for text in texts if text not in _not_drawn(figure)]
        assert len(drawn) > 3
        for text in drawn:
            box = text.get_window_extent()
            assert text.get_fontsize() >= 7, (kind, text)
            assert canvas.x0 <= box.x0 and box.x1 <= canvas.x1, (kind, text)
            assert canvas.y0 <= box.y0 and box.y1 <= canvas.y1, (kind, text)
        for labels in _tick_labels(figure):
            boxes = [label.get_window_extent().padded(-1) for label in labels if label in drawn]
            assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2)), (kind, labels)
        for legend in figure.legends:
            panels = [axes.get_window_extent() for axes in figure.axes]
            assert not legend.get_window_extent().padded(-1).count_overlaps(panels), kind
        (small,) = [text for text in texts if "backbone mini" in text.get_text()]
        assert "rendered" in small.get_text().lower() and "n\N{NO-BREAK SPACE}=" in small.get_text()


def _tick_labels(figure: Any) -> list[list[Any]]:
    """The labels along each axis."""
    return [axis.get_ticklabels() for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]


def _not_drawn(figure: Any) -> set[Any]:
    """Labels of ticks beyond the limits, which matplotlib makes and does not draw."""
    beyond = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    return beyond


def test_series_differ_without_colour() -> None:
    names = [str(number) for number in range(2 * len(MARKS))]
    looks = [style_of(name, names) for name in names]
    assert len({(str(one["marker"]), str(one["linestyle"])) for one in looks[: len(MARKS)]}) == len(MARKS)
    assert len({tuple(map(str, one.values())) for one in looks}) == len(names)
    for one in looks:
        assert (one["markerfacecolor"] == "white") == bool(names.index(names[looks.index(one)]) % 2)
    assert len(set(COLOURS)) == len(COLOURS)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_written_the_same_twice(suffix: str, stored: Any, tmp_path: Path) -> None:
    data = base_new.data(stored(BY_HAND))
    first, second = tmp_path / "new" / f"1.{suffix}", tmp_path / f"2.{suffix}"
    write_picture(data, first)
    write_picture(json.loads(to_text(data)), second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gian"], "Unknown kind of plot 'gian'. Did you mean 'gain'?"),
        (["gain", "-o", "x.gif"], "The picture x.gif cannot be written: its name must end in png, svg, pdf, pgf."),
        (["gain", "--column", "neww"], "Unknown column of base2new 'neww'. Did you mean 'new'?"),
        (["gain", "--protocol", "few_shots"], "Unknown protocol 'few_shots'. Did you mean 'few_shot'?"),
        (["gain", "--method", "mapel"], "There is no base2new result of 'mapel' in "),
        (["gain", "--baseline", "nothing"], "There is no result of the baseline 'nothing' to show gains over; "),
        (
            ["shots", "--protocol", "base2new"],
            "The protocol base2new does not compare numbers of shots; few_shot does.",
        ),
        (["shots", "--results", str(SUPPORT)], "is not a promptbench result"),
        (["gain", "--highlight", "mapel"], "Unknown method of the plot to highlight 'mapel'. Did you mean 'maple'?"),
        (["gain", "--width", "wide"], "--width: takes column, page, or 2.5 to 12 inches, not 'wide'"),
        (["gain", "--from", "nothing.json"], "--from nothing.json cannot be read"),
        (
            ["gain", "--from", str(MINI / "plots" / "ood.json")],
            "must hold the data of the kind gain, and its kind is ood; name",
        ),
        (["gain", "--from", str(SUPPORT / "tiny-clip.json")], "and its kind is none; name the .json"),
        (["ablation"], "An ablation needs fields of one method; write --field method.field, such as maple.depth."),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for result in BY_HAND:
        write_result(tmp_path, result)
    more = [
        *(() if "--results" in words else ("--results", str(tmp_path))),
        *(() if "-o" in words else ("-o", "x.png")),
    ]
    assert main.main(["plot", *words, *more]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def plot(*words: str) -> int:
    return main.main(["plot", *words])


@pytest.fixture
def written(tmp_path: Path) -> list[str]:
    """Flags that name stored results of MaPLe, CoOp and zero-shot CLIP."""
    others = [replace(one, spec=replace(one.spec, method="coop")) for one in BY_HAND[:4]]
    for result in [*BY_HAND, *others]:
        write_result(tmp_path, result)
    return ["--results", str(tmp_path)]


def svg_texts(path: Path) -> list[str]:
    """What is written in a picture; matplotlib leaves a comment for every text that it draws as shapes."""
    return re.findall("<!-- (.*?) -->", path.read_text())


def test_the_caption_is_printed_and_stored_and_drawn_only_if_asked_for(
    written: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "x.svg"
    assert plot("base-new", *written, "-o", str(picture), "--data") == 0
    caption = json.loads(picture.with_suffix(".json").read_text())["caption"]
    assert caption.startswith("base2new on mini, backbone mini, 16 shots, n") and "Bars: " in caption
    assert " ".join(capsys.readouterr().out.split("\n\n")[1].split("\n")).strip() == caption
    assert not any("backbone mini" in text for text in svg_texts(picture))
    assert plot("base-new", *written, "-o", str(picture), "--caption") == 0
    assert any("backbone mini" in text for text in svg_texts(picture))


def test_a_picture_is_drawn_again_from_its_data_in_another_form(written: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    assert plot("base-new", *written, "-o", str(first), "--data", "--highlight", "maple") == 0
    stored = str(first.with_suffix(".json"))
    assert plot("base-new", "--from", stored, "-o", str(second)) == 0
    assert first.read_bytes() == second.read_bytes()
    assert plot("base-new", "--from", stored, "--width", "page", "-o", str(second)) == 0
    widths = [float(re.search(r'width="([\d.]+)pt"', path.read_text())[1]) for path in (first, second)]  # type: ignore[index]
    assert widths == pytest.approx([72 * WIDTHS["column"], 72 * WIDTHS["page"]])


def test_what_is_not_highlighted_is_grey_and_has_one_entry_in_the_legend(written: list[str], tmp_path: Path) -> None:
    plain, highlighted = tmp_path / "plain.svg", tmp_path / "highlighted.svg"
    assert plot("base-new", *written, "-o", str(plain)) == 0
    assert plot("base-new", *written, "-o", str(highlighted), "--highlight", "maple") == 0
    colours = {name: style(look)["color"] for name, look in looks_of([("MaPLe", "maple"), ("CoOp", "coop")]).items()}
    before, after = plain.read_text(), highlighted.read_text()
    assert all(colour in before for colour in colours.values())
    assert colours["MaPLe"] in after and colours["CoOp"] not in after
    assert "CoOp" in svg_texts(plain) and "others" not in svg_texts(plain)
    assert {"MaPLe", "others"} <= set(svg_texts(highlighted)) and "CoOp" not in svg_texts(highlighted)


def test_fonts_are_embedded_as_outlines_that_publishers_take(written: list[str], tmp_path: Path) -> None:
    assert plot("base-new", *written, "-o", str(tmp_path / "x.pdf")) == 0
    content = (tmp_path / "x.pdf").read_bytes()
    assert b"/TrueType" in content or b"/CIDFontType2" in content
    assert b"/Type3" not in content and b"/FontFile2" in content


def test_a_pgf_picture_needs_a_latex(
    written: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plot("base-new", *written, "-o", str(tmp_path / "x.pgf")) == 2
    assert "x.pgf needs pdflatex, xelatex or lualatex to measure its text, and none is" in capsys.readouterr().err
    assert not (tmp_path / "x.pgf").exists()


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, LATEX)), reason="no LaTeX is installed")
def test_a_pgf_picture_is_text_for_latex(written: list[str], tmp_path: Path) -> None:
    assert plot("base-new", *written, "-o", str(tmp_path / "x.pgf")) == 0
    text = (tmp_path / "x.pgf").read_text()
    assert "\\begin{pgfpicture}" in text and "MaPLe" in text


def test_the_help_says_of_every_kind_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plot("--help")
    lines = capsys.readouterr().out.splitlines()
    for kind, said in KINDS.items():
        assert f"  {kind:<21}{said}" in lines
        assert len(said) < 90 and "; " in said
        assert ("--save-predictions" in said) == (kind in BEYOND_RESULTS and bool(module_of(kind).PROTOCOL))


@pytest.mark.parametrize("name", ["ood", "heatmap"])
def test_committed_pictures_whose_predictions_are_not_here_are_drawn_from_their_data(name: str, tmp_path: Path) -> None:
    stored = MINI / "plots" / f"{name}.json"
    assert plot(name, "--from", str(stored), "-o", str(tmp_path / "x.svg")) == 0
    assert "Zero-shot CLIP" in svg_texts(tmp_path / "x.svg")


def few_shot_curves(methods: Sequence[str]) -> list[Result]:
    """Curves over two datasets, and zero-shot CLIP."""
    results = []
    for dataset, (place, method) in itertools.product(("mini_neon", "mini_fabrics"), enumerate(methods)):
        for number in (1, 2, 4):
            results.append(few_shot(number, 50.0 + place + number, method=method, dataset=dataset))
        results.append(few_shot(0, 60.0, method="zeroshot", dataset=dataset))
    return results


def test_many_curves_have_a_panel_for_each_kind_of_methods(stored: Any) -> None:
    few = shots.data(stored(few_shot_curves(["coop", "maple"]), "few_shot"))
    many = shots.data(stored(few_shot_curves(["cocoop", "kgcoop", "vpt", "ivlp", "clip_adapter"]), "few_shot"))
    with look():
        one, several = (shots.draw(json.loads(to_text(data))) for data in (few, many))
    assert [axes.get_title() for axes in one.axes] == [""]
    titled = [axes for axes in several.axes if axes.get_title()]
    assert [axes.get_title() for axes in titled] == [
        "text prompts",
        "visual prompts",
        "multi-modal prompts",
        "adapters",
    ]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in titled}) == 1
    assert "Grey: the methods of the other panels." in caption_of(many) and "Grey" not in caption_of(few)


def test_a_caption_covers_no_label_of_panels(stored: Any) -> None:
    source = stored(few_shot_curves(["cocoop", "kgcoop", "vpt", "ivlp", "clip_adapter"]), "few_shot")
    with look():
        figure = shots.draw(with_look(shots.data(source), caption=True))
    assert "training images per class" in [axes.get_xlabel() for axes in figure.axes]
    assert "backbone mini" in figure.get_supxlabel()


def test_curves_of_each_dataset_share_their_axes_with_the_average(stored: Any) -> None:
    data = shots.data(stored(few_shot_curves(["coop", "maple"]), "few_shot", by_dataset=True))
    assert {one["method"]: one["mean"] for one in data["by_dataset"]["Neon"]}["CoOp"] == [51, 52, 54]
    with look():
        figure = shots.draw(json.loads(to_text(data)))
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert {axes.get_title() for axes in titled} == {"Neon", "Fabrics", "average"}
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in titled}) == 1


def test_results_of_two_suites_make_no_plot(stored: Any) -> None:
    with pytest.raises(UsageError, match="A plot shows one suite, and .* has clip11 and mini; name files of one"):
        stored([*BY_HAND, base2new(1, 1, suite="clip11")])


def test_without_matplotlib_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, stored: Any, tmp_path: Path
) -> None:
    data = base_new.data(stored(BY_HAND))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        UsageError, match=r"Plots need matplotlib; install it with `pip install 'promptbench-clip\[plots\]'`."
    ):
        write_picture(data, tmp_path / "x.png")


def test_only_figures_of_one_metric_are_compared(stored: Any) -> None:
    def run(auroc: float, **more: Any) -> Result:
        metrics = {"id/accuracy": 90.0, "far/mcm/auroc": auroc, "average/mcm/auroc": auroc, "average/mcm/fpr95": 3.0}
        facts = vars(make(metrics, protocol="ood", dataset="mini_shapes", **more))
        return Result(**{**facts, "conditions": {"images": {"id": 1, "far": 1}}})

    source = stored([run(90), run(85, method="zeroshot", shots=0)], "ood")
    data = gain.data(source)
    assert (data["datasets"], data["series"][0]["gain"]) == (["far", "average AUROC"], [5, 5])
    assert data["x"] == "AUROC minus that of Zero-shot CLIP (points)"
    assert seeds.data(source)["x"] == "average AUROC, score MCM (%)"


def test_the_cost_of_few_shot_figures_is_that_of_their_runs(stored: Any) -> None:
    runs = [few_shot(shots, 50.0 + shots, cost={"train_seconds": float(shots)}) for shots in (1, 16)]
    (point,) = cost.data(stored(runs, "few_shot"))["points"]
    assert (point["mean"], point["cost"]["train_seconds"]) == (66, 16)
