"""PromptSRC computes what its authors' code computes, written out plainly: losses, gradients, steps, the average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import golden_clip as recipe
import golden_reference as reference
import open_clip
import pytest
import torch
from promptbench.methods.promptsrc import IMAGENET_TEMPLATES, PromptSRC, epoch_weights
from short_cases import slow_but
from torch import Tensor
from torch.utils.data import DataLoader

import promptbench as pb
from promptbench.config import UsageError
from promptbench.data.class_names import ClassNames
from promptbench.recipe import Recipe, resolve
from promptbench.training.fit import fit

LABELS = torch.tensor([2, 0, 4])
LOSS, LOGITS, GRADIENT, DELTA = 2e-5, 1e-4, 1e-4, 1e-3  # the last two of the largest entry
CONFIGS: dict[str, dict[str, Any]] = {
    "as_published": {"depth_text": 3, "depth_vision": 3},
    "shallow": {"depth_text": 1, "depth_vision": 1},
    "uneven": {"n_ctx_text": 2, "n_ctx_vision": 3, "depth_text": 4, "depth_vision": 2},
    "random": {"n_ctx_text": 5, "depth_text": 2, "depth_vision": 4, "text_weight": 3.0, "image_weight": 0.5},
}
DEEP = "{}_encoder.transformer.resblocks.{}.VPT_shallow"


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    return recipe.build_clip(21)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return recipe.build_images(21, count=len(LABELS))


@pytest.fixture
def backbone(clip: torch.nn.Module) -> pb.Backbone:
    return pb.Backbone(clip, tokenizer=recipe.tokenizer())


def make(backbone: pb.Backbone, names: Sequence[str] = recipe.CLASS_NAMES, **config: object) -> Any:
    """PromptSRC with noise on its prompts, so that no gradient vanishes by symmetry."""
    method = pb.create_method("promptsrc", backbone, names, **config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


class Plain:
    """The authors' computation, tensor by tensor, with the frozen features from the plain towers."""

    def __init__(self, clip: torch.nn.Module, images: Tensor, names: Sequence[str], config: Any) -> None:
        self.weights, self.images, self.names, self.config = clip.state_dict(), images, names, config
        kept = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:60]]
        texts = [reference.template_features(self.weights, names, template) for template in kept]
        self.frozen_text = normal(sum(texts) / 60)
        self.frozen_image = normal(reference.encode_image(self.weights, images))

    def forward(self, learned: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        text = [learned[DEEP.format("text", i)] for i in range(1, config.depth_text)]
        visual = [learned[DEEP.format("image", i)] for i in range(1, config.depth_vision)]
        return reference.prompted(
            self.weights,
            self.images,
            self.names,
            words="a photo of a" if config.n_ctx_text <= 4 else "",
            text=[learned["prompt_learner.ctx"], *text],
            visual=[learned["image_encoder.VPT"], *visual],
        )

    def losses(self, learned: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        out, scale = self.forward(learned), self.weights["logit_scale"].exp()
        q = out["logits"].softmax(dim=1)
        frozen = (scale * self.frozen_image @ self.frozen_text.T).softmax(dim=1)
        B, K = q.shape
        return {
            "ce": sum(-q[b, label].log() for b, label in enumerate(labels)) / B,
            "text": self.config.text_weight * (out["text_features"] - self.frozen_text).abs().sum() / (K * 32),
            "image": self.config.image_weight * (out["image_features"] - self.frozen_image).abs().sum() / (B * 32),
            "logits": (frozen * (frozen.log() - q.log())).sum() / (B * K),
        }


def normal(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def copies(method: pb.Method) -> dict[str, Tensor]:
    official = pb.official_parameters(method).items()
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in official}


# Equal to the plain computation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", slow_but(CONFIGS.values(), CONFIGS["as_published"]), ids=CONFIGS)
def test_logits_losses_and_gradients(
    config: dict[str, Any], clip: torch.nn.Module, images: Tensor, backbone: pb.Backbone
) -> None:
    method = make(backbone, **config)
    plain = Plain(clip, images, recipe.CLASS_NAMES, method.config)
    theirs = copies(method)
    torch.testing.assert_close(method(images).logits, plain.forward(theirs)["logits"], atol=LOGITS, rtol=0)
    ours, expected = method.loss(images, LABELS), plain.losses(theirs, LABELS)
    assert list(ours) == ["ce", "text", "image", "logits"]
    for name, term in expected.items():
        torch.testing.assert_close(ours[name], term, atol=LOSS, rtol=0)
    torch.stack(list(ours.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    for name, parameter in pb.official_parameters(method).items():
        limit = GRADIENT * theirs[name].grad.abs().max().item()
        assert limit > 0
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=limit, rtol=0)


@pytest.mark.slow
def test_other_classes_get_another_teacher(clip: torch.nn.Module, images: Tensor, backbone: pb.Backbone) -> None:
    method = make(backbone, depth_text=2, depth_vision=2)
    method.loss(images, LABELS)
    method.set_classes(recipe.NEW_CLASS_NAMES)
    plain = Plain(clip, images, recipe.NEW_CLASS_NAMES, method.config)
    expected = plain.losses(copies(method), LABELS)
    for name, term in method.loss(images, LABELS).items():
        torch.testing.assert_close(term, expected[name], atol=LOSS, rtol=0)
    method.set_classes(recipe.CLASS_NAMES[:3])
    assert method.frozen_text().shape == (3, 32)


@pytest.mark.slow
def test_three_epochs_of_training_end_in_their_average(
    clip: torch.nn.Module, images: Tensor, backbone: pb.Backbone
) -> None:
    method = make(backbone, depth_text=2, depth_vision=3, epoch_mean=1.5, epoch_std=0.8)
    plain = Plain(clip, images, recipe.CLASS_NAMES, method.config)
    before, learned = copies(method), copies(method)
    momenta = {name: torch.zeros_like(tensor) for name, tensor in learned.items()}
    weights = [math.exp(-0.5 * ((epoch - 1.5) / 0.8) ** 2) for epoch in (1, 2, 3)]
    average = {name: torch.zeros_like(tensor) for name, tensor in learned.items()}
    for rate, weight in zip((1e-5, 0.0025, 0.0025 * (1 + math.cos(math.pi / 3)) / 2), weights, strict=True):
        loss = torch.stack(list(plain.losses(learned, LABELS).values())).sum()
        found = torch.autograd.grad(loss, list(learned.values()))
        with torch.no_grad():
            for (name, tensor), gradient in zip(learned.items(), found, strict=True):
                momenta[name] = 0.9 * momenta[name] + gradient + 5e-4 * tensor
                tensor -= rate * momenta[name]
                average[name] += weight / sum(weights) * tensor
    settings = Recipe(epochs=3, lr=0.0025, batch=3, origin="ours")
    fit(method, settings, DataLoader([(pb.Images(images), LABELS)], batch_size=None), 1, seed=0)
    for name, parameter in pb.official_parameters(method).items():
        moved = (average[name] - before[name]).abs().max().item()
        torch.testing.assert_close(parameter.detach(), average[name], atol=DELTA * moved, rtol=0)
        assert (average[name] - learned[name]).abs().max() > 0.1 * moved  # the average is not the last step


def test_the_average_waits_for_the_last_epoch(backbone: pb.Backbone) -> None:
    method = make(backbone, depth_text=2, depth_vision=2)
    first = method.ctx.detach().clone()
    for epoch in range(4):
        with torch.no_grad():
            method.ctx.fill_(float(epoch))
            method.on_epoch_end(epoch, 4)
        assert epoch == 3 or torch.equal(method.ctx, torch.full_like(first, float(epoch)))
    odds = [math.exp(-0.5 * (epoch - 15) ** 2) for epoch in (1, 2, 3, 4)]
    expected = sum(value * odd for value, odd in zip(range(4), odds, strict=True)) / sum(odds)
    torch.testing.assert_close(method.ctx, torch.full_like(first, expected))
    assert "_average" not in str(method.state_dict().keys())


# Facts of the authors' code ------------------------------------------------------------------------------------------


def test_the_teacher_reads_the_first_sixty_of_openai_s_templates() -> None:
    openai = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert IMAGENET_TEMPLATES[0] == "a photo of a {}." and len(IMAGENET_TEMPLATES) == 60
    assert list(IMAGENET_TEMPLATES[1:]) == [text for text in openai[:60] if text != "a photo of a {}."]


def test_epochs_are_weighted_by_a_gaussian_with_sum_one() -> None:
    weights = epoch_weights(20, 15.0, 1.0)
    assert weights[14] == max(weights) == pytest.approx(0.3989423, abs=1e-6)  # 1 / sqrt(2 pi), all mass inside
    assert weights[13] == pytest.approx(weights[15]) == pytest.approx(0.2419707, abs=1e-6)
    assert sum(weights) == pytest.approx(1) and len(weights) == 20
    few_shot = epoch_weights(50, 30.0, 30.0)
    assert few_shot[0] / few_shot[29] == pytest.approx(math.exp(-0.5 * (29 / 30) ** 2))
    assert epoch_weights(1, 1000.0, 1.0) == [1.0]  # where exp() is 0


@pytest.mark.parametrize(
    ("protocol", "dataset", "epochs", "depth", "mean", "std", "origin"),
    [
        ("base2new", "imagenet", 20, 9, 15, 1, "authors"),
        ("cross_dataset", "imagenet", 20, 3, 6, 10, "authors"),
        ("domain_generalization", "imagenet", 20, 3, 6, 10, "authors"),
        ("ood", "imagenet", 20, 3, 6, 10, "transferred"),
        *(
            ("few_shot", dataset, 50, 9, 30, 30, "authors")
            for dataset in ("imagenet", "caltech101", "oxford_pets", "food101", "ucf101", "sun397")
        ),
        *(
            ("few_shot", dataset, 50, 9, 45, 5, "authors")
            for dataset in ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
        ),
        ("few_shot", "mini_diagrams", 50, 9, 30, 30, "transferred"),
        ("somebody_elses", "imagenet", 20, 9, 15, 1, "transferred"),
    ],
)
def test_settings_are_the_authors(
    protocol: str, dataset: str, epochs: int, depth: int, mean: float, std: float, origin: str
) -> None:
    config, recipe, *_ = resolve(PromptSRC, "promptsrc", protocol=protocol, dataset=dataset)
    assert recipe is not None
    assert (recipe.epochs, recipe.lr, recipe.batch, recipe.origin) == (epochs, 0.0025, 4, origin)
    assert (config.depth_text, config.depth_vision) == (depth, depth)
    assert (config.epoch_mean, config.epoch_std) == (mean, std)
    assert (config.n_ctx_text, config.n_ctx_vision, config.ctx_init) == (4, 4, "a photo of a")
    assert (config.text_weight, config.image_weight, config.teacher) == (25, 10, "imagenet")


# Settings and checkpoints --------------------------------------------------------------------------------------------


def test_the_teacher_may_read_the_dataset_s_templates(images: Tensor, backbone: pb.Backbone) -> None:
    names = ClassNames(recipe.CLASS_NAMES, template=("{} texture.", "a photo of {}."))
    method = make(backbone, names, teacher="dataset", depth_text=1, depth_vision=1)
    both = [reference.template_features(backbone.clip.state_dict(), names, template) for template in names.template]
    torch.testing.assert_close(method.frozen_text(), sum(both) / 2, atol=1e-5, rtol=0)
    one = make(backbone, ClassNames(names, template="{} texture."), teacher="dataset", depth_text=1, depth_vision=1)
    torch.testing.assert_close(one.frozen_text(), both[0], atol=1e-5, rtol=0)
    assert (method.texts_told, one.texts_told) == ("ensemble", "dataset")
    assert make(backbone, names, depth_text=1, depth_vision=1).texts_told == "ensemble"  # ImageNet's


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_a_gaussian_needs_a_width(std: float, backbone: pb.Backbone) -> None:
    with pytest.raises(UsageError, match="'epoch_std' must be more than 0"):
        pb.create_method("promptsrc", backbone, ["cat", "dog"], epoch_std=std)


@pytest.mark.slow
def test_a_half_precision_checkpoint_loads(
    tmp_path: Path, clip: torch.nn.Module, images: Tensor, backbone: pb.Backbone
) -> None:
    config = CONFIGS["as_published"]
    trained = {name: tensor.detach().half() for name, tensor in copies(make(backbone, **config)).items()}
    towers = {name.removeprefix("visual."): tensor.half() for name, tensor in clip.visual.state_dict().items()}
    state = {
        **trained,
        "prompt_learner.token_prefix": torch.zeros(12, 1, 64).half(),
        "prompt_learner.token_suffix": torch.zeros(12, 72, 64).half(),
        **{f"prompt_learner.ZS_image_encoder.{name}": tensor for name, tensor in towers.items()},
        **{f"image_encoder.{name}": tensor for name, tensor in towers.items()},
        "text_encoder.positional_embedding": clip.positional_embedding.half(),
        "logit_scale": clip.logit_scale.half(),
    }
    folder = tmp_path / "seed1" / "VLPromptLearner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 20, "val_result": None}, folder / "model.pth.tar-20")
    (folder / "checkpoint").write_text("model.pth.tar-20\n")
    method = pb.create_method("promptsrc", backbone, recipe.CLASS_NAMES, **config)
    pb.load_official_checkpoint(method, tmp_path / "seed1")
    for name, parameter in pb.official_parameters(method).items():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, trained[name].float())
    plain = Plain(clip, images, recipe.CLASS_NAMES, method.config)
    expected = plain.forward({name: tensor.float() for name, tensor in trained.items()})["logits"]
    torch.testing.assert_close(method(images).logits, expected, atol=LOGITS, rtol=0)
