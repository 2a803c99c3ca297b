"""The towers of an open_clip model run from end to end, for the plain path.

They are open_clip's own, with `nn.MultiheadAttention` and frozen weights, so that nothing is slower here than in the
official code.

Letters: B images, K classes, n prompt tokens, P patches, d width of a tower, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
        return self.read(x, ids)

    def read(self, x: Tensor, ids: Tensor) -> Tensor:
        """Text features (K, D) from what the last block says of all tokens, (K, at least 77, d)."""
        x = self.clip.ln_final(x)
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.clip.text_projection  # type: ignore[no-any-return]

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

    def decoupled(
        self,
        transformer: Any,
        x: Tensor,
        prompts: Sequence[Tensor],
        strength: float,
        carry: float,
        mask: Tensor | None = None,
        readable: Tensor | None = None,
    ) -> Tensor:
        """Tokens x (N, T, d) after all blocks, with DPL-R's attention and `prompts` (n, d) of the first layers.

        Tokens read each other under `mask` and, with `strength`, the prompts; prompts read the `readable` tokens. They
        are learned ones with a share, `carry`, of what the last layer made of them; behind the prompted layers, all.
        """
        T, last = x.shape[1], prompts[0].expand(len(x), -1, -1)
        for i, block in enumerate(transformer.resblocks):
            if 0 < i < len(prompts):
                last = (1 - carry) * prompts[i] + carry * last
            x = torch.cat([x, last], dim=1)
            attention = block.attn
            inputs = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
            q, k, v = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in inputs)
            (of_x, of_prompts), keys, values = (t.tensor_split([T], dim=2) for t in (q, k, v))
            own = F.scaled_dot_product_attention(of_x, keys[0], values[0], attn_mask=mask)
            own = own + strength * F.scaled_dot_product_attention(of_x, keys[1], values[1])
            of_prompts = F.scaled_dot_product_attention(of_prompts, keys[0], values[0], attn_mask=readable)
            x = x + attention.out_proj(torch.cat([own, of_prompts], dim=2).transpose(1, 2).flatten(-2))
            x = x + block.mlp(block.ln_2(x))
            x, last = x.tensor_split([T], dim=1)
        return x
