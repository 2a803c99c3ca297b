"""Mutual-R: reconstructed, written without access to the full paper; compare with it before citing.

Image semantics go into the context, a different one into every token, and class texts into visual prompts.

Long et al., "Mutual Prompt Leaning for Vision Language Models" (sic), IJCV 2024,
https://doi.org/10.1007/s11263-024-02243-z; its predecessor by the same authors is "Task-Oriented Multi-Modal Mutual
Learning for Vision-Language Models", ICCV 2023, arXiv:2303.17169.
Code by the authors: none was published. Of both papers the abstracts alone were read.

    x     = f(image) / |f(image)|                                                      (pass 1, without prompts)
    v_m'  = v_m + h_m(x),   T_c = g([SOS] v_1' ... v_n' <name of c> . [EOT]) / |...|   (FTP)
    a_c   = softmax_c( exp(s) <x, T_c> ),   r = sum_c a_c T_c
    p_j   = u_j + k_j(r)                                                               (TVP)
    x~    = f(image; p_1 ... p_J) / |...|                                              (pass 2)
    p(c | image) = softmax_c( exp(s) <x~, T_c> )

with image tower f, text tower g, CLIP's logit scale s, learned v, u and networks h_m, k_j = Linear, ReLU, Linear with
D / 16 hidden units (k_j: at least 8). h_m tied and J = 0 is CoCoOp, exactly.

The abstract states that one global image feature is decomposed into several semantics, each put into its own context
token (FTP), and that the texts of the current image are reorganised into the visual prompt (TVP). INFERENCE, the rest:
  - a network of its own for each token makes its semantics, which is added (`ftp`: or from its own share of the
    channels; or one network for all, as in CoCoOp); as many semantics as tokens; the same for all classes;
  - the reorganised text is the sum of FTP's class texts weighted by the class probabilities of pass 1 (`reorganize`: or
    the J best classes, a token each; `tvp_text`: or of frozen CLIP, and two controls);
  - J = 4 visual prompts (`n_visual`), learned plus text-made, the last Linear of k_j zero at first; in the first layer,
    after the patches, without positions, before `ln_pre`;
  - gradients pass through T and a; cross-entropy alone; CoCoOp's training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.clip.prompts import other_classes
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Prediction, Preset, Recipe

COCOOP = "CoCoOp authors' vit_b16_c4_ep10_batch1_ctxv1; a recipe of its own is not known"
REDUCTION = 16  # of the joint dimension to the hidden units of all networks, as in CoCoOp
LEAST = 8  # hidden units of TVP where D < 128: what it reads varies little, and fewer may all be dead at first
N_VISUAL = 4
TEMPLATE = "a photo of a"  # of the frozen texts


class Mutual(Method):
    """A context made from the image, and visual prompts made from that context's texts."""

    title = "Mutual-R"
    reconstructed = True
    category = "multi-modal, per image"
    parameters_vit_b16 = 305_408
    recipes: ClassVar = {("*", "*"): Recipe(epochs=10, lr=0.002, batch=1, origin="transferred", source=COCOOP)}
    presets: ClassVar = {
        "cocoop": Preset(config={"ftp": "tied", "n_visual": 0}, source="CoCoOp: neither FTP nor TVP"),
        "ftp": Preset(config={"n_visual": 0}, source="CoCoOp + FTP"),
        "tvp": Preset(config={"ftp": "tied"}, source="CoCoOp + TVP"),
        "matched": Preset(
            config={"ftp": "tied", "n_visual": 0, "matched": True},
            source="control: CoCoOp, its network as wide as the whole method has parameters",
        ),
        "tvp-zeroed": Preset(config={"tvp_text": "zeroed"}, source="control: TVP's networks read zeros, not text"),
        "shuffled": Preset(config={"tvp_text": "shuffled"}, source="control: TVP reads the texts of other classes"),
        "frozen": Preset(config={"tvp_text": "frozen"}, source="sensitivity: TVP reads frozen texts"),
        "topk": Preset(config={"reorganize": "topk"}, source="sensitivity: TVP keeps the best classes apart"),
        "channels": Preset(config={"ftp": "channels"}, source="sensitivity: FTP-B"),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Defaults are those of the reconstruction; see the module."""

        n_ctx: int | None = field(
            default=None,
            metadata={
                "source": "context tokens; None: as many as the words, 16 without words",
                "tokens_of": "ctx_init",
            },
        )
        ctx_init: str = field(
            default="a photo of a", metadata={"source": f"CoCoOp's; {prompts.STARTS}", "template": True}
        )
        ftp: Literal["tokens", "channels", "tied"] = field(
            default="tokens",
            metadata={
                "source": "INFERENCE; a network for each token (FTP-A), the same on its share of the channels (FTP-B), "
                "or one for all tokens (CoCoOp)"
            },
        )
        n_visual: int = field(
            default=N_VISUAL, metadata={"source": "INFERENCE; visual prompts, 0: no TVP", "at_least": 0}
        )
        reorganize: Literal["weighted", "topk"] = field(
            default="weighted",
            metadata={"source": "INFERENCE; the mean text by relevance, or a visual prompt for each of the best texts"},
        )
        tvp_text: Literal["conditioned", "frozen", "shuffled", "zeroed"] = field(
            default="conditioned",
            metadata={"source": "INFERENCE; FTP's texts, frozen CLIP's, FTP's of other classes, or zeros"},
        )
        matched: bool = field(
            default=False, metadata={"source": "control; one network with as many parameters as the whole method"}
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.matched and (self.ftp != "tied" or self.n_visual):
                raise UsageError("matched=true is a control for CoCoOp: it takes ftp=tied and n_visual=0.")

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.words = prompts.words_of(config.ctx_init)
        n, width = prompts.context_length(backbone, self.words, config.n_ctx), backbone.text_width
        joint, vision = backbone.embed_dim, backbone.vision_width
        self.frozen_image_tower = config.n_visual == 0
        self.ctx = nn.Parameter(prompts.initial_context(backbone, self.words, n))
        units = matched_units(n, joint, width, vision) if config.matched else joint // REDUCTION
        shares = [len(share) for share in torch.arange(joint).tensor_split(n)]
        inputs = {"tokens": [joint] * n, "tied": [joint], "channels": shares}[config.ftp]
        self.ftp = nn.ModuleList(network(i, units, width) for i in inputs)
        if config.n_visual:
            self.visual = nn.Parameter(prompts.random_context(config.n_visual, vision))
            self.tvp = nn.ModuleList(
                network(joint, tvp_units(joint), vision, zero=True) for _ in range(config.n_visual)
            )

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)
        if self.config.tvp_text == "shuffled":
            self.others = other_classes(names)
        if self.config.tvp_text == "frozen":
            tokens = prompts.sentence_tokens(self.backbone, TEMPLATE, names)
            with torch.no_grad():
                self.frozen = self.backbone.encode_text(tokens.embeddings, tokens.eot)  # (K, D)

    def forward(self, images: Images | Tensor) -> Prediction:
        return self.classify(*self.features(images))

    def images_at_once(self) -> int:
        return self.backbone.images_within_budget(self.sentences.tokens.eot)

    def features(self, images: Images | Tensor) -> tuple[ImageFeatures, Tensor]:
        """Image features, of pass 2 where there are visual prompts, and text features (B, K, D)."""
        image = self.encode_images(images)
        text = self.conditional_text(image.cls)
        if self.config.n_visual:
            image = self.backbone.encode_image(images, self.visual_prompts(image.cls, text))
        return image, text

    def conditional_text(self, image: Tensor) -> Tensor:
        """Text features (B, K, D), not normalised, for image features (B, D)."""
        return self.sentences.encode(self.backbone, self.ctx + self.semantics(image))

    def semantics(self, image: Tensor) -> Tensor:
        """What is added to each of n context tokens, (B, n, d), or to all, (B, 1, d), for image features (B, D)."""
        x = F.normalize(image, dim=-1)
        parts = x.tensor_split(len(self.ctx), dim=-1) if self.config.ftp == "channels" else [x] * len(self.ftp)
        return torch.stack([net(part) for net, part in zip(self.ftp, parts, strict=True)], dim=1)

    def visual_prompts(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, n, d), n visual prompts for image features (B, D) and their text features (B, K, D)."""
        texts = self.reorganized(image, text).expand(-1, len(self.tvp), -1).unbind(dim=1)
        return self.visual + torch.stack([net(r) for net, r in zip(self.tvp, texts, strict=True)], dim=1)

    def reorganized(self, image: Tensor, text: Tensor) -> Tensor:
        """What TVP reads for image features (B, D) and text features (B, K, D): one text (B, 1, D), or n (B, n, D)."""
        source, n = self.config.tvp_text, self.config.n_visual
        if source == "zeroed":
            return torch.zeros_like(image).unsqueeze(1)
        texts = F.normalize(self.frozen if source == "frozen" else text, dim=-1)  # ([B,] K, D)
        relevance = self.classify(image, texts).logits  # (B, K)
        texts = texts.expand(len(image), -1, -1)
        if source == "shuffled":
            texts = texts[:, self.others]
        if self.config.reorganize == "weighted":
            return relevance.softmax(dim=-1).unsqueeze(1) @ texts
        best = relevance.argsort(dim=-1, descending=True, stable=True)
        best = best[:, torch.arange(n).clamp(max=texts.shape[1] - 1)]  # the last again where there are too few
        return texts.gather(1, best.unsqueeze(-1).expand(-1, -1, texts.shape[-1]))


def network(inputs: int, hidden: int, outputs: int, zero: bool = False) -> nn.Sequential:
    """Linear, ReLU, Linear; with `zero` its output is zero at first."""
    first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(OrderedDict(linear1=first, relu=nn.ReLU(), linear2=last))


def tvp_units(joint: int) -> int:
    """Hidden units of TVP's networks."""
    return max(joint // REDUCTION, LEAST)


def matched_units(n: int, joint: int, text: int, vision: int) -> int:
    """Hidden units that give one network the parameters of n FTP and four TVP networks and four visual prompts."""
    ftp = (joint + 1) * (joint // REDUCTION) + (joint // REDUCTION + 1) * text
    tvp = (joint + 1) * tvp_units(joint) + (tvp_units(joint) + 1) * vision
    return round((n * ftp + N_VISUAL * (tvp + vision) - text) / (joint + 1 + text))
