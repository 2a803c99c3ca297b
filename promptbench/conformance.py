"""What every method must keep, checked on one: for the tests of promptbench, and for yours.

    from promptbench import conformance, load_backbone
    conformance.check_method(MyMethod, load_backbone("mini"))     # [] or one sentence for each thing that is wrong

The checks follow what a method declares: one that trains nothing needs no gradients, one that does not transfer is
asked for no other classes. They need neither data nor a test framework.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import yaml
from torch import Tensor

from promptbench.backbone import Backbone
from promptbench.config import build, to_mapping
from promptbench.images import Images
from promptbench.method import Method, Prediction, fit_to_backbone, instantiate, show_training_images
from promptbench.weightless import vit_b16

CLASSES = ("golden retriever", "jack-o'-lantern", "sea_lion")
OTHER_CLASSES = ("pizza", "tabby cat", "2012 Ferrari 458 Italia Coupe", "abbey", "airplane_cabin")
FRAMEWORK = ("cli", "features", "loading", "planning", "results", "runner", "training", "trainings")
ROUNDING = 1e-4  # of logits up to 100, when the same image comes in another batch

Check = Callable[[type[Method], Backbone], Iterator[str]]


def check_method(cls: type[Method], backbone: Backbone) -> list[str]:
    """What is wrong with a method, a sentence each; empty if it keeps the contract.

    Args:
        cls: The method, with a `Config` whose defaults suffice.
        backbone: To run it on; a small one does.
    """
    return [failure for check in CHECKS for failure in run_check(check, cls, backbone)]


def run_check(check: Check, cls: type[Method], backbone: Backbone) -> list[str]:
    """Failures of one check; an exception on the way is one of them."""
    what = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        return [f"{cls.__name__}, {what}: {failure}" for failure in check(cls, backbone)]
    except Exception as error:  # whatever a method's code does
        return [f"{cls.__name__}, {what}: {type(error).__name__}: {error}"]


# A method at work ---------------------------------------------------------------------------------------------------


def make(cls: type[Method], backbone: Backbone, names: Sequence[str] = CLASSES, seed: int = 0) -> Method:
    """The method with its defaults, as a run makes it: instantiated, shown its training images."""
    config = fit_to_backbone(cls.Config(), backbone, explicit=())
    method = instantiate(cls, config, backbone, names, seed)
    images, labels = batch(backbone)
    show_training_images(method, [(Images(images), labels)], seed)
    return method


def make_moved(cls: type[Method], backbone: Backbone) -> Method:
    """The same, its learned tensors moved off their first values, where a gradient may vanish by symmetry."""
    method = make(cls, backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(parameter.new_tensor(0.05 * torch.randn(parameter.shape, generator=generator).numpy()))
    return method


def batch(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Six images (6, 3, R, R) of noise and their labels, two of each class."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2 * len(CLASSES), 3, backbone.resolution, backbone.resolution, generator=generator)
    labels = torch.arange(len(images)) % len(CLASSES)
    return images.to(backbone.device), labels.to(backbone.device)


@torch.no_grad()
def predict(method: Method, images: Images | Tensor) -> Prediction:
    """What the method says, with nothing recorded for gradients."""
    prediction: Prediction = method(images)
    return prediction


def take_steps(method: Method, images: Images | Tensor, labels: Tensor, steps: int, seed: int = 0) -> None:
    """Steps of SGD as training takes them, then the end of an epoch; the method's own draws come from `seed`."""
    method.train()
    groups = [{key: value for key, value in group.items() if key != "lr_scale"} for group in method.parameter_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.002, momentum=0.9, weight_decay=5e-4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.stack(list(method.loss(images, labels).values())).sum().backward()
            optimizer.step()
        with torch.no_grad():
            method.on_epoch_end(0, 1)
    method.eval()


# The checks ---------------------------------------------------------------------------------------------------------


def check_docstring_names_paper_and_code(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    docstring = sys.modules[cls.__module__].__doc__ or ""
    if "arXiv" not in docstring:
        yield "the module's docstring names no arXiv id"
    if "https://" not in docstring:
        yield "the module's docstring has no URL of the authors' code"


def check_source_leaves_the_framework_its_work(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[cls.__module__]))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PLACING:
            yield f"line {node.lineno} calls .{node.func.attr}(): devices and precision belong to the framework"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno} prints"
        elif isinstance(node, ast.Constant) and type(node.value) is int and node.value in (512, 768, 1024):
            yield f"line {node.lineno} has the literal {node.value}: ask the backbone for widths"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").removeprefix("promptbench.") in FRAMEWORK:
            yield f"line {node.lineno} imports {node.module}: a method imports no training, runner or results"


_PLACING = ("cuda", "cpu", "half", "to")


def check_settings_are_typed(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    config = cls.Config()
    if build(cls.Config, yaml.safe_load(yaml.safe_dump(to_mapping(config))), "YAML") != config:
        yield "its default Config is another one after a trip through YAML"
    for key, recipe in cls.recipes.items():
        build(cls.Config, recipe.overrides, f"the recipe {key}")
    for name, preset in cls.presets.items():
        build(cls.Config, preset.config, f"the preset {name}")
    if cls.trains and not cls.recipes:
        yield "it trains and has no recipe"
    if not cls.category:
        yield "it has no category"


def check_seed_alone_decides_the_first_values(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    before = torch.get_rng_state()
    one, other = make(cls, backbone, seed=3).state_dict(), make(cls, backbone, seed=3).state_dict()
    if not torch.equal(before, torch.get_rng_state()):
        yield "making it changes the global generator"
    if any(not torch.equal(tensor, other[name]) for name, tensor in one.items()):
        yield "the same seed gives other first values"


def check_state_is_what_is_learned(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    method = make(cls, backbone)
    learned = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    if set(method.state_dict()) != set(learned):
        yield f"its state dict holds what is not learned: {sorted(set(method.state_dict()) ^ set(learned))}"
    if bool(learned) != cls.trains:
        yield f"trains is {cls.trains}, and it has {len(learned)} learned tensors"
    for name, parameter in learned.items():
        if parameter.dtype != torch.float32 or parameter.device != backbone.device:
            yield f"{name} is {parameter.dtype} on {parameter.device}"
    grouped = {id(p) for group in method.parameter_groups() for p in group["params"]}
    if grouped != {id(p) for p in learned.values()}:
        yield "parameter_groups() leaves out learned tensors, or holds others"
    if {id(p) for p in method.official_parameters().values()} - {id(p) for p in learned.values()}:
        yield "official_parameters() names tensors that are not learned"


def check_prediction_has_its_shape(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    method, (images, _) = make_moved(cls, backbone), batch(backbone)
    prediction = predict(method, images)
    shape = (len(images), len(CLASSES))
    for name, scores in (("logits", prediction.logits), ("cosines", prediction.cosines)):
        if tuple(scores.shape) != shape or scores.dtype != torch.float32:
            yield f"{name} are {scores.dtype} {tuple(scores.shape)}, not float32 {shape}"
        elif not scores.isfinite().all():
            yield f"{name} are not finite"
    local = prediction.local
    if local is not None and (local.dim() != 3 or (local.shape[0], local.shape[2]) != shape):
        yield f"local is {tuple(local.shape)}, not (B, P, K)"
    alone = torch.cat([predict(method, image.unsqueeze(0)).logits for image in images])
    if not torch.allclose(alone, prediction.logits, atol=ROUNDING, rtol=ROUNDING):
        yield "an image's logits depend on the images beside it"
    if not torch.equal(predict(method, Images(images)).logits, prediction.logits):
        yield "pixels and an Images batch of them give other logits"


def check_gradients_reach_everything_learned(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    if not cls.trains:
        return
    method, (images, labels) = make_moved(cls, backbone).train(), batch(backbone)
    with torch.random.fork_rng(devices=[]):
        terms = method.loss(images, labels)
    for name, term in terms.items():
        if term.dim() or not term.isfinite():
            yield f"the loss term {name!r} is {term.tolist()}, not one finite number"
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in method.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            yield f"no gradient reaches {name}"
        elif not parameter.grad.isfinite().all():
            yield f"the gradient of {name} is not finite"
    if any(parameter.grad is not None or parameter.requires_grad for parameter in backbone.clip.parameters()):
        yield "CLIP's weights got gradients"


def check_training_repeats_and_leaves_clip_alone(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    if not cls.trains:
        return
    images, labels = batch(backbone)
    clip = {name: tensor.clone() for name, tensor in backbone.clip.state_dict().items()}
    one, other = make(cls, backbone), make(cls, backbone)
    first = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    take_steps(one, images, labels, steps=2)
    take_steps(other, images, labels, steps=2)
    if any(not torch.equal(tensor, clip[name]) for name, tensor in backbone.clip.state_dict().items()):
        yield "training changed CLIP's weights"
    trained = one.state_dict()
    if set(trained) != set(first):
        yield "training changed what its state dict holds"
    if any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in trained.items()):
        yield "the same training twice gives other tensors"
    if all(torch.equal(tensor, first[name]) for name, tensor in trained.items()):
        yield "two steps changed nothing"


def check_saved_tensors_give_the_same_logits(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    method, (images, _) = make_moved(cls, backbone), batch(backbone)
    other = make(cls, backbone, seed=5)
    predict(other, images)  # text features that were encoded before loading must not survive it
    other.load_state_dict(method.state_dict())
    if not torch.equal(predict(method, images).logits, predict(other, images).logits):
        yield "another instance with its state dict gives other logits"


def check_other_classes(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    method, (images, _) = make_moved(cls, backbone), batch(backbone)
    before = predict(method, images).logits
    if method.transfers:
        method.set_classes(OTHER_CLASSES)
        other = predict(method, images).logits
        if tuple(other.shape) != (len(images), len(OTHER_CLASSES)) or not other.isfinite().all():
            yield f"logits for {len(OTHER_CLASSES)} other classes are {tuple(other.shape)}, or not finite"
        method.set_classes(OTHER_CLASSES[::-1])
        if not torch.allclose(predict(method, images).logits.flip(1), other, atol=ROUNDING, rtol=ROUNDING):
            yield "the order of the classes changes their logits"
        method.set_classes(OTHER_CLASSES[:1])
        if tuple(predict(method, images).logits.shape) != (len(images), 1):
            yield "a single class cannot be scored"
    elif not method.transfers_reason:
        yield "it does not transfer and gives no transfers_reason"
    method.set_classes(CLASSES)
    if not torch.equal(predict(method, images).logits, before):
        yield "setting the same classes again gives other logits"


def check_cached_features_equal_fresh_ones(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    if not cls.frozen_image_tower:
        return
    method, (images, labels) = make_moved(cls, backbone), batch(backbone)
    with torch.no_grad():
        cached = Images(features=backbone.encode_image(images))
    if not torch.equal(predict(method, images).logits, predict(method, cached).logits):
        yield "frozen_image_tower is True, and cached image features give other logits"
    if cls.trains:
        take_steps(method, cached, labels, steps=1)


def check_parameters_on_vit_b16(cls: type[Method], backbone: Backbone) -> Iterator[str]:
    large = vit_b16()
    method = cls(fit_to_backbone(cls.Config(), large, explicit=()), large)
    counted = sum(parameter.numel() for parameter in method.parameters())
    if counted != cls.parameters_vit_b16:
        yield f"parameters_vit_b16 is {cls.parameters_vit_b16}, and on ViT-B/16 it learns {counted}"


CHECKS: tuple[Check, ...] = (
    check_docstring_names_paper_and_code,
    check_source_leaves_the_framework_its_work,
    check_settings_are_typed,
    check_seed_alone_decides_the_first_values,
    check_state_is_what_is_learned,
    check_prediction_has_its_shape,
    check_gradients_reach_everything_learned,
    check_training_repeats_and_leaves_clip_alone,
    check_saved_tensors_give_the_same_logits,
    check_other_classes,
    check_cached_features_equal_fresh_ones,
    check_parameters_on_vit_b16,
)
