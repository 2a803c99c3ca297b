"""How similar each patch of an image is to a class: under a trained method, and under the suite's baseline.

The cosines are `Prediction.local`, those that OOD scores over patches are made of; nothing is smoothed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from promptbench import registry
from promptbench.checkpoints.load import Trained, load
from promptbench.config import UsageError, unknown
from promptbench.data.dataset import data_roots
from promptbench.method import Images, Method, create_method
from promptbench.runs.session import Place, Session
from promptbench.show.plots.picture import RECONSTRUCTED, finish, new_figure, width_of
from promptbench.show.plots.source import NothingToShow, Source, titled
from promptbench.suite import Suite, load_suite, suite_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

PROTOCOL = ""  # one run, whatever its protocol


def data(source: Source) -> dict[str, Any]:
    """The image as the towers see it, and per method the cosine of every patch with one class, row by row."""
    try:
        trained = load(source.places[0])
    except UsageError as error:
        raise NothingToShow(str(error)) from error
    spec, method = trained.spec, trained.method
    names = list(trained.set_classes())
    suite = load_suite(spec.suite) if spec.suite in suite_names() else None
    if source.class_name and source.class_name not in names:
        raise unknown("class of the run", source.class_name, names)
    (pixels,) = trained.batches(source.image or _test_image(trained, suite, source.class_name))
    label = titled(spec.label) + RECONSTRUCTED * type(method).reconstructed
    methods = {**_baseline(source, suite, method), label: method}
    predictions = {one: _prediction(one, methods[one], pixels) for one in methods}
    shown = names.index(source.class_name) if source.class_name else int(predictions[label][0].argmax())
    cosines = {one: local[:, shown] for one, (_, local) in predictions.items()}
    return {
        "kind": "heatmap",
        "protocol": spec.protocol,
        "dataset": registry.titles("datasets", [spec.dataset])[spec.dataset],
        "suite": spec.suite,
        "backbone": spec.backbone,
        "shots": ["all" if spec.shots is None else spec.shots],
        "seeds": [str(seed) for seed in dict.fromkeys(spec.seeds)],
        "n": {label: "1"},
        "reconstructed": type(method).reconstructed,
        "note": suite.note if suite else "",
        "class": names[shown],
        "image": _as_text(trained, pixels),
        "maps": [{"method": one, "cosines": _grid(values)} for one, values in cosines.items()],
    }


def _baseline(source: Source, suite: Suite | None, method: Method) -> dict[str, Method]:
    """The method named, or the suite's first companion, on the same classes."""
    label = source.baseline or (suite.companions[0] if suite and suite.companions else "")
    return {titled(label): create_method(label, method.backbone, method.class_names)} if label else {}


def _test_image(trained: Trained, suite: Suite | None, class_name: str) -> Image.Image:
    """The first test image of the class, or of any class of the training."""
    if suite is None:
        raise UsageError(f"The run's suite '{trained.spec.suite}' is not one of the package; name an image: --image.")
    dataset = Session(Place(Path(), data_roots()), suite).dataset(trained.spec.dataset)
    wanted = [class_name] if class_name else list(trained.class_names)
    return dataset.open(next(item for item in dataset.items("test") if item.class_name in wanted))


def _as_text(trained: Trained, pixels: torch.Tensor) -> dict[str, Any]:
    """Pixels (1, 3, R, R) before normalisation, as base64 of bytes, row by row, red, green and blue."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trained.transform.mean, trained.transform.std))
    rgb = ((pixels[0] * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0)  # (R, R, 3)
    return {"side": len(rgb), "rgb": base64.b64encode(rgb.numpy().tobytes()).decode()}


@torch.no_grad()
def _prediction(label: str, method: Method, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a method says of one image: logits (K,) and cosines of patches (P, K)."""
    prediction = method(Images(pixels.to(method.backbone.device), dense=True))
    if prediction.local is None:
        raise UsageError(f"{label} gives no similarities of patches, so it has no heat map.")
    return prediction.logits[0].cpu(), prediction.local[0].cpu()


def _grid(cosines: torch.Tensor) -> list[list[float]]:
    """Cosines of patches (P,) as the rows of the square that the patches make."""
    side = round(len(cosines) ** 0.5)
    rows: list[list[float]] = cosines.reshape(side, side).tolist()
    return rows


def draw(data: dict[str, Any]) -> Figure:
    """The image, and the maps over a faint grey copy of it, brighter where a patch is more similar."""
    side = data["image"]["side"]
    rgb = np.frombuffer(base64.b64decode(data["image"]["rgb"]), dtype=np.uint8).reshape(side, side, 3) / 255
    figure, panels = new_figure(
        0.5 + 0.92 * width_of(data) / (1 + len(data["maps"])), width=width_of(data), columns=1 + len(data["maps"])
    )
    panels[0].imshow(rgb)
    panels[0].set_title(f"“{data['class']}”", fontsize=7.5, pad=3)
    for axes, one in zip(panels[1:], data["maps"], strict=True):
        cosines = np.array(one["cosines"])
        axes.imshow(_overlay(rgb, cosines))
        axes.set_title(one["method"], fontsize=7.5, pad=3)
        span = f"{cosines.min():.2f} to {cosines.max():.2f}".replace("-", "−")
        axes.set_xlabel(span, fontsize=7, labelpad=2)
    panels[0].set_xlabel("cosine:", fontsize=7, labelpad=2)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return finish(figure, data)


def said(data: Mapping[str, Any]) -> list[str]:
    """What was trained on what, and what the brightness is."""
    run = f"Trained on {data['dataset']}, seed {'/'.join(data['seeds'])}."
    return [run, "Patches from dark (least similar) to bright (most), scaled for each map."]


def _overlay(rgb: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """(R, R, 3): the map in colours whose brightness rises evenly, mixed with the image in grey."""
    import matplotlib

    low, high = cosines.min(), cosines.max()
    side = len(rgb)
    place = np.arange(side) * len(cosines) // side
    heat = matplotlib.colormaps["cividis"](((cosines - low) / (high - low or 1))[place][:, place])[..., :3]
    return 0.75 * heat + 0.25 * rgb.mean(axis=2, keepdims=True)
