"""Our methods equal the plain forward passes of `reference.py` at settings and weights without stored numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from short_cases import slow_but
from torch import Tensor, nn

import promptbench as pb
from promptbench.config import UsageError

SEEDS = {
    11: {},
    # other sizes: widths, numbers of layers and heads, patches
    12: {"embed_dim": 48, "text_width": 128, "text_layers": 5, "vision_width": 192, "vision_layers": 6, "patch": 16},
}
LOGITS, GRADIENT = 1e-4, 1e-4
COOP = [
    {"n_ctx": n, "ctx_init": "", "class_token_position": position, "csc": csc}
    for n in (1, 2, 4, 16)
    for position in ("end", "middle", "front")
    for csc in (False, True)
] + [{"ctx_init": words} for words in ("a photo of a", "this is a_picture showing one", "photo")]
MAPLE = [{"n_ctx": n, "depth": depth, "ctx_init": ""} for n in (1, 2, 4, 16) for depth in (1, 2, 4)] + [
    {"n_ctx": n, "depth": depth, "ctx_init": "a photo of a"} for n in (1, 2, 4) for depth in (1, 3)
]
IVLP = [
    {"n_ctx_text": n, "n_ctx_vision": m, "depth_text": text, "depth_vision": vision, "ctx_init": words}
    for n, m, text, vision, words in (
        (2, 2, 4, 4, "a photo of a"),
        (4, 1, 1, 3, "a photo of a"),
        (1, 3, 3, 1, "a photo of a"),
        (4, 4, 2, 2, ""),
        (6, 2, 3, 4, ""),
    )
]
COCOOP = [{"ctx_init": words} for words in ("a photo of a", "this is a_picture showing one", "photo")] + [
    {"n_ctx": n, "ctx_init": ""} for n in (1, 4, 16)
]
GALLOP = [
    {"n_global": 1, "n_local": 1, "topk": (3,)},
    {"n_global": 1, "n_local": 4, "topk": (1, 2, 3, 4), "learn_local_proj": False},
    {"n_global": 3, "n_local": 2, "topk": (99, 2), "template": "a_photo of."},
    {"n_global": 2, "n_local": 3, "topk": (2,), "template": "{} texture"},
    {"n_global": 4, "n_local": 4, "topk": (5, 10, 15, 20)},
]
BUDGETS = {"images apart": 4_000_000, "classes apart": 600_000}
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module", params=slow_but(SEEDS, 11), ids=lambda seed: f"weights{seed}")
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def clip(seed: int, golden_recipe: ModuleType) -> nn.Module:
    return golden_recipe.build_clip(seed, **SEEDS[seed])


@pytest.fixture(scope="module")
def images(seed: int, golden_recipe: ModuleType) -> Tensor:
    return golden_recipe.build_images(seed, count=3)


def set_learned(method: pb.Method, seed: int) -> None:
    """Seeded noise on every learned tensor, so that no gradient is zero by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            spread = 0.1 if parameter.shape[-1] == method.backbone.text_width and parameter.dim() > 1 else 0.02
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))


def compare(
    method: pb.Method, names: Sequence[str], images: Tensor, plain: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Logits for `names`, and every gradient of the cross-entropy, of the method and of `plain(learned tensors)`."""
    labels = torch.arange(len(images)) % len(names)
    ours = pb.official_parameters(method)
    theirs = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.items()}
    logits = method(images).logits
    expected = plain(theirs)["logits"]
    torch.testing.assert_close(logits, expected, atol=LOGITS, rtol=0)
    method.zero_grad()
    sum(method.loss(images, labels).values()).backward()  # type: ignore[union-attr]
    F.cross_entropy(expected, labels).backward()
    largest: dict[str, float] = {}
    for name, tensor in theirs.items():
        assert tensor.grad is not None and tensor.grad.any(), name
        largest[name] = tensor.grad.abs().max().item()
    for name, tensor in theirs.items():
        # The few entries of a bias may cancel, here and in the plain pass alike: those of its weight set the scale.
        scale = max(largest[name], largest.get(re.sub(r"\.bias$", ".weight", name), 0.0))
        torch.testing.assert_close(ours[name].grad, tensor.grad, atol=GRADIENT * scale, rtol=0)


@pytest.mark.parametrize(
    "config", slow_but(COOP, COOP[0], COOP[-1]), ids=lambda c: "-".join(str(v).replace(" ", "_") for v in c.values())
)
def test_coop_equals_the_plain_forward(
    config: dict[str, Any],
    seed: int,
    clip: nn.Module,
    images: Tensor,
    golden_recipe: ModuleType,
    reference: ModuleType,
) -> None:
    backbone = pb.Backbone(clip, tokenizer=golden_recipe.tokenizer())
    names = golden_recipe.CLASS_NAMES[:8:2] if config.get("csc") else golden_recipe.CLASS_NAMES
    method = pb.create_method("coop", backbone, names, **config)
    set_learned(method, seed)
    position = config.get("class_token_position", "end")
    words = config["ctx_init"].replace("_", " ")

    def plain(names: Sequence[str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda learned: reference.coop(
            clip.state_dict(), images, names, learned["ctx"], words=words, position=position
        )

    compare(method, names, images, plain(names))
    if not config.get("csc"):
        method.set_classes(golden_recipe.NEW_CLASS_NAMES)
        compare(method, golden_recipe.NEW_CLASS_NAMES, images, plain(golden_recipe.NEW_CLASS_NAMES))


@pytest.mark.parametrize(
    "config", slow_but(MAPLE, MAPLE[0], MAPLE[-1]), ids=lambda c: "-".join(str(v).replace(" ", "_") for v in c.values())
)
def test_maple_equals_the_plain_forward(
    config: dict[str, Any],
    seed: int,
    clip: nn.Module,
    images: Tensor,
    golden_recipe: ModuleType,
    reference: ModuleType,
) -> None:
    backbone = pb.Backbone(clip, tokenizer=golden_recipe.tokenizer())
    names = golden_recipe.CLASS_NAMES
    method = pb.create_method("maple", backbone, names, **config)
    set_learned(method, seed)
    compare(
        method,
        names,
        images,
        lambda learned: reference.maple(clip.state_dict(), images, names, learned, words=config["ctx_init"]),
    )


@pytest.mark.parametrize(
    "config", slow_but(IVLP, IVLP[0], IVLP[-1]), ids=lambda c: "-".join(str(v).replace(" ", "_") for v in c.values())
)
def test_ivlp_equals_the_plain_forward(
    config: dict[str, Any],
    seed: int,
    clip: nn.Module,
    images: Tensor,
    golden_recipe: ModuleType,
    reference: ModuleType,
) -> None:
    names = golden_recipe.CLASS_NAMES
    method = pb.create_method("ivlp", pb.Backbone(clip, tokenizer=golden_recipe.tokenizer()), names, **config)
    set_learned(method, seed)

    def plain(learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        deep = "{}_encoder.transformer.resblocks.{}.VPT_shallow"
        text = [learned["prompt_learner.ctx"]]
        text += [learned[deep.format("text", i)] for i in range(1, config["depth_text"])]
        visual = [learned["image_encoder.VPT"]]
        visual += [learned[deep.format("image", i)] for i in range(1, config["depth_vision"])]
        return reference.prompted(clip.state_dict(), images, names, words=config["ctx_init"], text=text, visual=visual)

    compare(method, names, images, plain)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_vpt_equals_the_plain_forward(
    depth: int, seed: int, clip: nn.Module, images: Tensor, golden_recipe: ModuleType, reference: ModuleType
) -> None:
    names = golden_recipe.CLASS_NAMES
    backbone = pb.Backbone(clip, tokenizer=golden_recipe.tokenizer())
    method = pb.create_method("vpt", backbone, names, n_ctx=3, depth=depth)
    set_learned(method, seed)

    def plain(learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        deep = [learned[f"image_encoder.transformer.resblocks.{i}.VPT_shallow"] for i in range(1, depth)]
        return reference.vpt(clip.state_dict(), images, names, [learned["image_encoder.VPT"], *deep])

    compare(method, names, images, plain)


@pytest.mark.parametrize(
    "config",
    slow_but(COCOOP, COCOOP[0], COCOOP[-1]),
    ids=lambda c: "-".join(str(v).replace(" ", "_") for v in c.values()),
)
def test_cocoop_equals_the_plain_forward(
    config: dict[str, Any],
    seed: int,
    clip: nn.Module,
    images: Tensor,
    golden_recipe: ModuleType,
    reference: ModuleType,
) -> None:
    backbone = pb.Backbone(clip, tokenizer=golden_recipe.tokenizer())
    method = pb.create_method("cocoop", backbone, golden_recipe.CLASS_NAMES, **config)
    set_learned(method, seed)
    words = config["ctx_init"].replace("_", " ")
    for names in (golden_recipe.CLASS_NAMES, golden_recipe.NEW_CLASS_NAMES):
        method.set_classes(names)
        plain = partial(reference.cocoop, clip.state_dict(), images, names, words=words)
        compare(method, names, images, plain)


@pytest.mark.parametrize(
    "config", slow_but(GALLOP, GALLOP[0]), ids=lambda c: "-".join(str(v).replace(" ", "_") for v in c.values())
)
def test_gallop_equals_the_plain_forward(
    config: dict[str, Any],
    seed: int,
    clip: nn.Module,
    images: Tensor,
    golden_recipe: ModuleType,
    reference: ModuleType,
) -> None:
    backbone = pb.Backbone(clip, tokenizer=golden_recipe.tokenizer())
    method: Any = pb.create_method("gallop", backbone, golden_recipe.CLASS_NAMES, **config)
    set_learned(method, seed)
    ours = pb.official_parameters(method)
    for names in (golden_recipe.CLASS_NAMES, golden_recipe.NEW_CLASS_NAMES):
        method.set_classes(names)
        labels = torch.arange(len(images)) % len(names)
        for kept in (torch.arange(len(images) * 2).view(-1, 2) % config["n_global"], torch.zeros(3, 1).long()):
            theirs = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.items()}
            plain = reference.gallop(clip.state_dict(), images, names, theirs, config["topk"])
            prediction = method(images)
            torch.testing.assert_close(prediction.logits, plain["logits"], atol=LOGITS, rtol=0)
            torch.testing.assert_close(prediction.cosines, plain["global_logits"].mean(dim=-1), atol=1e-5, rtol=0)
            torch.testing.assert_close(prediction.local, plain["local_logits"].mean(dim=-1), atol=1e-5, rtol=0)
            method.zero_grad()
            loss = sum(method.loss(images, labels, kept).values())
            loss.backward()
            expected = reference.gallop_loss(clip.state_dict(), plain, labels, kept)
            expected.backward()
            torch.testing.assert_close(loss, expected, atol=2e-5, rtol=0)
            for name, tensor in theirs.items():
                largest = tensor.grad.abs().max().item()
                assert largest > 0, name
                torch.testing.assert_close(ours[name].grad, tensor.grad, atol=GRADIENT * largest, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("name", ["cocoop", "gallop"])
def test_the_memory_budget_changes_nothing(
    name: str, budget: int, golden_clip: nn.Module, golden_images: Tensor, golden_recipe: ModuleType
) -> None:
    def outcome(memory_budget: int) -> tuple[Tensor, list[Tensor]]:
        backbone = pb.Backbone(golden_clip, tokenizer=golden_recipe.tokenizer(), memory_budget=memory_budget)
        method = pb.create_method(name, backbone, golden_recipe.CLASS_NAMES)
        set_learned(method, 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # GalLoP's dropout
            sum(method.loss(golden_images, torch.arange(6)).values()).backward()  # type: ignore[union-attr]
        return method(golden_images).logits, [parameter.grad for parameter in method.parameters()]

    logits, gradients = outcome(2 * 2**30)
    chunked, chunked_gradients = outcome(budget)
    torch.testing.assert_close(chunked, logits, atol=LOGITS, rtol=0)
    for measured, expected in zip(chunked_gradients, gradients, strict=True):
        torch.testing.assert_close(measured, expected, atol=GRADIENT * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("cocoop", {"n_ctx": 3}, "n_ctx is 3, but ctx_init 'a photo of a' has 4 words"),
        ("gallop", {"topk": (5, 10)}, "'topk' has 2 numbers for 4 local prompts"),
        ("gallop", {"topk": (5, 0, 1, 2)}, "'topk' counts patches, at least 1, and has 0"),
        ("gallop", {"topk": ()}, "'topk' has 0 numbers"),
        ("gallop", {"n_global": 0}, "'n_global' takes an integer of at least 1"),
        ("gallop", {"dropout": 1.5}, "'dropout' is from 0 to 1"),
        ("gallop", {"dropout": float("nan")}, "'dropout'"),
        ("gallop", {"template": "{}."}, "without words"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    name: str, config: dict[str, Any], says: str, golden_backbone: pb.Backbone
) -> None:
    with pytest.raises(UsageError, match=says):
        pb.create_method(name, golden_backbone, ["cat", "dog"], **config)


def test_maple_with_more_than_four_tokens_ignores_the_words(golden_backbone: pb.Backbone) -> None:
    with_words = pb.create_method("maple", golden_backbone, ["cat", "dog"], n_ctx=5, depth=2, ctx_init="a photo of a")
    without = pb.create_method("maple", golden_backbone, ["cat", "dog"], n_ctx=5, depth=2, ctx_init="")
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(with_words(images).logits, without(images).logits)


@pytest.mark.parametrize("name", ["coop", "maple"])
def test_classes_with_a_common_beginning_or_alone(
    name: str, golden_clip: nn.Module, golden_images: Tensor, golden_recipe: ModuleType, reference: ModuleType
) -> None:
    backbone = pb.Backbone(golden_clip, tokenizer=golden_recipe.tokenizer())
    method = pb.create_method(
        name, backbone, ["cat"], ctx_init="a photo of a", **({"n_ctx": 2} if name == "maple" else {})
    )
    set_learned(method, 3)
    for names in (["tiger cat", "tiger shark"], ["tiger", "tiger cat", "tiger cat food"], ["pizza"]):
        method.set_classes(names)
        learned = {key: parameter.detach() for key, parameter in pb.official_parameters(method).items()}
        if name == "coop":
            learned_ctx = learned["ctx"]
            plain = reference.coop(golden_clip.state_dict(), golden_images, names, learned_ctx, words="a photo of a")
        else:
            plain = reference.maple(golden_clip.state_dict(), golden_images, names, learned, words="a photo of a")
        torch.testing.assert_close(method(golden_images).logits, plain["logits"], atol=LOGITS, rtol=0)
