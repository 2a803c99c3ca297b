"""Scoring the images of a run's evaluations: each image encoded once, class texts once per list of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from promptbench.clip.controls import randomize
from promptbench.data.batches import pixel_batches
from promptbench.data.class_names import ClassNames
from promptbench.data.features import EVALUATION_BATCH, FEATURE_BATCH, still_batches
from promptbench.data.selection import SelectedImages, Selection, open_selection, shown_names
from promptbench.method import Method, Prediction
from promptbench.metrics.ood import SCORES, missing, scores_of
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
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    names: dict[str, ClassNames] = field(default_factory=dict)
    images: dict[str, SelectedImages] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)


def evaluate(session: Session, run: Run, method: Method) -> Evaluated:
    """Everything that a run's evaluations say of a trained method.

    Raises:
        FloatingPointError: If a score is infinite or NaN.
    """
    if run.spec.prompts:
        randomize(method.prompts_learned(), run.spec.train_seed)
    found = Evaluated()
    scores = run.protocol.scores
    reader = Reader(method, dense=any(SCORES[name].needs == "local" for name in scores))
    for evaluation in run.plan.evaluations:
        chosen = open_selection(session.dataset, evaluation.selection, run.spec.data_seed)
        shown, labels = shown_names(session.dataset, evaluation.names, chosen)
        found.names[evaluation.name] = shown
        found.images[evaluation.name] = chosen
        reason = method.refusal(shown)
        if reason:
            found.notes[f"{evaluation.name}/"] = reason
            continue
        method.set_classes(shown)
        outcome = reader.outcome(chosen, evaluation.selection, labels, scores)
        if not torch.isfinite(outcome.logits).all():
            raise FloatingPointError(f"scores of {evaluation.name} images are infinite or NaN")
        found.outcomes[evaluation.name] = outcome
        figures = diagnostics(method, chosen)
        found.diagnostics |= {f"{evaluation.name}/{name}": value for name, value in figures.items()}
    return found


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

    @torch.no_grad()
    def outcome(
        self, chosen: SelectedImages, selection: Selection, labels: list[int], scores: tuple[str, ...]
    ) -> Outcome:
        """Logits and scores of the chosen images for the method's current classes, float32, on the CPU."""
        logits: list[Tensor] = []
        by_score: dict[str, list[Tensor]] = {}
        gaps: Mapping[str, str] = {}
        for prediction in self.predictions(chosen, selection):
            logits.append(prediction.logits.float().cpu())
            if scores:
                for name, values in scores_of(prediction, scores).items():
                    by_score.setdefault(name, []).append(values.cpu())
                gaps = missing(prediction, scores)
        return Outcome(
            torch.cat(logits), torch.tensor(labels), {name: torch.cat(v) for name, v in by_score.items()}, gaps
        )

    def predictions(self, chosen: SelectedImages, selection: Selection) -> Iterator[Prediction]:
        """What the method says of the chosen images, batch by batch, in order."""
        device = self.method.backbone.device
        if self.keeps:
            text = self.method.text_features()
            for features in self.features(chosen, selection).split(FEATURE_BATCH):
                yield self.method.classify(features.to(device), text)
            return
        for images, _ in still_batches(self.method, chosen, EVALUATION_BATCH, self.dense):
            yield self.method(images.to(device))

    def features(self, chosen: SelectedImages, selection: Selection) -> Tensor:
        """Features (N, D) of the method's own image tower, on the CPU; images seen before are not encoded again."""
        known = self.known.setdefault((selection.dataset, selection.split), {})
        new = [item for item in chosen.items if item.image not in known]
        if new:
            batches = pixel_batches(self.method.backbone, chosen.dataset, new, batch=EVALUATION_BATCH)
            device = self.method.backbone.device
            features = torch.cat([self.method.encode_images(images.to(device)).cls.cpu() for images, _ in batches])
            known |= {item.image: feature for item, feature in zip(new, features, strict=True)}
        return torch.stack([known[item.image] for item in chosen.items])


def diagnostics(method: Method, chosen: SelectedImages) -> dict[str, float]:
    """The method's own figures on the first `EVALUATION_BATCH` of the images; nothing is read for a method without."""
    if not method.has_diagnostics:
        return {}
    first = chosen.items[:EVALUATION_BATCH]
    ((images, _),) = pixel_batches(method.backbone, chosen.dataset, first, batch=EVALUATION_BATCH)
    with torch.no_grad():
        return method.diagnostics(images.to(method.backbone.device))
