"""Zero-shot CLIP: class names in hand-written templates, nothing learned.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020.
Code by the authors: https://github.com/openai/CLIP; templates per dataset: https://github.com/KaiyangZhou/CoOp,
trainers/zsclip.py.

    p(c | x) = softmax_c( exp(s) * cos(f(x), t_c) ),   t_c = sum_j g(template_j(c)) / |g(template_j(c))|

with one template j or several (an ensemble).

Differs from it: text is cut at the longest prompt (equal to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from promptbench import prompts
from promptbench.method import Method, MethodConfig, Preset


class ZeroShot(Method):
    """The baseline that every prompt-learning method starts from."""

    category = "baseline"
    parameters_vit_b16 = 0
    trains = False
    frozen_image_tower = True
    presets: ClassVar = {
        "generic": Preset(config={"template": "a photo of a {}."}, source="the same template on every dataset"),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """The words around the class name."""

        template: str = field(
            default="dataset",
            metadata={"source": "authors of CoOp, trainers/zsclip.py; 'dataset': each dataset's own; or any with {}"},
        )

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        template = self.class_names.template if self.config.template == "dataset" else self.config.template
        templates = (template,) if isinstance(template, str) else template
        texts = [t.format(prompts.readable(name)) for t in templates for name in self.class_names]
        self.tokens = self.backbone.embed_text(texts)

    def encode_classes(self) -> Tensor:
        features = self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot)  # (templates * K, D)
        return F.normalize(features, dim=-1).unflatten(0, (-1, len(self.class_names))).mean(dim=0)
