"""Every registered method keeps the contract, and the kit that says so notices when one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from short_cases import slow_but
from torch import Tensor, nn

import promptbench as pb
from promptbench import registry
from promptbench.checks.plugin import kit
from promptbench.clip import prompts


@pytest.mark.parametrize("check", kit.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", slow_but(registry.names("methods"), "coop", "maple"))
def test_method_keeps_the_contract(name: str, check: kit.Check, tiny: pb.Backbone) -> None:
    assert not kit.run_check(check, registry.load("methods", name), tiny)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_the_number_of_parameters_is_known_without_importing(name: str) -> None:
    stated = registry.facts("methods", name).attributes.get("parameters_vit_b16", 0)
    assert stated == registry.load("methods", name).parameters_vit_b16


# The kit ------------------------------------------------------------------------------------------------------------


class Plain(pb.Method):
    """One learned word before the class name."""

    category = "text"
    frozen_image_tower = True
    parameters_vit_b16 = 2**9
    recipes = {("*", "*"): pb.Recipe(epochs=1, lr=0.002, batch=4, origin="ours")}

    @dataclass(frozen=True, kw_only=True)
    class Config(pb.MethodConfig):
        depth: int = field(default=1)

    def __init__(self, config: pb.MethodConfig, backbone: pb.Backbone) -> None:
        super().__init__(config, backbone)
        self.ctx = nn.Parameter(prompts.random_context(1, backbone.text_width))

    def set_classes(self, names: object) -> None:
        super().set_classes(names)  # type: ignore[arg-type]
        tokens = prompts.sentence_tokens(self.backbone, "X", self.class_names)
        self.start, self.tokens = tokens.embeddings[0, :1], tokens.after(2)

    def encode_classes(self) -> Tensor:
        prefix = prompts.join(self.start, self.ctx)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix)

    def forward(self, images: pb.Images | Tensor) -> pb.Prediction:
        return self.classify(self.backbone.encode_image(images).cls, self.text_features())


class Buffered(Plain):
    def __init__(self, config: pb.MethodConfig, backbone: pb.Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("ones", torch.ones(2))


class Keeping(Buffered):
    kept = ("ones",)


class Forgetful(Plain):
    kept = ("ones",)


class Unreached(Plain):
    def __init__(self, config: pb.MethodConfig, backbone: pb.Backbone) -> None:
        super().__init__(config, backbone)
        self.unused = nn.Parameter(torch.zeros(3))


class Unseeded(Plain):
    def __init__(self, config: pb.MethodConfig, backbone: pb.Backbone) -> None:
        super().__init__(config, backbone)
        generator = torch.Generator()
        generator.seed()
        self.ctx = nn.Parameter(torch.randn(1, backbone.text_width, generator=generator))


class Unscored(Plain):
    def loss(self, images: pb.Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(self(images).logits, labels, reduction="none")}


class Batched(Plain):
    def forward(self, images: pb.Images | Tensor) -> pb.Prediction:
        image = self.backbone.encode_image(images).cls
        return self.classify(image - image.mean(dim=0), self.text_features())


class Stale(Plain):
    def text_features(self) -> Tensor:
        if not hasattr(self, "kept") or torch.is_grad_enabled():
            self.kept = self.encode_classes()
        return self.kept


class NotFrozen(Plain):
    def __init__(self, config: pb.MethodConfig, backbone: pb.Backbone) -> None:
        super().__init__(config, backbone)
        self.visual = nn.Parameter(prompts.random_context(1, backbone.vision_width))

    def forward(self, images: pb.Images | Tensor) -> pb.Prediction:
        return self.classify(self.backbone.encode_image(images, self.visual).cls, self.text_features())


class Heavy(Plain):
    def loss(self, images: pb.Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            self.backbone.clip.logit_scale.add_(0.1)
        return super().loss(images, labels)


class Half(Plain):
    def forward(self, images: pb.Images | Tensor) -> pb.Prediction:
        whole = super().forward(images)
        return pb.Prediction(whole.logits.bfloat16(), whole.cosines)


class Untold(Plain):
    transfers = False


class ByRow(Plain):
    """Scores any of the trained classes."""

    transfers = "subset"
    transfers_reason = "there are rows for the training classes only"


class Rowless(ByRow):
    def encode_classes(self) -> Tensor:
        self.features = getattr(self, "features", None)
        if self.features is None or torch.is_grad_enabled():
            self.features = super().encode_classes()  # of whatever classes came first
        return self.features


class Unrefusing(ByRow):
    def refusal(self, names: object) -> str:
        return ""


class Miscounted(Plain):
    parameters_vit_b16 = 7


class Unlearned(Plain):
    trains = False


class Misnamed(Plain):
    learned_prompts = ("context",)


class OfAnotherWidth(Plain):
    learned_prompts = ("shift",)

    def __init__(self, config: pb.MethodConfig, backbone: pb.Backbone) -> None:
        super().__init__(config, backbone)
        self.shift = nn.Parameter(torch.zeros(1, 3))


class Remembering(Stale):
    learned_prompts = ("ctx",)


class Deaf(Plain):
    image_conditional = True


class WithoutControl(Plain):
    controls = {"": {"@none": "nothing", "unknown_method": "nothing"}}


class Speechless(Plain):
    presets = {"less": pb.Preset()}
    controls = {"": {"@less": " "}}


BROKEN: dict[type[pb.Method], str] = {
    Buffered: "state_is_what_is_learned",
    Unreached: "gradients_reach_everything_learned",
    Unseeded: "seed_alone_decides_the_first_values",
    Unscored: "gradients_reach_everything_learned",
    Batched: "prediction_has_its_shape",
    Stale: "saved_tensors_give_the_same_logits",
    NotFrozen: "cached_features_equal_fresh_ones",
    Heavy: "training_repeats_and_leaves_clip_alone",
    Half: "prediction_has_its_shape",
    Untold: "other_classes",
    Forgetful: "state_is_what_is_learned",
    Rowless: "other_classes",
    Unrefusing: "other_classes",
    Miscounted: "parameters_on_vit_b16",
    Unlearned: "state_is_what_is_learned",
    Misnamed: "learned_prompts_are_tokens",
    OfAnotherWidth: "learned_prompts_are_tokens",
    Remembering: "learned_prompts_are_tokens",
    Deaf: "noise_reaches_what_reads_images",
    WithoutControl: "controls_are_there",
    Speechless: "controls_are_there",
}


def named(name: str) -> kit.Check:
    return next(check for check in kit.CHECKS if check.__name__ == f"check_{name}")


ABOUT_THE_FILE = ("docstring_names_paper_and_code", "source_leaves_the_framework_its_work")


@pytest.mark.parametrize("check", BROKEN.values())
def test_the_kit_passes_a_method_that_keeps_the_contract(check: str, tiny: pb.Backbone) -> None:
    assert not kit.run_check(named(check), Plain, tiny)


@pytest.mark.parametrize(("cls", "check"), [(Keeping, "state_is_what_is_learned"), (ByRow, "other_classes")])
def test_the_kit_passes_kept_buffers_and_rows_by_class(cls: type[pb.Method], check: str, tiny: pb.Backbone) -> None:
    assert not kit.run_check(named(check), cls, tiny)


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_the_kit_notices_a_broken_method(cls: type[pb.Method], tiny: pb.Backbone) -> None:
    failures = kit.run_check(named(BROKEN[cls]), cls, tiny)
    assert failures and all(failure.startswith(f"{cls.__name__}, ") for failure in failures)


BAD_SOURCE = '''"""A method without a source."""

from promptbench.method import Method
from promptbench.training.fit import fit


class Bad(Method):
    def forward(self, images):
        print("here")
        return images.cuda().to("cuda"), 768
'''


def test_the_kit_reads_the_source(
    tmp_path: Path, tiny: pb.Backbone, plugin_file: Callable[[Path], type[pb.Method]]
) -> None:
    path = tmp_path / "bad_source.py"
    path.write_text(BAD_SOURCE)
    cls = plugin_file(path)
    found = [failure for name in ABOUT_THE_FILE for failure in kit.run_check(named(name), cls, tiny)]
    for complaint in ("arXiv", "URL", "line 9 prints", ".cuda()", ".to()", "768", "imports promptbench.training.fit:"):
        assert any(complaint in failure for failure in found), complaint
    assert len(kit.check_method(cls, tiny)) >= len(found)
