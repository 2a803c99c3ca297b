"""timm's vision transformers as image towers: EVA02, SigLIP, MobileCLIP-B, PE and their like.

Their own modules run: embedding, blocks, last normalisation, pool and head. Prompts stand behind the patches. Where
tokens are turned by their positions, prompts are turned by nothing. The pool reads what it reads without prompts: they
are taken away after the last block.

Dense features are those of the step at which tokens are mixed for the last time: of a tower that is read at [CLS], the
value path of its last block, and of another the patches after it. Either goes through pool and head for itself.

Letters: B images, P patches, n prompts, d the tower's width, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def reads_cls(visual: Any) -> bool:
    """Whether the feature is read at [CLS]."""
    return getattr(visual.trunk, "attn_pool", None) is None and visual.trunk.global_pool == "token"


def embedded(trunk: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens before the first block (B, 1 + P, d), more or none before the patches, and how positions turn patches."""
    found = trunk._pos_embed(trunk.patch_embed(images))
    x, turns = found if isinstance(found, tuple) else (found, None)
    return before_blocks(trunk, x), turns


def before_blocks(trunk: Any, tokens: Tensor) -> Tensor:
    """Tokens (..., d) after the normalisation that some towers have before the first block."""
    return trunk.norm_pre(tokens) if hasattr(trunk, "norm_pre") else tokens


def with_prompts(turns: Tensor, n: int) -> Tensor:
    """Sines and cosines (P, 2 e) of the patches, and of n prompts that nothing turns."""
    sines, cosines = turns.new_zeros(n, turns.shape[-1] // 2), turns.new_ones(n, turns.shape[-1] // 2)
    return torch.cat([turns, torch.cat([sines, cosines], dim=-1)])


def run(block: Any, x: Tensor, turns: Tensor | None) -> Tensor:
    """A block of timm's for tokens x (B, tokens, d)."""
    return block(x) if turns is None else block(x, rope=turns)


def encode(
    visual: Any, images: Tensor, prompts: Tensor | None, deep: Mapping[int, Tensor], local: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Features (B, D), and with `local` the dense ones before pool and head (B, P, d) and the patches (B, P, d)."""
    trunk, dense = visual.trunk, None
    x, turns = embedded(trunk, images)
    (_, tokens, d), first = x.shape, trunk.num_prefix_tokens
    if prompts is not None:
        x = torch.cat([x, before_blocks(trunk, prompts).expand(len(x), *prompts.shape[-2:])], dim=1)
        turns = None if turns is None else with_prompts(turns, prompts.shape[-2])
    for i, block in enumerate(trunk.blocks):
        if i in deep:
            x = torch.cat([x[:, :tokens], deep[i].expand(len(x), *deep[i].shape[-2:])], dim=1)
        if local and i == len(trunk.blocks) - 1 and reads_cls(visual):
            alone = x[:, first:tokens].reshape(-1, 1, d)
            dense = trunk.norm(run(block, alone, None).view(len(x), -1, d))
        x = run(block, x, turns)
    x = trunk.norm(x[:, :tokens])
    feature = visual.head(trunk.forward_head(x))
    if not local:
        return feature, None, None
    return feature, x[:, first:] if dense is None else dense, x[:, first:]


def project(visual: Any, tokens: Tensor) -> Tensor:
    """Tokens (..., d) as after the last normalisation in the joint space (..., D): what the pool makes of one alone."""
    trunk = visual.trunk
    alone = tokens.reshape(-1, 1, tokens.shape[-1]).expand(-1, trunk.num_prefix_tokens + 1, -1)
    return visual.head(trunk.forward_head(alone)).unflatten(0, tokens.shape[:-1])
