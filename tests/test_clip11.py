"""All public datasets, as a fake tree in the real layouts, through all protocols by the installed command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import make_fake
import pytest
import torch

from promptbench import registry
from promptbench.cli.main import main
from promptbench.metrics.classification import accuracy
from promptbench.metrics.ood import detection
from promptbench.results.predictions import load_predictions
from promptbench.results.result import Result, read_result, read_results
from promptbench.runs.request import protocols_of
from promptbench.suite import load_suite

SHORT = ("--set", "coop.epochs=1", "coop.batch=4", "--shots", "2", "--seeds", "1", "--threads", "1")
SUITE = load_suite("clip11")
DATASETS = tuple(dict.fromkeys(entry.dataset for entry in SUITE.entries()))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all 22 datasets."""
    root = tmp_path_factory.mktemp("clip11")
    for name in DATASETS:
        make_fake.make(name, root)
    return root


@pytest.fixture(scope="module")
def flags(tree: Path, tiny_name: str) -> tuple[str, ...]:
    return ("--suite", "clip11", "--data-root", str(tree), "--backbone", tiny_name, "--device", "cpu")


@pytest.fixture(scope="module")
def swept(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one call over all protocols."""
    output = tmp_path_factory.mktemp("swept")
    call = ["run", "--method", "zeroshot", "coop", "--protocol", "all", *flags, *SHORT, "--save-predictions"]
    command = [str(Path(sys.executable).with_name("promptbench")), *call, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    (output / "said.txt").write_text(done.stdout)
    return output


@pytest.fixture(scope="module")
def results(swept: Path) -> list[Result]:
    return read_results(swept)


def of(results: list[Result], protocol: str, method: str) -> list[Result]:
    return [result for result in results if (result.spec.protocol, result.spec.method) == (protocol, method)]


def test_the_tree_is_that_of_all_22_datasets() -> None:
    public = {name for name in registry.names("datasets") if not name.startswith("mini_")} - {"folder"}
    assert set(DATASETS) == public and len(DATASETS) == 22


@pytest.mark.slow
@pytest.mark.parametrize("protocol", protocols_of(SUITE, ["all"]))
def test_every_protocol_gives_a_result_for_each_plan_and_a_table(
    protocol: str, results: list[Result], swept: Path
) -> None:
    assert f"### {protocol} on clip11" in (swept / "said.txt").read_text()
    plans = registry.load("protocols", protocol)().plan(replace(SUITE, shots=2, few_shots=(2,)), 1)
    for method in ("zeroshot", "coop"):
        found = of(results, protocol, method)
        assert {result.spec.dataset for result in found} == {plan.dataset for plan in plans}
        for result in found:
            (plan,) = (plan for plan in plans if plan.dataset == result.spec.dataset)
            assert set(result.conditions["images"]) == {evaluation.name for evaluation in plan.evaluations}


@pytest.mark.slow
def test_one_training_serves_the_protocols_that_train_alike(results: list[Result], swept: Path) -> None:
    alike = ("cross_dataset", "domain_generalization", "ood")
    keys = {of(results, protocol, "coop")[0].conditions["training_key"] for protocol in alike}
    assert len(keys) == 1 and all(keys)
    assert len(list((swept / "trainings").iterdir())) == len(
        {result.conditions["training_key"] for result in results} - {""}
    )


@pytest.mark.slow
def test_domains_with_fewer_classes_are_scored_in_their_own(results: list[Result]) -> None:
    (result,) = of(results, "domain_generalization", "zeroshot")
    names = result.spec.class_names
    assert names["imagenetv2"] == names["imagenet_sketch"] == names["source"]
    assert names["imagenet_a"] != names["source"] != names["imagenet_r"]


@pytest.mark.slow
def test_the_average_is_over_the_targets(results: list[Result]) -> None:
    (result,) = of(results, "cross_dataset", "coop")
    targets = [result.metrics[f"{name}/accuracy"] for name in SUITE.datasets("targets")]
    assert result.metrics["average/accuracy"] == pytest.approx(sum(targets) / 10)
    assert "source/accuracy" in result.metrics and "imagenet/accuracy" not in result.metrics


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zeroshot", "coop"])
def test_stored_predictions_give_the_figures_again(method: str, results: list[Result], swept: Path) -> None:
    (result,) = of(results, "ood", method)
    kept = load_predictions(swept / "predictions" / f"{result.name}.safetensors")
    inside = kept["id"]
    assert accuracy(inside.logits, inside.labels) == result.metrics["id/accuracy"]
    for name in SUITE.datasets("ood"):
        assert (kept[name].labels == -1).all() and kept[name].class_names == inside.class_names
        for score in registry.load("protocols", "ood").scores:
            again = detection(inside.scores[score], kept[name].scores[score])
            assert {key: result.metrics[f"{name}/{score}/{key}"] for key in again} == again
    (half,) = (r for r in of(results, "base2new", method) if r.spec.dataset == "dtd")
    kept = load_predictions(swept / "predictions" / f"{half.name}.safetensors")
    for name, outcome in kept.items():
        assert accuracy(outcome.logits, outcome.labels) == half.metrics[f"{name}/accuracy"]
    joint = kept["joint"].logits
    both = torch.cat([kept["base"].logits, kept["new"].logits.new_full((len(kept["base"].images), 1), -1e9)], dim=1)
    columns = kept["base"].logits.shape[1]
    at = [kept["joint"].images.index(image) for image in kept["base"].images]
    assert torch.allclose(joint[at, :columns], both[:, :columns], atol=0.05)  # half precision of about 20


@pytest.mark.slow
def test_the_classes_of_stored_predictions_are_shown(
    results: list[Result], swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = (result for result in of(results, "base2new", "coop") if result.spec.dataset == "dtd")
    assert main(["inspect", "--run", str(swept / "results" / f"{made.name}.json"), "--top", "3"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    kept = load_predictions(swept / "predictions" / f"{made.name}.safetensors")["base"]
    assert blocks[0] == f"base, {len(kept.images)} images, {len(kept.class_names)} classes"
    shares = [line.split() for line in blocks[1].splitlines()[1:]]
    weighted = sum(int(images) * float(accuracy) for *_, images, accuracy in shares) / len(kept.images)
    assert weighted == pytest.approx(made.metrics["base/accuracy"], abs=0.1)
    without = next(result for result in read_results("results/mini") if result.spec.train_seed > 1)
    assert main(["inspect", "--run", f"results/mini/results/{without.name}.json"]) == 2


@pytest.mark.slow
def test_what_sees_no_image_runs_once_whatever_the_shots(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["run", "--method", "zeroshot", "coop", "--protocol", "few_shot", "--dataset", "dtd", *flags]
    call += ["--set", "coop.epochs=1", "coop.batch=2", "--seeds", "1", "--threads", "1", "--output", str(tmp_path)]
    assert main([*call, "--shots", "1", "2", "4"]) == 0
    table = capsys.readouterr().out
    assert "0 shots" in table and "1 shot " in table and "4 shots" in table
    shots = sorted((result.spec.method, result.spec.shots) for result in read_results(tmp_path))
    assert shots == [("coop", 1), ("coop", 2), ("coop", 4), ("zeroshot", 0)]


@pytest.mark.slow
def test_a_stored_training_is_evaluated_under_another_protocol(
    flags: tuple[str, ...], swept: Path, results: list[Result], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (made,) = of(results, "ood", "coop")
    path = swept / "results" / f"{made.name}.json"
    trainings = sorted((swept / "trainings").iterdir())
    call = ["eval", "--run", str(path), "--data-root", flags[3], "--suite", "clip11"]
    assert main([*call, "--protocol", "base2new"]) == 0
    assert "trained by ood" in capsys.readouterr().out
    assert sorted((swept / "trainings").iterdir()) == trainings
    (new,) = (r for r in read_results(swept) if r.spec.trained_by)
    assert new.conditions["training_key"] == made.conditions["training_key"]
    assert main([*call, "--protocol", "base2new", "--output", str(tmp_path)]) == 1  # nothing is stored there
    (failure,) = tmp_path.rglob("*.failed.json")
    assert "is not in" in json.loads(failure.read_text())["reason"]


@pytest.mark.slow
def test_a_grid_runs_every_combination(flags: tuple[str, ...], tmp_path: Path) -> None:
    call = ["run", "--method", "coop", "--dataset", "dtd", *flags, *SHORT, "--output", str(tmp_path)]
    assert main([*call, "--grid", "coop.n_ctx=2,4", "coop.ctx_init=''", "coop.lr=0.1,0.2"]) == 0
    points = {(r.spec.config["n_ctx"], r.spec.recipe["lr"]) for r in read_results(tmp_path)}
    assert points == {(2, 0.1), (2, 0.2), (4, 0.1), (4, 0.2)}
    assert main([*call, "--grid", "coop.n_ctx"]) == 2 and main([*call, "--grid", "maple.depth=1"]) == 2


def sample_of(output: Path, method: str = "coop") -> Mapping[str, object]:
    (path,) = (path for path in output.rglob(f"{method}-*.json"))
    result = read_result(path)
    return {"sampler": result.spec.sampler, "sample": result.spec.sample_digest}


@pytest.mark.slow
def test_the_sampler_is_chosen_recorded_and_read_from_a_file(flags: tuple[str, ...], tmp_path: Path) -> None:
    call = ["run", "--method", "coop", "--dataset", "dtd", *flags, *SHORT]
    assert main([*call, "--output", str(tmp_path / "coop")]) == 0
    assert main([*call, "--output", str(tmp_path / "stratified"), "--sampler", "stratified"]) == 0
    coop, stratified = sample_of(tmp_path / "coop"), sample_of(tmp_path / "stratified")
    assert (coop["sampler"], stratified["sampler"]) == ("coop", "stratified") and coop["sample"] != stratified["sample"]
    file = tmp_path / "dtd-2-1.jsonl"
    listed = ["data", "sample", "dtd", "--shots", "2", "--seed", "1", "--data-root", flags[3], "-o", str(file)]
    assert main(listed) == 0
    template = f"file:{tmp_path}/{{dataset}}-{{shots}}-{{seed}}.jsonl"
    assert main([*call, "--output", str(tmp_path / "file"), "--sampler", template]) == 0
    read = sample_of(tmp_path / "file")
    assert str(read["sampler"]).startswith("file:") and str(tmp_path) not in str(read["sampler"])
    assert read["sample"] == coop["sample"]
    assert main([*call, "--shots", "4", "--sampler", f"file:{file}"]) == 2  # it has 2
    assert main([*call, "--seeds", "1", "2", "--sampler", f"file:{file}"]) == 2  # one sample is no two seeds
    assert main([*call, "--sampler", "cop"]) == 2 and main([*call, "--sampler", "file:{x}"]) == 2


def test_bad_images_are_left_out_and_recorded_when_asked(tiny_name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    make_fake.make("dtd", root)
    split = json.loads((root / "dtd/split_zhou_DescribableTextures.json").read_text())
    bad = split["test"][0][0]
    (root / "dtd/images" / bad).write_bytes(b"no image")
    call = ["run", "--method", "zeroshot", "--suite", "clip11", "--data-root", str(root), "--backbone", tiny_name]
    call += ["--dataset", "dtd", *SHORT[3:]]
    assert main([*call, "--output", str(tmp_path / "a")]) == 1
    assert main([*call, "--output", str(tmp_path / "b"), "--on-bad-image", "skip"]) == 0
    (result,) = read_results(tmp_path / "b")
    assert result.conditions["skipped"]["base"] == [bad]
    assert result.conditions["images"]["joint"] == len(split["test"]) - 1
