"""The plain path: what the official code of each method computes, as it computes it.

Every text has 77 tokens, and every class goes through the whole text tower, for every step and for every batch of an
evaluation. CoCoOp does so for one image after another. Every image goes through the whole image tower, whatever was
computed of it before. What the official code computes once, is computed once here too: the fixed class texts of
zero-shot CLIP and VPT, and GalLoP's class texts in an evaluation.

The towers are open_clip's own, with `nn.MultiheadAttention` and frozen weights, so that nothing is slower here than
there. The learned tensors are copies of a promptbench method's, so that the logits can be compared.

Letters: B images, K classes, n prompt tokens, P patches, d width of a tower, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Deep = Mapping[int, Tensor]


class Towers:
    """The towers of an open_clip model, without a short cut."""

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        self.clip, self.tokenizer = clip, tokenizer

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (K, 77) and embeddings (K, 77, d) of whole texts."""
        ids = self.tokenizer(list(texts))
        with torch.no_grad():
            return ids, self.clip.token_embedding(ids)

    def text(self, embeddings: Tensor, ids: Tensor, deep: Deep | None = None) -> Tensor:
        """Text features (K, D); `deep` prompts (n, d) replace the tokens after [SOS] before their block."""
        clip = self.clip
        x = embeddings + clip.positional_embedding
        for i, block in enumerate(clip.transformer.resblocks):
            if deep and i in deep:
                prompts = deep[i].expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], prompts, x[:, 1 + prompts.shape[1] :]], dim=1)
            x = block(x, attn_mask=clip.attn_mask)
        x = clip.ln_final(x)
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ clip.text_projection

    def image(self, pixels: Tensor, prompts: Tensor | None = None, deep: Deep | None = None) -> Tensor:
        """Image features (B, D); `prompts` (n, d) stand after the patches, `deep` ones replace them before a block."""
        visual = self.clip.visual
        if prompts is None:
            return visual(pixels)  # type: ignore[no-any-return]
        x = torch.cat([visual._embeds(pixels), visual.ln_pre(prompts).expand(len(pixels), -1, -1)], dim=1)
        for i, block in enumerate(visual.transformer.resblocks):
            if deep and i in deep:
                x = torch.cat([x[:, : -len(prompts)], deep[i].expand(len(x), -1, -1)], dim=1)
            x = block(x)
        return visual.ln_post(x[:, 0]) @ visual.proj  # type: ignore[no-any-return]

    def dense(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (B, D), and the value path of the last block, after `ln_post`, (B, P, d)."""
        visual = self.clip.visual
        x = visual._embeds(pixels)
        *others, last = visual.transformer.resblocks
        for block in others:
            x = block(x)
        d, attention = x.shape[-1], last.attn
        values = F.linear(last.ln_1(x), attention.in_proj_weight[2 * d :], attention.in_proj_bias[2 * d :])
        local = x + attention.out_proj(values)
        local = local + last.mlp(last.ln_2(local))
        return visual.ln_post(last(x)[:, 0]) @ visual.proj, visual.ln_post(local[:, 1:])


class Plain:
    """An official implementation with the learned tensors of a promptbench method.

    Attributes:
        learned: Copies of the method's learned tensors, by their names there.
        per_image: Whether images are scored one after another.
    """

    per_image = False

    def __init__(self, method: Any) -> None:
        backbone = method.backbone
        self.towers, self.config = Towers(backbone.clip, backbone.tokenizer), method.config
        self.scale = backbone.clip.logit_scale.exp()
        self.method = method
        self.names = [name.replace("_", " ") for name in method.class_names]
        self.learned = {name: nn.Parameter(p.detach().clone()) for name, p in method.named_parameters()}
        self.tokenize()

    def tokenize(self) -> None:
        """Looks up the class tokens, once for given classes."""

    def start(self) -> None:
        """Computes what the official code computes once before an evaluation, or before training."""

    def features(self, pixels: Tensor) -> Any:
        """What the image tower says of images (B, 3, H, W)."""
        return self.towers.image(pixels)

    def logits(self, features: Any) -> Tensor:
        """(B, K) from what `features` gave."""
        return self.compare(features, self.text())

    def text(self) -> Tensor:
        """Class features (K, D), not normalised."""
        raise NotImplementedError

    def compare(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines (B, K)."""
        return self.scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T

    def sentences(self, words: str, n: int) -> None:
        """Tokens of `words name.` for all classes; the n tokens after [SOS] are learned."""
        self.ids, self.embeddings = self.towers.tokens([f"{words} {name}." for name in self.names])
        self.start_token, self.rest = self.embeddings[:, :1], self.embeddings[:, 1 + n :]

    def with_context(self, context: Tensor) -> Tensor:
        """Embeddings (K, 77, d) with a context (n, d) in all classes."""
        return torch.cat([self.start_token, context.expand(len(self.ids), -1, -1), self.rest], dim=1)


class ZeroShot(Plain):
    def start(self) -> None:
        (template,) = self.method.templates()
        ids, embeddings = self.towers.tokens([template.format(name) for name in self.names])
        self.fixed = self.towers.text(embeddings, ids)

    def text(self) -> Tensor:
        return self.fixed


class LinearProbe(Plain):
    def logits(self, features: Tensor) -> Tensor:
        weight, bias = self.method.solution
        return features @ weight.T + bias  # type: ignore[no-any-return]


class CoOp(Plain):
    def tokenize(self) -> None:
        self.sentences(self.config.ctx_init, len(self.learned["ctx"]))

    def text(self) -> Tensor:
        return self.towers.text(self.with_context(self.learned["ctx"]), self.ids)


class CoCoOp(CoOp):
    per_image = True

    def logits(self, features: Tensor) -> Tensor:
        rows = []
        for image in F.normalize(features, dim=-1):
            shift = F.linear(image, self.learned["meta_net.linear1.weight"], self.learned["meta_net.linear1.bias"])
            shift = F.linear(
                shift.relu(), self.learned["meta_net.linear2.weight"], self.learned["meta_net.linear2.bias"]
            )
            text = self.towers.text(self.with_context(self.learned["ctx"] + shift), self.ids)
            rows.append(self.compare(image, text))
        return torch.stack(rows)


class VPT(Plain):
    def start(self) -> None:
        ids, embeddings = self.towers.tokens([f"a photo of a {name}." for name in self.names])
        self.fixed = self.towers.text(embeddings, ids)

    def features(self, pixels: Tensor) -> Tensor:
        first, *deep = self.learned.values()
        return self.towers.image(pixels, first, dict(enumerate(deep, start=1)))

    def text(self) -> Tensor:
        return self.fixed


class IVLP(Plain):
    def tokenize(self) -> None:
        self.sentences(self.config.ctx_init, len(self.learned["ctx"]))

    def several(self, name: str) -> list[Tensor]:
        """The learned tensors of a list, in order."""
        return [tensor for key, tensor in self.learned.items() if key.startswith(f"{name}.")]

    def features(self, pixels: Tensor) -> Tensor:
        first, *deep = self.several("visual_prompts")
        return self.towers.image(pixels, first, dict(enumerate(deep, start=1)))

    def text(self) -> Tensor:
        deep = dict(enumerate(self.several("text_prompts"), start=1))
        return self.towers.text(self.with_context(self.learned["ctx"]), self.ids, deep)


class MaPLe(IVLP):
    def projected(self, prompt: Tensor, projection: str) -> Tensor:
        """A text prompt (n, d) as a visual one."""
        return F.linear(prompt, self.learned[f"{projection}.weight"], self.learned[f"{projection}.bias"])

    def features(self, pixels: Tensor) -> Tensor:
        deep = {
            i + 1: self.projected(prompt, f"compound_prompt_projections.{i}")
            for i, prompt in enumerate(self.several("compound_prompts_text"))
        }
        return self.towers.image(pixels, self.projected(self.learned["ctx"], "proj"), deep)

    def text(self) -> Tensor:
        deep = dict(enumerate(self.several("compound_prompts_text"), start=1))
        return self.towers.text(self.with_context(self.learned["ctx"]), self.ids, deep)


class GalLoP(Plain):
    def tokenize(self) -> None:
        words = self.config.template.replace("{}", "").strip()
        self.ids, self.embeddings = self.towers.tokens([f"{words} {name}" for name in self.names])
        n = self.learned["global_prompt"].shape[1]
        self.start_token, self.rest = self.embeddings[:, :1], self.embeddings[:, 1 + n :]

    def start(self) -> None:
        prompts = (*self.learned["global_prompt"], *self.learned["local_prompts"])
        text = torch.stack([self.towers.text(self.with_context(prompt), self.ids) for prompt in prompts])
        self.fixed = F.normalize(text, dim=-1)  # (m, K, D)

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cls, dense = self.towers.dense(pixels)
        dense = F.linear(dense, self.learned["local_proj.weight"]) @ self.towers.clip.visual.proj
        return F.normalize(cls, dim=-1), F.normalize(dense, dim=-1)

    def logits(self, features: tuple[Tensor, Tensor]) -> Tensor:
        cls, dense = features
        m = len(self.learned["global_prompt"])
        of_image = torch.einsum("bd,mkd->bmk", cls, self.fixed[:m]).mean(dim=1)
        of_patches = torch.einsum("bpd,mkd->bmkp", dense, self.fixed[m:])
        best = [
            of_patches[:, i].topk(min(k, dense.shape[1])).values.mean(dim=-1) for i, k in enumerate(self.config.topk)
        ]
        return self.scale * (of_image + torch.stack(best).mean(dim=0)) / 2


PLAIN: dict[str, type[Plain]] = {
    "zeroshot": ZeroShot,
    "linear_probe": LinearProbe,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "gallop": GalLoP,
    "vpt": VPT,
    "ivlp": IVLP,
    "maple": MaPLe,
}


def plain_step(
    plain: Plain, pixels: Tensor | None, cached: Any, labels: Tensor, optimizer: torch.optim.Optimizer
) -> Tensor:
    """One training step on pixels or, without them, on what the image tower said before; returns the logits (B, K)."""
    features = plain.features(pixels) if pixels is not None else cached
    logits = plain.logits(features)
    optimizer.zero_grad()
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    return logits.detach()
