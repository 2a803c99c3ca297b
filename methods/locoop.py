"""LoCoOp: CoOp that makes up its mind about no patch which does not look like the image's class.

Miyai et al., "LoCoOp: Few-Shot Out-of-Distribution Detection via Prompt Learning", NeurIPS 2023, arXiv:2306.01293.
Code by the authors: https://github.com/AtsuMiyai/LoCoOp, trainers/locoop.py

    p_j  = softmax( exp(s) * cos(z_j(x), g(v, c)) )   over classes c, for every patch j
    loss = CE + w * mean_j sum_c p_jc log(p_jc + 1e-5)

with the text tower g on CoOp's prompts with learned context v, dense features z_j from the last block's value path, and
CLIP's logit scale s. The mean, of negative entropies, is over the patches of the whole batch where the image's class is
not among the `topk` likeliest.

Odd points of the authors' code, kept here:
  - patches are scored with the full logit scale, where the score GL-MCM has a temperature of 1;
  - an image with more such patches weighs more;
  - 1e-5 in the logarithm, which moves the term by about 1e-5 for each class.

Differs from it: `topk` may be a share of the classes, rounded, at least one: their 200 of ImageNet's 1000 is a fifth,
and they ask for another number on other sets. Where there are not more classes than `topk`, no patch is chosen and the
term is 0; theirs stops with an error beyond. A patch is chosen if at least `topk` classes are likelier than the label,
which is the same but for ties. The context stays in float32; text is cut at the longest prompt, and the tokens before
the class name are encoded once for all classes (equal to rounding). The scores MCM and GL-MCM are the package's, of
cosines in float32, where theirs divide by 100 whatever the scale is, in half precision with ties. OOD images are
resized bicubically, as all others; the authors' utils/train_eval_util.py also has a bilinear transform for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from promptbench.clip import prompts
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, MethodConfig, Recipe

from .coop import CoOp

SCRIPTS = "authors' README and scripts/locoop/train.sh with vit_b16_ep50"
ON_IMAGENET = {"topk": 200}
ELSEWHERE = "its recipe for ImageNet, with as large a share of the classes"


def recipe(origin: Literal["authors", "transferred"], source: str, **overrides: Any) -> Recipe:
    """All trainings are the same."""
    return Recipe(epochs=50, lr=0.002, batch=32, overrides=overrides, origin=origin, source=source)


class LoCoOp(CoOp):
    """One learned context for all classes, or one for each, undecided on patches of something else."""

    category = "text, for OOD"
    parameters_vit_b16 = 8192
    dense_scores = True
    reads_dense = True
    presets: ClassVar = {}
    recipes: ClassVar = {
        ("ood", "imagenet"): recipe("authors", SCRIPTS, **ON_IMAGENET),
        ("few_shot", "imagenet"): recipe("authors", SCRIPTS, **ON_IMAGENET),
        ("domain_generalization", "imagenet"): recipe("transferred", "its recipe for ImageNet", **ON_IMAGENET),
        ("cross_dataset", "imagenet"): recipe("transferred", "its recipe for ImageNet", **ON_IMAGENET),
        ("*", "*"): recipe("transferred", ELSEWHERE),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the published experiments, `topk` as a share."""

        n_ctx: int | None = field(
            default=None,
            metadata={
                "source": f"{SCRIPTS}; context tokens; None: as many as the words, 16 without words",
                "tokens_of": "ctx_init",
            },
        )
        ctx_init: str = field(default="", metadata={"source": f"{SCRIPTS}; {prompts.STARTS}", "template": True})
        class_token_position: Literal["end", "middle", "front"] = field(default="end", metadata={"source": SCRIPTS})
        csc: bool = field(default=False, metadata={"source": f"{SCRIPTS}; True: a context for every class"})
        weight: float = field(default=0.25, metadata={"source": f"{SCRIPTS}, lambda; of the patches' term"})
        topk: int | float = field(
            default=0.2,
            metadata={
                "source": f"{SCRIPTS}, 200 of 1000 classes; a count from 1 on, or a share of the classes below 1: a "
                "patch counts if the label is not among so many"
            },
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.weight < 0:
                raise UsageError(f"'weight' must be at least 0, not {self.weight}.")
            if isinstance(self.topk, float) and not 0 < self.topk < 1:
                raise UsageError(
                    f"'topk' is {self.topk}: write a count of classes without a point, such as 200, or a share of them "
                    "above 0 and below 1, such as 0.2."
                )

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        return self.backbone.encode_image(images, local=True)

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        prediction = self(images)
        assert prediction.local is not None
        of_patches = self.backbone.logit_scale.float() * prediction.local
        undecided = negative_entropy(of_patches[self.beside_the_label(of_patches, labels)])
        return {"ce": F.cross_entropy(prediction.logits, labels), "en": self.config.weight * undecided}

    def beside_the_label(self, of_patches: Tensor, labels: Tensor) -> Tensor:
        """(B, P) bool, the patches whose logits (B, P, K) have the image's label not among the `topk` largest."""
        topk = self.config.topk
        if isinstance(topk, float):
            topk = max(1, round(topk * len(self.class_names)))
        own = labels.view(-1, 1, 1).expand(-1, of_patches.shape[1], 1)
        likelier = of_patches > of_patches.gather(-1, own)
        return likelier.sum(dim=-1) >= topk


def negative_entropy(logits: Tensor) -> Tensor:
    """Mean over patches of sum_c p_c log(p_c + 1e-5), p the softmax of their logits (n, K); 0 without patches."""
    p = logits.softmax(dim=-1)
    return (p * (p + 1e-5).log()).sum() / max(1, len(p))
