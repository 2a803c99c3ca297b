"""promptbench: every prompt-learning method for CLIP under the same data, backbone, trainer and evaluator.

    import promptbench as pb

    results = pb.run("maple", protocol="base2new", datasets=["mini_colours"], settings={"maple.depth": 2})
    print(pb.table(results))                       # Markdown; .latex(), .html(), .csv(), .json()
    frame = pb.to_frame(results)                   # pandas: a line per run, evaluation and metric
    trained = pb.load(results[-1].path)            # .classify(["photo.jpg"])

`run` trains, evaluates and stores what is not finished yet, as the command does; `read_results` reads what is stored,
`methods()`, `datasets()` and `protocols()`, which are `list_methods` and so on, say what there is. A method by itself,
on a backbone:

    backbone = pb.load_backbone("mini")
    method = pb.create_method("maple", backbone, ["cat", "dog"], n_ctx=2, depth=3, ctx_init="a photo of a")
    method(images).logits                          # (B, K)

Who writes a method, a dataset or a protocol derives from `Method`, `Dataset` or `Protocol`. The public names are
imported when they are first used, so that `import promptbench` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptbench.api import run
    from promptbench.checkpoints.load import load
    from promptbench.checkpoints.official import load_official_checkpoint, official_parameters
    from promptbench.clip.backbone import Backbone
    from promptbench.clip.image_tower import ImageFeatures, Images
    from promptbench.clip.load import load_backbone
    from promptbench.clip.text_tower import Tokens
    from promptbench.config import UsageError
    from promptbench.data.class_names import ClassNames
    from promptbench.data.dataset import Dataset, DatasetInfo, open_dataset
    from promptbench.experiment import RunsFailed
    from promptbench.method import Method, MethodConfig, Prediction, create_method
    from promptbench.protocol import Protocol
    from promptbench.recipe import Preset, Recipe
    from promptbench.registry import list_datasets, list_methods, list_protocols
    from promptbench.results.frame import to_frame
    from promptbench.results.predictions import Predictions, load_predictions
    from promptbench.results.result import Result, read_result, read_results
    from promptbench.runs.request import Request
    from promptbench.runs.session import Place, Session
    from promptbench.show.tables.show import Tables, table
    from promptbench.suite import Suite, load_suite
    from promptbench.training.fit import backward

    __version__: str

_HOME = {
    "run": "api",
    "list_methods": "registry",
    "list_datasets": "registry",
    "list_protocols": "registry",
    "RunsFailed": "experiment",
    "UsageError": "config",
    "backward": "training.fit",
    "table": "show.tables.show",
    "Tables": "show.tables.show",
    "to_frame": "results.frame",
    "Result": "results.result",
    "read_result": "results.result",
    "read_results": "results.result",
    "Predictions": "results.predictions",
    "load_predictions": "results.predictions",
    "Request": "runs.request",
    "Place": "runs.session",
    "Session": "runs.session",
    "load": "checkpoints.load",
    "load_official_checkpoint": "checkpoints.official",
    "official_parameters": "checkpoints.official",
    "Method": "method",
    "MethodConfig": "method",
    "Prediction": "method",
    "create_method": "method",
    "Recipe": "recipe",
    "Preset": "recipe",
    "Protocol": "protocol",
    "Suite": "suite",
    "load_suite": "suite",
    "Dataset": "data.dataset",
    "DatasetInfo": "data.dataset",
    "open_dataset": "data.dataset",
    "ClassNames": "data.class_names",
    "Backbone": "clip.backbone",
    "load_backbone": "clip.load",
    "Images": "clip.image_tower",
    "ImageFeatures": "clip.image_tower",
    "Tokens": "clip.text_tower",
}

__all__ = [
    "Backbone",
    "ClassNames",
    "Dataset",
    "DatasetInfo",
    "ImageFeatures",
    "Images",
    "Method",
    "MethodConfig",
    "Place",
    "Prediction",
    "Predictions",
    "Preset",
    "Protocol",
    "Recipe",
    "Request",
    "Result",
    "RunsFailed",
    "Session",
    "Suite",
    "Tables",
    "Tokens",
    "UsageError",
    "__version__",
    "backward",
    "create_method",
    "list_datasets",
    "list_methods",
    "list_protocols",
    "load",
    "load_backbone",
    "load_official_checkpoint",
    "load_predictions",
    "load_suite",
    "official_parameters",
    "open_dataset",
    "read_result",
    "read_results",
    "run",
    "table",
    "to_frame",
]


_LISTED = ("datasets", "methods", "protocols")


class _Plugins(ModuleType):
    """A package of plugins, which lists them when it is called: `promptbench.methods()`."""

    def __call__(self) -> dict[str, str]:
        """The plugins by name, each with the first line of its docstring; none is imported."""
        found: dict[str, str] = import_module("promptbench.registry").summaries(self.__name__.rpartition(".")[2])
        return found


class _Package(ModuleType):
    """This package, whose packages of plugins can be called, whoever imports them first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _LISTED and type(value) is ModuleType:
            value.__class__ = _Plugins
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name == "__version__":  # not written here, so that a release is no other code
        from promptbench.storage.versions import own_version

        return own_version()
    if name in _LISTED:
        return import_module(f"promptbench.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'promptbench' has no attribute {name!r}")
    return getattr(import_module(f"promptbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *_LISTED]
