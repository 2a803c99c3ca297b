"""The contract of a method: one module, one class, one paper.

A method holds learned tensors and says how they turn images into class scores. Freezing, optimiser, schedule,
precision, devices, data and metrics belong to the framework. See README, "Add a method", for one in under 40 lines.

Letters: B images, K classes, P patches, D joint dimension.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptbench import registry
from promptbench.clip import prompts
from promptbench.clip.backbone import Backbone
from promptbench.clip.controls import noise_like
from promptbench.clip.image_tower import ImageFeatures, Images
from promptbench.config import UsageError, build, overrides, to_mapping
from promptbench.data.class_names import FROM_DATASET, ClassNames
from promptbench.data.transforms import SCALE
from promptbench.recipe import CONTROLS, NOISE, RANDOM, Preset, Recipe, find_preset, parse_label

__all__ = ["ImageFeatures", "Images", "Method", "MethodConfig", "Prediction", "Preset", "Recipe", "create_method"]


SHOWN = 4  # class names in a repr
ALWAYS = -1  # state of text features that no learned tensor can change


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of every method's `Config`: frozen, keyword-only, defaults from the paper, sources in the metadata.

    Integers count things, tokens or layers, and are at least 1 unless a field's metadata has another `at_least`.

    A field whose metadata says `template` takes `dataset`, too: the method then sees the first template of the classes
    that it is made for, those of its training. A field with `tokens_of` another, `ctx_init`, in its metadata is the
    number of context tokens, None for as many as the words there; with `dataset` it becomes None unless asked for.
    One with `trains` False changes nothing that is learned: runs that differ in such fields alone share a training.

    Raises:
        UsageError: A number is below its limit.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), field.metadata.get("at_least", 1)
            if type(value) is int and value < least:
                raise UsageError(f"{field.name!r} takes an integer of at least {least}, not {value}.")

    @classmethod
    def untrained(cls) -> set[str]:
        """Names of the fields that change nothing that is learned."""
        return {field.name for field in fields(cls) if not field.metadata.get("trains", True)}


@dataclass(frozen=True)
class Prediction:
    """What a method says of B images and K classes.

    Attributes:
        logits: (B, K), float32, scaled; accuracy is taken from these.
        cosines: (B, K), float32, unscaled similarity of the global image feature, mean over prompts; None for a
            method that compares images with no text.
        local: (B, P, K), unscaled similarities of all patches, or None.
    """

    logits: Tensor
    cosines: Tensor | None
    local: Tensor | None = None


class Method(nn.Module):
    """Base class of all methods.

    A subclass defines parameters in `__init__`, class tokens in `set_classes`, and what differs from CLIP of
    `encode_classes`, `encode_images` and `forward`. The backbone is at hand as `self.backbone`; it is not a submodule,
    so the state dict holds learned tensors alone.

    Attributes:
        category: Where the prompts go, as shown by `promptbench list methods`: text, visual, multi-modal, adapter,
            cache or baseline, which is its colour in plots, and behind a comma what else there is to say.
        title: What tables call it; "" for what stands before the colon of its module's docstring, or else its name.
        reconstructed: True for a method rebuilt without its authors' code; tables mark it and never rank it.
        parameters_vit_b16: Learned parameters with the default config on ViT-B/16 (a literal; a test counts them).
        recipes: (protocol or "*", dataset or "*") -> how to train there.
        presets: Name -> another fair setting, chosen as `method@name`.
        trains: False where there is nothing to train.
        transfers: False where new classes cannot be scored, `subset` where any of the trained ones can, alone or in
            another order, as of a method with a tensor's row for each; `transfers_reason` then says why.
        authors_templates: The authors' template of a dataset by its name, where it is another than the dataset's.
        guides: Terms of the loss that are not minimised, and whose gradients `combine_gradients` alone sees.
        shown_views: Random views of each training image that `prepare` is shown; 0 for the evaluation transform.
        shown_scale: Smallest and largest share of the area that their random crops take.
        validates: Validation images that `choose` is shown: `few` (CoOp's, at most 4 of a class), `all`, "" for none.
        kept: Buffers that are stored with what is learned, since it takes the training images to make them again: with
            them it scores, and is exported, where no training image is. What has no size before `prepare` begins with a
            size of 0 in `__init__`; a method that trains nothing is stored for them alone. None, in a method that has
            `prepare`, where what that makes is in no buffer, so that nobody can use it after its run.
        dense_scores: True where the authors score images by dense features too; elsewhere such scores are ours.
        frozen_image_tower: True where image features do not depend on what is learned, so that they may be cached.
        reads_dense: True where it reads dense features; cached ones then come with them.
        authors_half: Learned tensors, by the beginnings of their names, that the authors' code keeps in half precision,
            which `--precision authors` does too; None where it trains with `16-mixed`.
        official_unused: Beginnings of names in the authors' checkpoints that stand for nothing learned here.
        learned_prompts: Learned tensors that are prompts (..., n, d), by the beginnings of their names; such a method
            has the preset `random`, which evaluates what it learned with random prompts of the same norms.
        image_conditional: True where it makes prompts from an image, by way of `self.condition`; such a method has the
            preset `noise`, which is trained and evaluated on noise in the place of the image.
        controls: Of itself, "", or of a preset, `@ftp`: its controls, and what each takes away, half a sentence. A
            control is a preset, `@ftp-noise`, or another method's label; `noise` and `random` need no entry. They are
            literals, which `promptbench evidence controls` reads.
        baseline: Of itself, "", or of a preset: what every other method has and it has not; so it is a control of all.
        reads_frozen: When it reads what frozen CLIP says of the images, (B, D), beside what its own image tower does: in
            `training`, or `always`, or never, "". That then comes with the pixels where it is kept, and
            `backbone.encode_image(images)`, which returns it, is no pass through the tower.
        half_dense: True where dense features may be cached in half precision, which changes their last digits.
        tries: How many settings `choose` tries; 0 where it does not say.
        settings_by_dataset: Whether its settings differ from dataset to dataset, apart from what recipes say.
        texts_told: What it has been told of the words around class names: nothing of a dataset (`generic`), a dataset's
            template, or an `ensemble` of several.
        encodes_images_apart: True where it leaves `forward` as it is, so that image features know nothing of the
            classes. This one and the next three say what a class overrides, and are set when it is defined.
        has_text_features: True where class names become text features, which do not depend on the images.
        prepares: True where it looks at the training images once before training.
        combines_gradients: True where the optimiser gets something else than the gradient of the loss.
        has_diagnostics: True where it has figures of its own.
    """

    plugin_kind: ClassVar[str] = "method"
    category: ClassVar[str] = ""
    title: ClassVar[str] = ""
    reconstructed: ClassVar[bool] = False
    parameters_vit_b16: ClassVar[int] = 0
    recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = {}
    presets: ClassVar[Mapping[str, Preset]] = {}
    trains: ClassVar[bool] = True
    dense_scores: ClassVar[bool] = False
    frozen_image_tower: bool = False
    reads_dense: bool = False
    reads_frozen: Literal["", "training", "always"] = ""
    half_dense: ClassVar[bool] = False
    authors_half: ClassVar[tuple[str, ...] | None] = ()
    official_unused: ClassVar[tuple[str, ...]] = ()
    learned_prompts: ClassVar[tuple[str, ...]] = ()
    image_conditional: ClassVar[bool] = False
    controls: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    baseline: ClassVar[Mapping[str, str]] = {}
    transfers: bool | Literal["subset"] = True
    transfers_reason: str = ""
    authors_templates: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    guides: ClassVar[tuple[str, ...]] = ()
    shown_views: int = 0
    shown_scale: ClassVar[tuple[float, float]] = SCALE
    validates: Literal["", "few", "all"] = ""
    tries: int = 0
    settings_by_dataset: bool = False
    kept: ClassVar[tuple[str, ...] | None] = None
    encodes_images_apart: ClassVar[bool] = True
    has_text_features: ClassVar[bool] = False
    prepares: ClassVar[bool] = False
    combines_gradients: ClassVar[bool] = False
    has_diagnostics: ClassVar[bool] = False
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.encodes_images_apart = cls.forward is Method.forward
        cls.has_text_features = cls.encode_classes is not Method.encode_classes
        cls.prepares = cls.prepare is not Method.prepare
        cls.combines_gradients = cls.combine_gradients is not Method.combine_gradients
        cls.has_diagnostics = cls.diagnostics is not Method.diagnostics
        has = {NOISE: cls.image_conditional, RANDOM: bool(cls.learned_prompts)}
        cls.presets = {**cls.presets, **{name: CONTROLS[name] for name in has if has[name] and name not in cls.presets}}

    def __init__(self, config: MethodConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config: Any = config
        self.__dict__["backbone"] = backbone  # past nn.Module's registration: frozen weights are not part of a method
        self.class_names = self.trained_names = ClassNames(())
        self.texts_told: Literal["generic", "dataset", "ensemble"] = "generic"
        self.told: str = ""  # in the place of images
        self._text_features: tuple[tuple[int, ...], Tensor] | None = None

    backbone: Backbone

    def __repr__(self) -> str:
        """Three lines: the settings, what is learned on which backbone, and the classes."""
        names = ", ".join(self.class_names[:SHOWN]) + (", ..." if len(self.class_names) > SHOWN else "")
        learned = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"{type(self).__name__}({overrides(to_mapping(self.config))})\n"
            f"  {learned:,} learned parameters on {self.backbone.name}\n"
            f"  scores {len(self.class_names)} classes: {names or 'none yet'}"
        )

    def set_classes(self, names: Sequence[str]) -> None:
        """Score these classes from now on, in this order. Called again for other classes; learned tensors stay.

        Overrides begin with `super().set_classes(names)`. `self.templates_of_classes()` says what the names stand in.
        The first ones are those of the training, `trained_names`.

        Raises:
            UsageError: Some are not among the trained ones, and the method has rows for those alone.
        """
        names = ClassNames.of(names)
        if not self.trained_names:
            self.trained_names = names
        reason = self.refusal(names)
        if reason and self.transfers == "subset":
            raise UsageError(f"{type(self).__name__} cannot score these classes: {reason.rstrip('.')}.")
        self.class_names = names
        self._text_features = None

    def refusal(self, names: Sequence[str]) -> str:
        """Why these classes cannot be scored; "" where they can."""
        trained = self.trained_names
        if self.transfers is True or tuple(names) == tuple(trained):
            return ""
        if self.transfers == "subset" and set(names) <= set(trained):
            return ""
        return self.transfers_reason or "this method scores the classes that it was trained on only"

    def rows(self) -> list[int]:
        """Where the current classes stand among the trained ones, of a method that scores those alone.

        Of several that have one name, the first comes first.
        """
        places: dict[str, list[int]] = {}
        for row, name in enumerate(self.trained_names):
            places.setdefault(name, []).append(row)
        return [places[name].pop(0) if len(places[name]) > 1 else places[name][0] for name in self.class_names]

    def templates_of_classes(self, wanted: str = FROM_DATASET, names: ClassNames | None = None) -> tuple[str, ...]:
        """The templates that class names stand in, several for an ensemble.

        Args:
            wanted: One with `{}`; `dataset`: the authors' own of the dataset, or else the dataset's.
            names: Others than the current ones.
        """
        names = self.class_names if names is None else names
        if wanted != FROM_DATASET:
            return (wanted,)
        found = self.authors_templates.get(names.dataset, names.template)
        several = not isinstance(found, str) and len(found) > 1
        self.texts_told = "ensemble" if several or self.texts_told == "ensemble" else "dataset"
        return (found,) if isinstance(found, str) else tuple(found)

    def forward(self, images: Images | Tensor) -> Prediction:
        """Scores of B images for the current K classes.

        A method that does not override it promises that image features know nothing of the classes: each evaluated
        image is then encoded once, however many lists of classes it meets.
        """
        return self.classify(self.encode_images(images), self.text_features())

    def encode_images(self, images: Images | Tensor) -> ImageFeatures:
        """Image features of B images, not normalised; dense ones too where the batch asks for them."""
        return self.backbone.encode_image(images)

    def loss(self, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Named scalar terms whose sum, without the `guides`, is minimised; `labels` (B,) int64 index the classes."""
        return {"ce": F.cross_entropy(self(images).logits, labels)}

    def images_at_once(self) -> int | None:
        """How many images of a batch are scored and differentiated together in training; None: all of them.

        For a method whose activations grow with images times classes: as many as fit the backbone's memory budget. Its
        loss must then be a mean over images and draw nothing at random.
        """
        return None

    def prepare(self, batches: Iterable[tuple[Images, Tensor]]) -> None:
        """Look at the training images once before training, e.g. to build a cache model.

        Learned tensors may be made here. What is not learned is stored where `kept` names it. A run shows the same
        images again before it loads a stored training; whoever only scores with it does not.

        Args:
            batches: All training images under the evaluation transform, in order, with their labels (B,); or, with
                `shown_views`, so many random views of them, the first of each in order, then the second. Read lazily:
                a method that does not need them costs nothing.
        """

    def choose(self, batches: Iterable[tuple[Images, Tensor]]) -> None:
        """Look at validation images once after training, to choose by them what no gradient teaches.

        What is chosen belongs into buffers that `kept` names.

        Args:
            batches: The images that `validates` asks for, under the evaluation transform, with their labels (B,).
        """

    def combine_gradients(self, gradients: Mapping[str, list[Tensor]]) -> list[Tensor]:
        """What the optimiser gets as the gradient of each learned tensor, in the order of `parameters()`.

        It is called once a step, with the gradients over all of the step's images.

        Args:
            gradients: Term of the loss to its gradients.
        """
        raise NotImplementedError  # the trainer calls it where a method overrides it

    @classmethod
    def sees_images(cls) -> bool:
        """Whether it looks at training images: to learn from them, or in `prepare`."""
        return cls.trains or cls.prepares

    @classmethod
    def is_stored(cls) -> bool:
        """Whether its run leaves tensors on disk: what it learned, and what `kept` names."""
        return cls.trains or bool(cls.kept)

    def on_epoch_end(self, epoch: int, epochs: int) -> None:
        """Called after each of `epochs` epochs, counted from 0: weight averaging and the like."""

    def training_state(self) -> dict[str, Tensor]:
        """What the method keeps from one epoch to the next and its state dict does not hold: running averages and such.

        A training that was killed is continued from tensors on disk, these among them; without them it would go on
        differently. What the framework's generators draw and what `prepare` computes is not part of it.
        """
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `training_state` gave after an earlier epoch, before the next one begins."""

    def diagnostics(self, images: Images | Tensor) -> dict[str, float]:
        """Figures of the method's own about B images and the current classes, stored with each evaluation."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser; a group may override `lr` (as a factor `lr_scale`) and `weight_decay`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def prompts_learned(self) -> dict[str, nn.Parameter]:
        """The learned tensors that are prompts, by name."""
        return {name: tensor for name, tensor in self.named_parameters() if name.startswith(self.learned_prompts)}

    def official_parameters(self) -> dict[str, nn.Parameter]:
        """Name in a checkpoint of the authors' code -> the parameter it fills."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Give learned tensors and buffers that are empty until `prepare` the shapes of stored ones, where those fit:
        sizes other than 0 are known before."""
        for name, tensor in self.state_dict(keep_vars=True).items():
            if tensor.numel() or name not in tensors:
                continue
            shape, known = tensors[name].shape, tensor.shape
            if len(shape) == len(known) and all(own in (0, size) for own, size in zip(known, shape, strict=True)):
                tensor.data = tensor.new_empty(shape)

    # What most methods share ------------------------------------------------------------------------------------

    def encode_classes(self) -> Tensor:
        """Text features of the current classes, (K, D) or with leading axes, not normalised."""
        raise NotImplementedError(f"{type(self).__name__} calls text_features() and defines no encode_classes()")

    def text_features(self) -> Tensor:
        """`encode_classes()`, computed once for as long as the classes and what it depends on stay the same."""
        learns = torch.is_grad_enabled()
        precision = torch.is_autocast_enabled(self.backbone.device.type)
        versions = [(id(parameter), parameter._version) for parameter in self.parameters()]
        state = (precision, self.training, *itertools.chain.from_iterable(versions))
        if self._text_features is not None:
            known, features = self._text_features
            if known == (precision, ALWAYS) or (known == state and not learns):
                return features
        features = self.encode_classes()
        if not learns:
            self._text_features = (state, features)
        elif not features.requires_grad:  # nothing learned is in it
            self._text_features = ((precision, ALWAYS), features)
        return features

    def condition(self, features: Tensor) -> Tensor:
        """What an image-conditional method makes prompts from: features (B, D) of images as they are, or in a control
        noise of their mean and standard deviation, another one in each step of the training."""
        return noise_like(features, fresh=self.training) if self.told == NOISE else features

    def classify(self, image: ImageFeatures | Tensor, text: Tensor) -> Prediction:
        """Scaled cosines of image features, (B, D) if a tensor, and text features (K, D) or (B, K, D)."""
        image, local = (image.cls, image.local) if isinstance(image, ImageFeatures) else (image, None)
        with torch.autocast(image.device.type, enabled=False):  # in float32 under any precision
            text = F.normalize(text.float(), dim=-1)
            cosines = (F.normalize(image.float(), dim=-1).unsqueeze(1) @ text.mT).squeeze(1)
            dense = None if local is None else F.normalize(local.float(), dim=-1) @ text.mT  # (B, P, K)
            return Prediction(self.backbone.logit_scale.float() * cosines, cosines, dense)


def create_method(
    name: str, backbone: Backbone, class_names: Sequence[str], *, seed: int = 0, **config: object
) -> Method:
    """A method on a backbone, ready to score `class_names`.

    Args:
        name: A registered method, with a preset if wanted: `coop`, `zeroshot@generic`.
        backbone: From `load_backbone`, or a `Backbone` around any open_clip model.
        class_names: K names; a `ClassNames` brings the dataset's template along.
        seed: Draws the random initial values; the global generators are left as they were.
        **config: Fields of the method's `Config`.

    Raises:
        UsageError: On an unknown method, preset or field, or a value that the backbone cannot carry.
    """
    plugin, preset = parse_label(name)
    cls = registry.load("methods", plugin)
    values = {**(find_preset(cls, plugin, preset).config if preset else {}), **config}
    resolved = fit_to_backbone(build(cls.Config, values, f"method '{name}'"), backbone, explicit=config)
    condition = find_preset(cls, plugin, preset).condition if preset else ""
    return instantiate(cls, resolved, backbone, class_names, seed, condition)


def fit_to_backbone(config: MethodConfig, backbone: Any, explicit: Collection[str]) -> MethodConfig:
    """`config` with every field whose metadata names a limit, `at_most`, brought within what the backbone has.

    A paper's depth of 9 cannot hold on a tower of 4 layers: such a default is capped, or scaled where its metadata say
    of which depth it is, `of_depth`; a value that somebody asked for is refused instead. With `below` in the metadata
    it has to stay below the limit, as the index of a layer. In the same way a number of tokens gives way to the words
    of a dataset's template.

    Args:
        config: Of any method.
        backbone: A `Backbone`, or anything with its `name` and the limits, such as `text_depth`.
        explicit: Fields that somebody asked for.

    Raises:
        UsageError: If a field named in `explicit` exceeds its limit, or the backbone has none of what a field counts.
    """
    changes: dict[str, int] = {}
    for field in fields(config):
        limits, depth = field.metadata.get("at_most", ()), field.metadata.get("of_depth")
        below = field.metadata.get("below", False)
        if depth and field.name not in explicit:
            limit = min(limits, key=lambda limit: getattr(backbone, limit))
            most = getattr(backbone, limit)
            if not most:
                raise beyond(field, getattr(config, field.name), limit, backbone)
            changes[field.name] = min(math.ceil(getattr(config, field.name) * most / depth), most - below)
            continue
        for limit in limits:
            value, most = changes.get(field.name, getattr(config, field.name)), getattr(backbone, limit)
            least = field.metadata.get("at_least", 1)
            if value > most - below and (field.name in explicit or most - below < least):
                raise beyond(field, value, limit, backbone)
            changes[field.name] = min(value, most - below)
    counted = set(counted_by_dataset(config)) - set(explicit)
    return replace(config, **{**changes, **dict.fromkeys(counted)})


def beyond(field: Field[Any], value: int, limit: str, backbone: Any) -> UsageError:
    """A field that is above what the backbone has, or that needs what the backbone lacks."""
    name, must = field.name, ", and it must stay below" if field.metadata.get("below") else ""
    most = getattr(backbone, limit)
    wrong = "" if most else getattr(backbone, "lacks", {}).get(limit, "")
    if wrong:
        return UsageError(
            f"Backbone '{backbone.name}' has {wrong}, and {name} counts layers of it that get prompts: choose a ViT "
            "such as ViT-B-16, or a method that prompts the text alone."
        )
    return UsageError(f"{name} is {value}, but {limit} of backbone '{backbone.name}' is {most}{must}.")


def counted_by_dataset(config: MethodConfig) -> Iterator[str]:
    """The numbers of tokens that a dataset's template decides, by their fields."""
    for field in fields(config):
        words = field.metadata.get("tokens_of", "")
        if words and getattr(config, words) == FROM_DATASET:
            yield field.name


def worded(config: MethodConfig, backbone: Backbone, class_names: Sequence[str]) -> MethodConfig:
    """`config` with the template of the classes for every `dataset` of a field that takes it.

    Raises:
        UsageError: A number of tokens that somebody asked for is not the one of its words.
    """
    template = ClassNames.of(class_names).first_template
    for name in counted_by_dataset(config):
        asked, found = getattr(config, name), prompts.length_of(backbone, prompts.words_of(template))
        if asked not in (None, found):
            raise UsageError(
                f"{name} is {asked}, but the dataset's template '{template}' has {found} tokens before the class name; "
                f"leave {name} out, or set it to none."
            )
    takes = [field.name for field in fields(config) if field.metadata.get("template")]
    return replace(config, **{name: template for name in takes if getattr(config, name) == FROM_DATASET})


def instantiate(
    cls: type[Method],
    config: MethodConfig,
    backbone: Backbone,
    class_names: Sequence[str],
    seed: int,
    condition: str = "",
) -> Method:
    """`cls` with a resolved config, in evaluation mode, its initial values drawn from `seed` alone.

    `class_names` are those of its training, whose template it may start from; set others afterwards. `condition` is
    what a preset says that it is told in the place of images.
    """
    asked, config = config, worded(config, backbone, class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = cls(config, backbone)
        method.set_classes(class_names)
    method.told = condition
    if config != asked and method.texts_told == "generic":
        method.texts_told = "dataset"
    return method.to(backbone.device).eval()


@torch.no_grad()
def show_training_images(method: Method, batches: Iterable[tuple[Images, Tensor]], seed: int) -> None:
    """`method.prepare` on the backbone's device, without gradients, what it draws coming from `seed` alone."""
    device = method.backbone.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method.prepare((images.to(device), labels.to(device)) for images, labels in batches)
    method.to(device)


@torch.no_grad()
def show_validation_images(method: Method, batches: Iterable[tuple[Images, Tensor]]) -> None:
    """`method.choose` on the backbone's device, without gradients."""
    device = method.backbone.device
    method.choose((images.to(device), labels.to(device)) for images, labels in batches)
    method.to(device)
