"""A trained prompt, loaded to be used: no dataset is needed, only the backbone.

It comes from a result file, a training file, a folder that `export` wrote, or such a folder on the Hugging Face hub.

Letters: B images, K classes, R resolution in pixels.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from promptbench import registry
from promptbench.checkpoints import hub
from promptbench.clip.backbone import Backbone
from promptbench.clip.controls import randomize
from promptbench.clip.load import load_backbone
from promptbench.config import UsageError, build, path_of
from promptbench.data.class_names import GENERIC_TEMPLATE, ClassNames, refuse_same_names
from promptbench.data.decode import as_rgb, open_image
from promptbench.data.transforms import EvaluationTransform
from promptbench.method import Method, instantiate
from promptbench.results.command import command_text
from promptbench.results.result import Result, find_training, folder_of, read_result
from promptbench.results.spec import Spec, expect
from promptbench.training.files import FORMAT, check_metadata, read_training
from promptbench.training.numerics import resolve_device

log = logging.getLogger(__name__)

SHOWN = 4  # class names in a repr
BATCH = 50  # images per pass; a method may make text per image and class of it

AnyImages = str | os.PathLike[str] | Image.Image | Tensor | Iterable[str | os.PathLike[str] | Image.Image]

# What a folder of `export` holds.
CARD, CLASSES, PROMPTS, RESULT, TEXT = FILES = (
    "README.md",
    "classes.json",
    "prompts.safetensors",
    "result.json",
    "text_features.safetensors",
)


@dataclass(frozen=True)
class Trained:
    """A method with what it learned, ready to score images.

    Attributes:
        method: In evaluation mode, on its backbone.
        class_names: What is scored where no other classes are asked for; none where they are not known.
        spec: Of the run that it comes from.
        result: Of that run; None where a training file alone was loaded.
        transform: PIL RGB image to what the image tower takes.
        trained_on: The classes of the training.
        untrained: The other classes of its dataset, which it was never shown, in the words of their names; none where
            there are none, or an older file does not say.
        training: The file with the learned and kept tensors; None where there are none.
    """

    method: Method
    class_names: ClassNames
    spec: Spec
    result: Result | None
    transform: EvaluationTransform
    trained_on: ClassNames
    untrained: ClassNames
    training: Path | None

    def __repr__(self) -> str:
        """Three lines: the run, the classes, and what learned."""
        spec = self.spec
        names = ", ".join(self.class_names[:SHOWN]) + (", ..." if len(self.class_names) > SHOWN else "")
        kept = f"from {self.training}" if self.training is not None else "nothing was learned"
        return (
            f"Trained {spec.label}: {spec.protocol} on {spec.halved_dataset}, seed {spec.train_seed}\n"
            f"  scores {len(self.class_names)} classes: {names or 'name them'}\n"
            f"  on {self.method.backbone.name}, {kept}"
        )

    @torch.no_grad()
    def classify(self, images: AnyImages, class_names: Sequence[str] | None = None) -> list[list[tuple[str, float]]]:
        """For each image, all classes with their probabilities (0 to 1, they sum to 1), the likeliest first.

        Args:
            images: Paths, PIL images, or a tensor (B, 3, R, R) that `transform` has made; one path or image may stand
                alone.
            class_names: Other classes than `class_names`. A `ClassNames` brings its own template along.

        Raises:
            UsageError: An image cannot be read, or the method cannot score these classes.
        """
        names = self.set_classes(class_names)
        ranked = []
        for pixels in self.batches(images):
            probabilities = self.method(pixels.to(self.method.backbone.device)).logits.softmax(dim=-1)  # (B, K)
            values, order = probabilities.cpu().sort(dim=-1, descending=True, stable=True)
            for row, places in zip(values.tolist(), order.tolist(), strict=True):
                ranked.append([(names[place], value) for place, value in zip(places, row, strict=True)])
        return ranked

    def set_classes(self, class_names: Sequence[str] | None = None) -> ClassNames:
        """The classes that the method scores from now on; None for `class_names`.

        Raises:
            UsageError: There are none, two read the same, or the method is bound to those it was trained on.
        """
        names = self.class_names if class_names is None else self._named(class_names)
        label = self.spec.label
        if not names:
            raise UsageError(
                f"The run of {label} is stored without class names: give those to score, with --classes or in Python "
                "as class_names."
            )
        reason = self.method.refusal(names)
        if reason:
            raise UsageError(
                f"{label} cannot score other classes than the {len(self.trained_on)} of its training: "
                f"{reason.rstrip('.')}; leave the class names out."
            )
        now = self.method.class_names
        if (tuple(names), names.template) != (tuple(now), now.template):
            with torch.no_grad():
                self.method.set_classes(names)
        return names

    def _named(self, class_names: Sequence[str]) -> ClassNames:
        if isinstance(class_names, str):
            raise UsageError(f"class_names takes a list of names, not the text {class_names!r}.")
        if isinstance(class_names, ClassNames):
            return class_names
        names = ClassNames(class_names, self.trained_on.template, self.trained_on.dataset)
        refuse_same_names(names, "The class names given")
        return names

    def batches(self, images: AnyImages) -> Iterator[Tensor]:
        """The images as tensors (B, 3, R, R) of at most `BATCH`.

        Raises:
            UsageError: An image cannot be read, or a tensor has another shape.
        """
        if isinstance(images, Tensor):
            R = self.transform.resolution
            if images.dim() != 4 or images.shape[1:] != (3, R, R):
                shape = tuple(images.shape)
                raise UsageError(
                    f"Images as a tensor must be (B, 3, {R}, {R}), as `transform` makes them, not {shape}."
                )
            yield from images.float().split(BATCH)
            return
        one = isinstance(images, (str, os.PathLike, Image.Image))
        waiting = iter([images] if one else images)  # type: ignore[arg-type]
        while batch := list(itertools.islice(waiting, BATCH)):
            yield torch.stack([self.transform(opened(image)) for image in batch])


def load(run: str | os.PathLike[str], *, device: str = "auto", backbone: str = "") -> Trained:
    """Load what a run learned: the method on its backbone, ready to score images.

    Args:
        run: A result file, a training file (`.safetensors`), a folder of `promptbench export`, or such a folder on the
            hub, `hf://user/name` or `hf://user/name@revision`.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU where there is one.
        backbone: What the weights are called here, if not as in the run: a file may lie elsewhere. "" for the run's.

    Raises:
        UsageError: Nothing usable is there, the weights are others than those of the training, or what the method
            made of its training images is not stored.
    """
    source = source_of(run)
    cls = method_of(source)
    frozen = backbone_of(source, backbone).to(resolve_device(device))
    check_weights(source, frozen)
    config = build(cls.Config, source.spec.config, source.place)
    names = source.trained_on or ClassNames(["object"], template=source.trained_on.template)  # until others are given
    method = instantiate(cls, config, frozen, names, source.spec.train_seed, source.spec.condition)
    if source.training is not None:
        fill(method, source.training)
    if source.spec.prompts:
        randomize(method.prompts_learned(), source.spec.train_seed)
    transform = EvaluationTransform(frozen.resolution, mean=frozen.mean, std=frozen.std)
    return Trained(
        method,
        source.shown,
        source.spec,
        source.result,
        transform,
        source.trained_on,
        untrained=source.untrained,
        training=source.training,
    )


def method_of(source: Source) -> type[Method]:
    """The class of the method; a warning where it is a file that has changed since.

    Raises:
        UsageError: It is a plugin that is not known here, or what it made of its training images is not stored.
    """
    spec = source.spec
    if spec.plugin and spec.method not in registry.names("methods"):
        raise UsageError(
            f"{source.place}: the method '{spec.method}' is a plugin; give its file with --plugin, or in Python with "
            "promptbench.registry.add_file."
        )
    cls: type[Method] = registry.load("methods", spec.method)
    if cls.prepares and cls.kept is None:
        raise UsageError(
            f"{source.place}: what {spec.label} makes of its training images in `prepare` is not stored; name its "
            "buffers in `kept`, and run it again."
        )
    if cls.prepares and source.training is None:
        raise UsageError(
            f"{source.place}: what {spec.label} made of its training images was not stored by the promptbench that ran "
            "it; run it again with `promptbench run`."
        )
    if registry.source_digest("methods", spec.method) != spec.plugin:
        log.warning("the method '%s' has changed since %s was made", spec.method, source.place)
    return cls


def backbone_of(source: Source, name: str) -> Backbone:
    """The backbone of the run, under the name given or its own.

    Raises:
        UsageError: It cannot be loaded.
    """
    try:
        backbone: Backbone = load_backbone(name or source.spec.backbone)
    except UsageError as error:
        way_out = "" if name else "; if the weights are called otherwise here, say how with --backbone, or backbone=..."
        raise UsageError(f"{source.place}: {str(error).rstrip('.')}{way_out}.") from error
    return backbone


def check_weights(source: Source, backbone: Backbone) -> None:
    """Raises UsageError where the backbone has other weights than the run had; warns where that is not known."""
    wanted = source.weights_hash
    if not wanted:
        log.warning("%s does not say which weights '%s' had when it was made", source.place, backbone.name)
    elif wanted != backbone.weights_hash:
        raise UsageError(
            f"{source.place} was made with other weights (hash {wanted[:12]}) than '{backbone.name}' has here "
            f"({backbone.weights_hash[:12]}); name the right ones with --backbone, or in Python with backbone=..."
        )


def fill(method: Method, training: Path) -> None:
    """Load the learned tensors of a checkpoint into a method.

    Raises:
        UsageError: They are damaged, or others than the method has.
    """
    try:
        tensors = read_training(training)[0]
        method.make_room(tensors)
        method.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{training} is damaged, or of a {type(method).__name__} that another version of promptbench has made; "
            "train it again with `promptbench run`."
        ) from error


def opened(image: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """An image or image file as RGB."""
    return as_rgb(image) if isinstance(image, Image.Image) else open_image(path_of(image))


@dataclass(frozen=True)
class Source:
    """A checkpoint before it is loaded: what is stored of a run, and where.

    Attributes:
        place: What the user named.
        spec: Of the run.
        result: None where a training file alone was named.
        training: The file with the learned tensors; None where nothing was learned.
        trained_on: The classes of the training; none, but with a template, where nothing was learned.
        shown: The classes to score where no others are asked for; none where they are not known.
        weights_hash: Of the backbone; "" where an older training file does not say.
        untrained: The dataset's other classes; none where there are none, or the file does not say.
    """

    place: str
    spec: Spec
    result: Result | None
    training: Path | None
    trained_on: ClassNames
    shown: ClassNames
    weights_hash: str
    untrained: ClassNames = ClassNames(())


def source_of(run: str | os.PathLike[str]) -> Source:
    """What is stored of a run: by a result file, a training file, an exported folder or one on the hub."""
    place = os.fspath(run)
    if place.startswith(hub.PREFIX):
        return replace(of_export(hub.download(place, FILES)), place=place)
    path = path_of(place)
    if path.is_dir():
        return of_export(path)
    return of_training(path) if path.suffix == ".safetensors" else of_result(path)


def of_result(path: Path) -> Source:
    """What a result file stores of a run, with the training in the folder that `run` wrote to."""
    result = read_result(path)
    if result.conditions.get("training_key"):
        return with_result(of_training(training_of(path, result)), str(path), result)
    templates = result.spec.templates
    template = templates.get(result.spec.dataset) or next(iter(templates.values()), GENERIC_TEMPLATE)
    none = ClassNames((), template=template)
    return Source(str(path), result.spec, result, None, none, none, result.spec.weights_hash)


def of_training(path: Path) -> Source:
    """What a training file alone stores of a run: its metadata say all that is needed."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        if about.get("format", FORMAT) != FORMAT:
            raise UsageError(f"{path} was written by a newer promptbench ({about['format']}); update promptbench.")
        check_metadata(about)
        spec = replace(Spec.stored(json.loads(about["spec"])), prompts="")  # the file holds the learned ones
        classes = json.loads(about["classes"])
        names = _class_names(classes)
        others = _class_names({**classes, "names": classes.get("untrained", [])})
        return Source(str(path), spec, None, path, names, names, json.loads(about.get("weights_hash", '""')), others)
    except OSError as error:
        raise UsageError(f"The training {path} cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is no training of promptbench, or is damaged ({error}).") from error


def _class_names(stored: Mapping[str, Any]) -> ClassNames:
    """Class names and their template, from JSON."""
    names, template, dataset = stored["names"], stored["template"], stored.get("dataset", "")
    expect(names, list, "the class names")
    for text in (dataset, *names, *(template if isinstance(template, list) else [template])):
        expect(text, str, "a class name or template")
    return ClassNames(names, template, dataset)


def of_export(folder: Path) -> Source:
    """What a folder that `export` wrote stores of a run."""
    if not (folder / RESULT).is_file():
        raise UsageError(
            f"{folder} is no folder of `promptbench export`: it has no {RESULT}; name such a folder, a result file, or "
            "a training file."
        )
    result = read_result(folder / RESULT)
    try:
        shown = _class_names(json.loads((folder / CLASSES).read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder / CLASSES} is missing or damaged; export the run again.") from error
    if not result.conditions.get("training_key"):
        none = ClassNames((), template=shown.template)
        return Source(str(folder), result.spec, result, None, none, shown, result.spec.weights_hash)
    return replace(with_result(of_training(folder / PROMPTS), str(folder), result), shown=shown)


def with_result(training: Source, place: str, result: Result) -> Source:
    """What is stored of a training, under the spec, weights and figures of a run's result."""
    weights = result.spec.weights_hash or training.weights_hash
    return replace(training, place=place, spec=result.spec, result=result, weights_hash=weights)


def training_of(path: Path | str, result: Result) -> Path:
    """The file with what the run of a result file learned, in the folder that `run` wrote to.

    Raises:
        UsageError: It is not there.
    """
    try:
        folder = folder_of(path)
    except UsageError as error:
        raise UsageError(
            f"{path} does not lie where `run` put it, so that its training is not found; name the training's "
            ".safetensors file instead."
        ) from error
    training = find_training(folder, result)
    if training is None:
        raise UsageError(
            f"What {result.spec.label} learned on '{result.spec.dataset}' is not in {folder}; train it again and "
            f"name the new result: {command_text(result)}"
        )
    return training
