"""How similar each patch of an image is to a class: under a trained method, and under the suite's baseline.

The cosines are `Prediction.local`, those that OOD scores over patches are made of; nothing is smoothed.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from promptbench.config import UsageError, unknown
from promptbench.plots.source import NothingToShow, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from promptbench.method import Method
    from promptbench.results import Result

PROTOCOL = ""  # that of the run
STORED = False


def data(source: Source) -> dict[str, Any]:
    """The image as the towers see it, and per method the cosine of every patch with one class, row by row."""
    result = source.results[0]
    method = _trained(source.places[0], result)
    names = [*method.class_names]
    if source.class_name and source.class_name not in names:
        raise unknown("class of the run", source.class_name, names)
    pixels = _pixels(method, _image(source, result, names))
    methods = {result.spec.label: method, **_baseline(source, method)}
    predictions = {label: _prediction(label, one, pixels) for label, one in methods.items()}
    shown = names.index(source.class_name) if source.class_name else int(predictions[result.spec.label][0].argmax())
    side = pixels.shape[-1]
    image = ((pixels[0].cpu() * _column(method.backbone.std) + _column(method.backbone.mean)) * 255).round()
    return {
        "kind": "heatmap",
        "protocol": result.spec.protocol,
        "dataset": result.spec.dataset,
        "suite": result.spec.suite,
        "backbone": result.spec.backbone,
        "shots": ["all" if result.spec.shots is None else result.spec.shots],
        "seeds": [str(seed) for seed in dict.fromkeys(result.spec.seeds)],
        "n": {result.spec.label: "1"},
        "reconstructed": bool(result.conditions.get("reconstructed")),
        "note": source.suite.note if source.suite else "",
        "class": names[shown],
        "image": {"side": side, "rgb": base64.b64encode(image.byte().permute(1, 2, 0).numpy().tobytes()).decode()},
        "maps": [{"method": label, "cosines": _grid(found[1][:, shown])} for label, found in predictions.items()][::-1],
    }


def _trained(path: Path, result: Result) -> Method:
    """The method with the tensors that a run learned, knowing the classes of its training."""
    import json

    from safetensors import SafetensorError, safe_open

    from promptbench import registry
    from promptbench.classnames import ClassNames
    from promptbench.config import build
    from promptbench.method import instantiate
    from promptbench.stored import folder_of
    from promptbench.trainings import load_training
    from promptbench.weights import load_backbone

    stored = folder_of(path) / "trainings" / f"{result.conditions.get('training_key', '')[:32]}.safetensors"
    cls = registry.load("methods", result.spec.method)
    try:
        with safe_open(stored, framework="pt") as file:
            about = json.loads(file.metadata()["classes"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise NothingToShow(
            f"The training of {result.name} is not in {stored.parent}; a heat map needs a run of a method that trains, "
            "with its `trainings` folder beside `results`."
        ) from error
    config = build(cls.Config, result.spec.config, result.name)
    names = ClassNames(about["names"], about["template"])
    method = instantiate(cls, config, load_backbone(result.spec.backbone), names, result.spec.train_seed)
    if load_training(stored, method) is None:
        raise UsageError(f"The training {stored} does not fit {result.spec.label}; train it again.")
    return method


def _baseline(source: Source, method: Method) -> dict[str, Method]:
    """The suite's first companion, or the one named, on the same classes."""
    from promptbench.method import create_method

    companions = source.suite.companions if source.suite else ()
    label = source.baseline or (companions[0] if companions else "")
    return {label: create_method(label, method.backbone, method.class_names)} if label else {}


def _image(source: Source, result: Result, names: list[str]) -> Image.Image:
    """The file, or the first test image of the class, or of any class of the run."""
    from promptbench.bench import Bench
    from promptbench.dataset import data_roots
    from promptbench.decoding import open_image

    if source.image:
        return open_image(Path(source.image))
    if source.suite is None:
        raise UsageError("The run's suite is not one of the package; name an image with --image.")
    dataset = Bench(source.suite, Path(), data_roots()).dataset(result.spec.dataset)
    wanted = [source.class_name] if source.class_name else names
    return dataset.open(next(item for item in dataset.items("test") if item.class_name in wanted))


def _pixels(method: Method, image: Image.Image) -> torch.Tensor:
    """(1, 3, R, R), as evaluation gives it to the towers."""
    from promptbench.transforms import evaluation_transform

    backbone = method.backbone
    transform = evaluation_transform(backbone.resolution, backbone.mean, backbone.std)
    return transform(image).unsqueeze(0).to(backbone.device)


@torch.no_grad()
def _prediction(label: str, method: Method, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (K,) and cosines of patches (P, K)."""
    from promptbench.method import Images

    prediction = method(Images(pixels, dense=True))
    if prediction.local is None:
        raise UsageError(f"{label} gives no similarities of patches, so it has no heat map.")
    return prediction.logits[0].cpu(), prediction.local[0].cpu()


def _grid(cosines: torch.Tensor) -> list[list[float]]:
    """(P,) as rows of a square."""
    side = round(len(cosines) ** 0.5)
    return [[float(value) for value in row] for row in cosines.reshape(side, side)]


def _column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1)


def draw(data: dict[str, Any]) -> Figure:
    """The image, and the maps over a faint grey copy of it, brighter where a patch is more similar."""
    from promptbench.plots.style import finish, new_figure

    side = data["image"]["side"]
    rgb = np.frombuffer(base64.b64decode(data["image"]["rgb"]), dtype=np.uint8).reshape(side, side, 3) / 255
    figure, panels = new_figure(1.35, columns=1 + len(data["maps"]))
    panels[0].imshow(rgb)
    panels[0].set_title(f"“{data['class']}”", fontsize=7.5, pad=3)
    for axes, one in zip(panels[1:], data["maps"], strict=True):
        cosines = np.array(one["cosines"])
        axes.imshow(_overlay(rgb, cosines))
        axes.set_title(one["method"], fontsize=7.5, pad=3)
        axes.set_xlabel(f"{cosines.min():.2f} to {cosines.max():.2f}", fontsize=7, labelpad=2)
    panels[0].set_xlabel("cosine:", fontsize=7, labelpad=2)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return finish(figure, data, "Patches from dark (least similar) to bright (most), scaled for each map.", bars=False)


def _overlay(rgb: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """(R, R, 3): the map in colours whose brightness rises evenly, mixed with the image in grey."""
    import matplotlib

    low, high = cosines.min(), cosines.max()
    side = len(rgb)
    place = np.arange(side) * len(cosines) // side
    heat = matplotlib.colormaps["cividis"](((cosines - low) / (high - low or 1))[place][:, place])[..., :3]
    return 0.7 * heat + 0.3 * rgb.mean(axis=2, keepdims=True)
