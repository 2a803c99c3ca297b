"""The image tower of CLIP with visual prompts and dense features.

Prompts stand after the patches. Where the next block replaces them, their own output is never used: there they are only
attended to. The last block runs for [CLS] alone unless the patches are asked for. With `layer`, whole sequences go
through open_clip's blocks.

CLIP's ResNet takes no prompts; its dense features are the values that its attention pool would mix.

Letters: B images, P patches, n prompts, d the tower's width, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from promptbench.clip import block as blocks
from promptbench.clip.text_tower import Layer
from promptbench.config import UsageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SMALLEST = 1e-2  # singular value, of the largest, that an inverse keeps


@dataclass(frozen=True)
class ImageFeatures:
    """What the image tower says of a batch. Projected features are not normalised.

    Of a ResNet, P counts the positions of the last feature map, and the value path is that of the attention pool.

    Attributes:
        cls: (B, D), the global feature.
        local: (B, P, D), dense features from the last block's value path, projected; None unless asked for.
        patches: (B, P, d), the patch tokens after the last block and `ln_post`, unprojected, or a ResNet's last
            feature map; None unless asked for.
        local_unprojected: (B, P, d), `local` before the projection; of a ResNet, whose value path ends in the joint
            space, `local` itself (B, P, D). None unless asked for.
        inserted: (B, n, d), tokens inserted in the tower after its last block and `ln_post`, unprojected; None without.
    """

    cls: Tensor
    local: Tensor | None = None
    patches: Tensor | None = None
    local_unprojected: Tensor | None = None
    inserted: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageFeatures:
        """`function` applied to every tensor that is there."""
        others = [self.local, self.patches, self.local_unprojected, self.inserted]
        return ImageFeatures(function(self.cls), *(None if tensor is None else function(tensor) for tensor in others))


@dataclass(frozen=True)
class Images:
    """A batch of images: pixels (B, 3, H, W), normalised, or the features of a frozen image tower, or both.

    Attributes:
        pixels: What the image tower reads, or None.
        features: What it says of them without prompts, or None.
        dense: Whether whoever scores these images asks for dense features too: `Backbone.encode_image` then returns
            them unless it is told otherwise.
    """

    pixels: Tensor | None = None
    features: ImageFeatures | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        if self.pixels is None and self.features is None:
            raise ValueError("an Images batch needs pixels or features")

    def __len__(self) -> int:
        return len(self.pixels if self.pixels is not None else self.features.cls)  # type: ignore[union-attr,arg-type]

    def __getitem__(self, part: slice) -> Images:
        pixels = None if self.pixels is None else self.pixels[part]
        return replace(self, pixels=pixels, features=self.features and self.features.map(lambda t: t[part]))

    def to(self, device: torch.device | str) -> Images:
        """The batch on another device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        return replace(self, pixels=pixels, features=self.features and self.features.map(lambda t: t.to(device)))


def resblocks(visual: Any) -> Any:
    """The transformer blocks of an image tower; empty for a ResNet or a foreign tower."""
    found = getattr(getattr(visual, "transformer", None), "resblocks", None)
    return nn.ModuleList() if found is None else found


def is_resnet(visual: Any) -> bool:
    """Whether this is CLIP's ResNet, which ends in an attention pool."""
    return hasattr(visual, "stem") and hasattr(getattr(visual, "attnpool", None), "v_proj")


def width(visual: Any) -> int:
    """Channels of the tower's tokens, or of a ResNet's last feature map."""
    if len(resblocks(visual)):
        return int(visual.class_embedding.shape[-1])
    if is_resnet(visual):
        return int(visual.attnpool.v_proj.in_features)
    raise UsageError("This image tower is neither CLIP's vision transformer nor CLIP's ResNet.")


def local_width(visual: Any) -> int:
    """Channels of `ImageFeatures.local_unprojected`: a ResNet's dense features are in the joint space already."""
    return int(visual.attnpool.c_proj.out_features) if is_resnet(visual) else width(visual)


def patches(visual: Any) -> int:
    """Positions of dense features."""
    holder = visual.attnpool if is_resnet(visual) else visual
    return len(holder.positional_embedding) - 1


def project(visual: Any, tokens: Tensor) -> Tensor:
    """Tokens (..., d), as after the last normalisation, in the joint space (..., D)."""
    projection = getattr(visual, "proj", None)
    return tokens if projection is None else tokens @ projection


@torch.no_grad()
def inverse_projection(visual: Any) -> Tensor:
    """(D, d): joint features as directions of the states that `ln_post` and the projection turn into them."""
    scale = visual.ln_post.weight.float()
    centred = torch.eye(len(scale), device=scale.device) - 1 / len(scale)
    return torch.linalg.pinv(project(visual, centred * scale), rtol=SMALLEST)


def check(visual: Any, name: str, changed: bool) -> None:
    """Raise a UsageError unless this tower gives dense features and, if it is `changed`, takes prompts."""
    if not changed and is_resnet(visual):
        return
    if not len(resblocks(visual)):
        way_out = " and gives no dense features; choose a ViT such as ViT-B-16, or CLIP's ResNet."
        if changed:
            way_out = "; choose a ViT such as ViT-B-16, or a method that prompts the text alone."
        raise UsageError(
            f"Backbone '{name}' has an image tower without transformer blocks, so it takes no visual prompts{way_out}"
        )
    if not pooled_by_cls(visual):
        raise UsageError(f"Backbone '{name}' does not read its image feature at [CLS]: prompts cannot enter it here.")


def pooled_by_cls(visual: Any) -> bool:
    """Whether the image feature of a transformer is read at [CLS]."""
    return (
        getattr(visual, "attn_pool", None) is None
        and getattr(visual, "pool_type", "tok") == "tok"
        and not getattr(visual, "final_ln_after_pool", False)
    )


def check_changes(visual: Any, name: str) -> None:
    """Raise a UsageError unless methods may change the blocks of this tower."""
    check(visual, name, changed=True)
    if not all(map(blocks.is_standard, resblocks(visual))):
        raise UsageError(
            f"Backbone '{name}' has an image tower whose blocks are not built as CLIP's, so their weights cannot be "
            "changed; choose a ViT such as ViT-B-16."
        )


def is_standard(visual: Any) -> bool:
    """Whether `encode` gives an image's feature as the tower itself would, with less work."""
    tower = resblocks(visual)
    return len(tower) > 0 and all(map(blocks.is_standard, tower)) and pooled_by_cls(visual)


def encode(
    visual: Any,
    images: Tensor,
    prompts: Tensor | None,
    deep: Mapping[int, Tensor],
    layer: Layer | None,
    local: bool,
    changes: Mapping[int, blocks.Change],
    inserted: Mapping[int, Tensor],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """[CLS] (B, d), with `local` the value path (B, P, d) and the patches (B, P, d), and the inserted tokens (B, n, d).

    All are after `ln_post`. Of a ResNet: the pooled feature (B, D), the value path (B, P, D) and the last feature map
    (B, P, d).
    """
    if is_resnet(visual):
        return *encode_resnet(visual, images), None
    depth = len(resblocks(visual))
    check_inserted(inserted, prompts is not None or bool(deep), depth)
    changed = blocks.changed(resblocks(visual), changes)
    x = visual._embeds(images)  # (B, 1 + P, d), after ln_pre
    prompts = None if prompts is None else visual.ln_pre(prompts)  # per token, so apart is exact
    check_deep(deep, prompts, depth)
    added = None
    if inserted:
        x, dense, added = read_only_prompts(changed, x, None, inserted, local, keep=True)
    elif layer is None and all(blocks.is_standard(b) for b in resblocks(visual)):
        x, dense, _ = read_only_prompts(changed, x, prompts, deep, local)
    else:
        x, dense = whole_sequences(resblocks(visual), x, prompts, deep, layer, local)
    x = visual.ln_post(x)
    added = None if added is None else visual.ln_post(added)
    if dense is None:
        return x[:, 0], None, None, added
    return x[:, 0], visual.ln_post(dense), x[:, 1:], added


def encode_resnet(visual: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled feature (B, D), value path (B, P, D) and last feature map as tokens (B, P, d) of CLIP's ResNet.

    The value path is that of LoCoOp and GalLoP: value and output projection of the attention pool at every position
    for itself, without the pool's positional embedding, which the pooled feature has.
    """
    x = visual.stem(images)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    patches = x.flatten(2).transpose(1, 2)  # (B, P, d)
    pool = visual.attnpool
    return pool(x), pool.c_proj(pool.v_proj(patches)), patches


def batch(prompts: Tensor, x: Tensor) -> Tensor:
    """Prompts (n, d) or (B, n, d) as (B, n, d)."""
    return prompts.expand(len(x), *prompts.shape[-2:])


def check_deep(deep: Mapping[int, Tensor], prompts: Tensor | None, depth: int) -> None:
    """Raise a ValueError where deep prompts have nothing to replace."""
    for index, replacement in deep.items():
        if not 0 < index < depth:
            raise ValueError(f"deep visual prompts for block {index}: the tower has blocks 1 to {depth - 1}")
        if prompts is None or replacement.shape[-2] != prompts.shape[-2]:
            raise ValueError("deep visual prompts replace the prompts of the first block: give as many of those")


def check_inserted(inserted: Mapping[int, Tensor], prompted: bool, depth: int) -> None:
    """Raise a ValueError where inserted tokens have no place, or another number than those that they replace."""
    if inserted and prompted:
        raise ValueError("tokens are inserted in a tower without prompts, not beside them")
    if len({tokens.shape[-2] for tokens in inserted.values()}) > 1:
        raise ValueError("inserted visual tokens replace the former ones: give as many of them")
    for index in inserted:
        if not 0 <= index < depth:
            raise ValueError(f"inserted visual tokens for block {index}: the tower has blocks 0 to {depth - 1}")


def read_only_prompts(
    tower: Any, x: Tensor, prompts: Tensor | None, deep: Mapping[int, Tensor], local: bool, keep: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """[CLS] (and with `local` the patches) after all blocks, (B, 1 or 1 + P, d), and the value path (B, P, d).

    Where there are no `prompts`, the first of `deep` are the first. If they are to be kept, their own states after all
    blocks (B, n, d) are the third result, else it is None.
    """
    last, tokens, dense = len(tower) - 1, x.shape[1], None
    for i, block in enumerate(tower):
        if i in deep:
            prompts = deep[i]
        if i == last:
            dense = blocks.value_path(block, x[:, 1:]) if local else None
            if keep and prompts is not None:
                n = prompts.shape[-2]
                x = torch.cat([batch(prompts, x), x], dim=1)  # attention knows no order
                x = blocks.run(block, x, first=None if local else n + 1)
                return x[:, n:], dense, x[:, :n]
            x = blocks.run(block, x, prompts, first=None if local else 1)
        elif prompts is None or i + 1 in deep:  # the prompts' own output would be thrown away
            x = blocks.run(block, x, prompts)
        else:
            joint = blocks.run(block, torch.cat([x, batch(prompts, x)], dim=1))
            x, prompts = joint[:, :tokens], joint[:, tokens:]
    return x, dense, None


def whole_sequences(
    tower: Any,
    x: Tensor,
    prompts: Tensor | None,
    deep: Mapping[int, Tensor],
    layer: Layer | None,
    local: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `read_only_prompts` returns, by open_clip's blocks or by `layer` on all tokens, prompts included.

    Of the last block, `layer` may return [CLS] alone where `local` is not asked for.
    """
    last, tokens, dense = len(tower) - 1, x.shape[1], None
    x = x if prompts is None else torch.cat([x, batch(prompts, x)], dim=1)
    for i, block in enumerate(tower):
        if i in deep:
            x = torch.cat([x[:, : -deep[i].shape[-2]], batch(deep[i], x)], dim=1)
        if i == last and local:
            dense = blocks.value_path(block, x[:, 1:tokens])
        x = block(x, attn_mask=None) if layer is None else layer(i, block, x, None)
    return x[:, :tokens], dense
