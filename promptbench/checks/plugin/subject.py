"""A method on the session: what the conformance kit makes of a class, and what it does with it.

Letters: B images, R resolution in pixels.
"""

from __future__ import annotations

import copy
import sys
import textwrap
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from promptbench.clip.backbone import Backbone
from promptbench.clip.image_tower import Images
from promptbench.clip.text_tower import Tokens
from promptbench.method import Method, MethodConfig, Prediction, fit_to_backbone, instantiate, show_training_images
from promptbench.training.fit import backward

CLASSES = ("golden retriever", "jack-o'-lantern", "sea_lion")
OTHER_CLASSES = ("pizza", "tabby cat", "2012 Ferrari 458 Italia Coupe", "abbey", "airplane_cabin")


class NotConcerned(Exception):
    """A check has nothing to say of this method; the message says why."""


@dataclass(frozen=True)
class Specimen:
    """A method's class, the backbone it runs on, and its settings.

    Attributes:
        cls: The class.
        backbone: A small one does.
        config: An instance of its `Config`.
        class_names: Those that it is made for.
        condition: What it is told in the place of images, in a control.
    """

    cls: type[Method]
    backbone: Backbone
    config: MethodConfig
    class_names: Sequence[str] = CLASSES
    condition: str = ""

    def fresh(self) -> Specimen:
        """The same on a copy of the backbone, so that whatever a method does to it ends with one check."""
        shared = {id(self.backbone.tokenizer): self.backbone.tokenizer}
        return replace(self, backbone=copy.deepcopy(self.backbone, shared))

    def make(self, seed: int = 0) -> Method:
        """The method as a run makes it: instantiated, then shown its training images."""
        method = self.unshown(seed)
        images, labels = batch(self.backbone)
        show_training_images(method, [(Images(images), labels)] * max(1, method.shown_views), seed)
        return method

    def unshown(self, seed: int = 0) -> Method:
        """The method before it is shown any image."""
        return instantiate(self.cls, self.config, self.backbone, self.class_names, seed, self.condition)

    def moved(self) -> Method:
        """The same, its learned tensors moved off their first values, where a gradient may vanish by symmetry."""
        method = self.make()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in learned(method).values():
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(parameter.new_tensor(noise.numpy()))
        return method

    def images(self) -> Tensor:
        """Six images of noise (6, 3, R, R), those of `batch`."""
        return batch(self.backbone)[0]

    def trained(self) -> None:
        """Raises NotConcerned where there is nothing to train."""
        if not self.cls.trains:
            raise NotConcerned("it trains nothing")


def specimen(cls: type[Method], backbone: Backbone, config: MethodConfig | None = None) -> Specimen:
    """A method with the settings given, or its default ones, as far as the backbone can carry those."""
    return Specimen(cls, backbone, config or fit_to_backbone(cls.Config(), backbone, explicit=()))


def batch(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Six images (6, 3, R, R) of noise and their labels, two of each class."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2 * len(CLASSES), 3, backbone.resolution, backbone.resolution, generator=generator)
    labels = torch.arange(len(images)) % len(CLASSES)
    return images.to(backbone.device), labels.to(backbone.device)


def learned(method: Method) -> dict[str, Tensor]:
    """The tensors that training changes, by name."""
    return {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def predict(method: Method, images: Images | Tensor, draws: int = 0) -> Prediction:
    """What the method says, with nothing recorded for gradients; what it draws comes from the seed `draws`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws)
        prediction: Prediction = method(images)
    return prediction


def loss_terms(method: Method, images: Images | Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The terms of its loss as training gets them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.train().loss(images, labels)


def take_steps(method: Method, images: Images | Tensor, labels: Tensor, steps: int, seed: int = 0) -> None:
    """Steps of SGD as training takes them, then the end of an epoch; the method's own draws come from `seed`."""
    method.train()
    groups = [{key: value for key, value in group.items() if key != "lr_scale"} for group in method.parameter_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.002, momentum=0.9, weight_decay=5e-4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            backward(method, images, labels)
            optimizer.step()
        with torch.no_grad():
            method.on_epoch_end(0, 1)
    method.eval()


def raised(error: BaseException, cls: type) -> str:
    """The exception in words, with the last line of the file of `cls` that was reached."""
    file = sys.modules[cls.__module__].__file__
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    message = textwrap.shorten(str(error), width=200)
    return f"{f'line {lines[-1]} raised ' if lines else ''}{type(error).__name__}: {message}"


# CLIP, which nothing may change ---------------------------------------------------------------------------------------


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """A copy of CLIP's weights."""
    return {name: tensor.clone() for name, tensor in backbone.clip.state_dict().items()}


def changed(backbone: Backbone, before: Mapping[str, Tensor]) -> list[str]:
    """The names of CLIP's tensors that are no longer what they were, bit for bit, or were not there."""
    now = backbone.clip.state_dict()
    there = [name for name in now if name in before]
    return [name for name in there if not torch.equal(now[name], before[name])] + sorted(now.keys() ^ before.keys())


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of some names and how many more there are: `a, b, c and 4 more`."""
    listed: Sequence[str] = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


class WeightlessBackbone(Backbone):
    """A backbone on the meta device: it tokenises, and its embeddings have a shape and no values."""

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (K, L) and positions of [EOT] (K,) as those of real weights."""
        ids = self.tokenizer(list(texts), context_length=self.context_length)
        eot = ids.argmax(dim=-1)
        return ids[:, : int(eot.max()) + 1], eot

    def embed_tokens(self, ids: Tensor, eot: Tensor) -> Tokens:
        """Embeddings (K, L, d) without values."""
        return Tokens(torch.empty(*ids.shape, self.text_width, device="meta"), eot, ids)


@cache
def vit_b16() -> Backbone:
    """OpenAI's ViT-B/16 as open_clip describes it."""
    import open_clip

    config = open_clip.get_model_config("ViT-B-16")
    assert config is not None  # open_clip's own
    with torch.device("meta"):
        clip = open_clip.CLIP(**config)
    return WeightlessBackbone(clip, open_clip.get_tokenizer("ViT-B-16"), name="ViT-B-16")
