"""GalLoP: several global prompts, kept apart by dropout, and several local ones, kept apart by their scale.

Lafon et al., "GalLoP: Learning Global and Local Prompts for Vision-Language Models", ECCV 2024, arXiv:2407.01400.
Code by the authors: https://github.com/MarcLafon/gallop

    G_mc = cos(f(x), g(p_m, c)),   L_mcj = cos(A z_j(x), g(q_m, c)),   T_mc = mean of the k_m largest L_mcj over j
    p(c | x) = softmax_c( exp(s) * (mean_m G_mc + mean_m T_mc) / 2 )
    loss = CE( exp(s) * mean over the kept m of G_mc ) + mean_m CE( exp(s) * T_mc )

with image tower f, its dense features z_j from the last block's value path, text tower g on [SOS] prompt <name> [EOT],
CLIP's logit scale s, global prompts p_m, local prompts q_m and the learned linear map A, which starts as the identity
and acts before the tower's projection. In a ResNet, z_j is the value and output projection of the attention pool at one
position, without its positional embedding, and A acts after it, in the joint space, as in the authors' code.

Kept from the code, where one might expect otherwise: for every image the dropout draws the prompts that it keeps with
replacement, so that `dropout=0.0` is still random (None is the plain mean); local prompts have no dropout; both losses
weigh the same; all prompts start as the same words; the words always precede the class name, wherever `{}` stands; the
name is tokenised alone and no full stop follows it; a k beyond the number of patches means all of them.

Differs from it: everything learned stays in float32 (they train under autocast); an epoch with fewer images than a
batch is one step (their loader drops it, so that nothing is trained); "_" in a class name is read as a blank (they
leave that to their datasets); text is cut at the longest prompt, and a prompt is encoded once for all classes (equal to
rounding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.config import UsageError
from promptbench.method import Images, Method, MethodConfig, Prediction, Preset, Recipe

SCRIPTS = "authors' scripts/run_*.sh"
TRAIN = "authors' train.py"
SHOTS = f"{SCRIPTS} and README, details for low-shot experiments"
IMAGENET = "authors' scripts/run_imagenet.sh"


FEWER = {1: 50, 2: 100, 4: 100}  # epochs by shots, on all datasets but ImageNet and SUN397


def recipe(
    epochs: int, batch: int, source: str, published: bool = True, epochs_at: Mapping[int, int] | None = None
) -> Recipe:
    """What all of GalLoP's trainings share: weight decay 1e-2, cosine from the first epoch on."""
    return Recipe(
        epochs=epochs,
        epochs_at=epochs_at or {},
        lr=0.002,
        batch=batch,
        weight_decay=1e-2,
        warmup_epochs=0,
        origin="authors" if published else "transferred",
        source=source if published else f"{source}; none was published for this protocol",
    )


class GalLoP(Method):
    """Global prompts for the image, local ones for its best patches, and a map of the patches."""

    category = "text, global and local"
    parameters_vit_b16 = 606_208
    authors_half = None  # automatic mixed precision
    learned_prompts = ("global_prompt", "local_prompts")
    dense_scores = True
    frozen_image_tower = True
    reads_dense = True
    recipes: ClassVar = {
        ("few_shot", "imagenet"): recipe(50, 128, SHOTS),
        ("few_shot", "sun397"): recipe(200, 128, SHOTS),
        ("few_shot", "eurosat"): recipe(200, 10, SHOTS, epochs_at=FEWER),
        ("few_shot", "*"): recipe(200, 32, SHOTS, epochs_at=FEWER),
        ("domain_generalization", "*"): recipe(50, 128, IMAGENET),
        ("ood", "*"): recipe(50, 128, IMAGENET),
        ("cross_dataset", "*"): recipe(50, 128, IMAGENET, published=False),
        ("base2new", "imagenet"): recipe(50, 128, SHOTS, published=False),
        ("base2new", "sun397"): recipe(200, 128, SHOTS, published=False),
        ("base2new", "eurosat"): recipe(200, 10, SHOTS, published=False),
        ("*", "*"): recipe(200, 32, SHOTS, published=False),
    }
    presets: ClassVar = {
        "authors": Preset(
            recipe={"weight_decay": 1e-2, "warmup_epochs": 0},
            sampler="stratified",
            source="the authors' comparison, whose runs draw images in proportion to class size (scikit-learn's "
            "StratifiedShuffleSplit) and those of FGVC Aircraft from trainval",
        ),
        "coop-samples": Preset(
            recipe={"weight_decay": 1e-2, "warmup_epochs": 0},
            source="the authors' optimiser on CoOp's few-shot images, as all other methods are trained",
        ),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the published results."""

        n_global: int = field(default=4, metadata={"source": f"{SCRIPTS}; global prompts"})
        n_local: int = field(default=4, metadata={"source": f"{SCRIPTS}; local prompts"})
        topk: tuple[int, ...] = field(
            default=(5, 10, 15, 20),
            metadata={"source": f"{SCRIPTS}; patches averaged for each local prompt, or for all"},
        )
        learn_local_proj: bool = field(default=True, metadata={"source": f"{SCRIPTS}; the map of the patches"})
        template: str = field(
            default="A photo of a {}",
            metadata={"source": f"{TRAIN}; the first values of all prompts, their number of tokens too"},
        )
        dropout: float | None = field(
            default=0.75, metadata={"source": f"{TRAIN}; share of global prompts dropped in training, None: plain mean"}
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.topk) not in (1, self.n_local):
                raise UsageError(
                    f"'topk' has {len(self.topk)} numbers for {self.n_local} local prompts; give one for each, or just "
                    "one."
                )
            if min(self.topk) < 1:
                raise UsageError(f"'topk' counts patches, at least 1, and has {min(self.topk)}.")
            if self.dropout is not None and not 0 <= self.dropout <= 1:
                raise UsageError(f"'dropout' is from 0 to 1, or none for the plain mean, and not {self.dropout}.")
            if not words_of(self.template):
                raise UsageError(f"'template' is {self.template!r}, without words that prompts could start as.")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = words_of(config.template)
        n = int(backbone.embed_text([self.words]).words[0])
        start = prompts.from_words(backbone, self.words, n)
        self.global_prompt = nn.Parameter(start.repeat(config.n_global, 1, 1))  # (m, n, d)
        self.local_prompts = nn.Parameter(start.repeat(config.n_local, 1, 1))
        if config.learn_local_proj:
            width = backbone.local_width
            self.local_proj = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.local_proj.weight)

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        # CLIP's tokenizer never joins words, so this equals names tokenised alone, and a prompt too long is noticed.
        tokens = self.backbone.embed_text([f"{self.words} {prompts.readable(name)}" for name in names])
        self.start = tokens.embeddings[0, : tokens.start]  # [SOS]
        self.tokens = tokens.after(tokens.start + self.global_prompt.shape[1])

    def encode_classes(self) -> Tensor:
        """Text features (m, K, D) of the global prompts, followed by those of the local ones."""
        prefix = prompts.join(self.start, torch.cat([self.global_prompt, self.local_prompts]))  # (m, 1 + n, d)
        return self.backbone.encode_text(self.tokens.embeddings, self.tokens.eot, prefix)

    def dense_features(self, images: Images | Tensor) -> tuple[Tensor, Tensor]:
        """Global (B, D) and dense features (B, P, D), not normalised."""
        features = self.backbone.encode_image(images, local=True)
        assert features.local is not None and features.local_unprojected is not None
        if not self.config.learn_local_proj:
            return features.cls, features.local
        return features.cls, self.backbone.project_local(self.local_proj(features.local_unprojected))

    def cosines(self, images: Images | Tensor) -> tuple[Tensor, Tensor]:
        """Per prompt and class: cosines of the image (B, m, K) and of its patches (B, m, K, P)."""
        cls, dense = (F.normalize(t.float(), dim=-1) for t in self.dense_features(images))
        text = F.normalize(self.text_features().float(), dim=-1)  # (m, K, D)
        of_image, of_patches = text[: self.config.n_global], text[self.config.n_global :]
        return (
            torch.einsum("bd,mkd->bmk", cls, of_image).float(),
            torch.einsum("bpd,mkd->bmkp", dense, of_patches).float(),
        )

    def forward(self, images: Images | Tensor) -> Prediction:
        of_image, of_patches = self.cosines(images)
        cosines, best = of_image.mean(dim=1), mean_of_largest(of_patches, self.config.topk).mean(dim=1)
        logits = self.backbone.logit_scale.float() * (cosines + best) / 2  # (B, K)
        return Prediction(logits, cosines, of_patches.mean(dim=1).transpose(1, 2))

    def loss(self, images: Images | Tensor, labels: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """Cross-entropies of the global and of the local prompts.

        Args:
            images: B images.
            labels: (B,) int64.
            kept: (B, anything) int64, the global prompts that count for each image; drawn where None.
        """
        of_image, of_patches = self.cosines(images)
        scale = self.backbone.logit_scale.float()
        if kept is None and self.config.dropout is not None:
            n, share, device = self.config.n_global, self.config.dropout, labels.device
            kept = draw_kept(len(labels), n, share, device)
        if kept is not None:  # (B, kept)
            of_image = of_image.gather(1, kept.unsqueeze(-1).expand(-1, -1, of_image.shape[-1]))
        best = mean_of_largest(of_patches, self.config.topk)  # (B, m, K)
        return {
            "global": F.cross_entropy(scale * of_image.mean(dim=1), labels),
            "local": F.cross_entropy(scale * best.transpose(1, 2), labels.unsqueeze(1).expand(-1, best.shape[1])),
        }

    def official_parameters(self) -> dict[str, nn.Parameter]:
        names = {"local_proj.weight": "local_proj.linear.weight"}
        return {names.get(name, name): parameter for name, parameter in self.named_parameters()}


def words_of(template: str) -> str:
    """The template's words, without the place of the class name and without a full stop."""
    return prompts.readable(template.removesuffix(".")).replace("{}", " ").strip()


def mean_of_largest(cosines: Tensor, topk: Sequence[int]) -> Tensor:
    """Means (B, m, K) of the k largest entries over patches of (B, m, K, P); one k for each prompt, or one for all."""
    patches = cosines.shape[-1]
    if len(topk) == 1:
        return cosines.topk(min(topk[0], patches)).values.mean(dim=-1)
    largest = cosines.topk(min(max(topk), patches)).values  # sorted
    return torch.stack([largest[:, m, :, :k].mean(dim=-1) for m, k in enumerate(topk)], dim=1)


def draw_kept(images: int, n_global: int, dropout: float, device: torch.device) -> Tensor:
    """The global prompts (B, at least 1) that count for each image, drawn with replacement by torch's generator."""
    return torch.randint(n_global, (images, max(n_global - int(dropout * n_global), 1)), device=device)
