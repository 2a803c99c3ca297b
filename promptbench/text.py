"""The text tower of CLIP with a prefix that all classes share.

Under the causal mask the tokens before the class name, [SOS] and the context, cannot see it: their states are the same
for every class. They are computed once, and each class runs only its own tokens, which attend to the prefix.
Where a method changes blocks through `layer`, the whole sequences are built and open_clip's blocks run as they are.

Letters as in the rest of the package: S prefixes (images), K classes, n prefix tokens, T tokens of a class after the
prefix, d the width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from promptbench import blocks

Layer = Callable[[int, Any, Tensor, Tensor | None], Tensor]


def causal_mask(queries: int, keys: int, like: Tensor) -> Tensor:
    """(queries, keys), 0 where the last `queries` of `keys` tokens may look and -inf after themselves."""
    mask = torch.full((queries, keys), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(keys - queries + 1)


def replace_prompts(prefix: Tensor, prompts: Tensor) -> Tensor:
    """The prefix (S, n, d) with its tokens after [SOS] replaced by `prompts` (m, d) or (S, m, d)."""
    prompts = prompts.expand(len(prefix), *prompts.shape[-2:])
    return torch.cat([prefix[:, :1], prompts, prefix[:, 1 + prompts.shape[-2] :]], dim=1)


def check_deep(deep: Mapping[int, Tensor], prefix: Tensor | None, depth: int) -> None:
    """Raise a ValueError where deep prompts have nothing to replace."""
    for index, prompts in deep.items():
        if not 0 < index < depth:
            raise ValueError(f"deep text prompts for block {index}: the tower has blocks 1 to {depth - 1}")
        if prefix is None or prompts.shape[-2] >= prefix.shape[-2]:
            raise ValueError("deep text prompts replace tokens of the prefix after [SOS]: the prefix is too short")


def shared_path(resblocks: Any, prefix: Tensor, deep: Mapping[int, Tensor], suffix: Tensor, eot: Tensor) -> Tensor:
    """States at [EOT] (S, K, d) after all blocks, of prefixes (S, n, d) followed by class tokens (S or 1, K, T, d).

    Positional embeddings are already added; `eot` (K,) counts from the start of the class tokens.
    """
    S, n = prefix.shape[:2]
    K, T = suffix.shape[1:3]
    prefix_mask = causal_mask(n, n, prefix)
    mask = torch.cat([prefix.new_zeros(T, n), causal_mask(T, T, suffix)], dim=1)  # (T, n + T)
    at_eot = eot.view(1, K, 1, 1)
    last = len(resblocks) - 1
    for i, block in enumerate(resblocks):
        if i in deep:
            prefix = replace_prompts(prefix, deep[i])
        if i < last:
            q, context = blocks.queries_keys_values(block, prefix)
            q_own, own = blocks.queries_keys_values(block, suffix)
            queries, rows, row_mask = q_own, suffix, mask
        else:  # only the state at [EOT] is read after the last block
            context = blocks.keys_values(block, prefix)
            own = blocks.keys_values(block, suffix)
            rows = suffix.gather(2, at_eot.expand(len(suffix), K, 1, suffix.shape[-1]))  # (S or 1, K, 1, d)
            queries, row_mask = blocks.queries(block, rows), mask[eot].unsqueeze(-2)  # (K, 1, n + T)
        seen = blocks.KeysValues(*(t.unsqueeze(1) for t in context)).expand(S, K).then(own.expand(S, K))
        suffix = blocks.finish(block, rows, queries.expand(S, *queries.shape[1:]), seen, row_mask)
        if i < last:
            prefix = blocks.finish(block, prefix, q, context, prefix_mask)
    return suffix.squeeze(2)


def full_path(
    resblocks: Any,
    prefix: Tensor | None,
    deep: Mapping[int, Tensor],
    suffix: Tensor,
    eot: Tensor,
    layer: Layer | None,
) -> Tensor:
    """As `shared_path`, with whole sequences (S * K, L, d) through open_clip's blocks, or through `layer`."""
    S, K = (1 if prefix is None else len(prefix)), suffix.shape[1]
    S = max(S, len(suffix))
    n = 0 if prefix is None else prefix.shape[1]
    suffix = suffix.expand(S, *suffix.shape[1:])
    x = suffix if prefix is None else torch.cat([prefix.unsqueeze(1).expand(-1, K, -1, -1), suffix], dim=2)
    x = x.flatten(0, 1)  # (S * K, L, d)
    mask = causal_mask(x.shape[1], x.shape[1], x)
    for i, block in enumerate(resblocks):
        if i in deep:
            prompts = deep[i]
            if prompts.dim() == 3:
                prompts = prompts.repeat_interleave(K, dim=0)
            x = replace_prompts(x, prompts)
        x = block(x, attn_mask=mask) if layer is None else layer(i, block, x, mask)
    index = (eot + n).repeat(S).view(-1, 1, 1).expand(-1, 1, x.shape[-1])
    return x.gather(1, index).view(S, K, -1)
