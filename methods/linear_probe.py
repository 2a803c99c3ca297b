"""Linear probe: logistic regression on frozen image features, the classical few-shot baseline.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020,
section 3.2 and appendix A.
Code by the authors: https://github.com/openai/CLIP, README, "Linear-probe evaluation"

    min_{W, b}  |W|^2 / 2 + C * sum_i CE(W f(x_i) + b, y_i)

with the image tower's features f as they are, not normalised, solved by L-BFGS (scikit-learn). It has no text: classes
that it has not seen cannot be scored.

Differs from it: C is fixed; the authors search for it on validation images, which the few-shot protocols do not have.
As nothing of it is chosen on validation images, it is the control of whatever claims to do without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import Images, Method, MethodConfig, Prediction

README = "authors' README, linear-probe example"


class LinearProbe(Method):
    """Weights and biases per class, fitted before the evaluation."""

    category = "baseline"
    trains = False  # nothing for the optimiser: `prepare` solves it
    transfers = "subset"
    transfers_reason = "a linear probe has weights for the classes it was fitted on only"
    frozen_image_tower = True
    kept = ("weight", "bias")
    baseline: ClassVar = {"": "the class names; nothing of it is chosen on validation images"}

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """The solver's settings."""

        C: float = field(default=0.316, metadata={"source": f"{README}; inverse of the regularisation"})
        max_iter: int = field(default=1000, metadata={"source": README})

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("weight", torch.empty(0, backbone.embed_dim))  # until `prepare`
        self.register_buffer("bias", torch.empty(0))

    def prepare(self, batches: Iterable[tuple[Images, Tensor]]) -> None:
        from sklearn.linear_model import LogisticRegression  # half a second to import

        pairs = [(self.backbone.encode_image(images).cls.float(), labels) for images, labels in batches]
        features, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))  # (N, D), (N,)
        solver = LogisticRegression(C=self.config.C, max_iter=self.config.max_iter)
        solver.fit(features.numpy(force=True), labels.numpy(force=True))
        if len(solver.classes_) != len(self.class_names):
            raise UsageError("A linear probe needs training images of every class.")
        weight = torch.as_tensor(solver.coef_).type_as(features)  # (K, D); (1, D) of two classes
        bias = torch.as_tensor(solver.intercept_).type_as(features)
        if len(weight) == 1:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        self.weight, self.bias = weight, bias

    def forward(self, images: Images | Tensor) -> Prediction:
        if not len(self.bias):
            raise UsageError("A linear probe scores nothing before `prepare` has shown it training images.")
        features = self.backbone.encode_image(images).cls.float()
        rows = self.rows()
        return Prediction(features @ self.weight[rows].T + self.bias[rows], None)
