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
        ids = self.tokenizer(list(texts)).to(self.clip.positional_embedding.device)
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
        return x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)] @ self.clip.text_projection  # type: ignore[no-any-return]

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

    @torch.no_grad()
    def inverse_projection(self) -> Tensor:
        """(D, d) from joint features back to centred states, without directions that the projection hardly keeps."""
        visual = self.clip.visual
        kept = visual.ln_post.weight[:, None] * visual.proj
        left, strengths, right = torch.linalg.svd(kept - kept.mean(dim=0), full_matrices=False)
        inverse = torch.where(strengths > 1e-2 * strengths[0], 1 / strengths, 0)
        return right.T @ torch.diag(inverse) @ left.T

    def gated(
        self,
        transformer: Any,
        x: Tensor,
        prompts: Sequence[Tensor],
        gates: Tensor,
        written: Tensor | None = None,
    ) -> Tensor:
        """Tokens x (B, T, d) after all blocks, where they read `prompts` (n, d) of the first ones beside each other.

        What a head reads of prompts is multiplied by its gate of that block, `gates` (layers, h). In the last block
        [CLS] also has `written` (d,) added, times the root mean square of what it was before that block.
        """
        for i, block in enumerate(transformer.resblocks):
            q, k, v = self.heads(block, x)
            seen = F.scaled_dot_product_attention(q, k, v)
            if i < len(prompts):
                _, k, v = self.heads(block, prompts[i].expand(len(x), -1, -1))
                seen = seen + gates[i].view(-1, 1, 1) * F.scaled_dot_product_attention(q, k, v)
            if written is not None and block is transformer.resblocks[-1]:
                cls = x[:, :1]
                x = torch.cat([cls + cls.square().mean(dim=-1, keepdim=True).sqrt() * written, x[:, 1:]], dim=1)
            x = self.after(block, x, seen)
        return x

    @torch.no_grad()
    def template(self, embeddings: Tensor, eot: Tensor, n: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of each block, for whole sentences (K, 77, d): what enters it, keys, values, and the gate of [EOT].

        The gate (K, h, 1, 1) is the share of attention that the n words after [SOS] have from [EOT] at `eot` (K,).
        """
        clip, found = self.clip, []
        x = embeddings + clip.positional_embedding
        for block in clip.transformer.resblocks:
            q, k, v = self.heads(block, x)
            shares = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + clip.attn_mask).softmax(dim=-1)
            of_words = shares[..., 1 : 1 + n].sum(dim=-1, keepdim=True)  # (K, h, 77, 1)
            found.append((x, k, v, of_words[torch.arange(len(x), device=x.device), :, eot].unsqueeze(2)))
            x = block(x, attn_mask=clip.attn_mask)
        return found

    def carried(
        self, template: Sequence[tuple[Tensor, ...]], eot: Tensor, shifts: Sequence[Tensor], beta: Tensor
    ) -> Tensor:
        """Text features (K, D) of sentences whose words are learned, the only reader of which is [EOT].

        Words are shifted by `shifts` (n, d) before the first blocks, and read name and rest with `beta` (layers,).
        """
        n, device = len(shifts[0]), eot.device
        places, classes = torch.arange(77, device=device), torch.arange(len(eot), device=device)
        behind = ((places > n) & (places <= eot[:, None]))[:, None, None]  # name and rest, (K, 1, 1, 77)
        others = (((places == 0) | (places > n)) & (places < eot[:, None]))[:, None, None]  # X without [EOT]
        itself = F.pad(others, (0, 1), value=True)
        words, x = template[0][0][:, 1 : 1 + n], template[0][0][classes, eot].unsqueeze(1)
        for i, (block, (_, keys, values, gate)) in enumerate(
            zip(self.clip.transformer.resblocks, template, strict=True)
        ):
            words = words + shifts[i] if i < len(shifts) else words
            (q, k, v), (q_eot, *own) = self.heads(block, words), self.heads(block, x)
            context = (torch.cat(pair, dim=2) for pair in zip((keys, values), own, strict=True))
            of_x = F.scaled_dot_product_attention(q_eot, *context, attn_mask=itself)
            x = self.after(block, x, (1 - gate) * of_x + gate * F.scaled_dot_product_attention(q_eot, k, v))
            before = (torch.cat([t[:, :, :1], own], dim=2) for t, own in ((keys, k), (values, v)))
            earlier = torch.ones(n, 1 + n, dtype=torch.bool, device=device).tril(1)
            seen = F.scaled_dot_product_attention(q, *before, attn_mask=earlier)
            if i < len(beta):
                sentence = F.scaled_dot_product_attention(q, keys, values, attn_mask=behind)
                seen = (1 - beta[i]) * seen + beta[i] * sentence
            words = self.after(block, words, seen)
        return self.clip.ln_final(x[:, 0]) @ self.clip.text_projection  # type: ignore[no-any-return]

    def heads(self, block: Any, x: Tensor) -> list[Tensor]:
        """Queries, keys and values (N, h, T, e) of tokens x (N, T, d) in one block."""
        attention = block.attn
        parts = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        return [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts]

    def after(self, block: Any, x: Tensor, seen: Tensor) -> Tensor:
        """Tokens x (N, T, d) after a block in which its heads read `seen` (N, h, T, e)."""
        x = x + block.attn.out_proj(seen.transpose(1, 2).flatten(-2))
        return x + block.mlp(block.ln_2(x))  # type: ignore[no-any-return]
