"""What CLIP-Adapter and TaskRes begin with, the adapter's own output, and TaskRes' untrained text, as in the authors'
code; the rest is in test_golden.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from closeness import close
from torch import Tensor

import promptbench as pb

FEATURES, LOGITS = 5e-5, 1e-4  # of features that are not normalised


@torch.no_grad()
def test_the_adapter_gives_what_the_reference_gives(
    golden_backbone: pb.Backbone,
    golden_recipe: ModuleType,
    golden_folder: Path,
    golden_images: Tensor,
    golden_case: Callable[[str], dict[str, Tensor]],
) -> None:
    stored = golden_case("clip_adapter_r4_02")
    method: Any = pb.create_method("clip_adapter", golden_backbone, golden_recipe.CLASS_NAMES)
    pb.load_official_checkpoint(method, golden_folder / "clip_adapter_r4_02-s7101/clip_adapter/model.pth.tar-50")
    image = golden_backbone.encode_image(golden_images).cls
    close(image, stored["image_features_unadapted"], FEATURES)
    close(method.fc(image), stored["adapter_output"], FEATURES)
    unadapted: Any = pb.create_method("clip_adapter", golden_backbone, golden_recipe.CLASS_NAMES, ratio=0.0)
    close(unadapted(golden_images).logits, stored["zeroshot_logits"], LOGITS)


@torch.no_grad()
def test_residuals_start_at_zero_beside_the_text_of_the_reference(
    golden_backbone: pb.Backbone,
    golden_recipe: ModuleType,
    golden_images: Tensor,
    golden_case: Callable[[str], dict[str, Tensor]],
) -> None:
    stored = golden_case("taskres_a05")
    for beginning, names in (("", golden_recipe.CLASS_NAMES), ("newcls_", golden_recipe.NEW_CLASS_NAMES)):
        method: Any = pb.create_method("taskres", golden_backbone, names)
        assert method.residuals.shape == (len(names), 32) and not method.residuals.any()
        close(method.text_features(), stored[f"{beginning}base_text_features"], FEATURES)
        close(method(golden_images).logits, stored[f"{beginning}zeroshot_logits"], LOGITS)
