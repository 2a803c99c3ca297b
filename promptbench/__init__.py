"""promptbench: every prompt-learning method for CLIP under the same data, backbone, trainer and evaluator.

    import promptbench as pb

    backbone = pb.load_backbone("mini")
    method = pb.create_method("maple", backbone, ["cat", "dog"], n_ctx=2, depth=3, ctx_init="a photo of a")
    method(images).logits                          # (B, K)

The public names are imported when they are first used, so that `import promptbench` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptbench.checkpoints.load import load
    from promptbench.checkpoints.official import load_official_checkpoint, official_parameters
    from promptbench.clip.backbone import Backbone
    from promptbench.clip.image_tower import ImageFeatures, Images
    from promptbench.clip.load import load_backbone
    from promptbench.clip.text_tower import Tokens
    from promptbench.data.class_names import ClassNames
    from promptbench.method import Method, MethodConfig, Prediction, create_method
    from promptbench.recipe import Preset, Recipe
    from promptbench.results.frame import to_frame
    from promptbench.results.result import read_results

__version__ = "0.1.0"

_HOME = {
    "Backbone": "clip.backbone",
    "ImageFeatures": "clip.image_tower",
    "Tokens": "clip.text_tower",
    "load_backbone": "clip.load",
    "load": "checkpoints.load",
    "Method": "method",
    "MethodConfig": "method",
    "Images": "clip.image_tower",
    "Prediction": "method",
    "create_method": "method",
    "Recipe": "recipe",
    "Preset": "recipe",
    "ClassNames": "data.class_names",
    "read_results": "results.result",
    "to_frame": "results.frame",
    "load_official_checkpoint": "checkpoints.official",
    "official_parameters": "checkpoints.official",
}

__all__ = [
    "Backbone",
    "ClassNames",
    "ImageFeatures",
    "Images",
    "Method",
    "MethodConfig",
    "Prediction",
    "Preset",
    "Recipe",
    "Tokens",
    "__version__",
    "create_method",
    "load",
    "load_backbone",
    "load_official_checkpoint",
    "official_parameters",
    "read_results",
    "to_frame",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'promptbench' has no attribute {name!r}")
    return getattr(import_module(f"promptbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
