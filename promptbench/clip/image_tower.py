"""The image tower of CLIP with visual prompts and dense features.

Prompts stand after the patches. Where the next block replaces them, their own output is never used: there they are only
attended to. The last block runs for [CLS] alone unless the patches are asked for. With `layer`, whole sequences go
through open_clip's blocks.

CLIP's ResNet takes no prompts; its dense features are the values that its attention pool would mix.
CoCa's and CLIPA's towers are pooled from all tokens: their dense features are what the pool makes of each patch alone.
Prompts are never pooled. timm's transformers have a module of their own.

Letters: B images, P patches, n prompts, d the tower's width, D joint dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from promptbench.clip import block as blocks
from promptbench.clip import timm_tower
from promptbench.clip.text_tower import Layer
from promptbench.config import UsageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OF_TIMM = ("patch_embed", "_pos_embed", "blocks", "norm", "forward_head", "num_prefix_tokens")
SMALLEST = 1e-2  # singular value, of the largest, that an inverse keeps


@dataclass(frozen=True)
class ImageFeatures:
    """What the image tower says of a batch. Projected features are not normalised.

    Of a ResNet, P counts the positions of the last feature map, and the value path is that of the attention pool. Of a
    tower that pools all tokens, dense features are what the pool makes of each patch after the last block alone.

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
        return len(self.pixels if self.pixels is not None else self.features.cls)  # type: ignore[union-attr]

    def __getitem__(self, part: slice) -> Images:
        return self.map(lambda tensor: tensor[part])

    def split(self, size: int) -> list[Images]:
        """The batch in parts of so many images."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def to(self, device: torch.device | str) -> Images:
        """The batch on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Images:
        """The batch with all its tensors changed in one way."""
        pixels = None if self.pixels is None else change(self.pixels)
        return replace(self, pixels=pixels, features=self.features and self.features.map(change))


def resblocks(visual: Any) -> Any:
    """The transformer blocks of an image tower; empty for a ResNet or a foreign tower."""
    if is_timm(visual):
        return visual.trunk.blocks
    found = getattr(getattr(visual, "transformer", None), "resblocks", None)
    return nn.ModuleList() if found is None else found


def is_timm(visual: Any) -> bool:
    """Whether this is timm's vision transformer, which other tokens may enter, by what it has."""
    trunk = getattr(visual, "trunk", None)
    return all(hasattr(trunk, name) for name in OF_TIMM) and not getattr(trunk, "rope_mixed", False)


def is_resnet(visual: Any) -> bool:
    """Whether this is CLIP's ResNet, which ends in an attention pool."""
    return hasattr(visual, "stem") and hasattr(getattr(visual, "attnpool", None), "v_proj")


def width(visual: Any) -> int:
    """Channels of the tower's tokens, or of a ResNet's last feature map."""
    if is_timm(visual):
        return int(visual.trunk.num_features)
    if len(resblocks(visual)):
        return int(visual.class_embedding.shape[-1])
    return int(visual.attnpool.v_proj.in_features)


def local_width(visual: Any) -> int:
    """Channels of `ImageFeatures.local_unprojected`: a ResNet's dense features are in the joint space already."""
    return int(visual.attnpool.c_proj.out_features) if is_resnet(visual) else width(visual)


def patches(visual: Any) -> int:
    """Positions of dense features."""
    if is_timm(visual):
        return int(visual.trunk.patch_embed.num_patches)
    holder = visual.attnpool if is_resnet(visual) else visual
    return len(holder.positional_embedding) - 1


def project(visual: Any, tokens: Tensor) -> Tensor:
    """Tokens (..., d), as after the last normalisation, in the joint space (..., D)."""
    if is_timm(visual):
        return timm_tower.project(visual, tokens)
    if not is_resnet(visual) and not pooled_by_cls(visual):
        return pooled_alone(visual, tokens)
    projection = getattr(visual, "proj", None)
    return tokens if projection is None else tokens @ projection


def pooled(visual: Any, x: Tensor) -> Tensor:
    """Features (B, D) of all tokens (B, 1 + P, d) after the last block, in a tower that pools them."""
    return visual._pool(x)[0] @ visual.proj


def pooled_alone(visual: Any, tokens: Tensor) -> Tensor:
    """Features (..., D) that the pool would make of tokens (..., d) after the last block if each were alone."""
    alone = tokens.reshape(-1, 1, tokens.shape[-1])
    if visual.attn_pool is None:
        return pooled(visual, alone.expand(-1, 2, -1)).unflatten(0, tokens.shape[:-1])
    pool = visual.attn_pool  # of its many queries the first gives the feature
    keys = pool.ln_k(alone)
    queries = pool.ln_q(pool.query[:1]).expand(len(keys), -1, -1)
    read = pool.attn(queries, keys, keys, need_weights=False)[0].squeeze(1)
    return (visual.ln_post(read) @ visual.proj).unflatten(0, tokens.shape[:-1])


@torch.no_grad()
def inverse_projection(visual: Any) -> Tensor:
    """(D, d): joint features as directions of the states that `ln_post` and the projection turn into them."""
    scale = visual.ln_post.weight.float()
    centred = torch.eye(len(scale), device=scale.device) - 1 / len(scale)
    return torch.linalg.pinv(project(visual, centred * scale), rtol=SMALLEST)


def kind(visual: Any) -> str:
    """What an image tower is, for messages: `CLIP's ResNet`, `timm's ConvNeXt`."""
    if is_resnet(visual):
        return "CLIP's ResNet"
    trunk = getattr(visual, "trunk", None)
    return type(visual).__name__ if trunk is None else f"timm's {type(trunk).__name__}"


def lacks_tokens(visual: Any) -> str:
    """What an image tower is if no prompts can enter it; empty if they can."""
    if not len(resblocks(visual)):
        return f"an image tower without transformer blocks that take other tokens ({kind(visual)})"
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        return "an image tower with two pools"
    return ""


def lacks_dense(visual: Any) -> str:
    """What an image tower is if it gives no dense features; empty if it does."""
    return "" if is_resnet(visual) else lacks_tokens(visual)


def lacks_blocks_of_clip(visual: Any) -> str:
    """What an image tower is if a method cannot change its blocks; empty if it can."""
    if wrong := lacks_tokens(visual):
        return wrong
    if all(map(blocks.is_standard, resblocks(visual))):
        return ""
    return f"an image tower whose blocks are not built as CLIP's ({kind(visual)})"


def lacks_cls(visual: Any) -> str:
    """What an image tower is if a method cannot run its blocks itself, up to [CLS]; empty if it can."""
    if wrong := lacks_tokens(visual):
        return wrong
    if not is_timm(visual) and pooled_by_cls(visual):
        return ""
    return f"an image tower that is not read at [CLS] after CLIP's own blocks ({kind(visual)})"


def lacks(visual: Any) -> dict[str, str]:
    """By depth of an image tower, in the words of a `Backbone`, what the tower is if that depth is 0; else empty."""
    return {"vision_depth": lacks_tokens(visual), "vision_layers": lacks_cls(visual)}


def check(visual: Any, name: str, prompted: bool = False, replaced: bool = False, changed: bool = False) -> None:
    """Raise a UsageError unless this tower gives dense features and takes what is asked of it.

    Args:
        visual: The tower.
        name: Of the backbone.
        prompted: Whether prompts stand among its tokens.
        replaced: Whether a `layer` takes the place of its blocks.
        changed: Whether its blocks are changed, or tokens inserted between them.
    """
    way_out = "choose a ViT such as ViT-B-16"
    other = f"{way_out}, or a method that prompts the text alone"
    if (prompted or replaced or changed) and (wrong := lacks_tokens(visual)):
        raise UsageError(f"Backbone '{name}' has {wrong}, so it takes no visual prompts; {other}.")
    if changed and (wrong := lacks_blocks_of_clip(visual)):
        raise UsageError(f"Backbone '{name}' has {wrong}, so they cannot be changed; {way_out}.")
    if replaced and (wrong := lacks_cls(visual)):
        raise UsageError(f"Backbone '{name}' has {wrong}, but this method replaces them; {way_out}.")
    if wrong := lacks_dense(visual):
        raise UsageError(f"Backbone '{name}' has {wrong}, so it gives no dense features; {way_out}, or CLIP's ResNet.")


def pooled_by_cls(visual: Any) -> bool:
    """Whether the image feature of a transformer is read at [CLS]."""
    return (
        getattr(visual, "attn_pool", None) is None
        and getattr(visual, "pool_type", "tok") == "tok"
        and not getattr(visual, "final_ln_after_pool", False)
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
) -> ImageFeatures:
    """What an image tower says of images, with dense features where `local` is asked for."""
    if is_resnet(visual):
        pool, values, positions = encode_resnet(visual, images)
        return ImageFeatures(pool, values, positions, values)
    check_deep(deep, prompts, len(resblocks(visual)))
    check_inserted(inserted, prompts is not None or bool(deep), len(resblocks(visual)))
    if is_timm(visual):
        feature, unprojected, found = timm_tower.encode(visual, images, prompts, deep, local)
        projected = None if unprojected is None else project(visual, unprojected)
        return ImageFeatures(feature, projected, found, unprojected)
    by_cls = pooled_by_cls(visual)
    changed = blocks.changed(resblocks(visual), changes)
    x = visual._embeds(images)  # (B, 1 + P, d), after ln_pre
    prompts = None if prompts is None else visual.ln_pre(prompts)  # per token, so apart is exact
    added = None
    if layer is None and all(map(blocks.is_standard, resblocks(visual))):
        x, dense, added = read_only_prompts(changed, x, prompts, inserted or deep, local, bool(inserted), by_cls)
    else:
        x, dense = whole_sequences(resblocks(visual), x, prompts, deep, layer, local)
    if not by_cls:
        return features_of_pool(visual, x, local, added)
    x = visual.ln_post(x)
    added = None if added is None else visual.ln_post(added)
    cls = project(visual, x[:, 0])
    if dense is None:
        return ImageFeatures(cls, inserted=added)
    dense = visual.ln_post(dense)
    return ImageFeatures(cls, project(visual, dense), x[:, 1:], dense, added)


def features_of_pool(visual: Any, x: Tensor, local: bool, added: Tensor | None) -> ImageFeatures:
    """What a tower that pools its tokens x (B, 1 + P, d) after the last block says of images."""
    feature, patches = pooled(visual, x), x[:, 1:]
    if not local:
        return ImageFeatures(feature, inserted=added)
    return ImageFeatures(feature, pooled_alone(visual, patches), patches, patches, added)


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
    tower: Any, x: Tensor, prompts: Tensor | None, deep: Mapping[int, Tensor], local: bool, keep: bool, by_cls: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """[CLS] (and with `local` the patches) after all blocks, (B, 1 or 1 + P, d), and the value path (B, P, d).

    Where there are no `prompts`, the first of `deep` are the first. If they are to be kept, their own states after all
    blocks (B, n, d) are the third result, else it is None. All tokens are returned unless `by_cls`: one alone is read.
    """
    last, tokens, dense = len(tower) - 1, x.shape[1], None
    for i, block in enumerate(tower):
        if i in deep:
            prompts = deep[i]
        if i == last:
            dense = blocks.value_path(block, x[:, 1:]) if local else None
            only = by_cls and not local
            if keep and prompts is not None:
                n = prompts.shape[-2]
                x = torch.cat([batch(prompts, x), x], dim=1)  # attention knows no order
                x = blocks.run(block, x, first=n + 1 if only else None)
                return x[:, n:], dense, x[:, :n]
            x = blocks.run(block, x, prompts, first=1 if only else None)
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
