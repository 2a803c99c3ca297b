"""What controls put in the place of images and of learned prompts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import promptbench as pb
from promptbench.checks.plugin.kit import batch
from promptbench.clip.controls import noise_like, randomize


@pytest.fixture
def features() -> Tensor:
    return 3 + 2 * torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fresh", [True, False])
def test_noise_has_each_images_mean_and_deviation_and_nothing_else_of_it(features: Tensor, fresh: bool) -> None:
    noise = noise_like(features, fresh)
    assert torch.allclose(noise.mean(dim=-1), features.mean(dim=-1), atol=1e-5)
    assert torch.allclose(noise.std(dim=-1), features.std(dim=-1), atol=1e-5)
    alike = torch.corrcoef(torch.cat([features, noise]))[:5, 5:]
    assert alike.abs().max() < 0.5  # 4 standard deviations of a correlation over 64 dimensions


def test_noise_of_an_evaluation_is_an_images_own_whatever_stands_beside_it(features: Tensor) -> None:
    before = torch.get_rng_state()
    noise = noise_like(features, fresh=False)
    assert torch.equal(noise_like(features, fresh=False), noise)
    assert torch.allclose(noise_like(features[3:4] * (1 + 1e-6), fresh=False), noise[3:4], atol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    nearly = torch.stack([features[0], 0.9 * features[0] + 0.1 * features[1]])
    one, other = noise_like(nearly, fresh=False)
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.5  # images alike, noise not


def test_noise_of_a_training_is_drawn_anew(features: Tensor) -> None:
    assert not torch.allclose(noise_like(features, fresh=True), noise_like(features, fresh=True))


def test_random_prompts_keep_norms_and_share_no_direction_with_learned_or_first_ones() -> None:
    """Contexts that start at random are drawn by the same seed: what replaces them must not be what they began as."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first = torch.empty(4, 128).normal_(std=0.02)
    learned = first * torch.tensor([[1.0], [2.0], [0.0], [5.0]]) + torch.tensor([[0.0], [0.1], [0.0], [0.3]])
    prompts = {"ctx": nn.Parameter(learned.clone()), "deep": nn.Parameter(learned.clone())}
    randomize(prompts, seed=7)
    for prompt in prompts.values():
        assert torch.allclose(prompt.norm(dim=-1), learned.norm(dim=-1), rtol=1e-5)
        for other in (first, learned):
            cosines = torch.cosine_similarity(prompt, other, dim=-1)
            assert cosines.abs().max() < 0.4  # 4 standard deviations of a cosine in 128 dimensions
    assert not torch.allclose(prompts["ctx"], prompts["deep"])
    again = {"ctx": nn.Parameter(learned.clone())}
    randomize(again, seed=7)
    assert torch.equal(again["ctx"], prompts["ctx"])
    randomize(again, seed=8)
    assert not torch.allclose(again["ctx"], prompts["ctx"])


def test_a_method_of_the_noise_control_is_told_noise_and_is_otherwise_the_same(tiny: pb.Backbone) -> None:
    """In training another noise each time, in evaluation the same."""
    images = tiny.encode_image(batch(tiny)[0]).cls
    cocoop, noise = (pb.create_method(label, tiny, ["cat", "dog"], seed=3) for label in ("cocoop", "cocoop@noise"))
    assert cocoop.condition(images) is images
    told = noise.condition(images)
    assert torch.equal(told, noise.condition(images)) and not torch.allclose(told, images)
    noise.train()
    assert not torch.allclose(noise.condition(images), noise.condition(images))
    one, other = cocoop.state_dict(), noise.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
