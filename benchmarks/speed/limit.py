"""The least a training step has to compute once nothing redundant is left, by formula.

Counted are the linear layers of both towers, forward and backward: 2 d^2 operations a token for a query, as many for a
key, a value and the output projection, 16 d^2 for the two layers behind attention. A token counts forward where its
state depends on something learned or on a new image, backward where it does so on something learned, and either way
only where the loss depends on it:

  - of a text, [SOS] and what was tokenised never change before a learned token is read: constants, of an earlier step;
  - tokens before the class name are the same for all classes, unless a method makes them differ, and count once;
  - of the last block only what is read at [EOT] or [CLS] counts, and keys and values;
  - prompts that the next block replaces are keys and values;
  - features of a frozen tower that are known count nothing.

So do padding, attention's own products, normalisation, what is computed again, and the few columns that a method adds
to a block (adapters and branches of low rank). The limit in seconds is this work over the rate of a large matrix
product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from promptbench.clip.backbone import Backbone
from promptbench.clip.prompts import in_templates, sentence_tokens

CACHED, KNOWN, ENCODED = "cached", "known", "images"
"""Where image features come from: nothing else is given; they are, and pixels; pixels alone."""


def rows(d: int, *, queries: float, keys: float, after: float) -> float:
    """Operations, one way, of so many tokens of width d in a block: queries, keys and values, and what follows them."""
    return d * d * (2 * queries + 4 * keys + 18 * after)


def whole(d: int, count: float) -> float:
    """Operations, one way, of so many tokens of width d through a whole block."""
    return rows(d, queries=count, keys=count, after=count)


@dataclass(frozen=True)
class Texts:
    """What a step has to do in the text tower.

    Attributes:
        learned: Prompt tokens that all classes share.
        fixed: Tokens behind them that all classes share, too.
        own: Tokens of the classes themselves, of all together, [EOT] included.
        classes: Texts, each of which is read once.
        sets: How often all of it is done: images, of a method with prompts for each, or sets of prompts.
        replaced: Blocks, from the first on, whose prompts the next block replaces.
        apart: Block from which on each class has tokens of its own before its name, and how many; None: none has.
        start: Block before which nothing depends on what is learned.
        constant: Whether what enters that block does not depend on it, the learned prompts apart.
        backward: How many gradients are taken.
    """

    learned: int
    fixed: int
    own: int
    classes: int
    sets: int = 1
    replaced: int = 0
    apart: tuple[int, int] | None = None
    start: int = 0
    constant: bool = True
    backward: int = 1

    def work(self, backbone: Backbone) -> float:
        """Operations forward and backward."""
        d, last = backbone.text_width, backbone.text_depth - 1
        found = 2.0 * d * backbone.embed_dim * self.classes
        for i in range(self.start, last + 1):
            own, learned, fixed = self.own, self.learned, self.fixed
            if self.apart and i >= self.apart[0]:
                own, learned = own + self.apart[1] * self.classes, 0
            known = self.constant and i == self.start
            if i == last:
                found += rows(d, queries=self.classes, keys=own + learned + fixed, after=self.classes)
                continue
            read_only = i < self.replaced or (self.apart is not None and i + 1 == self.apart[0])
            found += rows(d, queries=0, keys=learned, after=0) if read_only else whole(d, learned)
            others = own + fixed
            found += rows(d, queries=0, keys=0, after=others) if known else whole(d, others)
        return found * self.sets * (1 + self.backward)


def image_forward(backbone: Backbone, images: int, dense: bool = False, added: int = 0, since: int = 0) -> float:
    """Operations of images through the image tower; `added` tokens of each pass whole blocks from `since` on."""
    visual, d, last = backbone.clip.visual, backbone.vision_width, backbone.vision_depth - 1
    patches = len(visual.positional_embedding) - 1
    per_image = 2.0 * visual.conv1.weight[0].numel() * d * patches + last * whole(d, 1 + patches)
    per_image += max(0, last - since) * whole(d, added)
    per_image += rows(d, queries=1, keys=1 + patches + added, after=1) + 2 * d * backbone.embed_dim
    if dense:
        per_image += patches * (rows(d, queries=0, keys=0, after=1) + 2 * d * backbone.embed_dim)
    return images * per_image


def image_backward(backbone: Backbone, images: int, added: int = 0, since: int = 0, start: int = 0) -> float:
    """Operations back through the image tower to what is learned in all blocks from `start` on.

    What enters block `start` is an image's alone: there queries, keys and values get no gradient, or where it is an
    adapter beside the block that learns, nothing does (then `start` is the next block, and `since` does not matter).
    """
    visual, d, last = backbone.clip.visual, backbone.vision_width, backbone.vision_depth - 1
    tokens = len(visual.positional_embedding)
    first = rows(d, queries=0, keys=0, after=tokens) if not start else whole(d, tokens)
    per_image = first + max(0, last - start - 1) * whole(d, tokens) + max(0, last - since) * whole(d, added)
    per_image += rows(d, queries=1, keys=tokens + added, after=1) + 2 * d * backbone.embed_dim
    return images * per_image


def shared_texts(method: Any, learned: int, words: str, **given: Any) -> Texts:
    """The texts of a method whose classes share `learned` tokens and the words behind them."""
    tokens = sentence_tokens(method.backbone, words, method.class_names)
    before = max(1 + learned, tokens.shared())
    own = int((tokens.eot + 1 - before).sum())
    return Texts(learned, before - 1 - learned, own, len(tokens.eot), **given)


def of_context(method: Any, **given: Any) -> float:
    """Of the texts of a method with one learned context."""
    return shared_texts(method, len(method.ctx), words_of(method), **given).work(method.backbone)


def words_of(method: Any) -> str:
    """What stands in a method's texts besides the class name; learned tokens are placeholders."""
    return method.words or " ".join(["X"] * len(method.ctx))


def fixed_texts(method: Any, template: str, start: int, constant: bool, whole_texts: bool) -> float:
    """Of texts in which nothing is a prompt, in blocks that a method changes from `start` on."""
    tokens = method.backbone.embed_text(in_templates([template], method.class_names))
    shared = 0 if whole_texts else tokens.shared()
    own = int((tokens.eot + 1 - shared).sum())
    texts = Texts(0, shared, own, len(tokens.eot), start=start, constant=constant)
    return texts.work(method.backbone)


def compared(method: Any, images: int, passes: int = 2) -> float:
    """Of the products of image features with those of the classes: forward, and back to one side or both."""
    return 2.0 * passes * images * len(method.class_names) * method.backbone.embed_dim


def frozen(method: Any, images: int, source: str) -> float:
    """Of image features that do not depend on what is learned."""
    return image_forward(method.backbone, images) if source == ENCODED else 0.0


def of_coop(method: Any, images: int, source: str) -> float:
    """CoOp, KgCoOp, ProGrad: one context, and features of a frozen tower."""
    backward = 2 if method.combines_gradients else 1
    return of_context(method, backward=backward) + frozen(method, images, source) + compared(method, images)


def of_tcp(method: Any, images: int, source: str) -> float:
    """TCP: tokens of the classes' own from a block on, made by two linear layers from their texts."""
    joint, d, K = method.backbone.embed_dim, method.backbone.text_width, len(method.class_names)
    n = len(method.ctx)
    words = " ".join(["X"] * max(n, 4)) + " " + method.around_the_name()
    texts = shared_texts(method, n, words, apart=(method.config.layer, 4)).work(method.backbone)
    hidden = joint // 4
    network = 2.0 * K * (2 * joint * hidden + 3 * hidden * 4 * d)  # weights of both, and what the second one reads
    return texts + network + frozen(method, images, source) + compared(method, images)


def of_cocoop(method: Any, images: int, source: str) -> float:
    """CoCoOp: a context for each image."""
    return of_context(method, sets=images) + frozen(method, images, source) + compared(method, images)


def of_mutual(method: Any, images: int, source: str) -> float:
    """Mutual-R: CoCoOp's texts, and a second pass through the image tower with prompts beside the tokens."""
    backbone = method.backbone
    second = image_forward(backbone, images) + image_backward(backbone, images)
    return of_cocoop(method, images, source) + second + compared(method, images)


def of_locoop(method: Any, images: int, source: str) -> float:
    """LoCoOp: CoOp with dense features, which are compared with the texts as well."""
    del source  # they are not kept
    dense = image_forward(method.backbone, images, dense=True)
    return of_context(method) + dense + compared(method, images * (1 + method.backbone.patches))


def of_gallop(method: Any, images: int, source: str) -> float:
    """GalLoP: several contexts, dense features of a frozen tower, and a square matrix learned for those."""
    del source
    backbone, d = method.backbone, method.backbone.local_width
    counts = [len(prompts) for prompts in (method.global_prompt, method.local_prompts)]
    own = int((method.tokens.eot + 1).sum())
    texts = Texts(method.global_prompt.shape[1], 0, own, len(method.class_names), sets=sum(counts)).work(backbone)
    patches = images * backbone.patches
    learned_map = patches * (4.0 * d * d + 2 * d * backbone.embed_dim)  # product, its weights, what it is read by
    compared_with = compared(method, images) * counts[0] + compared(method, patches, 3) * counts[1]
    return texts + image_forward(backbone, images, dense=True) + learned_map + compared_with


def of_vpt(method: Any, images: int, source: str) -> float:
    """VPT: fixed texts, prompts in every block of the image tower."""
    del source
    n, since = method.visual_prompts[0].shape[0], len(method.visual_prompts) - 1
    return prompted(method, images, n, since) + compared(method, images)


def prompted(method: Any, images: int, n: int, since: int) -> float:
    """Of images with n prompts a block, the last of which enter at block `since`."""
    there = {"added": n, "since": since}
    return image_forward(method.backbone, images, **there) + image_backward(method.backbone, images, **there)


def of_ivlp(method: Any, images: int, source: str) -> float:
    """IVLP: prompts in every block of both towers."""
    del source
    n, since = method.visual_prompts[0].shape[0], len(method.visual_prompts) - 1
    texts = of_context(method, replaced=len(method.text_prompts))
    return texts + prompted(method, images, n, since) + compared(method, images, 3)


def of_promptsrc(method: Any, images: int, source: str) -> float:
    """PromptSRC: IVLP beside the frozen tower."""
    return of_ivlp(method, images, source) + frozen(method, images, source)


def of_maple(method: Any, images: int, source: str) -> float:
    """MaPLe: prompts in the first blocks of both towers."""
    del source
    n, deep = len(method.ctx), len(method.compound_prompts_text)
    texts = of_context(method, replaced=deep)
    return texts + prompted(method, images, n, deep) + compared(method, images, 3)


def of_dpl(method: Any, images: int, source: str) -> float:
    """DPL-R: of a text, its words and [EOT], which read what is frozen of the rest; images as in Mutual-R."""
    del source
    backbone, K, n = method.backbone, len(method.class_names), len(method.text_prompts[0])
    d, last = backbone.text_width, backbone.text_depth - 1
    first = whole(d, 0) + rows(d, queries=n, keys=n, after=(n + 1) * K)  # words are the same until they read names
    others = (last - 1) * whole(d, (n + 1) * K) + rows(d, queries=K, keys=(n + 1) * K, after=K)
    texts = 2 * (first + others + 2 * d * backbone.embed_dim * K)
    return texts + image_forward(backbone, images) + image_backward(backbone, images) + compared(method, images, 3)


def of_clip_lora(method: Any, images: int, source: str) -> float:
    """CLIP-LoRA: both towers whole, as masks are drawn for each token of each text."""
    del source
    texts = fixed_texts(method, "a photo of a {}.", start=0, constant=True, whole_texts=True)
    seen = image_forward(method.backbone, images) + image_backward(method.backbone, images)
    return texts + seen + compared(method, images, 3)


def of_mma(method: Any, images: int, source: str) -> float:
    """MMA: both towers behind the first adapter, and all of the image tower forward."""
    del source
    behind = method.config.first_layer  # the block after the first that has an adapter, from 0 on
    texts = fixed_texts(method, method.config.template(), start=behind, constant=False, whole_texts=False)
    seen = image_forward(method.backbone, images) + image_backward(method.backbone, images, start=behind)
    return texts + seen + compared(method, images, 3)


def of_tip_adapter_f(method: Any, images: int, source: str) -> float:
    """Tip-Adapter-F: features beside keys, which learn, and what the keys say of classes."""
    (N, D), K = method.keys.shape, len(method.class_names)
    return frozen(method, images, source) + images * (4.0 * N * D + 4 * N * K + 2 * D * K)


def of_clip_adapter(method: Any, images: int, source: str) -> float:
    """CLIP-Adapter: two linear layers behind the image tower."""
    joint = method.backbone.embed_dim
    hidden = joint // method.config.reduction
    return frozen(method, images, source) + images * 2.0 * (2 + 3) * joint * hidden + compared(method, images)


def of_classifier(method: Any, images: int, source: str) -> float:
    """TaskRes and CLAP: class features that learn."""
    return frozen(method, images, source) + compared(method, images)


WORK: dict[str, Callable[[Any, int, str], float]] = {
    "coop": of_coop,
    "cocoop": of_cocoop,
    "gallop": of_gallop,
    "vpt": of_vpt,
    "ivlp": of_ivlp,
    "maple": of_maple,
    "promptsrc": of_promptsrc,
    "mutual": of_mutual,
    "dpl": of_dpl,
    "kgcoop": of_coop,
    "prograd": of_coop,
    "tcp": of_tcp,
    "locoop": of_locoop,
    "tip_adapter_f": of_tip_adapter_f,
    "clip_adapter": of_clip_adapter,
    "taskres": of_classifier,
    "clap": of_classifier,
    "clip_lora": of_clip_lora,
    "mma": of_mma,
}


def gflop(label: str, method: Any, images: int, source: str) -> float:
    """The least of one step with so many images, 10^9 operations, a multiplication and an addition counted as two.

    `source` says where image features come from: `images`, `known` or `cached`.
    """
    return WORK[label](method, images, source) / 1e9
