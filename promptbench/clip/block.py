"""A transformer block of CLIP as a function of its own weights, with tokens that are only attended to.

open_clip's `ResidualAttentionBlock` computes, for tokens x,

    x = x + attention(ln_1(x));   x = x + mlp(ln_2(x)).

Here the same weights are used, but queries may be asked for some tokens only, and keys and values may come from
tokens that are not updated: a prefix shared by all classes is run once, and prompts that the next layer replaces are
only read.
The result equals the block's own forward pass up to rounding (about 1e-6); tests hold it to that.
What a method changes in a block (`Change`) is the same for all tokens; a `Changed` block is taken wherever a block is.

Shapes: `h` heads of width `e`, `d = h * e`; leading axes are free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUICK = 1.702  # the constant of QuickGELU
OF_ATTENTION = {"in_proj_weight", "in_proj_bias", "out_proj"}
OF_BLOCK = {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"}
PACKED = "qkv"  # queries are the first d rows of the packed projection's weights, then come keys, then values
MATRICES = (*PACKED, "o")  # that may have a `LowRank`


@dataclass(frozen=True)
class LowRank:
    """A change of a matrix W: W x + scale * up (down dropout(x)).

    Attributes:
        down: A (r, d_in).
        up: B (d_out, r).
        scale: Of the change.
        dropout: Of the input of this branch alone, by masks of its own. The caller gives 0 outside training.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True)
class Change:
    """What a method changes in a block, the same for all texts or images.

    Attributes:
        low_rank: Of "q", "k" and "v", whose input is the output of `ln_1`, and "o", whose input is all heads.
        beside: `beside(block, x)` of the block's input x (..., d) is added to the block's output. Every token for
            itself, without randomness: tokens are shared by classes, and computed again in the backward pass.
    """

    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    beside: Callable[[Any, Tensor], Tensor] | None = None

    def tensors(self) -> list[Tensor]:
        """Of the low-rank changes; those that `beside` uses are its own."""
        changes = self.low_rank.values()
        return [*(change.down for change in changes), *(change.up for change in changes)]


class Attention(NamedTuple):
    """What is read of a block's attention."""

    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    out_proj: Callable[[Tensor], Tensor]
    num_heads: int


class Changed:
    """A block with a method's change, made for one call of its tower.

    Low-rank changes that neither learn nor drop anything are added to the weights here; others are computed as
    branches.

    Attributes:
        block: open_clip's.
        beside: As in `Change`.
        branches: Low-rank changes that are not in the weights.
        drops: Whether they drop anything at random.
    """

    def __init__(self, block: Any, change: Change) -> None:
        if unknown := sorted(set(change.low_rank) - set(MATRICES)):
            raise ValueError(f"a block has low-rank changes of {', '.join(MATRICES)}, not of '{unknown[0]}'")
        self.block, self.beside, self.branches = block, change.beside, change.low_rank
        self.drops = any(matrix.dropout > 0 for matrix in self.branches.values())
        self.ln_1, self.ls_1, self.ln_2, self.mlp, self.ls_2 = block.ln_1, block.ls_1, block.ln_2, block.mlp, block.ls_2
        packed, out = block.attn.in_proj_weight, block.attn.out_proj
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in change.tensors())
        if self.branches and not self.drops and not learns:
            packed = merged(packed, [self.branches.get(name) for name in PACKED])
            out = partial(F.linear, weight=merged(out.weight, [self.branches.get("o")]), bias=out.bias)
            self.branches = {}
        self.attn = Attention(packed, block.attn.in_proj_bias, out, block.attn.num_heads)


def changed(resblocks: Sequence[Any], changes: Mapping[int, Change]) -> list[Any]:
    """The blocks of a tower with what a method changes in some of them.

    Raises:
        ValueError: If there is a change for a block that the tower does not have.
    """
    for index in changes:
        if not 0 <= index < len(resblocks):
            raise ValueError(f"a change of block {index}: the tower has blocks 0 to {len(resblocks) - 1}")
    return [Changed(block, changes[i]) if i in changes else block for i, block in enumerate(resblocks)]


def side_by_side(changes: Sequence[LowRank | None], d: int) -> Tensor:
    """(p d, sum of r), scaled `up` of p matrices on the diagonal; nothing where a matrix has no change."""
    none = next(change.up for change in changes if change is not None).new_zeros(d, 0)
    return torch.block_diag(*(none if change is None else change.scale * change.up for change in changes))


def merged(weight: Tensor, changes: Sequence[LowRank | None]) -> Tensor:
    """The weights (p d, d) of p matrices with their low-rank changes added."""
    found = [change for change in changes if change is not None]
    if not found:
        return weight
    with torch.autocast(weight.device.type, enabled=False):
        down = torch.cat([change.down for change in found])
        return torch.addmm(weight, side_by_side(changes, weight.shape[1]), down)


def with_branches(block: Any, products: Tensor, x: Tensor, names: str) -> Tensor:
    """The products of some matrices with x (..., d), (..., d of each), with their low-rank branches added."""
    branches = block.branches if isinstance(block, Changed) else {}
    changes = [branches.get(name) for name in names]
    found = [change for change in changes if change is not None]
    if not found:
        return products
    if any(change.dropout > 0 for change in found):
        thin = torch.cat([F.linear(dropped(x, change.dropout), change.down) for change in found], dim=-1)
    else:
        thin = F.linear(x, torch.cat([change.down for change in found]))  # (..., sum of r)
    up = side_by_side(changes, x.shape[-1])
    return torch.addmm(products.flatten(0, -2), thin.flatten(0, -2), up.t()).view(products.shape)


def dropped(x: Tensor, probability: float) -> Tensor:
    """x with entries set to 0 at random, and the others made larger for it."""
    return F.dropout(x, probability)


def drops(block: Any) -> bool:
    """Whether what this block does to a token differs from call to call."""
    return isinstance(block, Changed) and block.drops


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


def projected(block: Any, x: Tensor, parts: str = PACKED) -> Tensor:
    """Queries, keys and values in one, (..., tokens, 3 d), of tokens x (..., tokens, d) before `ln_1`; or one or two.

    `parts` are neighbours in `PACKED`.
    """
    d, bias = x.shape[-1], block.attn.in_proj_bias
    rows = slice(PACKED.index(parts[0]) * d, (PACKED.index(parts[-1]) + 1) * d)
    x = block.ln_1(x)
    products = F.linear(x, block.attn.in_proj_weight[rows], None if bias is None else bias[rows])
    return with_branches(block, products, x, parts)


def heads(block: Any, x: Tensor) -> tuple[Tensor, KeysValues]:
    """Queries, and keys and values, apart, from what `projected` gives of all three in one."""
    q, k, v = x.chunk(3, dim=-1)
    return split_heads(block, q), KeysValues(split_heads(block, k), split_heads(block, v))


def keys_values(block: Any, x: Tensor) -> KeysValues:
    """Keys and values alone, for tokens that this block only reads."""
    k, v = projected(block, x, "kv").chunk(2, dim=-1)
    return KeysValues(split_heads(block, k), split_heads(block, v))


def queries(block: Any, x: Tensor) -> Tensor:
    """Queries alone (..., h, tokens, e), for tokens whose keys and values are known already."""
    return split_heads(block, projected(block, x, "q"))


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
    read = with_branches(block, block.attn.out_proj(attended), attended, "o")
    y = x + block.ls_1(read)
    y = y + block.ls_2(mlp(block, block.ln_2(y)))
    if isinstance(block, Changed) and block.beside is not None:
        return y + block.beside(block.block, x)
    return y


def mlp(block: Any, x: Tensor) -> Tensor:
    """The block's two linear layers with their activation, on tokens (..., d).

    QuickGELU(h) = h * sigmoid(1.702 h) is SiLU(1.702 h) / 1.702, one fused operation; both factors go into the
    products, at no cost.
    """
    from open_clip.transformer import QuickGELU  # seconds to import, and needed where there is a model alone

    first, activation, second = block.mlp[0], block.mlp[1], block.mlp[-1]
    if len(block.mlp) != 3 or not isinstance(activation, QuickGELU):
        return block.mlp(x)
    parameters = (first.weight, first.bias, second.weight, second.bias)
    rows = x.flatten(0, -2)
    if torch.is_autocast_enabled(x.device.type) or any(p.requires_grad for p in parameters):
        rows = F.silu(torch.addmm(first.bias, rows, first.weight.t(), beta=QUICK, alpha=QUICK))
        return torch.addmm(second.bias, rows, second.weight.t(), alpha=1 / QUICK).view(x.shape)
    return FrozenMLP.apply(rows, *parameters).view(x.shape)


class FrozenMLP(torch.autograd.Function):
    """An autograd function: two linear layers of frozen weights with QuickGELU between them, on rows (N, d).

    On the way back the factors before and behind SiLU cancel, which automatic differentiation does not see.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: Tensor, bias: Tensor, second: Tensor, last_bias: Tensor) -> Tensor:
        hidden = torch.addmm(bias, rows, first.t(), beta=QUICK, alpha=QUICK)
        ctx.save_for_backward(hidden, first, second)
        return torch.addmm(last_bias, F.silu(hidden), second.t(), alpha=1 / QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, first, second = ctx.saved_tensors
        gradient = outer[0] @ second
        torch.ops.aten.silu_backward.grad_input(gradient, hidden, grad_input=gradient)  # in place
        return gradient @ first, None, None, None, None


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
        if drops(block):  # a mask for each image
            context = context.expand(len(x), *context.shape[-2:])
        own = own.then(keys_values(block, context).expand(len(x)))
    return finish(block, x, q, own)


def value_path(block: Any, x: Tensor) -> Tensor:
    """Every token of x (B, tokens, d) through the block with attention to itself alone.

    These are the dense features of MaskCLIP, used by LoCoOp (arXiv:2306.01293) and GalLoP (arXiv:2407.01400):
    v = x + out_proj(V(ln_1(x))), then v + mlp(ln_2(v)).
    """
    return close(block, x, projected(block, x, "v"))
