"""Scoring the images of a run's evaluations: each image encoded once, class texts once per list of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from promptbench.clip.controls import randomize
from promptbench.clip.image_tower import Images
from promptbench.data.batches import pixel_batches
from promptbench.data.class_names import ClassNames
from promptbench.data.corruptions import Corruption
from promptbench.data.features import EVALUATION_BATCH, FEATURE_BATCH, still_batches
from promptbench.data.selection import (
    SelectedImages,
    Selection,
    few_validation_of,
    open_selection,
    shown_names,
)
from promptbench.method import Method, Prediction
from promptbench.metrics.classification import fit_temperature
from promptbench.metrics.ood import NEGATIVES, Score, cosines_with, missing, scores_of
from promptbench.protocol import Outcome
from promptbench.runs.plan import Run
from promptbench.runs.session import Session


@dataclass
class Evaluated:
    """What the evaluations of a run gave, by evaluation.

    Attributes:
        outcomes: Of those that the method can score.
        notes: Why the others are missing.
        names: The class names shown.
        images: The images scored.
        diagnostics: The method's own figures, `<evaluation>/<name>`.
        temperature: What its logits are divided by before calibration is measured again; None where none is asked for.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    names: dict[str, ClassNames] = field(default_factory=dict)
    images: dict[str, SelectedImages] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    temperature: float | None = None


def evaluate(session: Session, run: Run, method: Method) -> Evaluated:
    """Everything that a run's evaluations say of a trained method.

    Raises:
        FloatingPointError: If a score is infinite or NaN.
    """
    if run.spec.prompts:
        randomize(method.prompts_learned(), run.spec.train_seed)
    found = Evaluated()
    reader = Reader(method, dense=run.reads_dense)
    if run.spec.temperature:
        found.temperature = temperature_of(session, run, reader)
    for evaluation in run.plan.evaluations:
        opened = open_selection(session.dataset, evaluation.selection, run.spec.data_seed)
        chosen = replace(opened, corruption=evaluation.corruption)
        shown, labels = shown_names(session.dataset, evaluation.names, chosen, evaluation.same_classes)
        found.names[evaluation.name] = shown
        found.images[evaluation.name] = chosen
        reason = method.refusal(shown)
        if reason:
            found.notes[f"{evaluation.name}/"] = reason
            continue
        method.set_classes(shown)
        outcome = reader.outcome(chosen, evaluation.selection, labels, run.scores)
        if not torch.isfinite(outcome.logits).all():
            raise FloatingPointError(f"scores of {evaluation.name} images are infinite or NaN")
        classes = chosen.classes if evaluation.names is None else ()
        outcome = replace(outcome, classes=classes, temperature=found.temperature)
        kept = run.protocol.needs_logits or session.save_predictions
        found.outcomes[evaluation.name] = outcome if kept else outcome.without_logits()
        figures = diagnostics(method, chosen)
        found.diagnostics |= {f"{evaluation.name}/{name}": value for name, value in figures.items()}
    return found


def temperature_of(session: Session, run: Run, reader: Reader) -> float:
    """The temperature of a run: it fits a few validation images of the classes trained, among their names alone.

    Raises:
        FloatingPointError: If a score is infinite or NaN.
    """
    selection = few_validation_of(run.plan.train)
    chosen = open_selection(session.dataset, selection, run.spec.data_seed, nearest=session.nearest)
    reader.method.set_classes(chosen.class_names)
    outcome = reader.outcome(chosen, selection, chosen.labels, {})
    if not torch.isfinite(outcome.logits).all():
        raise FloatingPointError("scores of validation images are infinite or NaN")
    return fit_temperature(outcome.logits, outcome.labels)


class Reader:
    """Reads images for a method, and keeps what it made of them as long as the method says it is good for.

    Args:
        method: In evaluation mode; its class names may change from call to call.
        dense: Whether scores over dense features are wanted.
    """

    def __init__(self, method: Method, dense: bool = False) -> None:
        self.method, self.dense = method, dense
        self.keeps = method.encodes_images_apart and not method.frozen_image_tower and not dense
        self.known: dict[tuple[str, str], dict[str, Tensor]] = {}  # by dataset and split: image to its feature (D,)
        self.negatives: dict[tuple[str, ClassNames, object], Tensor] = {}  # (N, D) by score, names and template
        self.corruption: Corruption | None = None  # of what is known

    @torch.no_grad()
    def outcome(
        self, chosen: SelectedImages, selection: Selection, labels: list[int], scores: Mapping[str, Score]
    ) -> Outcome:
        """Logits and scores of the chosen images for the method's current classes, float32, on the CPU."""
        logits: list[Tensor] = []
        by_score: dict[str, list[Tensor]] = {}
        gaps: Mapping[str, str] = {}
        negative = {name: self.negative(score) for name, score in scores.items() if NEGATIVES in score.needs}
        for prediction, features in self.predictions(chosen, selection, with_features=bool(negative)):
            logits.append(prediction.logits.float().cpu())
            if scores:
                cosines = {name: cosines_with(features, texts) for name, texts in negative.items()}
                for name, values in scores_of(prediction, scores, cosines).items():
                    by_score.setdefault(name, []).append(values.cpu())
                gaps = missing(prediction, scores)
        return Outcome(
            torch.cat(logits), torch.tensor(labels), {name: torch.cat(v) for name, v in by_score.items()}, gaps
        )

    def negative(self, score: Score) -> Tensor:
        """Text features (N, D) of the negative labels of a score, made once for a list of class names."""
        names = self.method.class_names
        key = (score.name, names, names.template)
        if key not in self.negatives:
            self.negatives[key] = score.negative_features(names, self.method.backbone)
        return self.negatives[key]

    def predictions(
        self, chosen: SelectedImages, selection: Selection, with_features: bool = False
    ) -> Iterator[tuple[Prediction, Tensor]]:
        """What the method says of the chosen images, batch by batch, in order, and their features (B, D).

        Args:
            with_features: Whether the features are wanted; otherwise they may be empty.
        """
        device = self.method.backbone.device
        if self.keeps:
            text = self.method.text_features()
            for features in self.features(chosen, selection).split(FEATURE_BATCH):
                yield self.method.classify(features.to(device), text), features.to(device)
            return
        for batch, _ in still_batches(self.method, chosen, EVALUATION_BATCH, self.dense):
            for images in self.parts(batch.to(device)):
                if not with_features:
                    yield self.method(images), torch.empty(0)
                elif self.method.encodes_images_apart:  # as `forward` does it
                    encoded = self.method.encode_images(images)
                    yield self.method.classify(encoded, self.method.text_features()), encoded.cls
                else:
                    yield self.method(images), self.method.encode_images(images).cls

    def parts(self, images: Images) -> list[Images]:
        """A batch as it is scored: in one, or in parts that a CPU's cache holds where they know nothing of each other.

        Features are there already, and a method that scores images together may look at the whole batch.
        """
        if images.pixels is None or not self.method.encodes_images_apart:
            return [images]
        return images.split(self.method.backbone.images_in_cache(len(images)))

    def features(self, chosen: SelectedImages, selection: Selection) -> Tensor:
        """Features (N, D) of the method's own image tower, on the CPU; images seen before are not encoded again."""
        if chosen.corruption != self.corruption:  # no evaluation comes back to an earlier one
            self.known.clear()
            self.corruption = chosen.corruption
        known = self.known.setdefault((selection.dataset, selection.split), {})
        new = [item for item in chosen.items if item.image not in known]
        if new:
            backbone, corruption = self.method.backbone, chosen.corruption
            batches = pixel_batches(backbone, chosen.dataset, new, batch=EVALUATION_BATCH, corruption=corruption)
            device = self.method.backbone.device
            found: list[Tensor] = []
            for batch, _ in batches:
                found += [self.method.encode_images(images).cls.cpu() for images in self.parts(batch.to(device))]
            features = torch.cat(found)
            known |= {item.image: feature for item, feature in zip(new, features, strict=True)}
        return torch.stack([known[item.image] for item in chosen.items])


def diagnostics(method: Method, chosen: SelectedImages) -> dict[str, float]:
    """The method's own figures on the first `EVALUATION_BATCH` of the images; nothing is read for a method without."""
    if not method.has_diagnostics:
        return {}
    first = chosen.items[:EVALUATION_BATCH]
    backbone, corruption = method.backbone, chosen.corruption
    ((images, _),) = pixel_batches(backbone, chosen.dataset, first, batch=EVALUATION_BATCH, corruption=corruption)
    with torch.no_grad():
        return method.diagnostics(images.to(method.backbone.device))
