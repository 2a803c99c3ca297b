"""A frozen open_clip model, opened for prompts.

`Backbone` runs open_clip's own towers. Without prompts its features are those of `clip.encode_text` and
`clip.encode_image`, bit for bit. It offers four openings: text comes as embeddings, the tokens before the class name
apart; visual prompts come as tokens; `changes` are low-rank changes of a block's weights and functions beside it; and
`layer(index, block, x, mask) -> x` may change the tokens before a block or replace the block. Nothing here is learned
and nothing here knows a method.

Letters: B images, K classes, L text tokens, P patches, n prompt tokens, d width of a tower, D joint dimension.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from promptbench.clip import block, image_tower, text_tower
from promptbench.clip.block import Change
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.clip.text_tower import Tokenizer, Tokens, unknown_words
from promptbench.config import UsageError

log = logging.getLogger(__name__)

Layer = text_tower.Layer


ARCHITECTURE = "facts-1:"  # before digests of architectures; those of other kinds say nothing of them
CACHED = 5_000_000  # bytes of states in one go, without gradients: what is made of more does not fit a CPU's cache
SENTENCE = "A photo of 12 caf\u00e9s, jack-o'-lanterns & a Boeing_737!"
FACTS = (
    *("num_heads", "eps", "approximate", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("pool_type", "text_pool_type", "final_ln_after_pool"),
)
INERT = (nn.Identity, nn.Dropout)  # in evaluation


class Backbone(nn.Module):
    """A frozen CLIP that methods put prompts into.

    Args:
        clip: A model of open_clip with a text tower of residual blocks.
        tokenizer: What `open_clip.get_tokenizer` returns for it.
        name: Recorded in results.
        memory_budget: Bytes of activations that encoding text may take; beyond it, images and classes are encoded in
            chunks and recomputed in the backward pass. Results do not depend on it.
        known_tokens: Ids that the weights were trained on, if only some were; each word with others is warned of once.

    Raises:
        UsageError: If the text tower is not one that prompts can enter.
    """

    clip: Any  # open_clip's classes are not typed

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str = "custom",
        memory_budget: int = 2 * 2**30,
        known_tokens: frozenset[int] | None = None,
    ) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.memory_budget = memory_budget
        self.known_tokens = known_tokens
        self._said: set[str] = set()  # words that were warned about
        if wrong := text_tower.wrong_with(self._text):
            raise UsageError(
                f"Backbone '{name}' has a text tower that prompts cannot enter: {wrong}; choose one with open_clip's "
                "own transformer, such as ViT-B-16."
            )
        self._shares_prefix = all(map(block.is_standard, self._text.transformer.resblocks))

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: the backbone is frozen."""
        return super().train(False)

    @property
    def _text(self) -> Any:
        """The text tower: open_clip's `CLIP` holds its parts itself, `CustomTextCLIP` in `text`."""
        return getattr(self.clip, "text", self.clip)

    @cached_property
    def text_form(self) -> text_tower.Form:
        """How the text tower reads a text."""
        return text_tower.form_of(self._text, self.tokenizer, self.context_length)

    # What the model is ------------------------------------------------------------------------------------------

    @property
    def text_width(self) -> int:
        """Width of the text tower."""
        return int(self._text.token_embedding.weight.shape[1])

    @property
    def text_depth(self) -> int:
        """Blocks of the text tower."""
        return len(self._text.transformer.resblocks)

    @property
    def vision_width(self) -> int:
        """Width of the image tower's tokens; for a ResNet, of its last feature map."""
        image_tower.check(self.clip.visual, self.name, prompted=not image_tower.is_resnet(self.clip.visual))
        return image_tower.width(self.clip.visual)

    @property
    def local_width(self) -> int:
        """Width of dense features before the projection; for a ResNet D, since its value path ends in it."""
        image_tower.check(self.clip.visual, self.name)
        return image_tower.local_width(self.clip.visual)

    @property
    def patches(self) -> int:
        """Positions P of dense features."""
        image_tower.check(self.clip.visual, self.name)
        return image_tower.patches(self.clip.visual)

    @property
    def vision_depth(self) -> int:
        """Blocks of the image tower that prompts may enter; 0 for a tower without transformer blocks."""
        return 0 if image_tower.lacks_tokens(self.clip.visual) else len(image_tower.resblocks(self.clip.visual))

    @property
    def lacks(self) -> dict[str, str]:
        """For `vision_depth` and `vision_layers`, what the image tower is if they are 0; else empty."""
        return image_tower.lacks(self.clip.visual)

    @property
    def vision_layers(self) -> int:
        """Blocks of the image tower that a method may run itself, in a `layer`; 0 where they are not CLIP's own."""
        return 0 if image_tower.lacks_cls(self.clip.visual) else self.vision_depth

    @property
    def vision_heads(self) -> int:
        """Heads of a block of the image tower, which a method is about to replace.

        Raises:
            UsageError: If it cannot.
        """
        image_tower.check(self.clip.visual, self.name, replaced=True)
        return int(image_tower.resblocks(self.clip.visual)[0].attn.num_heads)

    @property
    def text_positions(self) -> Tensor:
        """Positional embeddings of texts, (`context_length`, d)."""
        return self._text.positional_embedding

    @property
    def embed_dim(self) -> int:
        """The joint dimension D."""
        projection = self._text.text_projection
        if projection is None:
            return self.text_width
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

    @property
    def context_length(self) -> int:
        """The most tokens a text may have, [SOS] and [EOT] included."""
        positions = int(self._text.positional_embedding.shape[0])
        return positions - 1 if text_tower.is_closed(self._text) else positions

    @property
    def resolution(self) -> int:
        """Height and width of the images, in pixels."""
        size = self.clip.visual.image_size
        return int(size[0] if isinstance(size, Sequence) else size)

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means that images are normalised with."""
        return tuple(getattr(self.clip.visual, "image_mean", None) or image_tower.CLIP_MEAN)

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel standard deviations that images are normalised with."""
        return tuple(getattr(self.clip.visual, "image_std", None) or image_tower.CLIP_STD)

    @property
    def logit_scale(self) -> Tensor:
        """The factor from cosines to logits, about 100 for OpenAI's weights.

        SigLIP's `logit_bias` is the same for all classes: without it, softmax and the best class are what they are.
        """
        return self.clip.logit_scale.exp()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over the names and bytes of all weights, 64 hex digits."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.clip.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def architecture(self) -> str:
        """What is computed with the weights, whatever versions of libraries call it: `ARCHITECTURE` and 64 hex digits.

        SHA-256 of the names, types and shapes of all tensors in order, of activations, heads, poolings and eps, of the
        images' size and statistics, and of what the tokenizer makes of a sentence.
        """
        facts = {
            "tensors": [[name, str(t.dtype), list(t.shape)] for name, t in self.clip.state_dict().items()],
            "modules": [[name, found] for name, module in self.clip.named_modules() if (found := facts_of(module))],
            "images": [self.resolution, self.mean, self.std],
            "texts": self.tokenizer([SENTENCE], context_length=self.context_length).tolist(),
        }
        return ARCHITECTURE + hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    # Text -------------------------------------------------------------------------------------------------------

    def embed_text(self, texts: Sequence[str]) -> Tokens:
        """Frozen token embeddings of K texts, cut at the longest unless the tower reads the padding too.

        Raises:
            UsageError: As `token_ids`.
        """
        return self.embed_tokens(*self.token_ids(texts))

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (K, L) of K texts, cut as in `embed_text`, and the positions of [EOT] in them (K,), both int64.

        Raises:
            UsageError: If a text has more tokens than the model takes; open_clip itself would cut it silently.
        """
        # One token more than fits shows which texts would be cut.
        ids, form = self.tokenizer(list(texts), context_length=self.context_length + 1), self.text_form
        eot = text_tower.ends_of(self._text, ids, form)
        too_long = (eot + form.end > self.context_length).nonzero().flatten().tolist()
        if too_long:
            raise UsageError(
                f"The prompt '{texts[too_long[0]]}' is longer than the {self.context_length} tokens that backbone "
                f"'{self.name}' takes ({len(too_long)} of {len(texts)} prompts are); shorten the template, the class "
                "name or n_ctx."
            )
        self._warn_of_unknown_words(texts, ids)
        length = self.context_length if form.whole else int(eot.max()) + 1
        return ids[:, :length].to(self.device), eot.to(self.device)

    @torch.no_grad()
    def embed_tokens(self, ids: Tensor, eot: Tensor) -> Tokens:
        """Frozen token embeddings of K texts, whose `token_ids` are known."""
        return Tokens(self._text.token_embedding(ids), eot, ids, self.text_form.start)

    def encode_text(
        self,
        embeddings: Tensor,
        eot: Tensor,
        prefix: Tensor | None = None,
        deep: Mapping[int, Tensor] | None = None,
        layer: text_tower.Layer | None = None,
        changes: Mapping[int, Change] | None = None,
        deep_by_class: Mapping[int, Tensor] | None = None,
        inserted: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Text features (..., K, D), not normalised; the leading axes are those of `prefix` or `embeddings`.

        Args:
            embeddings: (..., K, L, d), the class tokens; whole texts if there is no prefix. Leading axes are per
                image and optional. Towers that read the padding need it here, as `embed_text` gives it.
            eot: (K,), position of [EOT] in `embeddings`.
            prefix: (..., n, d), [SOS] and whatever else precedes the class name in all classes.
            deep: Block index -> prompts (m, d) or (..., m, d) that replace the prefix's tokens 1 to m before it.
            layer: Called for every block in place of it, as `layer(index, block, x, mask) -> x`, x (N, L, d) with one
                row per image and class. Must be pure, dropout apart: long batches are encoded in chunks and recomputed.
                Learned tensors that it uses get their gradients.
            changes: Block index -> what is changed in that block. All learned tensors get their gradients.
            deep_by_class: Block index -> (K, m, d), states that replace tokens 1 to m of each class's text before it.
            inserted: Block index -> tokens (m, d) inserted after [SOS] before it, where they stay; those of the next
                index replace them. Positions are added to neither.

        Raises:
            UsageError: If the blocks of this tower cannot be changed.
        """
        if layer is not None and (changes or deep_by_class or inserted):
            raise ValueError("`layer` runs the blocks itself: it goes with no changes, deep_by_class or inserted")
        leading = prefix.shape[:-2] if prefix is not None else embeddings.shape[:-3]
        if embeddings.dim() > 3:
            leading = torch.broadcast_shapes(leading, embeddings.shape[:-3])
        suffix = embeddings.reshape(-1, *embeddings.shape[-3:])  # (S or 1, K, T, d)
        if prefix is not None:
            prefix = prefix.reshape(prefix.shape[:-2].numel(), *prefix.shape[-2:])  # (S, n, d); n may be 0
            if len(suffix) > len(prefix):
                prefix = prefix.expand(len(suffix), -1, -1)
        prompts = {i: p.reshape(-1, *p.shape[-2:]) if p.dim() > 2 else p for i, p in (deep or {}).items()}
        form = self.text_form
        text_tower.check_deep(prompts, prefix, self.text_depth, form.start)
        read, ends = (form.read(of, suffix.shape[2]) for of in (eot, text_tower.on_cpu(eot)))
        texts = text_tower.Texts(prefix, prompts, suffix, read, ends, layer, causal=form.causal, start=form.start)
        opened = bool(changes or deep_by_class or inserted)
        if opened:
            texts = self._opened(texts, changes or {}, deep_by_class or {}, inserted or {})
        learns = torch.is_grad_enabled() and (layer is not None or bool(changes) or texts.need_gradients())
        shares = prefix is not None and form.causal and layer is None and self._shares_prefix
        if opened or shares:
            path, length = text_tower.shared_path, texts.own_length()
        else:
            path, length = text_tower.full_path, texts.full_length()
        most = self.texts_at_once(length, learns)
        features = text_tower.in_chunks(path, self._text, texts, most, learns)
        return features.reshape(*leading, *features.shape[1:])

    def _opened(
        self,
        texts: text_tower.Texts,
        changes: Mapping[int, Change],
        by_class: Mapping[int, Tensor],
        inserted: Mapping[int, Tensor],
    ) -> text_tower.Texts:
        """The texts with what a method changes on their way through the tower."""
        if not self._shares_prefix:
            raise UsageError(
                f"Backbone '{self.name}' has a text tower whose blocks are not built as CLIP's, so they can neither be "
                "changed nor given tokens between them; choose one such as ViT-B-16."
            )
        text_tower.check_deep_by_class(by_class, texts, self.text_depth)
        text_tower.check_inserted(inserted, bool(texts.deep or by_class), self.text_depth)
        changed = block.changed(self._text.transformer.resblocks, changes) if changes else ()
        return texts._replace(changed=changed, by_class=by_class, inserted=inserted)

    def run_text(self, states: Callable[[Any, slice], Tensor], classes: int, length: float, learns: bool) -> Tensor:
        """Text features (K, D), not normalised, of a method that runs the blocks itself.

        Args:
            states: Called as `states(blocks, part) -> (k, d)`: the states at [EOT] after all blocks of k of the K
                classes. Must be pure: many classes are run in parts and recomputed.
            classes: K.
            length: How many tokens of a class it runs.
            learns: Whether it uses learned tensors; they get their gradients.

        Raises:
            UsageError: If the tower is not causal, or reads its feature elsewhere.
        """
        if self.text_form.whole or text_tower.is_closed(self._text):
            raise UsageError(
                f"Backbone '{self.name}' reads its text features in another way than CLIP, and this method runs the "
                "blocks itself: choose a causal CLIP such as ViT-B-16."
            )
        text, learns = self._text, learns and torch.is_grad_enabled()

        def run(part: slice) -> Tensor:
            return text_tower.project(text, states(text.transformer.resblocks, part))

        most = self.texts_at_once(length, learns)
        return run(slice(classes)) if classes <= most else text_tower.by_classes(run, classes, most, learns)

    def texts_at_once(self, length: float, learns: bool) -> int:
        """Texts of so many tokens that are best encoded in one go, at least 1."""
        most = self.texts_within_budget(length, learns)
        if learns or self.device.type != "cpu":
            return most
        return min(most, max(1, int(CACHED / (4 * self.text_width * length))))

    def texts_within_budget(self, length: float, learns: bool = True) -> int:
        """Texts of so many tokens that may be encoded in one go, at least 1; `learns` says whether for gradients.

        About 20 floats are kept for a token, a layer and a unit of width.
        """
        layers = self.text_depth if learns else 2
        return max(1, int(self.memory_budget // (length * layers * 20 * self.text_width * 4)))

    def images_within_budget(self, eot: Tensor) -> int:
        """Images whose K class texts, another prefix for each image, may be encoded with gradients in one go."""
        length = self.context_length if self.text_form.whole else text_tower.mean_length(eot)
        return max(1, self.texts_within_budget(length) // len(eot))

    def _warn_of_unknown_words(self, texts: Sequence[str], ids: Tensor) -> None:
        if self.known_tokens is None:
            return
        words = unknown_words(texts, ids, self.tokenizer, self.known_tokens)
        new = [word for word in words if word not in self._said]
        self._said.update(new)
        if new:
            log.warning(
                "backbone '%s' was never trained on %s: what it makes of %s is random",
                self.name,
                ", ".join(f"'{word}'" for word in new[:8]) + (f" and {len(new) - 8} more" if len(new) > 8 else ""),
                "this word" if len(new) == 1 else "these words",
            )

    # Images -----------------------------------------------------------------------------------------------------

    def encode_image(
        self,
        images: Images | Tensor,
        prompts: Tensor | None = None,
        deep: Mapping[int, Tensor] | None = None,
        layer: text_tower.Layer | None = None,
        local: bool | None = None,
        changes: Mapping[int, Change] | None = None,
        inserted: Mapping[int, Tensor] | None = None,
    ) -> ImageFeatures:
        """Features of B images, not normalised.

        Args:
            images: A batch, or its pixels (B, 3, H, W). Features that it carries are returned as they are, unless
                something changes the tower.
            prompts: (n, d) or (B, n, d), appended after the patches, without positions, before `ln_pre`.
            deep: Block index -> prompts (n, d) or (B, n, d) that replace the last n tokens before it.
            layer: Called for every block in place of it, as `layer(index, block, x, None) -> x`, x (B, tokens, d).
            local: Also return the dense features; None: where the batch asks for them, `Images.dense`.
            changes: Block index -> what is changed in that block, for all tokens.
            inserted: Block index -> tokens (n, d) or (B, n, d) appended before it, where they stay; those of the next
                index replace them. Afterwards they are `ImageFeatures.inserted`.

        Raises:
            UsageError: If the tower cannot take what is asked of it, such as prompts in a ResNet.
        """
        if layer is not None and (changes or inserted):
            raise ValueError("`layer` runs the blocks itself: it goes with no changes and no inserted tokens")
        prompted, within = prompts is not None or bool(deep), bool(changes or inserted)
        changed = prompted or within or layer is not None
        local = isinstance(images, Images) and images.dense if local is None else local
        if isinstance(images, Images):
            if not changed and images.features is not None and (images.features.local is not None or not local):
                return images.features
            if images.pixels is None:
                raise ValueError("this batch carries cached features only, and the image tower must run on its pixels")
            images = images.pixels
        visual, (height, width) = self.clip.visual, images.shape[-2:]
        if image_tower.is_standard(visual) and (height, width) != (self.resolution, self.resolution):
            R = self.resolution
            raise UsageError(
                f"Backbone '{self.name}' takes images of {R} x {R} pixels, not {height} x {width}: resize and crop "
                f"them, as EvaluationTransform({R}, mean=backbone.mean, std=backbone.std) does."
            )
        if not changed and not local and not image_tower.is_standard(visual):
            found = visual(images)  # CoCa's gives tokens too
            return ImageFeatures(found[0] if isinstance(found, tuple) else found)
        image_tower.check(visual, self.name, prompted, replaced=layer is not None, changed=within)
        return image_tower.encode(visual, images, prompts, deep or {}, layer, local, changes or {}, inserted or {})

    def images_in_cache(self, images: int) -> int:
        """How many of so many images are best encoded in one go without gradients: all, or what a CPU's cache holds."""
        if self.device.type != "cpu" or not image_tower.is_standard(self.clip.visual):
            return images
        return min(images, max(1, CACHED // (4 * self.vision_width * (1 + self.patches))))

    def write_on_image(self, features: Tensor) -> Tensor:
        """Joint features (..., D) in the image tower's width, (..., d), their entries 1 in the root mean square.

        Added to a state after the last block, they move its feature towards what they were, as far as the tower's last
        normalisation and projection allow.
        """
        written = features.float() @ self._to_image.to(features.device)
        return written / written.pow(2).mean(dim=-1, keepdim=True).sqrt()

    @cached_property
    def _to_image(self) -> Tensor:
        """(D, d), the pseudo-inverse of what the image tower does to a centred state after its last block."""
        image_tower.check(self.clip.visual, self.name, replaced=True)
        return image_tower.inverse_projection(self.clip.visual)

    def project_local(self, tokens: Tensor) -> Tensor:
        """Dense features (..., `local_width`), as in `ImageFeatures.local_unprojected`, in the joint space (..., D)."""
        return image_tower.project(self.clip.visual, tokens)


def facts_of(module: nn.Module) -> list[Any]:
    """What a module computes besides its tensors: settings, and its kind where it has nothing but that."""
    found: list[Any] = [[name, getattr(module, name)] for name in FACTS if hasattr(module, name)]
    bare = not list(module.children()) and not list(module.parameters())
    return [*found, type(module).__name__] if bare and not isinstance(module, INERT) else found
