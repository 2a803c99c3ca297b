"""A transformer block of CLIP as a function of its own weights, with tokens that are only attended to.

open_clip's `ResidualAttentionBlock` computes, for tokens x,

    x = x + attention(ln_1(x));   x = x + mlp(ln_2(x)).

Here the same weights are used, but queries may be asked for some tokens only, and keys and values may come from
tokens that are not updated: a prefix shared by all classes is run once, and prompts that the next layer replaces are
only read.
The result equals the block's own forward pass up to rounding (about 1e-6); tests hold it to that.

Shapes: `h` heads of width `e`, `d = h * e`; leading axes are free.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

QUICK = 1.702  # the constant of QuickGELU
OF_ATTENTION = {"in_proj_weight", "in_proj_bias", "out_proj"}
OF_BLOCK = {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"}


class KeysValues(NamedTuple):
    """Keys and values of some tokens in one block, each (..., h, tokens, e)."""

    keys: Tensor
    values: Tensor

    def expand(self, *leading: int) -> KeysValues:
        """The same tokens seen from more leading axes, without a copy."""
        return KeysValues(*(x.expand(*leading, *x.shape[-3:]) for x in self))

    def select(self, part: slice | Tensor) -> KeysValues:
        """Those at some places of the first leading axis."""
        return KeysValues(*(x[part] for x in self))

    def then(self, other: KeysValues) -> KeysValues:
        """These tokens followed by others."""
        return KeysValues(torch.cat([self.keys, other.keys], -2), torch.cat([self.values, other.values], -2))


def is_standard(block: Any) -> bool:
    """Whether `block` is built as this module assumes (batch first, packed projections, pre-norm), by what it has."""
    attention = getattr(block, "attn", None)
    packed = getattr(attention, "in_proj_weight", None)
    return (
        isinstance(packed, Tensor)
        and packed.shape[0] == 3 * packed.shape[1]
        and getattr(attention, "batch_first", True)
        and not getattr(attention, "add_zero_attn", False)
        and has_only(attention, OF_ATTENTION)
        and has_only(block, OF_BLOCK)
    )


def has_only(module: Any, known: set[str]) -> bool:
    """Whether nothing else in a module has weights than what is known by name."""
    tensors = (name in known or tensor is None for name, tensor in module._parameters.items())
    parts = (name in known or next(part.parameters(), None) is None for name, part in module._modules.items())
    return all(tensors) and all(parts)


def split_heads(block: Any, x: Tensor) -> Tensor:
    """Tokens (..., tokens, d) as heads (..., h, tokens, e)."""
    return x.unflatten(-1, (block.attn.num_heads, -1)).transpose(-2, -3)


def queries_keys_values(block: Any, x: Tensor) -> tuple[Tensor, KeysValues]:
    """Queries (..., h, tokens, e), and keys and values, of tokens x (..., tokens, d) before `ln_1`."""
    return heads(block, projected(block, x))


def projected(block: Any, x: Tensor) -> Tensor:
    """Queries, keys and values in one, (..., tokens, 3 d), of tokens x (..., tokens, d) before `ln_1`."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)


def part_of_projected(block: Any, x: Tensor, rows: slice) -> Tensor:
    """Some of what `projected` gives: queries are the first d rows of its weights, then come keys, then values."""
    bias = block.attn.in_proj_bias
    return F.linear(block.ln_1(x), block.attn.in_proj_weight[rows], None if bias is None else bias[rows])


def heads(block: Any, x: Tensor) -> tuple[Tensor, KeysValues]:
    """Queries, and keys and values, apart, from what `projected` gives of all three in one."""
    q, k, v = x.chunk(3, dim=-1)
    return split_heads(block, q), KeysValues(split_heads(block, k), split_heads(block, v))


def keys_values(block: Any, x: Tensor) -> KeysValues:
    """Keys and values alone, for tokens that this block only reads."""
    k, v = part_of_projected(block, x, slice(x.shape[-1], None)).chunk(2, dim=-1)
    return KeysValues(split_heads(block, k), split_heads(block, v))


def queries(block: Any, x: Tensor) -> Tensor:
    """Queries alone (..., h, tokens, e), for tokens whose keys and values are known already."""
    return split_heads(block, part_of_projected(block, x, slice(x.shape[-1])))


def finish(block: Any, x: Tensor, q: Tensor, context: KeysValues, mask: Tensor | None = None) -> Tensor:
    """The block's output for tokens x (..., tokens, d), given their queries and what they may attend to.

    `mask` is added to the attention logits: (..., tokens, context tokens), 0 or -inf.
    """
    return close(block, x, attend(q, context, mask))


def attend(q: Tensor, context: KeysValues, mask: Tensor | None = None) -> Tensor:
    """What tokens with queries (..., h, tokens, e) read, (..., tokens, d), before the output projection."""
    leading = q.shape[:-3]
    q, keys, values = (t.reshape(-1, *t.shape[-3:]) for t in (q, *context))
    if mask is not None and mask.dim() > 2:
        mask = mask.expand(*leading, *mask.shape[-2:]).reshape(-1, 1, *mask.shape[-2:])
    read = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # (N, h, tokens, e)
    return read.transpose(-2, -3).flatten(-2).unflatten(0, leading)


def close(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The block's output for tokens x (..., d), given what they read (..., d)."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(mlp(block, block.ln_2(x)))


def mlp(block: Any, x: Tensor) -> Tensor:
    """The block's two linear layers with their activation, on tokens (..., d).

    QuickGELU(h) = h * sigmoid(1.702 h) is SiLU(1.702 h) / 1.702, one fused operation; both factors go into the
    products, at no cost.
    """
    from open_clip.transformer import QuickGELU  # seconds to import, and needed where there is a model alone

    first, activation, second = block.mlp[0], block.mlp[1], block.mlp[-1]
    if len(block.mlp) != 3 or not isinstance(activation, QuickGELU):
        return block.mlp(x)  # type: ignore[no-any-return]
    rows = x.flatten(0, -2)
    rows = F.silu(torch.addmm(first.bias, rows, first.weight.t(), beta=QUICK, alpha=QUICK))
    return torch.addmm(second.bias, rows, second.weight.t(), alpha=1 / QUICK).view(x.shape)


def asked(block: Any, x: Tensor, first: int | None) -> tuple[Tensor, Tensor, KeysValues]:
    """The `first` tokens of x (B, tokens, d), or all, and their queries; keys and values of all."""
    if first is None:
        return x, *queries_keys_values(block, x)
    return x[:, :first], queries(block, x[:, :first]), keys_values(block, x)


def run(block: Any, x: Tensor, context: Tensor | None = None, first: int | None = None) -> Tensor:
    """The block's output for tokens x (B, tokens, d), which also attend to `context` (n, d) or (B, n, d).

    With `first`, only that many leading tokens are computed and returned; all of them are attended to.
    """
    x, q, own = asked(block, x, first)
    if context is not None:
        own = own.then(keys_values(block, context).expand(len(x)))
    return finish(block, x, q, own)


def value_path(block: Any, x: Tensor) -> Tensor:
    """Every token of x (B, tokens, d) through the block with attention to itself alone.

    These are the dense features of MaskCLIP, used by LoCoOp (arXiv:2306.01293) and GalLoP (arXiv:2407.01400):
    v = x + out_proj(V(ln_1(x))), then v + mlp(ln_2(v)).
    """
    return close(block, x, part_of_projected(block, x, slice(2 * x.shape[-1], None)))
