"""Zero-shot CLIP: its templates, and their mean, against open_clip itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import promptbench as pb
from promptbench.data.class_names import ClassNames

NAMES = ClassNames(["golden_retriever", "pizza", "jack-o'-lantern"], template="{} texture.")


def by_hand(tiny: Any, templates: list[str]) -> torch.Tensor:
    """Mean over templates of normalised features of whole, untrimmed texts, normalised again: (K, D)."""
    means = []
    for name in NAMES:
        ids = tiny.tokenizer([template.replace("{}", name.replace("_", " ")) for template in templates])
        means.append(F.normalize(tiny.clip.encode_text(ids), dim=-1).mean(dim=0))
    return F.normalize(torch.stack(means), dim=-1)


@pytest.mark.parametrize(
    ("label", "templates"), [("zeroshot", 1), ("zeroshot@generic", 1), ("zeroshot@seven", 7), ("zeroshot@ensemble", 8)]
)
@torch.no_grad()
def test_text_features_are_the_mean_over_templates(label: str, templates: int, tiny: Any) -> None:
    method = pb.create_method(label, tiny, NAMES)
    used = list(method.templates())
    assert len(used) == templates and ("{} texture." in used) == (label in ("zeroshot", "zeroshot@ensemble"))
    text = F.normalize(method.text_features(), dim=-1)
    assert torch.allclose(text, by_hand(tiny, used), atol=1e-6)


def test_the_seven_are_openai_s_selection_for_imagenet(tiny: Any) -> None:
    seven = pb.create_method("zeroshot@seven", tiny, NAMES).templates()
    assert seven[0] == "itap of a {}." and seven[-1] == "a photo of the small {}." and len(set(seven)) == 7


def test_any_template_can_be_given(tiny: Any) -> None:
    method = pb.create_method("zeroshot", tiny, NAMES, template="a sketch of a {}")
    assert method.templates() == ("a sketch of a {}",)


@pytest.mark.parametrize(
    ("label", "told"),
    [("", "dataset"), ("@generic", "generic"), ("@seven", "ensemble"), ("@ensemble", "ensemble")],
)
def test_it_knows_what_it_was_told_of_the_text(tiny: Any, label: str, told: str) -> None:
    assert pb.create_method(f"zeroshot{label}", tiny, NAMES).texts_told == told
