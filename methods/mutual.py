"""Mutual-R: reconstructed, written without access to the full paper; compare with it before citing.

Image semantics go into the context, a different one into every token, and class texts into the image tower.

Long et al., "Mutual Prompt Leaning for Vision Language Models" (sic), IJCV 2024,
https://doi.org/10.1007/s11263-024-02243-z; its predecessor by the same authors is "Task-Oriented Multi-Modal Mutual
Learning for Vision-Language Models", ICCV 2023, arXiv:2303.17169.
Code by the authors: none was published. Of both papers the abstracts alone were read.

    x     = f(image) / |f(image)|                                                      (pass 1, without prompts)
    v_m'  = v_m + h(x) + h_m(x),   T_c = g([SOS] v_1' ... v_n' <c> . [EOT]) / |...|    (FTP)
    r     = sum_c a_c T_c,   a = argmin |x - sum_c a_c T_c|^2 + ridge |a|^2            (TVP)
    x~    = f(image; P, r) / |...|                                                     (pass 2)
    p(c | image) = softmax_c( exp(s) <x + x~, T_c> / 2 )

with image tower f, text tower g, CLIP's logit scale s, learned v and networks h, h_m = Linear, ReLU, Linear with D / 16
hidden units, the last one of h_m zero at first. In pass 2 every block l has J learned prompts P_l and gates g_l by
head, zero at first, and its rows are Attn(X, X) + g_l Attn(X, P_l). In the last block [CLS] alone reads one prompt
more, which says r: its value is what the tower's last normalisation and projection turn into r.

In training each pass has its cross-entropy; that of pass 2 has no gradient into T, and reads no r, since the texts have
been fitted to the training images and tell their labels. Without h_m and with J = 0 it is CoCoOp, exactly.

The abstract states that one global image feature is decomposed into several semantics, each put into its own context
token (FTP), and that the texts of the current image are reorganised into the visual prompt (TVP), since raw text has
redundant and negative semantics. INFERENCE, the rest:
  - a token's semantics are what CoCoOp's one network h makes for all, and what a network of its own adds (`ftp`: or
    h alone); as many semantics as tokens; the same for all classes;
  - the reorganised text is the point nearest to the image that the class texts reach together: what they share counts
    once, and classes that the image is not count against it (`tvp_text`: or controls);
  - the fixed map from text to prompt, and its strength (`tvp_strength`); J = 4 prompts without text (`n_visual`), after
    `ln_pre`, without positions; two losses, and the mean of both passes as the answer (`answer`); CoCoOp's training.

This reading replaces an earlier one, in which networks made the first layer's prompts from the mean text by class
probability and one loss trained all. There the visual prompts spoilt the texts, which now are trained by pass 1 alone,
and the networks learned which base class a text was of, which says nothing of new classes; a fixed map cannot.
Pass 2 alone answers worse than both together (`second`). On rendered images that had not been looked at
(results/mini/reconstructions.json, ten seeds) H is 3.0 points above CoCoOp's, with the halves of the classes swapped
0.9, which may be none. The text that is written carries what pass 1 thinks of the image into pass 2: another image's is
worse by 0.8, but none at all does as well (`tvp-zeroed`), so that texts guide what the image tower attends to showed no
effect. Nor did networks of their own for the tokens (`ftp`, 0.5 below CoCoOp); CoCoOp with visual prompts has 0.4 more
than the whole.
The control `noise` makes noise of all that is read of the image, in training too, `ftp-noise` of what FTP reads alone.
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
from promptbench.config import UsageError
from promptbench.method import ImageFeatures, Images, Method, MethodConfig, Prediction, Preset, Recipe

COCOOP = "CoCoOp authors' vit_b16_c4_ep10_batch1_ctxv1; a recipe of its own is not known"
REDUCTION = 16  # of the joint dimension to the hidden units of all networks, as in CoCoOp
N_VISUAL, DEPTH = 4, 9
RIDGE = 1e-3  # in the reorganised text; the texts have length 1
TIED: dict[str, object] = {"ftp": "tied"}
NO_TVP: dict[str, object] = {"n_visual": 0}


class Mutual(Method):
    """A context made from the image, and a visual prompt made from that context's texts."""

    title = "Mutual-R"
    reconstructed = True
    category = "multi-modal, per image"
    parameters_vit_b16 = 196_364
    learned_prompts = ("ctx", "visual.prompts")
    image_conditional = True
    recipes: ClassVar = {("*", "*"): Recipe(epochs=10, lr=0.002, batch=1, origin="transferred", source=COCOOP)}
    presets: ClassVar = {
        "cocoop": Preset(config=TIED | NO_TVP, source="CoCoOp: neither FTP nor TVP"),
        "cocoop-visual": Preset(config=TIED | {"tvp_text": "zeroed"}, source="CoCoOp + visual prompts without text"),
        "ftp": Preset(config=NO_TVP, source="CoCoOp + FTP"),
        "ftp-noise": Preset(config=NO_TVP | {"ftp_image": "noise"}, source="control: FTP reads noise"),
        "tvp": Preset(config=TIED, source="CoCoOp + TVP"),
        "matched": Preset(
            config=TIED | NO_TVP | {"matched": True},
            source="control: CoCoOp, its network as wide as the whole method has parameters",
        ),
        "tvp-noise": Preset(config={"tvp_text": "noise"}, source="control: TVP reads noise"),
        "tvp-other-image": Preset(
            config={"tvp_text": "other-image"}, source="control: TVP reads the text of another image of the batch"
        ),
        "tvp-mean": Preset(config={"tvp_text": "mean"}, source="control: TVP reads all texts alike"),
        "tvp-zeroed": Preset(config={"tvp_text": "zeroed"}, source="control: TVP reads no text"),
        "second": Preset(config={"answer": "second"}, source="control: pass 2 alone answers"),
    }
    controls: ClassVar = {
        "": {
            "@matched": "FTP and TVP, for as many parameters in one network",
            "@tvp-noise": "what the text says to TVP",
            "@tvp-other-image": "whose text TVP reads",
            "@tvp-mean": "which classes' texts TVP reads",
            "@tvp-zeroed": "the text of TVP",
            "@second": "pass 1's half of the answer",
        },
        "@ftp": {"@ftp-noise": "what the image says to FTP", "@cocoop": "a network of its own for each token"},
        "@tvp": {"@cocoop-visual": "the text of TVP", "@cocoop": "TVP"},
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
        ftp: Literal["tokens", "tied"] = field(
            default="tokens",
            metadata={
                "source": "INFERENCE; a network for each token beside one for all tokens, or that alone (CoCoOp)"
            },
        )
        ftp_image: Literal["own", "noise"] = field(
            default="own",
            metadata={
                "source": "control; noise: of the mean and covariance of the batch's features, of one image its own"
            },
        )
        n_visual: int = field(
            default=N_VISUAL, metadata={"source": "INFERENCE; visual prompts of a layer, 0: no TVP", "at_least": 0}
        )
        depth_visual: int = field(
            default=DEPTH,
            metadata={
                "source": "INFERENCE; layers that receive them",
                "at_most": ("vision_depth", "vision_layers"),
                "at_least": 0,
            },
        )
        tvp_text: Literal["own", "other-image", "noise", "mean", "zeroed"] = field(
            default="own",
            metadata={
                "source": "INFERENCE: own; controls: that of another image of the batch, noise of the batch's mean and "
                "covariance, the mean over classes, none",
                "trains": False,
            },
        )
        tvp_strength: float = field(
            default=1.0,
            metadata={
                "source": "INFERENCE; of the text's prompt, in lengths of [CLS] for a text of 1",
                "trains": False,
            },
        )
        answer: Literal["mean", "second"] = field(
            default="mean",
            metadata={"source": "INFERENCE; the mean of both passes' logits, or those of pass 2", "trains": False},
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
        n, width = prompts.context_length(self.words, config.n_ctx, backbone), backbone.text_width
        joint = backbone.embed_dim
        self.frozen_image_tower = config.n_visual == 0
        self.reads_frozen = "always" if config.n_visual else ""
        if config.n_visual and not config.depth_visual:
            raise UsageError("Visual prompts need a layer: set n_visual=0, or choose a ViT such as ViT-B-16.")
        self.ctx = nn.Parameter(prompts.initial_context(backbone, self.words, n))
        units = matched_units(n, backbone) if config.matched else joint // REDUCTION
        self.ftp = nn.ModuleList([network(joint, units, width)])
        if config.ftp == "tokens":
            self.ftp.extend(network(joint, units, width, zero=True) for _ in range(n))
        if config.n_visual:
            self.visual = prompts.VisualPrompts(backbone, config.n_visual, config.depth_visual)

    def set_classes(self, names: Sequence[str]) -> None:
        super().set_classes(names)
        self.sentences = prompts.sentences(self.backbone, self.words, len(self.ctx), names)

    def images_at_once(self) -> int:
        return self.backbone.images_within_budget(self.sentences.tokens.eot)

    def forward(self, images: Images | Tensor) -> Prediction:
        if not self.config.n_visual:
            image = self.encode_images(images)
            return self.classify(image, self.conditional_text(image.cls))
        image = self.backbone.encode_image(images, local=False)  # patches are read in pass 2
        text = self.conditional_text(image.cls)
        second = self.classify(self.prompted(images, self.reorganized(image.cls, text)), text)
        if self.config.answer == "second":
            return second
        cosines = (self.classify(image.cls, text).cosines + second.cosines) / 2  # type: ignore[operator]
        return Prediction(self.backbone.logit_scale.float() * cosines, cosines, second.local)

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        image = self.encode_images(images)
        text = self.conditional_text(image.cls)
        terms = {"ce": F.cross_entropy(self.classify(image, text).logits, labels)}
        if self.config.n_visual:
            second = self.classify(self.prompted(images, None), text.detach())
            terms["tvp"] = F.cross_entropy(second.logits, labels)
        return terms

    def conditional_text(self, image: Tensor) -> Tensor:
        """Text features (B, K, D), not normalised, for image features (B, D)."""
        return self.sentences.encode(self.backbone, self.ctx + self.semantics(image))

    def semantics(self, image: Tensor) -> Tensor:
        """What is added to each of n context tokens, (B, n, d), or to all, (B, 1, d), for image features (B, D)."""
        x = self.condition(F.normalize(image, dim=-1))
        if self.config.ftp_image == "noise":
            x = self.noise_like(x)
        common, *own = (net(x).unsqueeze(1) for net in self.ftp)
        return common + torch.cat(own, dim=1) if own else common

    def reorganized(self, image: Tensor, text: Tensor) -> Tensor | None:
        """What TVP reads, (B, D), for image features (B, D) and text features (B, K, D); None: nothing."""
        source = self.config.tvp_text
        if source == "zeroed":
            return None
        with torch.autocast(image.device.type, enabled=False):
            x = self.condition(F.normalize(image.float(), dim=-1))
            texts = F.normalize(text.float(), dim=-1)
            read = texts.mean(dim=1) if source == "mean" else nearest(x, texts)
        if source == "other-image":
            return read.roll(len(read) // 2, dims=0)  # far off: images of a test set come class by class
        return self.noise_like(read) if source == "noise" else read

    def noise_like(self, features: Tensor) -> Tensor:
        """Gaussian noise (B, D) with mean and covariance of the features (B, D); the same at each evaluation."""
        with torch.random.fork_rng(enabled=not self.training):
            if not self.training:
                torch.manual_seed(len(features))
            draws = features.new_empty(len(features), len(features)).normal_()
        mean = features.mean(dim=0)
        return mean + draws @ (features - mean) / len(features) ** 0.5

    def prompted(self, images: Images | Tensor, read: Tensor | None) -> ImageFeatures:
        """Image features of pass 2 for the text that TVP reads, (B, D), if any."""
        written = None
        if read is not None:
            length = self.config.tvp_strength * read.norm(dim=-1, keepdim=True)
            written = length * self.backbone.write_on_image(read)
        return self.visual.encode(self.backbone, images, written)

    @torch.no_grad()
    def diagnostics(self, images: Images | Tensor) -> dict[str, float]:
        """Gates by layer, mean |g| over heads; and of what TVP reads, and of the prompt it makes, variance over images.

        The variance is that of unit vectors: 1 where they have nothing in common, 0 where all are the same.
        """
        if not self.config.n_visual:
            return {}
        found = {f"gate/vision/{i}": gate for i, gate in enumerate(self.visual.gates.abs().mean(dim=1).tolist(), 1)}
        image = self.encode_images(images).cls
        read = self.reorganized(image, self.conditional_text(image))
        if read is not None:
            made = self.backbone.write_on_image(read)
            found |= {"tvp/variance_of_text": variance(read), "tvp/variance_of_prompt": variance(made)}
        return found


def nearest(x: Tensor, texts: Tensor) -> Tensor:
    """The combination (B, D) of texts (B, K, D) that is nearest to x (B, D) by ridge regression."""
    K, D = texts.shape[-2:]
    onto = (texts @ x.unsqueeze(-1)).squeeze(-1)  # (B, K)
    smaller = texts @ texts.mT if K <= D else texts.mT @ texts
    smaller = smaller + RIDGE * torch.eye(min(K, D), device=x.device)
    if K <= D:
        return (torch.linalg.solve(smaller, onto).unsqueeze(1) @ texts).squeeze(1)
    return torch.linalg.solve(smaller, (onto.unsqueeze(1) @ texts).squeeze(1))


def variance(features: Tensor) -> float:
    """Of features (B, D) as unit vectors, over the B images, summed over D."""
    return float(F.normalize(features, dim=-1).var(dim=0, correction=0).sum())


def network(inputs: int, hidden: int, outputs: int, zero: bool = False) -> nn.Sequential:
    """Linear, ReLU, Linear; with `zero` its output is zero at first."""
    first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(OrderedDict(linear1=first, relu=nn.ReLU(), linear2=last))


def matched_units(n: int, backbone: Backbone) -> int:
    """Hidden units that give one network the parameters of FTP's 1 + n and of TVP."""
    joint, text = backbone.embed_dim, backbone.text_width
    ftp = (joint + 1) * (joint // REDUCTION) + (joint // REDUCTION + 1) * text
    depth = min(DEPTH, backbone.vision_layers)
    heads = backbone.vision_heads if depth else 0
    tvp = depth * (N_VISUAL * backbone.vision_width + heads)
    return round(((1 + n) * ftp + tvp - text) / (joint + 1 + text))
