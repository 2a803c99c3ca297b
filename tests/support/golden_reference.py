"""The forward passes of CoOp, CoCoOp, VPT, IVLP, MaPLe and GalLoP, written as plainly as possible.

Whole sequences of 77 tokens, all classes in full, attention spelled out, no shared prefix, no trimming, no framework.
Only the weights are open_clip's. Checked against the stored reference numbers, and then used where none are stored:
other seeds, depths, positions, numbers of prompt tokens.

Letters: B images, K classes, P patches, n prompt tokens, d width of a tower, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

CONTEXT_LENGTH = 77
HEAD_WIDTH = 64
Weights = Mapping[str, Tensor]


# The towers -----------------------------------------------------------------------------------------------------------


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)


def attention(weights: Weights, name: str, x: Tensor, causal: bool) -> Tensor:
    """Multi-head self-attention over x (N, tokens, d)."""
    N, tokens, d = x.shape
    heads = d // HEAD_WIDTH
    projected = x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]
    q, k, v = (part.reshape(N, tokens, heads, HEAD_WIDTH).transpose(1, 2) for part in projected.split(d, dim=-1))
    scores = q @ k.transpose(-1, -2) / HEAD_WIDTH**0.5  # (N, heads, tokens, tokens)
    if causal:
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(N, tokens, d)
    return mixed @ weights[f"{name}.out_proj.weight"].T + weights[f"{name}.out_proj.bias"]


def block(weights: Weights, name: str, x: Tensor, causal: bool) -> Tensor:
    x = x + attention(weights, f"{name}.attn", layer_norm(weights, f"{name}.ln_1", x), causal)
    hidden = layer_norm(weights, f"{name}.ln_2", x) @ weights[f"{name}.mlp.c_fc.weight"].T
    hidden = hidden + weights[f"{name}.mlp.c_fc.bias"]
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return x + hidden @ weights[f"{name}.mlp.c_proj.weight"].T + weights[f"{name}.mlp.c_proj.bias"]


def layers(weights: Weights, prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def encode_text(weights: Weights, prompts: Tensor, eot: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """Text features (K, D), not normalised.

    Args:
        weights: State dict of the model.
        prompts: (K, 77, d) token embeddings, prompt tokens in place.
        eot: (K,) where the feature is read.
        deep: Prompts (n, d) that stand at positions 1 to n before block 1, 2, ...
    """
    x = prompts + weights["positional_embedding"]
    for index in range(layers(weights, "transformer.resblocks.")):
        if 1 <= index <= len(deep):
            new = deep[index - 1].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], new, x[:, 1 + new.shape[1] :]], dim=1)
        x = block(weights, f"transformer.resblocks.{index}", x, causal=True)
    x = layer_norm(weights, "ln_final", x)
    return x[torch.arange(len(x)), eot] @ weights["text_projection"]


def image_tokens(weights: Weights, images: Tensor) -> Tensor:
    """[CLS] and patches (B, 1 + P, d) with their positions, before `ln_pre`."""
    kernel = weights["visual.conv1.weight"]
    patches = F.conv2d(images, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)  # (B, P, d)
    cls = weights["visual.class_embedding"].expand(len(images), 1, -1)
    return torch.cat([cls, patches], dim=1) + weights["visual.positional_embedding"]


def encode_image(
    weights: Weights, images: Tensor, prompts: Tensor | None = None, deep: Sequence[Tensor] = ()
) -> Tensor:
    """Image features (B, D), not normalised.

    Args:
        weights: State dict of the model.
        images: (B, 3, H, W).
        prompts: (n, d), appended after the patches before `ln_pre`.
        deep: Prompts (n, d) that replace the last n tokens before block 1, 2, ...
    """
    x = image_tokens(weights, images)
    if prompts is not None:
        x = torch.cat([x, prompts.expand(len(images), -1, -1)], dim=1)
    x = layer_norm(weights, "visual.ln_pre", x)
    for index in range(layers(weights, "visual.transformer.resblocks.")):
        if 1 <= index <= len(deep):
            new = deep[index - 1].expand(len(images), -1, -1)
            x = torch.cat([x[:, : -new.shape[1]], new], dim=1)
        x = block(weights, f"visual.transformer.resblocks.{index}", x, causal=False)
    return layer_norm(weights, "visual.ln_post", x[:, 0]) @ weights["visual.proj"]


def dense_features(weights: Weights, images: Tensor) -> Tensor:
    """Patches (B, P, d) by the last block's value path, after `ln_post`, before the projection."""
    x = layer_norm(weights, "visual.ln_pre", image_tokens(weights, images))
    last = layers(weights, "visual.transformer.resblocks.") - 1
    for index in range(last):
        x = block(weights, f"visual.transformer.resblocks.{index}", x, causal=False)
    alone = x[:, 1:].reshape(-1, 1, x.shape[-1])  # a sequence of one token attends to itself: its value
    alone = block(weights, f"visual.transformer.resblocks.{last}", alone, causal=False)
    return layer_norm(weights, "visual.ln_post", alone.reshape(len(x), -1, x.shape[-1]))


def logits(weights: Weights, image: Tensor, text: Tensor) -> Tensor:
    """(B, K) scaled cosines of image features (B, D) and text features (K, D)."""
    image = image / image.norm(dim=-1, keepdim=True)
    text = text / text.norm(dim=-1, keepdim=True)
    return weights["logit_scale"].exp() * image @ text.T


# The prompts ----------------------------------------------------------------------------------------------------------


@cache
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def tokenize(texts: Sequence[str]) -> Tensor:
    """(K, 77) token ids."""
    return tokenizer()(list(texts))


def template_features(weights: Weights, names: Sequence[str], template: str) -> Tensor:
    """Text features (K, D) of fixed sentences."""
    ids = tokenize([template.format(name.replace("_", " ")) for name in names])
    return encode_text(weights, weights["token_embedding.weight"][ids], ids.argmax(dim=-1))


def coop_prompt(embeddings: Tensor, context: Tensor, name_length: int, position: str) -> Tensor:
    """One class's prompt (77, d): [SOS] and n placeholders, name, rest, with the context put where it belongs."""
    n = len(context)
    sos, name = embeddings[:1], embeddings[1 + n : 1 + n + name_length]
    rest = embeddings[1 + n + name_length :]
    half = n // 2
    order = {
        "end": [sos, context, name, rest],
        "middle": [sos, context[:half], name, context[half:], rest],
        "front": [sos, name, context, rest],
    }
    return torch.cat(order[position])


def coop(
    weights: Weights, images: Tensor, names: Sequence[str], context: Tensor, words: str = "", position: str = "end"
) -> dict[str, Tensor]:
    """CoOp with context (n, d), or (K, n, d) for class-specific contexts; `words` is `ctx_init`.

    Returns:
        `image_features` and `text_features`, normalised, and `logits`.
    """
    names = [name.replace("_", " ") for name in names]
    n = context.shape[-2]
    ids = tokenize([f"{words or ' '.join(['X'] * n)} {name}." for name in names])
    embeddings = weights["token_embedding.weight"][ids]
    contexts = context.expand(len(names), n, -1)
    lengths = [len(tokenizer().encode(name)) for name in names]
    prompts = torch.stack(
        [
            coop_prompt(row, own, length, position)
            for row, own, length in zip(embeddings, contexts, lengths, strict=True)
        ]
    )
    return scored(weights, encode_image(weights, images), encode_text(weights, prompts, ids.argmax(dim=-1)))


def cocoop(
    weights: Weights, images: Tensor, names: Sequence[str], learned: Mapping[str, Tensor], words: str = ""
) -> dict[str, Tensor]:
    """CoCoOp, one image after the other, with the learned tensors under the authors' names.

    Returns:
        As `coop`, with `text_features` (B, K, D), and `meta_bias` (B, d).
    """
    features = encode_image(weights, images)
    hidden = F.normalize(features, dim=-1) @ learned["meta_net.linear1.weight"].T + learned["meta_net.linear1.bias"]
    shift = hidden.clamp(min=0) @ learned["meta_net.linear2.weight"].T + learned["meta_net.linear2.bias"]
    each = [coop(weights, images[i : i + 1], names, learned["ctx"] + shift[i], words=words) for i in range(len(images))]
    return {
        "image_features": torch.cat([out["image_features"] for out in each]),
        "text_features": torch.stack([out["text_features"] for out in each]),
        "logits": torch.cat([out["logits"] for out in each]),
        "meta_bias": shift,
    }


def gallop_text(weights: Weights, names: Sequence[str], prompts: Tensor) -> Tensor:
    """(K, m, D), not normalised, of prompts (m, n, d) between [SOS] and the bare name, no full stop."""
    ids = tokenize([name.replace("_", " ") for name in names])
    embeddings = weights["token_embedding.weight"][ids]
    n = prompts.shape[1]
    features = []
    for prompt in prompts:
        own = prompt.expand(len(names), -1, -1)
        texts = torch.cat([embeddings[:, :1], own, embeddings[:, 1 : CONTEXT_LENGTH - n]], dim=1)
        features.append(encode_text(weights, texts, ids.argmax(dim=-1) + n))
    return torch.stack(features, dim=1)


def gallop(
    weights: Weights, images: Tensor, names: Sequence[str], learned: Mapping[str, Tensor], topk: Sequence[int]
) -> dict[str, Tensor]:
    """GalLoP with the learned tensors under the authors' names.

    Returns:
        Cosines `global_logits` (B, K, m) and `local_logits` (B, P, K, m), `topk_reduce` (B, K, m), `logits` (B, K).
    """
    dense = dense_features(weights, images)
    if "local_proj.linear.weight" in learned:
        dense = dense @ learned["local_proj.linear.weight"].T
    image, dense = (F.normalize(x, dim=-1) for x in (encode_image(weights, images), dense @ weights["visual.proj"]))
    text = F.normalize(gallop_text(weights, names, learned["global_prompt"]), dim=-1)
    local_text = F.normalize(gallop_text(weights, names, learned["local_prompts"]), dim=-1)
    of_image = torch.einsum("bd,kmd->bkm", image, text)
    of_patches = torch.einsum("bpd,kmd->bpkm", dense, local_text)
    ordered = of_patches.sort(dim=1, descending=True).values
    counts = list(topk) * (local_text.shape[1] if len(topk) == 1 else 1)
    best = torch.stack([ordered[:, :k, :, m].mean(dim=1) for m, k in enumerate(counts)], dim=-1)
    fused = (of_image.mean(dim=-1) + best.mean(dim=-1)) / 2
    return {
        "image_features": image,
        "local_features": dense,
        "text_features": text,
        "local_text_features": local_text,
        "global_logits": of_image,
        "local_logits": of_patches,
        "topk_reduce": best,
        "logits": weights["logit_scale"].exp() * fused,
    }


def gallop_loss(weights: Weights, out: Mapping[str, Tensor], labels: Tensor, kept: Tensor | None) -> Tensor:
    """Global plus local cross-entropy, image by image; `kept` (B, any) are the global prompts that count, None: all."""
    scale, terms = weights["logit_scale"].exp(), []
    for b, label in enumerate(labels):
        prompts = range(out["global_logits"].shape[-1]) if kept is None else kept[b].tolist()
        mean = torch.stack([out["global_logits"][b, :, m] for m in prompts]).mean(dim=0)
        local = [-(scale * best).log_softmax(dim=0)[label] for best in out["topk_reduce"][b].T]
        terms.append(-(scale * mean).log_softmax(dim=0)[label] + sum(local) / len(local))
    return torch.stack(terms).mean()


def prompted(
    weights: Weights,
    images: Tensor,
    names: Sequence[str],
    *,
    words: str,
    text: Sequence[Tensor],
    visual: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Deep prompts in both towers (IVLP): one tensor per prompted layer, the input first; returns as `coop`.

    Of `words`, the first n tokens are replaced by the learned ones and the others stay; '' stands for n placeholders.
    """
    names = [name.replace("_", " ") for name in names]
    n = text[0].shape[0]
    ids = tokenize([f"{words or ' '.join(['X'] * n)} {name}." for name in names])
    embeddings = weights["token_embedding.weight"][ids]
    prompts = torch.cat([embeddings[:, :1], text[0].expand(len(names), -1, -1), embeddings[:, 1 + n :]], dim=1)
    image = encode_image(weights, images, visual[0] if visual else None, visual[1:])
    return scored(weights, image, encode_text(weights, prompts, ids.argmax(dim=-1), text[1:]))


def vpt(weights: Weights, images: Tensor, names: Sequence[str], visual: Sequence[Tensor]) -> dict[str, Tensor]:
    """Visual prompts, one tensor per prompted layer, against the fixed sentence `a photo of a {}.`."""
    text = template_features(weights, names, "a photo of a {}.")
    return scored(weights, encode_image(weights, images, visual[0], visual[1:]), text)


def maple(
    weights: Weights, images: Tensor, names: Sequence[str], learned: Mapping[str, Tensor], words: str
) -> dict[str, Tensor]:
    """MaPLe with the learned tensors under the authors' names; also returns the visual prompts."""
    parts = {name.removeprefix("prompt_learner."): tensor for name, tensor in learned.items()}
    text, visual = [parts["ctx"]], [F.linear(parts["ctx"], parts["proj.weight"], parts["proj.bias"])]
    while f"compound_prompts_text.{len(text) - 1}" in parts:
        i = len(text) - 1
        prompts = parts[f"compound_prompts_text.{i}"]
        projection = f"compound_prompt_projections.{i}"
        text.append(prompts)
        visual.append(F.linear(prompts, parts[f"{projection}.weight"], parts[f"{projection}.bias"]))
    out = prompted(weights, images, names, words=words, text=text, visual=visual)
    return {**out, **{f"visual_prompt_{i}": prompt for i, prompt in enumerate(visual)}}


def scored(weights: Weights, image: Tensor, text: Tensor) -> dict[str, Tensor]:
    return {
        "image_features": F.normalize(image, dim=-1),
        "text_features": F.normalize(text, dim=-1),
        "logits": logits(weights, image, text),
    }
