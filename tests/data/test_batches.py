"""What an epoch shows: which images in which order, in how many batches, and which view of each."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import make_fake
import numpy as np
import pytest
import torch

import promptbench as pb
from promptbench.clip.image_tower import ImageFeatures
from promptbench.data.batches import EpochOrder, FeatureBatches, Views, training_batches
from promptbench.data.dataset import Dataset, open_dataset

SEED = 7


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("images") / "birds"
    make_fake.make_folder(folder)
    return open_dataset("folder", {"root": str(folder)})


def order(size: int, epoch: int, seed: int = SEED) -> list[int]:
    found: list[int] = np.random.default_rng([seed, epoch]).permutation(size).tolist()
    return found


def pixels(backbone: pb.Backbone, birds: Dataset, count: int, batch: int, **settings: Any) -> Any:
    settings = {"seed": SEED, "augment": False, **settings}
    return training_batches(backbone, birds, birds.items("train")[:count], batch=batch, **settings)


def features(count: int, batch: int, views: int = 1) -> FeatureBatches:
    """Features that say which image (tens) and which view (ones) they are of; the labels are the images."""
    made = [torch.arange(count) * 10.0 + view for view in range(views)]
    return FeatureBatches(ImageFeatures(torch.cat(made)[:, None]), range(count), batch, EpochOrder(count, SEED))


def test_an_order_is_drawn_from_seed_and_epoch_alone() -> None:
    drawn = EpochOrder(9, SEED)
    for epoch in (0, 3, 1):
        drawn.set_epoch(epoch)
        assert list(drawn) == [(index, epoch) for index in order(9, epoch)]
    drawn.begin_at(2)
    assert drawn.permutation() == order(9, 2)
    drawn.set_epoch(1)
    assert drawn.permutation() == order(9, 3)
    assert len({tuple(order(9, epoch)) for epoch in range(4)}) == 4
    assert EpochOrder(9, SEED + 1).permutation() == order(9, 0, SEED + 1) != order(9, 0)


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4]), (8, [4, 4]), (7, [4]), (4, [4]), (3, [3])])
def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(
    count: int, sizes: list[int], tiny: pb.Backbone, birds: Dataset
) -> None:
    for batches in (pixels(tiny, birds, count, batch=4), features(count, batch=4)):
        assert [len(labels) for _, labels in batches] == sizes and len(batches) == len(sizes)


def test_pixels_come_in_the_order_of_their_epoch_with_their_labels(tiny: pb.Backbone, birds: Dataset) -> None:
    items, plain = birds.items("train")[:9], Views(tiny, birds, birds.items("train"), keep=0, augment_seed=None)
    batches, before = pixels(tiny, birds, 9, batch=4), torch.get_rng_state()
    for epoch in (0, 1):
        batches.sampler.set_epoch(epoch)
        shown = order(9, epoch)[:8]
        images, labels = zip(*batches, strict=True)
        assert torch.cat(labels).tolist() == [items[index].label for index in shown]
        assert torch.equal(torch.cat([batch.pixels for batch in images]), torch.stack([plain[i][0] for i in shown]))
    assert torch.equal(torch.get_rng_state(), before)  # a method's loss draws from it


def test_kept_features_come_in_the_order_of_their_epoch_with_their_labels() -> None:
    batches = features(9, batch=4, views=2)
    for epoch in (0, 1, 2, 3):
        batches.sampler.set_epoch(epoch)
        shown = order(9, epoch)[:8]
        images, labels = zip(*batches, strict=True)
        assert torch.cat(labels).tolist() == shown
        expected = [10.0 * index + epoch % 2 for index in shown]
        assert torch.cat([batch.features.cls for batch in images]).flatten().tolist() == expected


def test_epochs_see_other_views_or_a_number_of_them_in_turn(tiny: pb.Backbone, birds: Dataset) -> None:
    def view(views: int, epoch: int, seed: int | None = SEED) -> torch.Tensor:
        return Views(tiny, birds, birds.items("train"), keep=0, augment_seed=seed, views=views)[0, epoch][0]

    whole = [view(0, epoch) for epoch in range(4)]
    assert not any(torch.equal(one, other) for one, other in combinations(whole, 2))
    for epoch in range(4):
        assert torch.equal(view(2, epoch), whole[epoch % 2])
        assert torch.equal(view(0, epoch, seed=None), view(0, 0, seed=None))
    assert not torch.equal(view(0, 0, seed=SEED + 1), whole[0])
