"""The plain path: what the official code of each method computes, as it computes it.

Every text has 77 tokens, and every class goes through the whole text tower, for every step and for every batch of an
evaluation. CoCoOp does so for one image after another. Every image goes through the whole image tower, whatever was
computed of it before. What the official code computes once, is computed once here too: fixed class texts, such as those
of zero-shot CLIP, VPT and most adapters, and GalLoP's class texts in an evaluation. DPL and Mutual Prompt Learning have
no public code; their plain paths are the reconstructions' formulas, computed in the way of the others.

The learned tensors are copies of a promptbench method's, so that logits and gradients can be compared.

Letters: B images, K classes, n prompt tokens, P patches, d width of a tower, D joint dimension.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from promptbench.methods.mma import with_gradient_times
from promptbench.methods.mutual import RIDGE
from torch import Tensor, nn

from .towers import Towers

CLASS_PROMPTS = 4  # of TCP


class Plain:
    """An official implementation with the learned tensors of a promptbench method.

    Attributes:
        learned: Copies of the method's learned tensors, by their names there.
        per_image: Whether images are scored one after another.
        prompts_per_class: Texts of a class in one step; 0 where all are encoded before the first.
    """

    per_image = False
    prompts_per_class = 1

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

    def seen(self, pixels: Tensor) -> Any:
        """What a training step reads of images (B, 3, H, W)."""
        return self.features(pixels)

    def loss(self, seen: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and the loss that training minimises, from what `seen` gave."""
        logits = self.logits(seen)
        return logits, F.cross_entropy(logits, labels)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the learned tensors."""
        loss.backward()  # type: ignore[no-untyped-call]

    def text(self) -> Tensor:
        """Class features (K, D), not normalised."""
        raise NotImplementedError

    def compare(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines (B, K)."""
        return self.scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T

    def sentences(self, words: str, n: int) -> None:
        """Tokens of `words name.`, or of a template, for all classes; the n tokens after [SOS] are learned."""
        template = words if "{}" in words else f"{words} {{}}."
        self.ids, self.embeddings = self.towers.tokens([template.format(name) for name in self.names])
        self.start_token, self.rest = self.embeddings[:, :1], self.embeddings[:, 1 + n :]

    def sentences_of(self, template: str) -> Tensor:
        """Features (K, D) of the classes in a template, which are not learned."""
        ids, embeddings = self.towers.tokens([template.format(name) for name in self.names])
        return self.towers.text(embeddings, ids)

    def with_context(self, context: Tensor) -> Tensor:
        """Embeddings (K, 77, d) with a context (n, d) in all classes."""
        return torch.cat([self.start_token, context.expand(len(self.ids), -1, -1), self.rest], dim=1)

    def several(self, name: str) -> list[Tensor]:
        """The learned tensors of a list, in order."""
        return [tensor for key, tensor in self.learned.items() if key.startswith(f"{name}.")]

    def network(self, name: str, x: Tensor) -> Tensor:
        """Linear, ReLU, Linear with the learned tensors of that name, on x (..., inputs)."""
        x = F.linear(x, self.learned[f"{name}.linear1.weight"], self.learned[f"{name}.linear1.bias"])
        return F.linear(x.relu(), self.learned[f"{name}.linear2.weight"], self.learned[f"{name}.linear2.bias"])


class ZeroShot(Plain):
    def start(self) -> None:
        (template,) = self.method.templates()
        ids, embeddings = self.towers.tokens([template.format(name) for name in self.names])
        self.fixed = self.towers.text(embeddings, ids)

    def text(self) -> Tensor:
        return self.fixed


class LinearProbe(Plain):
    def logits(self, features: Tensor) -> Tensor:
        return features @ self.method.weight.T + self.method.bias


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
            context = self.learned["ctx"] + self.network("meta_net", image)
            rows.append(self.compare(image, self.towers.text(self.with_context(context), self.ids)))
        return torch.stack(rows)


class Mutual(CoOp):
    per_image = True

    def start(self) -> None:
        self.to_states = self.towers.inverse_projection()

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.towers.image(pixels), pixels

    def logits(self, features: tuple[Tensor, Tensor]) -> Tensor:
        rows = []
        for image, pixels in zip(*features, strict=True):
            text = self.text_of(image)
            read = self.reorganized(F.normalize(image, dim=0), F.normalize(text, dim=-1))
            rows.append(self.compare(image, text) / 2 + self.compare(self.prompted(pixels, read), text) / 2)
        return torch.stack(rows)

    def loss(self, seen: tuple[Tensor, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        passes = []
        for image, pixels in zip(*seen, strict=True):
            text = self.text_of(image)
            passes.append(torch.stack([self.compare(image, text), self.compare(self.prompted(pixels), text.detach())]))
        first, second = torch.stack(passes, dim=1)  # (B, K) each
        return (first + second) / 2, F.cross_entropy(first, labels) + F.cross_entropy(second, labels)

    def text_of(self, image: Tensor) -> Tensor:
        """The texts (K, D) of one image, from its feature (D,) without prompts."""
        x = F.normalize(image, dim=0)
        own = torch.stack([self.network(f"ftp.{i}", x) for i in range(1, 1 + len(self.learned["ctx"]))])  # (n, d)
        return self.towers.text(self.with_context(self.learned["ctx"] + self.network("ftp.0", x) + own), self.ids)

    def reorganized(self, x: Tensor, text: Tensor) -> Tensor:
        """What the prompt says, (D,), of an image (D,) and its texts (K, D), all of length 1."""
        ridge = RIDGE**0.5 * torch.eye(len(text), device=text.device)
        texts_and_ridge = torch.cat([text.T, ridge])  # (D + K, K)
        weights = torch.linalg.lstsq(texts_and_ridge, F.pad(x, (0, len(text)))[:, None]).solution[:, 0]
        return weights @ text

    def prompted(self, pixels: Tensor, read: Tensor | None = None) -> Tensor:
        """The feature (D,) of an image (3, H, W) in pass 2, with a prompt that says `read` or without it."""
        visual, written = self.towers.clip.visual, None
        if read is not None:
            state = read @ self.to_states
            length = self.config.tvp_strength * read.norm()
            written = length * F.normalize(state, dim=0) * len(state) ** 0.5
        gated = self.several("visual.prompts"), self.learned["visual.gates"]
        x = self.towers.gated(visual.transformer, visual._embeds(pixels[None]), *gated, written)
        return visual.ln_post(x[0, 0]) @ visual.proj  # type: ignore[no-any-return]


class VPT(Plain):
    prompts_per_class = 0

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

    def features(self, pixels: Tensor) -> Tensor:
        first, *deep = self.several("visual_prompts")
        return self.towers.image(pixels, first, dict(enumerate(deep, start=1)))

    def text(self) -> Tensor:
        deep = dict(enumerate(self.several("text_prompts"), start=1))
        return self.towers.text(self.with_context(self.learned["ctx"]), self.ids, deep)


class PromptSRC(IVLP):
    def start(self) -> None:
        self.frozen_text = self.method.frozen_text()  # 60 sentences a class, once before training on both sides

    def seen(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.features(pixels), self.towers.image(pixels)

    def loss(self, seen: tuple[Tensor, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        (image, frozen_image), text, weights = seen, self.text(), (self.config.text_weight, self.config.image_weight)
        logits, target = self.compare(image, text), self.compare(frozen_image, self.frozen_text)
        both = (x.log_softmax(dim=-1) for x in (logits, target))
        loss = F.cross_entropy(logits, labels) + F.kl_div(*both, reduction="sum", log_target=True) / logits.numel()
        for weight, pair in zip(weights, ((text, self.frozen_text), (image, frozen_image)), strict=True):
            loss = loss + weight * F.l1_loss(*(F.normalize(x, dim=-1) for x in pair))
        return logits, loss


class DPL(IVLP):
    def tokenize(self) -> None:
        self.sentences(self.config.ctx_init, 0)

    def start(self) -> None:
        self.eot = self.ids.argmax(dim=-1)
        self.template = self.towers.template(self.embeddings, self.eot, len(self.learned["text_prompts.0"]))

    def features(self, pixels: Tensor) -> Tensor:
        visual, prompts = self.towers.clip.visual, self.several("visual.prompts")
        x = self.towers.gated(visual.transformer, visual._embeds(pixels), prompts, self.learned["visual.gates"])
        return visual.ln_post(x[:, 0]) @ visual.proj  # type: ignore[no-any-return]

    def text(self) -> Tensor:
        return self.towers.carried(self.template, self.eot, self.several("text_prompts"), self.learned["beta"])


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
    prompts_per_class = 8

    def tokenize(self) -> None:
        words = self.config.template.replace("{}", "").strip()
        self.ids, self.embeddings = self.towers.tokens([f"{words} {name}" for name in self.names])
        n = self.learned["global_prompt"].shape[1]
        self.start_token, self.rest = self.embeddings[:, :1], self.embeddings[:, 1 + n :]

    def start(self) -> None:
        self.fixed = self.text()

    def text(self) -> Tensor:
        """(m, K, D) of global and local prompts, normalised."""
        prompts = (*self.learned["global_prompt"], *self.learned["local_prompts"])
        text = torch.stack([self.towers.text(self.with_context(prompt), self.ids) for prompt in prompts])
        return F.normalize(text, dim=-1)

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cls, dense = self.towers.dense(pixels)
        dense = F.linear(dense, self.learned["local_proj.weight"]) @ self.towers.clip.visual.proj
        return F.normalize(cls, dim=-1), F.normalize(dense, dim=-1)

    def logits(self, features: tuple[Tensor, Tensor]) -> Tensor:
        of_image, of_patches = self.cosines(features, self.fixed)
        return self.scale * (of_image.mean(dim=1) + of_patches.mean(dim=1)) / 2

    def cosines(self, features: tuple[Tensor, Tensor], text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, m, K) of the global prompts with the image, and of the local ones with the best patches."""
        (cls, dense), m = features, len(self.learned["global_prompt"])
        of_patches = torch.einsum("bpd,mkd->bmkp", dense, text[m:])
        best = [
            of_patches[:, i].topk(min(k, dense.shape[1])).values.mean(dim=-1) for i, k in enumerate(self.config.topk)
        ]
        return torch.einsum("bd,mkd->bmk", cls, text[:m]), torch.stack(best, dim=1)

    def loss(self, seen: tuple[Tensor, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        of_image, of_patches = self.cosines(seen, self.text())
        m, classes = of_image.shape[1:]
        kept = torch.randint(m, (len(labels), max(m - int(self.config.dropout * m), 1)), device=labels.device)
        of_kept = of_image.gather(1, kept[..., None].expand(-1, -1, classes)).mean(dim=1)
        terms = [of_kept, *of_patches.unbind(dim=1)]
        of_global, *of_local = (F.cross_entropy(self.scale * cosines, labels) for cosines in terms)
        logits = self.scale * (of_image.mean(dim=1) + of_patches.mean(dim=1)) / 2
        return logits, of_global + torch.stack(of_local).mean()


class KgCoOp(CoOp):
    def start(self) -> None:
        (template,) = self.method.templates_of_classes()
        self.target = self.sentences_of(template)

    def loss(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        text = self.text()
        logits, alike = self.compare(seen, text), F.cosine_similarity(text, self.target)
        return logits, F.cross_entropy(logits, labels) + self.config.weight * (1 - alike).mean()


class ProGrad(CoOp):
    def tokenize(self) -> None:
        self.sentences(self.method.words, len(self.learned["ctx"]))

    def start(self) -> None:
        (template,) = self.method.templates_of_classes()
        self.target = self.sentences_of(template)

    def loss(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(seen)
        teacher = self.compare(seen, self.target).softmax(dim=-1)
        self.guide = -(teacher * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
        return logits, F.cross_entropy(logits, labels)

    def backward(self, loss: Tensor) -> None:
        (context,) = self.learned.values()
        (other,) = torch.autograd.grad(self.guide, [context], retain_graph=True)
        (own,) = torch.autograd.grad(loss, [context])
        length = other.norm()
        along = (own * other).sum() / length
        context.grad = own - self.config.weight * along * other / length if along < 0 else own


class TCP(KgCoOp):
    def tokenize(self) -> None:
        n = len(self.learned["ctx"])
        self.sentences(" ".join(["X"] * max(n, CLASS_PROMPTS)), n)

    def text(self) -> Tensor:
        w1, w2 = (self.learned[f"meta_net.linear{i}.weight"] for i in (1, 2))
        b1, b2 = (self.learned[f"meta_net.linear{i}.bias"] for i in (1, 2))
        h = F.linear(F.normalize(self.target, dim=-1), w1, b1)
        of_classes = F.linear(h * torch.sigmoid(1.702 * h), w2, b2).unflatten(-1, (CLASS_PROMPTS, -1))
        embeddings = self.with_context(self.learned["ctx"])
        return self.towers.text(embeddings, self.ids, {self.config.layer: of_classes})


class LoCoOp(Plain):
    def tokenize(self) -> None:
        n = len(self.learned["ctx"])
        self.sentences(" ".join(["X"] * n), n)

    def text(self) -> Tensor:
        return self.towers.text(self.with_context(self.learned["ctx"]), self.ids)

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cls, dense = self.towers.dense(pixels)
        return cls, dense @ self.towers.clip.visual.proj

    def logits(self, features: tuple[Tensor, Tensor]) -> Tensor:
        return self.compare(features[0], self.text())

    def loss(self, seen: tuple[Tensor, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        (cls, dense), text = seen, self.text()
        logits, of_patches = self.compare(cls, text), self.compare(dense, text)  # (B, K), (B, P, K)
        count = max(1, round(self.config.topk * text.shape[0]))
        likely = of_patches.topk(count, dim=-1).indices == labels[:, None, None]
        others = of_patches[~likely.any(dim=-1)].softmax(dim=-1)
        undecided = (others * (others + 1e-5).log()).sum(dim=-1).sum() / max(1, len(others))
        return logits, F.cross_entropy(logits, labels) + self.config.weight * undecided


class TipAdapterF(Plain):
    prompts_per_class = 0

    def start(self) -> None:
        texts = [self.sentences_of(template) for template in self.method.templates_of_classes()]
        self.classifier = sum(F.normalize(text, dim=-1) for text in texts)

    def logits(self, features: Tensor) -> Tensor:
        affinity = F.normalize(features, dim=-1) @ self.learned["keys"].T
        beta, alpha = self.method.beta, self.method.alpha
        cached = (-(beta - beta * affinity)).exp() @ self.method.values
        return self.compare(features, self.classifier) + alpha * cached


class CLIPAdapter(Plain):
    prompts_per_class = 0

    def start(self) -> None:
        (template,) = self.method.templates_of_classes()
        self.fixed = self.sentences_of(template)

    def text(self) -> Tensor:
        return self.fixed

    def logits(self, features: Tensor) -> Tensor:
        first, second = self.several("fc")
        adapted = F.linear(F.linear(features, first).relu(), second).relu()
        ratio = self.config.ratio
        return self.compare(ratio * adapted + (1 - ratio) * features, self.fixed)


class TaskRes(Plain):
    prompts_per_class = 0

    def start(self) -> None:
        self.fixed = sum(self.sentences_of(template) for template in self.method.templates_of_classes())
        self.fixed = self.fixed / len(self.method.templates_of_classes())

    def text(self) -> Tensor:
        return self.fixed + self.config.alpha * self.learned["residuals"]


class CLAP(Plain):
    prompts_per_class = 0

    def text(self) -> Tensor:
        return self.learned["prototypes"]

    def loss(self, seen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(seen)
        moved = (self.learned["prototypes"] - self.method.start).square().sum(dim=-1)
        return logits, F.cross_entropy(logits, labels) + (self.method.multipliers * moved).mean()


class OtherBlocks(Plain):
    """Both towers with blocks that are not CLIP's."""

    def features(self, pixels: Tensor) -> Tensor:
        visual = self.towers.clip.visual
        x = self.run("vision", visual.transformer, visual._embeds(pixels), None)
        return visual.ln_post(x[:, 0]) @ visual.proj  # type: ignore[no-any-return]

    def text(self) -> Tensor:
        clip = self.towers.clip
        x = self.run("text", clip.transformer, self.embeddings + clip.positional_embedding, clip.attn_mask)
        return self.towers.read(x, self.ids)

    def run(self, tower: str, transformer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens x (N, T, d) after all blocks of a tower."""
        raise NotImplementedError


class CLIPLoRA(OtherBlocks):
    """Branches as the authors' linear layers compute them: the product of B and A is made, d x d, and applied."""

    def tokenize(self) -> None:
        self.ids, self.embeddings = self.towers.tokens([f"a photo of a {name}." for name in self.names])
        self.factor = self.config.alpha * self.config.rank**-0.5

    def run(self, tower: str, transformer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        for i, block in enumerate(transformer.resblocks):
            h, attention = block.ln_1(x), block.attn
            parts = zip("qkv", attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
            q, k, v = (
                self.changed(f"{tower}.{i}.{name}", h, weight, bias).unflatten(-1, (attention.num_heads, -1))
                for name, weight, bias in parts
            )
            seen = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), attn_mask=mask)
            x = self.towers.after(block, x, seen)
        return x

    def changed(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The product of a matrix with x, and its branch."""
        dropped = F.dropout(x, self.config.dropout, self.method.training)
        product = self.learned[f"{name}.up"] @ self.learned[f"{name}.down"]  # (d, d)
        return F.linear(x, weight, bias) + dropped @ product.T * self.factor


class MMA(OtherBlocks):
    ADAPTERS: ClassVar = {"vision": "visual_adapter", "text": "text_adapter"}

    def tokenize(self) -> None:
        self.ids, self.embeddings = self.towers.tokens([f"{self.config.ctx_init} {name}." for name in self.names])

    def run(self, tower: str, transformer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        for i, block in enumerate(transformer.resblocks, start=1):
            y = block(x, attn_mask=mask)
            if self.config.first_layer <= i <= self.config.last_layer:
                y = y + self.adapted(f"{self.ADAPTERS[tower]}.{i}", f"shared_adapter.{i}", block.ln_1, x)
            x = y
        return x

    def adapted(self, own: str, shared: str, normalise: Any, x: Tensor) -> Tensor:
        """What an adapter adds, with its gradient times 1 / scale."""
        scale = self.config.scale
        h = self.linear(f"{own}.down.0", normalise(with_gradient_times(scale, x))).relu()
        h = self.linear(f"{shared}.0", h).relu()
        return with_gradient_times(1 / scale, scale * self.linear(f"{own}.up", h))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A learned linear layer."""
        return F.linear(x, self.learned[f"{name}.weight"], self.learned[f"{name}.bias"])


PLAIN: dict[str, type[Plain]] = {
    "zeroshot": ZeroShot,
    "linear_probe": LinearProbe,
    "coop": CoOp,
    "cocoop": CoCoOp,
    "gallop": GalLoP,
    "vpt": VPT,
    "ivlp": IVLP,
    "maple": MaPLe,
    "promptsrc": PromptSRC,
    "mutual": Mutual,
    "dpl": DPL,
    "kgcoop": KgCoOp,
    "prograd": ProGrad,
    "tcp": TCP,
    "locoop": LoCoOp,
    "tip_adapter_f": TipAdapterF,
    "clip_adapter": CLIPAdapter,
    "taskres": TaskRes,
    "clap": CLAP,
    "clip_lora": CLIPLoRA,
    "mma": MMA,
}


def plain_step(
    plain: Plain, pixels: Tensor | None, cached: Any, labels: Tensor, optimizer: torch.optim.Optimizer
) -> Tensor:
    """One training step on pixels or, without them, on what the image tower said before; returns the logits (B, K)."""
    logits, loss = plain.loss(plain.seen(pixels) if pixels is not None else cached, labels)
    optimizer.zero_grad()
    plain.backward(loss)
    optimizer.step()
    return logits.detach()
