"""Scoring: every image encoded once, features reused exactly, dense features cached as they are computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_fake
import pytest
import torch
from PIL import Image
from short_cases import slow_but

import promptbench as pb
from promptbench.cli.flags import request_of
from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import Images
from promptbench.data import features
from promptbench.data.batches import pixel_batches
from promptbench.data.dataset import open_dataset
from promptbench.data.selection import Selection, open_selection
from promptbench.results.result import Result
from promptbench.runs import evaluate, train
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.session import Place, Session


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("imagenet", "dtd", "eurosat", "textures"):
        make_fake.make(name, folder)
    return folder


@pytest.fixture
def plan(root: Path, tiny_name: str, tmp_path: Path) -> Any:
    """A function from words of the command line to a session and its runs."""
    from promptbench.cli.main import parser

    def planned(*words: str) -> tuple[Session, list[Run]]:
        call = ["run", "--suite", "clip11", "--backbone", tiny_name, "--shots", "2", "--seeds", "1", "--device", "cpu"]
        request = request_of(parser().parse_args([*call, "--threads", "1", *words]))
        return Session(Place(tmp_path, (root,)), request.suite), plan_runs(request)

    return planned


def trained(session: Session, run: Run) -> pb.Method:
    """The run's method with moved parameters."""
    train = open_selection(session.dataset, run.plan.train, 1)
    method = pb.create_method(run.spec.label, session.backbone, train.class_names, **run.spec.config)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    return method


@pytest.mark.parametrize("label", slow_but(["maple", "vpt", "dpl"], "maple"))
def test_base_new_and_joint_encode_each_image_once(label: str, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, (run,) = plan("--method", label, "--dataset", "dtd")
    method = trained(session, run)
    seen = 0
    encode = type(method).encode_images

    def counting(self: Any, images: Any) -> Any:
        nonlocal seen
        seen += len(images)
        return encode(self, images)

    monkeypatch.setattr(type(method), "encode_images", counting)
    found = evaluate.evaluate(session, run, method)
    dataset = session.dataset("dtd")
    assert seen == len(dataset.items("test")) == len(found.images["joint"].items)
    monkeypatch.undo()
    for evaluated in run.plan.evaluations:  # the same as scoring the images by themselves
        chosen = found.images[evaluated.name]
        method.set_classes(found.names[evaluated.name])
        ((images, labels),) = pixel_batches(session.backbone, dataset, chosen.items, batch=100)
        with torch.no_grad():
            logits = method(images).logits
        assert torch.allclose(found.outcomes[evaluated.name].logits, logits, atol=1e-4)
        assert torch.equal(found.outcomes[evaluated.name].labels, labels)


def test_diagnostics_are_stored_by_evaluation(plan: Any) -> None:
    session, (run,) = plan("--method", "dpl", "--dataset", "dtd")
    found = evaluate.evaluate(session, run, trained(session, run))
    layers = session.backbone.vision_depth
    assert {name.partition("/")[0] for name in found.diagnostics} == {"base", "new", "joint"}
    shares = {name: share for name, share in found.diagnostics.items() if name.startswith("base/gate/vision/")}
    assert len(shares) == layers and all(0 < share < 1 for share in shares.values())


@pytest.mark.parametrize("label", slow_but(["zeroshot", "coop", "cocoop", "gallop"], "gallop"))
def test_dense_scores_from_the_cache_are_those_from_pixels(
    label: str, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, (run,) = plan("--method", label, "--protocol", "ood", "--dataset", "imagenet")
    inside = run.plan.evaluations[0]
    method = trained(session, run)
    chosen = open_selection(session.dataset, inside.selection, 1)

    def outcome() -> Any:
        return evaluate.Reader(method, dense=True).outcome(chosen, inside.selection, chosen.labels, run.scores)

    cached = outcome()
    assert list(cached.scores) == list(run.protocol.scores) and not cached.missing
    monkeypatch.setattr(features, "DENSE_LIMIT", 0)
    assert not features.reads_features(method, len(chosen.items), dense=True)
    fresh = outcome()
    assert torch.allclose(cached.logits, fresh.logits, atol=1e-4)
    for name, values in cached.scores.items():
        assert torch.allclose(values, fresh.scores[name], atol=1e-4), name


def test_images_say_whether_dense_features_are_wanted(tiny: Backbone) -> None:
    pixels = torch.randn(2, 3, tiny.resolution, tiny.resolution)
    method = pb.create_method("maple", tiny, ["cat", "dog"], depth=2)
    with torch.no_grad():
        plain, dense = method(Images(pixels)), method(Images(pixels, dense=True))
    assert plain.local is None and dense.local is not None
    assert dense.local.shape == (2, tiny.patches, 2)
    assert torch.allclose(plain.logits, dense.logits, atol=1e-5)


def test_damaged_features_are_computed_again(plan: Any, caplog: pytest.LogCaptureFixture) -> None:
    session, _ = plan("--method", "zeroshot", "--dataset", "eurosat")
    dataset = session.dataset("eurosat")
    items = dataset.items("test")
    first = features.image_features(session.backbone, dataset, items, dense=True)
    path = features.cache_dir() / "features" / f"{features.key(session.backbone, dataset, items, True)}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-40] + b"x" + content[-39:])
    again = features.image_features(session.backbone, dataset, items, dense=True)
    assert torch.equal(first.cls, again.cls) and first.local is not None and again.local is not None
    assert torch.equal(first.local, again.local) and "damaged" in caplog.text
    assert path.read_bytes() == content


def test_the_same_weights_in_another_architecture_share_no_features(tiny_name: str, tmp_path: Path, root: Path) -> None:
    file, _, tag = tiny_name.partition(":")
    config = json.loads(Path(file).read_text())
    config["quick_gelu"] = not config.get("quick_gelu", False)
    (tmp_path / "other.json").write_text(json.dumps(config))
    one, other = pb.load_backbone(tiny_name), pb.load_backbone(f"{tmp_path / 'other.json'}:{tag}")
    assert one.weights_hash == other.weights_hash and one.architecture != other.architecture
    dataset = open_dataset("dtd", roots=[root])
    items = dataset.items("test")
    assert features.key(one, dataset, items, False) != features.key(other, dataset, items, False)


def test_images_of_the_same_name_in_two_datasets_have_features_of_their_own(tmp_path: Path, tiny: Backbone) -> None:
    method = pb.create_method("maple", tiny, ["cat", "dog"])
    reader, found = evaluate.Reader(method), []
    for name, grey in (("birds", 10), ("owls", 200)):
        for split, label in (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")):
            place = tmp_path / name / split / label
            place.mkdir(parents=True)
            Image.new("RGB", (32, 32), (grey, 40, 90)).save(place / "0.png")
        dataset = open_dataset("folder", {"root": str(tmp_path / name)}, alias=name)
        selection = Selection(dataset=name, split="test")
        chosen = open_selection(lambda _, dataset=dataset: dataset, selection, 1)
        found.append(reader.features(chosen, selection))
        ((images, _),) = pixel_batches(tiny, dataset, chosen.items, batch=100)
        with torch.no_grad():
            assert torch.equal(found[-1], method.encode_images(images).cls)
    assert not torch.allclose(found[0], found[1])


def test_labels_are_places_among_the_names_that_are_shown(plan: Any) -> None:
    session, (run,) = plan("--method", "zeroshot", "--dataset", "dtd")
    (evaluation,) = [one for one in run.plan.evaluations if one.name == "new"]
    chosen = open_selection(session.dataset, evaluation.selection, 1)
    method = pb.create_method("zeroshot", session.backbone, chosen.class_names)
    moved = [label + 1 for label in chosen.labels]
    outcome = evaluate.Reader(method).outcome(chosen, evaluation.selection, moved, {})
    assert outcome.labels.tolist() == moved


@pytest.mark.slow
def test_rows_of_the_trained_classes_score_domains_with_fewer(
    plan: Any, root: Path, carry_out: Callable[..., Result]
) -> None:
    """As of ImageNet's variants, whose source has a name twice: the second of its rows is that of the second class."""
    for name in ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"):
        make_fake.make(name, root)
    session, (run,) = plan("--method", "linear_probe", "--protocol", "domain_generalization")
    chosen, method = train.prepared(session, run)
    run.protocol.needs_logits = True  # otherwise they are gone once they are measured
    found = evaluate.evaluate(session, run, method)
    assert list(found.outcomes) == ["source", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert not found.notes
    weight, bias = method.weight, method.bias
    wanted = {"source": [0, 1, 2, 3, 4, 5], "imagenet_a": [1, 5], "imagenet_r": [1, 2, 5]}
    assert chosen.class_names[2] == chosen.class_names[3] == "missile"
    for name, rows in wanted.items():
        cls = features.image_features(session.backbone, found.images[name].dataset, found.images[name].items).cls
        expected = cls @ weight[rows].T + bias[rows]
        torch.testing.assert_close(found.outcomes[name].logits, expected, atol=1e-4, rtol=1e-5)
    metrics = carry_out(session, run).metrics
    assert metrics["average/accuracy"] == pytest.approx(
        sum(metrics[f"{name}/accuracy"] for name in found.outcomes if name != "source") / 4
    )
    method.set_classes(chosen.class_names[::-1])
    assert method.rows() == [5, 4, 2, 3, 1, 0]  # the order of the trained ones decides among equal names
    assert method.refusal(["banana", "missile", "missile"]) == ""
    assert "fitted on only" in method.refusal(["banana", "apple"])
    with pytest.raises(pb.UsageError, match="LinearProbe cannot score these classes: a linear probe has weights"):
        method.set_classes(["banana", "apple"])
    assert tuple(method.class_names) == tuple(chosen.class_names[::-1])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_score_that_is_no_number_is_an_error(value: float, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, (run,) = plan("--method", "zeroshot", "--dataset", "dtd")
    scored = evaluate.Reader.outcome

    def odd(self: evaluate.Reader, *arguments: Any) -> Any:
        outcome = scored(self, *arguments)
        outcome.logits[-1, -1] = value
        return outcome

    monkeypatch.setattr(evaluate.Reader, "outcome", odd)
    with pytest.raises(FloatingPointError, match="scores of base images are infinite or NaN"):
        evaluate.evaluate(session, run, trained(session, run))


def test_a_run_takes_the_threads_that_its_spec_says(plan: Any) -> None:
    before = torch.get_num_threads()
    session, (run,) = plan("--method", "zeroshot", "--dataset", "dtd", "--threads", str(before + 1))
    try:
        train.prepared(session, run)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
