"""A known number of random views: what is drawn, what is encoded once, what trains the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptbench.cli.describe import recipe_line
from promptbench.cli.flags import request_of
from promptbench.clip import image_tower
from promptbench.config import UsageError
from promptbench.data import features
from promptbench.data.batches import EpochOrder, FeatureBatches, view_batches
from promptbench.data.selection import SelectedImages, open_selection
from promptbench.method import instantiate
from promptbench.results.result import Result
from promptbench.runs.plan import Run, plan_runs
from promptbench.runs.session import Place, Session
from promptbench.runs.train import batches_of, kept_for_training, shown_batches
from promptbench.show.tables.rows import rows
from promptbench.storage import cache
from promptbench.training.fit import backward

CALL = [
    "run",
    "--protocol",
    "base2new",
    "--dataset",
    "mini_diagrams",
    "--seeds",
    "1",
    "--shots",
    "2",
    "--device",
    "cpu",
]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from words of the command line to a session and the run of the method named first."""
    from promptbench.cli.main import parser

    def planned(method: str, *words: str) -> tuple[Session, Run]:
        settings = [f"{method}.augment=true", f"{method}.epochs=3", f"{method}.batch=4"]
        request = request_of(parser().parse_args([*CALL, "--method", method, "--set", *settings, *words]))
        (run,) = (run for run in plan_runs(request) if run.spec.label == method)
        return Session(Place(tmp_path / "runs"), request.suite), run

    return planned


def training(session: Session, run: Run) -> tuple[Any, Any, Any]:
    """Recipe, method and training images of a run."""
    train = open_selection(session.dataset, run.plan.train, run.spec.data_seed)
    method = instantiate(run.method, run.settings.config, session.backbone, train.class_names, run.spec.train_seed)
    return run.settings.recipe, method, train


def test_without_the_flag_a_spec_is_as_it_was(plan: Any) -> None:
    _, run = plan("coop")
    assert "train_views" not in run.spec.recipe
    assert run.settings.recipe.train_views == 0
    _, five = plan("coop", "--train-views", "5")
    assert five.spec.recipe == {**run.spec.recipe, "train_views": 5} and five.spec.digest != run.spec.digest
    assert five.settings.provenance["recipe.train_views"] == "--set"
    assert "5 views an image" in recipe_line(five) and "views" not in recipe_line(run)


def test_a_method_without_training_and_a_setting_of_its_own_go_first(plan: Any) -> None:
    from promptbench.cli.main import parser

    words = ["--method", "zeroshot", "coop", "vpt", "--train-views", "5", "--set", "coop.train_views=2"]
    augmented = ["coop.augment=true", "vpt.augment=true"]
    runs = plan_runs(request_of(parser().parse_args([*CALL, *words, *augmented])))
    views = {run.spec.label: run.spec.recipe.get("train_views") for run in runs}
    assert views["coop"] == 2 and views["vpt"] == 5 and views["zeroshot"] is None


@pytest.mark.slow
def test_views_without_augmentation_are_refused(plan: Any) -> None:
    with pytest.raises(UsageError, match="'train_views' needs 'augment'.*augment=true"):
        plan("coop", "--set", "coop.augment=false", "--train-views", "2")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", pytest.param("maple", marks=pytest.mark.slow)])
def test_as_many_views_as_epochs_train_the_same(method: str, plan: Any, carry_out: Callable[..., Result]) -> None:
    """The views are those of the epochs; a frozen tower encodes them in other batches, so its last bits may differ."""
    plain, views = carry_out(*plan(method)), carry_out(*plan(method, "--train-views", "3"))
    assert plain.name != views.name
    assert plain.conditions["training_key"] != views.conditions["training_key"]
    if method == "maple":
        assert plain.losses == views.losses and plain.metrics == views.metrics
    for one, other in zip(plain.losses, views.losses, strict=True):
        assert one["ce"] == pytest.approx(other["ce"], rel=1e-5)
    assert plain.metrics.keys() == views.metrics.keys()
    for name in plain.metrics:
        assert plain.metrics[name] == pytest.approx(views.metrics[name], abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "maple"])
def test_epochs_take_the_views_in_turn(method: str, plan: Any) -> None:
    """Epoch 2 of two views sees the images of epoch 0, in an order of its own."""
    session, run = plan(method, "--train-views", "2")
    recipe, built, train = training(session, run)
    assert kept_for_training(recipe, built, train) == (method == "coop")

    def epoch(number: int, views: int) -> torch.Tensor:
        batches: Any = batches_of(replace(recipe, train_views=views), built, train, seed=1)
        batches.sampler.set_epoch(number)
        seen = torch.cat([i.features.cls if i.features else i.pixels.flatten(1) for i, _ in batches])
        order = torch.tensor(batches.sampler.permutation())[: len(seen)]
        return torch.zeros(len(train.items), seen.shape[1]).index_copy(0, order, seen)

    first, second, third = (epoch(number, 2) for number in range(3))
    kept = (first != 0).any(dim=1) & (third != 0).any(dim=1)  # an incomplete last batch is dropped
    assert kept.sum() > 4
    assert torch.equal(first[kept], third[kept]) and not torch.equal(first, second)
    assert torch.allclose(epoch(2, 3)[kept], epoch(2, 9)[kept], atol=1e-6)


@pytest.mark.parametrize("label", ["promptsrc", pytest.param("mutual", marks=pytest.mark.slow)])
@pytest.mark.parametrize("words", [(), ("--train-views", "2"), ("--set", "{}.augment=false")])
def test_what_a_frozen_tower_says_comes_with_the_pixels_where_views_are_known(
    label: str, words: tuple[str, ...], plan: Any
) -> None:
    """It is what the tower says of these very pixels, in every epoch; of new views in every epoch it is not kept."""
    session, run = plan(label, *(word.format(label) for word in words))
    recipe, method, train = training(session, run)
    batches: Any = batches_of(recipe, method, train, seed=1)
    for epoch in range(3):
        batches.sampler.set_epoch(epoch)
        for images, _ in batches:
            assert (images.features is not None) == bool(words)
            if images.features is not None:
                expected = session.backbone.encode_image(images.pixels).cls
                torch.testing.assert_close(session.backbone.encode_image(images).cls, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("label", ["promptsrc", pytest.param("mutual", marks=pytest.mark.slow)])
def test_a_step_is_the_same_with_and_without_what_the_frozen_tower_said(label: str, plan: Any) -> None:
    session, run = plan(label, "--set", f"{label}.augment=false")
    recipe, method, train = training(session, run)
    images, labels = next(iter(batches_of(recipe, method, train, seed=1)))
    with torch.no_grad():
        for parameter in method.parameters():  # some gradients vanish at first
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.02)
    found = []
    for given in (images, replace(images, features=None)):
        terms = backward(method, given, labels)
        found.append((terms, [parameter.grad.clone() for parameter in method.parameters()]))
    (terms, gradients), (terms_alone, gradients_alone) = found
    torch.testing.assert_close(terms, terms_alone, rtol=1e-4, atol=1e-6)
    for one, other in zip(gradients, gradients_alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("label", ["promptsrc", "mutual"])
def test_of_known_views_the_frozen_tower_sees_each_image_once(
    label: str, plan: Any, carry_out: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In three epochs, and in the evaluations: Mutual-R's first pass scores test images, PromptSRC's teacher none."""
    session, run = plan(label, "--set", f"{label}.augment=false", f"{label}.epochs=3")
    monkeypatch.setattr(features, "cache_dir", lambda: Path(session.output))
    seen = 0
    encode = image_tower.encode

    def counting(visual: Any, images: torch.Tensor, prompts: Any, deep: Any, layer: Any, *rest: Any) -> Any:
        nonlocal seen
        seen += len(images) if prompts is None and layer is None else 0
        return encode(visual, images, prompts, deep, layer, *rest)

    monkeypatch.setattr(image_tower, "encode", counting)
    carry_out(session, run)
    pools = [open_selection(session.dataset, run.plan.train, run.spec.data_seed).pool]
    if label == "mutual":
        seen -= sum(min(100, len(e.items)) for e in evaluated(session, run))  # its diagnostics read pixels
        pools.append(evaluated(session, run)[0].pool)
    assert seen == sum(map(len, pools))


def evaluated(session: Session, run: Run) -> list[SelectedImages]:
    """The images of each evaluation."""
    return [open_selection(session.dataset, e.selection, run.spec.data_seed) for e in run.plan.evaluations]


@pytest.mark.slow
def test_views_are_encoded_once_for_all_methods_and_epochs(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "cache_dir", lambda: Path(session.output))
    session, run = plan("coop", "--train-views", "2")
    count = 0
    encode = type(session.backbone).encode_image

    def counting(self: Any, images: Any, *rest: Any, **named: Any) -> Any:
        nonlocal count
        count += 0 if getattr(images, "features", None) is not None else len(images)
        return encode(self, images, *rest, **named)

    monkeypatch.setattr(type(session.backbone), "encode_image", counting)
    recipe, method, train = training(session, run)
    for _ in range(3):
        list(batches_of(recipe, method, train, seed=1))
    assert count == 2 * len(train.items)
    other, conditional, _ = training(*plan("cocoop", "--train-views", "2"))
    list(batches_of(other, conditional, train, seed=1))
    assert count == 2 * len(train.items)
    list(batches_of(recipe, method, train, seed=2))
    assert count == 4 * len(train.items)


def test_a_view_does_not_depend_on_how_many_there_are(plan: Any) -> None:
    session, run = plan("coop")
    _, _, train = training(session, run)
    few, many = (
        features.encode(session.backbone, train.dataset, train.items, features.Kept(views=views, seed=1)).cls
        for views in (2, 3)
    )
    assert torch.equal(few, many[: len(few)]) and len(many) == 3 * len(train.items)


# Kept features of views -----------------------------------------------------------------------------------------------


def test_views_are_kept_by_all_that_decides_them(plan: Any) -> None:
    session, run = plan("coop")
    _, _, train = training(session, run)

    def key(**what: Any) -> str:
        return features.key(session.backbone, train.dataset, train.items, kept=features.Kept(**what))

    assert key() == key(seed=3) == key(scale=(0.5, 1.0))  # without views nothing is drawn
    drawn = [key(), key(views=2), key(views=3), key(views=2, seed=1), key(views=2, scale=(0.5, 1.0))]
    drawn += [key(views=2, scale=(0.08, 0.9)), key(views=2, dense=True), key(views=2, dense=True, half=True)]
    assert len(set(drawn)) == len(drawn)
    assert key(views=2) == key(views=2, scale=(0.08, 1.0))  # the default
    (first, *_), rest = train.items, train.items[1:]
    renamed = [replace_image(first), *rest]
    same = features.Kept(views=2)
    assert features.key(session.backbone, Still(train.dataset), renamed, kept=same) != features.key(
        session.backbone, Still(train.dataset), train.items, kept=same
    )


class Still:
    """A dataset whose images are the same whatever they are called."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def identity(self, item: Any) -> str:
        return "the same"


def replace_image(item: Any) -> Any:
    """The item under another name, by which its views are drawn."""
    return item._replace(image=f"{item.image}-renamed")


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
def test_training_sees_the_crops_that_its_recipe_says(scale: tuple[float, float], plan: Any) -> None:
    session, run = plan("coop", "--train-views", "2", "--set", f"coop.crop_scale={scale[0]},{scale[1]}")
    recipe, method, train = training(session, run)
    assert recipe.crop_scale == scale
    kept = batches_of(recipe, method, train, seed=1)
    assert isinstance(kept, FeatureBatches)
    items, drawn = train.items, {"batch": features.BATCH, "seed": 1, "views": 2}
    views = view_batches(session.backbone, train.dataset, items, scale=scale, **drawn)
    encoded = torch.cat([session.backbone.encode_image(images).cls for images, _ in views])
    assert torch.equal(kept.features.cls, encoded)
    other = view_batches(session.backbone, train.dataset, items, scale=(0.3, 0.4), **drawn)
    assert not torch.equal(next(iter(other))[0].pixels, next(iter(views))[0].pixels)
    first, labels = next(iter(batches_of(replace(recipe, train_views=0), method, train, seed=1)))
    order = EpochOrder(len(items), 1).permutation()[: recipe.batch]
    assert torch.equal(first.pixels, torch.cat([images.pixels for images, _ in views])[order])
    assert labels.tolist() == [train.labels[index] for index in order]


@pytest.mark.parametrize("method", ["coop", "maple"])
def test_views_are_shown_one_after_another(method: str, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "EVALUATION_BATCH", 3)
    monkeypatch.setattr(features, "FEATURE_BATCH", 3)
    session, run = plan(method)
    _, built, train = training(session, run)
    drawn: dict[str, Any] = {"seed": 7, "views": 3, "scale": (0.5, 1.0)}
    shown = list(features.shown_views(built, train, **drawn))
    count = len(train.items)
    sizes = [len(labels) for _, labels in shown]
    assert sizes == [*[3] * (count // 3), *([count % 3] if count % 3 else [])] * 3  # no batch has two views of an image
    assert torch.cat([labels for _, labels in shown]).tolist() == list(train.labels) * 3
    views = view_batches(session.backbone, train.dataset, train.items, batch=features.BATCH, **drawn)
    if method == "maple":
        assert all(images.features is None for images, _ in shown)
        pixels = torch.cat([images.pixels for images, _ in views])
        assert torch.equal(torch.cat([images.pixels for images, _ in shown]), pixels)
        return
    encoded = torch.cat([session.backbone.encode_image(images).cls for images, _ in views])
    assert torch.equal(torch.cat([images.features.cls for images, _ in shown]), encoded)
    assert torch.equal(
        encoded[:count], features.encode(session.backbone, train.dataset, train.items, first_of(drawn)).cls
    )


def first_of(drawn: Mapping[str, Any]) -> features.Kept:
    """The first of the views alone."""
    return features.Kept(**{**drawn, "views": 1})


def test_a_method_is_shown_the_views_that_it_asks_for(plan: Any) -> None:
    session, run = plan("coop")
    _, built, train = training(session, run)
    (images, _), *rest = shown_batches(built, train, seed=1)
    assert len(images) + sum(len(labels) for _, labels in rest) == len(train.items)
    built.shown_views = 4
    many = list(shown_batches(built, train, seed=1))
    assert sum(len(labels) for _, labels in many) == 4 * len(train.items)
    assert not torch.equal(many[0][0].features.cls, images.features.cls)


@pytest.mark.slow
def test_tables_tell_recipes_with_views_apart(plan: Any, carry_out: Callable[..., Result]) -> None:
    results = [carry_out(*plan("coop", *words)) for words in ((), ("--train-views", "2"), ("--train-views", "1"))]
    assert {row.apart for row in rows(results)} == {"train_views=none", "train_views=1", "train_views=2"}
    assert cache.entries()


def test_loader_processes_only_where_they_pay(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    """None for images in memory, few or small; at most the cores that training leaves."""
    from promptbench.data import batches as loading
    from promptbench.data.dataset import open_dataset

    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    files, memory = open_dataset("dtd"), open_dataset("mini_diagrams")

    class Large:
        resolution = 224

    large: Any = Large()
    assert loading.workers(large, files, range(1000)) == 5
    assert loading.workers(large, files, range(31)) == 0
    assert loading.workers(large, memory, range(1000)) == 0
    assert tiny.resolution <= 64 and loading.workers(tiny, files, range(1000)) == 0
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert loading.workers(large, files, range(1000)) == loading.MAX_WORKERS
